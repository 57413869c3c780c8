//! Every interleaving of a thread that sleeps on a parker and of those who wake it: each wake-up ends
//! one sleep, and shows what was done before it.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;
use std::time::Duration;

use dftracer_core::sched::parker::{Parker, Unpark, Wakeup};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    models::check_with(3, model);
}

/// Somebody who sleeps until there are so many reasons to wake.
#[derive(Default)]
struct Sleeper {
    reasons: AtomicUsize,
    parker: Parker,
}

impl Sleeper {
    fn wake(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let this = self.clone();
        thread::spawn(move || {
            // Relaxed: the wake-up itself must make it visible.
            this.reasons.fetch_add(1, Ordering::Relaxed);
            this.parker.unpark();
        })
    }

    fn wait(&self, reasons: usize, mut sleep: impl FnMut(&Parker)) {
        while self.reasons.load(Ordering::Relaxed) < reasons {
            sleep(&self.parker);
        }
    }
}

fn join(wakers: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    wakers.into_iter().for_each(|waker| waker.join().expect("waker"));
}

#[test]
fn a_sleeper_sees_what_two_wake_it_for() {
    check(|| {
        let sleeper = Arc::new(Sleeper::default());
        let wakers = [sleeper.wake(), sleeper.wake()];
        sleeper.wait(2, Parker::park_until_notified);
        join(wakers);
    });
}

#[test]
fn one_that_gives_up_at_its_time_limit_loses_no_wake_up() {
    check(|| {
        let sleeper = Arc::new(Sleeper::default());
        let waker = sleeper.wake();
        let woken = sleeper.parker.park(Some(Duration::from_secs(3_600))) == Wakeup::Notified;
        if woken {
            assert_eq!(sleeper.reasons.load(Ordering::Relaxed), 1, "it sees the reason");
        } else {
            sleeper.parker.park_until_notified();
        }
        join([waker]);
        assert_eq!(sleeper.parker.park(Some(Duration::from_secs(3_600))), Wakeup::TimedOut);
    });
}

#[test]
fn two_that_wake_each_other_in_turn_both_go_on() {
    check(|| {
        let (ping, pong) = (Arc::new(Parker::default()), Arc::new(Parker::default()));
        let echo = {
            let (ping, pong) = (ping.clone(), pong.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    ping.park_until_notified();
                    pong.unpark();
                }
            })
        };
        for _ in 0..2 {
            ping.unpark();
            pong.park_until_notified();
        }
        join([echo]);
    });
}
