//! Every interleaving of those who wake the thread of an event loop and of that thread, which spins
//! for a moment and then sleeps: it never sleeps on a wake-up.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::sched::lane::{Lane, Order, Rest};
use dftracer_core::sched::parker::Unpark;
use dftracer_core::sched::waker::LoopWaker;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    models::check_with(3, model);
}

/// What it is woken for, and the way to wake it.
struct Called {
    calls: AtomicUsize,
    waker: LoopWaker,
}

impl Called {
    fn new() -> Arc<Self> {
        Arc::new(Self { calls: AtomicUsize::new(0), waker: LoopWaker::new().expect("a model") })
    }

    fn call(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let this = self.clone();
        thread::spawn(move || {
            // Relaxed: the wake-up itself must make it visible.
            this.calls.fetch_add(1, Ordering::Relaxed);
            this.waker.unpark();
        })
    }
}

#[test]
fn a_sleeper_sees_every_wake_up() {
    check(|| {
        let called = Called::new();
        let callers = [called.call(), called.call()];
        while called.calls.load(Ordering::Relaxed) < callers.len() {
            called.waker.wait_readable();
            called.waker.acknowledge();
        }
        callers.into_iter().for_each(|caller| caller.join().expect("caller"));
    });
}

#[test]
fn one_that_spins_before_it_sleeps_sees_every_wake_up() {
    check(|| {
        let called = Called::new();
        let callers = [called.call(), called.call()];
        while called.calls.load(Ordering::Relaxed) < callers.len() {
            if !called.waker.spin() {
                called.waker.wait_readable();
                called.waker.acknowledge();
            }
        }
        callers.into_iter().for_each(|caller| caller.join().expect("caller"));
    });
}

#[test]
fn one_that_spins_twice_before_it_sleeps_sees_every_wake_up() {
    check(|| {
        let called = Called::new();
        let caller = called.call();
        while called.calls.load(Ordering::Relaxed) == 0 {
            if !called.waker.spin() && !called.waker.spin() {
                called.waker.wait_readable();
                called.waker.acknowledge();
            }
        }
        // A wake-up of before is over: the next one is seen, too.
        let other = called.call();
        while called.calls.load(Ordering::Relaxed) == 1 {
            if !called.waker.spin() {
                called.waker.wait_readable();
                called.waker.acknowledge();
            }
        }
        caller.join().expect("caller");
        other.join().expect("caller");
    });
}

/// A worker with an event loop, as those of coroutines are: it spins for a moment before it sleeps, and
/// other events may wake it.
struct Worker {
    lane: Arc<Lane<usize>>,
    waker: Arc<LoopWaker>,
}

impl Worker {
    /// A worker that was started for the job 0 and has taken it.
    fn new() -> Self {
        let lane = Arc::new(Lane::new(1));
        assert_eq!(lane.push(0), Order::StartWorker);
        lane.awake();
        assert_eq!(lane.pop().0, Some(0));
        Self { lane, waker: Arc::new(LoopWaker::new().expect("a model")) }
    }

    fn push(&self, job: usize) -> thread::JoinHandle<()> {
        let lane = self.lane.clone();
        thread::spawn(move || assert_eq!(lane.push(job), Order::Nothing))
    }

    fn wakeup(&self) -> Arc<dyn Unpark> {
        self.waker.clone()
    }

    /// No longer to be woken.
    fn stand_up(&self) -> bool {
        let is_chosen = self.lane.cancel_sleep(&self.wakeup());
        if is_chosen {
            self.lane.awake();
        }
        is_chosen
    }

    /// Takes so many jobs as the event loop does.
    fn take(&self, count: usize) -> Vec<usize> {
        let mut jobs = Vec::new();
        while jobs.len() < count {
            let (job, order) = self.lane.pop();
            assert_eq!(order, Order::Nothing);
            if let Some(job) = job {
                jobs.push(job);
                continue;
            }
            if self.lane.sleep(&self.wakeup(), false) != Rest::Sleep {
                continue;
            }
            if !self.waker.spin() {
                self.waker.wait_readable();
                self.waker.acknowledge();
            }
            self.stand_up();
        }
        jobs
    }
}

#[test]
fn a_worker_with_an_event_loop_takes_every_job() {
    check(|| {
        let worker = Worker::new();
        let pushers = [worker.push(1), worker.push(2)];
        let mut jobs = worker.take(2);
        pushers.into_iter().for_each(|pusher| pusher.join().expect("pusher"));
        jobs.sort_unstable();
        assert_eq!(jobs, [1, 2]);
    });
}

#[test]
fn a_worker_that_its_own_event_wakes_takes_every_job() {
    check(|| {
        let worker = Worker::new();
        let pusher = worker.push(1);
        // It sleeps, and a body of its own goes on at that moment.
        if worker.lane.sleep(&worker.wakeup(), false) == Rest::Sleep {
            assert_eq!(worker.lane.cancel_sleep_and_pass_on(&worker.wakeup()), Order::Nothing);
        }
        assert_eq!(worker.take(1), [1]);
        pusher.join().expect("pusher");
        let pusher = worker.push(2);
        assert_eq!(worker.take(1), [2]);
        pusher.join().expect("pusher");
    });
}
