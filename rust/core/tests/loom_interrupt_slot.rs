//! Every interleaving of a worker that changes bodies and threads that want something of one.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::interrupt_slot::{IDLE, InterruptSlot, Marks};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    models::check_with(3, model);
}

/// What the interpreter keeps for a thread: an exception that its next Python code raises.
#[derive(Default)]
struct Thread {
    slot: InterruptSlot,
    pending: AtomicBool,
}

impl Thread {
    /// Runs a body that nobody interrupts, and one around it that somebody may.
    fn run(&self, task: i64, body: impl FnOnce()) -> bool {
        let outer = self.slot.enter(task);
        body();
        let interrupted = self.slot.leave(outer).interrupted();
        if interrupted {
            self.pending.store(false, Ordering::Relaxed);
        }
        interrupted
    }

    fn interrupt(&self, task: i64) -> bool {
        self.slot.reach(task, |marks| {
            self.pending.store(true, Ordering::Relaxed);
            marks.and_interrupted()
        })
    }
}

#[test]
fn an_interruption_never_hits_the_next_body() {
    check(|| {
        let worker = Arc::new(Thread::default());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let worker = worker.clone();
                thread::spawn(move || worker.interrupt(1))
            })
            .collect();
        let interrupted = worker.run(1, || {});
        worker.run(2, || assert!(!worker.pending.load(Ordering::Relaxed), "body 2 was hit"));
        assert!(!worker.pending.load(Ordering::Relaxed), "what comes after was hit");
        let reached = others.into_iter().map(|other| other.join().expect("other")).any(|hit| hit);
        assert_eq!(reached, interrupted);
    });
}

#[test]
fn an_interruption_never_hits_a_body_inside_or_around() {
    check(|| {
        let worker = Arc::new(Thread::default());
        let other = {
            let worker = worker.clone();
            thread::spawn(move || worker.interrupt(2))
        };
        worker.run(1, || {
            worker.run(2, || {
                worker.run(3, || {});
            });
            assert!(!worker.pending.load(Ordering::Relaxed), "the body around was hit");
        });
        other.join().expect("other");
        assert_eq!(worker.slot.task(), IDLE);
    });
}

#[test]
fn a_body_that_is_asked_to_stop_is_reached_or_sees_it() {
    check(|| {
        let slot = Arc::new(InterruptSlot::default());
        let asked = Arc::new(AtomicBool::new(false));
        let other = {
            let (slot, asked) = (slot.clone(), asked.clone());
            thread::spawn(move || {
                asked.store(true, Ordering::SeqCst);
                slot.reach(1, Marks::and_given_up)
            })
        };
        let outer = slot.enter(1);
        let mut sees = asked.load(Ordering::SeqCst);
        // Another body runs inside of it, and ends.
        let inner = slot.enter(2);
        assert!(inner.is_body());
        assert!(!slot.leave(inner).given_up());
        sees |= asked.load(Ordering::SeqCst);
        let given_up = slot.leave(outer).given_up();
        let reached = other.join().expect("other");
        assert_eq!(reached, given_up);
        // Else it was asked after its end.
        if !sees && !reached {
            assert_eq!(slot.task(), IDLE);
        }
    });
}

#[test]
fn a_body_that_runs_for_ever_is_reached_or_sees_that_it_was_asked() {
    check(|| {
        let slot = Arc::new(InterruptSlot::default());
        let (asked, found) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let other = {
            let (slot, asked, found) = (slot.clone(), asked.clone(), found.clone());
            thread::spawn(move || {
                asked.store(true, Ordering::SeqCst);
                if slot.reach(1, Marks::and_given_up) {
                    found.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let _never_left = slot.enter(1);
        let inner = slot.enter(2);
        let mut sees = asked.load(Ordering::SeqCst);
        let _ = slot.leave(inner);
        sees |= asked.load(Ordering::SeqCst);
        other.join().expect("other");
        assert!(sees || found.load(Ordering::SeqCst) == 1, "it runs on, and nobody knows");
    });
}
