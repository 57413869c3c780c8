//! Every interleaving of a few pushers and workers: no job is lost, and nobody sleeps on one.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

use std::sync::Arc;

use dftracer_core::lane::{Lane, Order, Rest};
use dftracer_core::park::Unpark;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// A sleep whose every interleaving can be tried.
#[derive(Default)]
struct Parker {
    notified: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    fn park(&self) {
        let mut notified = self.notified.lock().expect("never poisoned");
        while !*notified {
            notified = self.changed.wait(notified).expect("never poisoned");
        }
        *notified = false;
    }
}

impl Unpark for Parker {
    fn unpark(&self) {
        *self.notified.lock().expect("never poisoned") = true;
        self.changed.notify_one();
    }
}

/// Serves a lane as the runtime's workers do, counting the jobs.
fn serve(lane: &Lane<usize>, done: &AtomicUsize) {
    let parker = Arc::new(Parker::default());
    let wakeup: Arc<dyn Unpark> = parker.clone();
    lane.awake();
    loop {
        match lane.pop() {
            (Some(job), _) => drop(done.fetch_add(job, Ordering::SeqCst)),
            (None, _) => match lane.sleep(&wakeup, true) {
                Rest::Sleep => {
                    parker.park();
                    lane.awake();
                }
                Rest::Retry => {}
                Rest::Exit => return,
            },
        }
    }
}

/// Runs `pushers` threads with one job each against workers started as the lane orders, closes the
/// lane, and checks that every job was run when all have left.
fn check(limit: usize, pushers: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let lane = Arc::new(Lane::new(limit));
        let done = Arc::new(AtomicUsize::new(0));
        let workers = Arc::new(std::sync::Mutex::new(Vec::new()));
        let push = |lane: &Arc<Lane<usize>>| {
            if lane.push(1) == Order::StartWorker {
                let (lane, done) = (lane.clone(), done.clone());
                let worker = thread::spawn(move || serve(&lane, &done));
                workers.lock().expect("never poisoned").push(worker);
            }
        };
        let others: Vec<_> = (1..pushers)
            .map(|_| {
                let lane = lane.clone();
                thread::spawn(move || lane.push(1))
            })
            .collect();
        push(&lane);
        for other in others {
            if other.join().expect("pusher") == Order::StartWorker {
                let (lane, done) = (lane.clone(), done.clone());
                let worker = thread::spawn(move || serve(&lane, &done));
                workers.lock().expect("never poisoned").push(worker);
            }
        }
        lane.close();
        let workers = std::mem::take(&mut *workers.lock().expect("never poisoned"));
        for worker in workers {
            worker.join().expect("worker");
        }
        assert_eq!(done.load(Ordering::SeqCst), pushers);
        assert_eq!(lane.workers(), 0);
    });
}

#[test]
fn one_job_meets_a_worker_that_starts_and_a_lane_that_closes() {
    check(1, 1);
}

#[test]
fn two_pushers_share_one_worker() {
    check(1, 2);
}

#[test]
fn a_sleeping_worker_is_woken_for_a_later_job() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let lane = Arc::new(Lane::new(1));
        let done = Arc::new(AtomicUsize::new(0));
        assert_eq!(lane.push(1), Order::StartWorker);
        let worker = {
            let (lane, done) = (lane.clone(), done.clone());
            thread::spawn(move || serve(&lane, &done))
        };
        assert_eq!(lane.push(1), Order::Nothing);
        lane.close();
        worker.join().expect("worker");
        assert_eq!(done.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_worker_that_rises_by_itself_loses_no_job() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let lane: Arc<Lane<usize>> = Arc::new(Lane::new(1));
        assert_eq!(lane.push(1), Order::StartWorker);
        let parker = Arc::new(Parker::default());
        let wakeup: Arc<dyn Unpark> = parker.clone();
        lane.awake();
        assert_eq!(lane.pop().0, Some(1));
        assert_eq!(lane.sleep(&wakeup, false), Rest::Sleep);
        let pusher = {
            let lane = lane.clone();
            thread::spawn(move || assert_eq!(lane.push(2), Order::Nothing))
        };
        // Something else than the lane has ended the sleep, perhaps at the same moment.
        assert_eq!(lane.rise_for_another(&wakeup), Order::Nothing);
        pusher.join().expect("pusher");
        let job = match lane.pop().0 {
            Some(job) => job,
            None => {
                assert_eq!(lane.sleep(&wakeup, false), Rest::Sleep);
                parker.park();
                lane.awake();
                lane.pop().0.expect("the job that the wake-up was for")
            }
        };
        assert_eq!(job, 2);
    });
}

#[test]
fn a_worker_that_rises_to_look_again_loses_no_job() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let lane: Arc<Lane<usize>> = Arc::new(Lane::new(1));
        assert_eq!(lane.push(1), Order::StartWorker);
        let parker = Arc::new(Parker::default());
        let wakeup: Arc<dyn Unpark> = parker.clone();
        lane.awake();
        assert_eq!(lane.pop().0, Some(1));
        let pusher = {
            let lane = lane.clone();
            thread::spawn(move || {
                assert_eq!(lane.push(2), Order::Nothing);
                assert_eq!(lane.push(3), Order::Nothing);
            })
        };
        let mut jobs = Vec::new();
        let mut parks = false;
        while jobs.len() < 2 {
            if let (Some(job), order) = lane.pop() {
                assert_eq!(order, Order::Nothing);
                jobs.push(job);
            } else if lane.sleep(&wakeup, false) == Rest::Sleep {
                // The first time it does not sleep after all; and what has called it then may do so
                // again, for nothing.
                if std::mem::replace(&mut parks, true) {
                    parker.park();
                }
                if lane.rise(&wakeup) {
                    lane.awake();
                }
            }
        }
        pusher.join().expect("pusher");
        assert_eq!(jobs, [2, 3]);
    });
}
