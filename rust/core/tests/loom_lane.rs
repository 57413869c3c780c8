//! Every interleaving of a few pushers and workers: no job is lost, nobody sleeps on one, and all
//! leave a lane that closes; with spares, workers that die, and threads that are refused.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::sched::lane::{Lane, Order, Rest};
use dftracer_core::sched::parker::Unpark;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use models::{Parker, check_with};

fn check(model: impl Fn() + Send + Sync + 'static) {
    check_with(3, model);
}

#[derive(Clone)]
enum Job {
    Count,
    /// Its worker ends by a panic.
    Die,
    /// Pushes a job, and waits for it as a task waits for another.
    WaitForAnother,
    /// Pushes a job.
    PushAnother,
    /// Pushes a job ahead of what waits.
    PushAhead,
    /// What `WaitForAnother` has pushed.
    Awaited(Arc<Parker>),
}

/// How many jobs were run.
#[derive(Default)]
struct Done {
    count: Mutex<usize>,
    changed: Condvar,
}

/// A lane with threads, as the runtime drives it.
#[derive(Clone)]
struct Pool {
    lane: Arc<Lane<Job>>,
    done: Arc<Done>,
    /// How many threads the system still refuses.
    refusals: Arc<AtomicUsize>,
    threads: Arc<std::sync::Mutex<Vec<thread::JoinHandle<()>>>>,
}

impl Pool {
    fn new(limit: usize) -> Self {
        Self {
            lane: Arc::new(Lane::new(limit)),
            done: Arc::default(),
            refusals: Arc::new(AtomicUsize::new(0)),
            threads: Arc::default(),
        }
    }

    fn refusing(limit: usize, refusals: usize) -> Self {
        Self { refusals: Arc::new(AtomicUsize::new(refusals)), ..Self::new(limit) }
    }

    fn push(&self, job: Job) -> bool {
        self.obey(self.lane.push(job))
    }

    fn push_ahead(&self, jobs: impl IntoIterator<Item = Job>) -> bool {
        let (sleeper, order) = self.lane.push_all_ahead(1, jobs);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
        self.obey(order)
    }

    /// False if a thread is needed and none is to be had.
    fn obey(&self, order: Order) -> bool {
        if order == Order::Nothing {
            return true;
        }
        let refused = self
            .refusals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if refused {
            return self.lane.worker_failed_to_start();
        }
        let pool = self.clone();
        let thread = thread::spawn(move || pool.serve());
        self.threads.lock().expect("never poisoned").push(thread);
        true
    }

    fn serve(&self) {
        let parker = Arc::new(Parker::default());
        let wakeup: Arc<dyn Unpark> = parker.clone();
        self.lane.awake();
        loop {
            let (job, order) = self.lane.pop();
            self.obey(order);
            match job {
                Some(Job::Die) => {
                    self.count();
                    self.obey(self.lane.worker_died());
                    return;
                }
                Some(job) => self.run(job),
                None => match self.lane.sleep(&wakeup, true) {
                    Rest::Sleep => {
                        parker.park();
                        self.lane.awake();
                    }
                    Rest::Retry => {}
                    Rest::Exit => return,
                },
            }
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Count | Job::Die => {}
            Job::PushAnother => assert!(self.push(Job::Count)),
            Job::PushAhead => assert!(self.push_ahead([Job::Count])),
            Job::Awaited(parker) => parker.unpark(),
            Job::WaitForAnother => {
                let parker = Arc::new(Parker::default());
                assert!(self.push(Job::Awaited(parker.clone())));
                let order = self.lane.enter_blocked().expect("spares are left");
                // Where no thread is to be had, the wait is refused.
                if self.obey(order) {
                    parker.park();
                }
                self.lane.leave_blocked();
            }
        }
        self.count();
    }

    fn count(&self) {
        *self.done.count.lock().expect("never poisoned") += 1;
        self.done.changed.notify_one();
    }

    /// Waits until so many jobs were run, and then [finishes](Self::finish). A lane that closes wakes
    /// all who sleep, so only before that a job shows that nobody was woken for it.
    fn finish_when_done(self, jobs: usize) {
        let mut done = self.done.count.lock().expect("never poisoned");
        while *done < jobs {
            done = self.done.changed.wait(done).expect("never poisoned");
        }
        drop(done);
        self.finish(jobs);
    }

    /// Closes the lane, and checks that so many jobs were run when all have left.
    fn finish(self, jobs: usize) {
        self.lane.close();
        loop {
            let thread = self.threads.lock().expect("never poisoned").pop();
            match thread {
                Some(thread) => thread.join().expect("worker"),
                None => break,
            }
        }
        assert_eq!(*self.done.count.lock().expect("never poisoned"), jobs);
        assert_eq!(self.lane.workers(), 0);
        assert!(self.lane.is_empty());
    }
}

#[test]
fn one_job_meets_a_worker_that_starts_and_a_lane_that_closes() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::Count);
        pool.finish(1);
    });
}

#[test]
fn two_pushers_share_one_worker() {
    check(|| {
        let pool = Pool::new(1);
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.push(Job::Count))
        };
        pool.push(Job::Count);
        other.join().expect("pusher");
        pool.finish_when_done(2);
    });
}

#[test]
fn a_worker_is_pushed_jobs_behind_and_ahead() {
    check(|| {
        let pool = Pool::new(1);
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.push_ahead([Job::Count]))
        };
        pool.push(Job::Count);
        other.join().expect("pusher");
        pool.finish_when_done(2);
    });
}

#[test]
fn two_pushers_ahead_share_one_worker() {
    check(|| {
        let pool = Pool::new(1);
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.push_ahead([Job::Count]))
        };
        pool.push_ahead([Job::Count]);
        other.join().expect("pusher");
        pool.finish_when_done(2);
    });
}

#[test]
fn a_sleeping_worker_is_woken_for_a_later_job_ahead() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::Count);
        pool.push_ahead([Job::Count]);
        pool.finish_when_done(2);
    });
}

#[test]
fn two_workers_share_a_batch_ahead() {
    check_with(2, || {
        let pool = Pool::new(2);
        pool.push(Job::PushAhead);
        pool.push_ahead([Job::Count, Job::Count]);
        pool.finish_when_done(4);
    });
}

#[test]
fn a_sleeping_worker_is_woken_for_a_later_job() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::Count);
        pool.push(Job::Count);
        pool.finish_when_done(2);
    });
}

#[test]
fn two_workers_leave_a_lane_that_closes() {
    check(|| {
        let pool = Pool::new(2);
        pool.push(Job::Count);
        pool.push(Job::Count);
        pool.finish(2);
    });
}

#[test]
fn three_workers_leave_a_lane_that_closes() {
    check_with(2, || {
        let pool = Pool::new(3);
        for _ in 0..3 {
            pool.push(Job::Count);
        }
        pool.finish(3);
    });
}

#[test]
fn a_job_that_is_pushed_to_a_lane_that_has_closed_is_run() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::Count);
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.push(Job::Count))
        };
        pool.lane.close();
        other.join().expect("pusher");
        pool.finish(2);
    });
}

#[test]
fn a_job_that_is_pushed_by_the_last_job_of_a_lane_that_closes_is_run() {
    check(|| {
        let pool = Pool::new(2);
        pool.push(Job::PushAnother);
        pool.finish(2);
    });
}

#[test]
fn a_spare_runs_what_a_worker_waits_for_and_leaves() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::WaitForAnother);
        pool.finish_when_done(2);
    });
}

#[test]
fn spares_and_workers_leave_a_lane_that_closes() {
    check_with(2, || {
        let pool = Pool::new(1);
        pool.push(Job::WaitForAnother);
        pool.push(Job::Count);
        pool.finish(3);
    });
}

#[test]
fn jobs_are_run_when_a_worker_dies() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::Die);
        pool.push(Job::Count);
        pool.finish_when_done(2);
    });
}

#[test]
fn jobs_are_run_when_one_of_two_workers_dies() {
    check_with(2, || {
        let pool = Pool::new(2);
        pool.push(Job::Count);
        pool.push(Job::Die);
        pool.push(Job::Count);
        pool.finish_when_done(3);
    });
}

#[test]
fn jobs_are_run_when_the_second_worker_is_refused() {
    check_with(2, || {
        let pool = Pool::new(2);
        pool.push(Job::Count);
        // Refused while the first worker comes and goes to sleep.
        pool.refusals.store(1, Ordering::SeqCst);
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.push(Job::Count))
        };
        pool.push(Job::Count);
        other.join().expect("pusher");
        pool.finish_when_done(3);
    });
}

#[test]
fn a_wait_is_refused_or_its_job_is_run_when_threads_are_refused() {
    check(|| {
        let pool = Pool::new(1);
        pool.push(Job::WaitForAnother);
        pool.refusals.store(1, Ordering::SeqCst);
        pool.finish(2);
    });
}

#[test]
fn a_pusher_hears_of_a_refused_thread_when_nobody_else_comes() {
    check(|| {
        let pool = Pool::refusing(1, 1);
        assert!(!pool.push(Job::Count));
        // The next one gets its thread, and that comes to both.
        assert!(pool.push(Job::Count));
        pool.finish_when_done(2);
    });
}

#[test]
fn a_worker_that_wakes_by_itself_loses_no_job() {
    check(|| {
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
        assert_eq!(lane.cancel_sleep_and_pass_on(&wakeup), Order::Nothing);
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
fn a_worker_that_wakes_to_look_again_loses_no_job() {
    check(|| {
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
                if lane.cancel_sleep(&wakeup) {
                    lane.awake();
                }
            }
        }
        pusher.join().expect("pusher");
        assert_eq!(jobs, [2, 3]);
    });
}
