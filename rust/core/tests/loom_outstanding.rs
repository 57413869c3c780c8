//! Every interleaving of tasks that begin, end, and wait for all others, of a thread that waits for
//! them, and of a runtime that closes: nobody sleeps for ever, nobody wakes early, and who hears of an
//! end sees it counted.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::outstanding::{Ending, Outstanding, StandingStill};
use dftracer_core::sched::parker::Unpark;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use models::{Parker, check_with};

/// A runtime, and what the waits of all runtimes share.
#[derive(Clone)]
struct Runtime {
    outstanding: Arc<Outstanding>,
    waits: Arc<Waits>,
}

struct Waits {
    standing: StandingStill,
    /// How many tasks wait for all.
    list: Mutex<usize>,
    /// In which runtimes somebody may wait.
    runtimes: std::sync::Mutex<Vec<Arc<Outstanding>>>,
}

impl Runtime {
    fn new(tasks: usize) -> Self {
        let waits = Waits {
            standing: StandingStill::new(),
            list: Mutex::new(0),
            runtimes: std::sync::Mutex::default(),
        };
        Self::beside(&Arc::new(waits), tasks)
    }

    fn beside(waits: &Arc<Waits>, tasks: usize) -> Self {
        let outstanding = Arc::new(Outstanding::new());
        assert!(outstanding.accept(tasks));
        waits.runtimes.lock().expect("never poisoned").push(outstanding.clone());
        Self { outstanding, waits: waits.clone() }
    }

    /// Ends a task; true if all is over.
    fn end(&self) -> bool {
        let mut sleepers = Vec::new();
        let is_over = self.outstanding.end(1, &self.waits.standing, &mut sleepers);
        sleepers.into_iter().for_each(|sleeper| sleeper.unpark());
        is_over
    }

    /// Waits for all, but for as many tasks as `left_out` tells.
    fn wait(&self, left_out: Option<impl Fn() -> usize>) {
        let parker = Arc::new(Parker::default());
        let waiter: Arc<dyn Unpark> = parker.clone();
        loop {
            let is_idle = self.outstanding.enter(waiter.clone(), left_out.as_ref());
            if !is_idle {
                parker.park();
            }
            self.outstanding.leave(&waiter);
            if is_idle {
                return;
            }
        }
    }

    fn wait_outside(&self) {
        self.wait(None::<fn() -> usize>);
    }

    /// Waits for all in a task, which is left out, as are all others that do so.
    fn wait_inside(&self) {
        self.stand_still(1, true);
        self.wait(Some(|| *self.waits.list.lock().expect("never poisoned")));
        self.go_on(1, true);
    }

    fn stand_still(&self, tasks: usize, is_for_all: bool) {
        *self.waits.list.lock().expect("never poisoned") += tasks;
        if self.waits.standing.enter(tasks, is_for_all) {
            let runtimes = self.waits.runtimes.lock().expect("never poisoned").clone();
            runtimes.iter().for_each(|runtime| runtime.wake_all());
        }
    }

    fn go_on(&self, tasks: usize, is_for_all: bool) {
        *self.waits.list.lock().expect("never poisoned") -= tasks;
        self.waits.standing.leave(tasks, is_for_all);
    }
}

/// Something that has happened.
#[derive(Clone, Default)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn set(&self) {
        // Relaxed: the counts must make it visible.
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_waiter_outside_wakes_when_the_last_task_has_ended_and_sees_all_counted() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let bodies = [Ending::Completed, Ending::Failed].map(|ending| {
            let runtime = runtime.clone();
            thread::spawn(move || {
                runtime.outstanding.count(ending, 1);
                assert!(!runtime.end());
            })
        });
        runtime.wait_outside();
        assert_eq!(runtime.outstanding.unfinished(), 0);
        let counts = runtime.outstanding.counts();
        assert_eq!((counts.completed, counts.failed, counts.cancelled), (1, 1, 0));
        bodies.into_iter().for_each(|body| body.join().expect("body"));
    });
}

#[test]
fn two_waiters_outside_wake_when_the_last_task_has_ended() {
    check_with(3, || {
        let runtime = Runtime::new(1);
        let other = {
            let runtime = runtime.clone();
            thread::spawn(move || runtime.wait_outside())
        };
        let body = {
            let runtime = runtime.clone();
            thread::spawn(move || assert!(!runtime.end()))
        };
        runtime.wait_outside();
        other.join().expect("waiter");
        body.join().expect("body");
    });
}

#[test]
fn a_waiter_outside_waits_for_the_children_of_tasks_and_for_callbacks_in_progress() {
    check_with(3, || {
        let runtime = Runtime::new(1);
        let (child_ended, called_back) = (Flag::default(), Flag::default());
        let body = {
            let (runtime, child_ended) = (runtime.clone(), child_ended.clone());
            let called_back = called_back.clone();
            thread::spawn(move || {
                assert!(runtime.outstanding.accept(1));
                let child = {
                    let (runtime, child_ended) = (runtime.clone(), child_ended.clone());
                    thread::spawn(move || {
                        child_ended.set();
                        assert!(!runtime.end());
                    })
                };
                // Its state shows the end; its callbacks are called; then it is counted.
                called_back.set();
                assert!(!runtime.end());
                child.join().expect("child");
            })
        };
        runtime.wait_outside();
        assert!(child_ended.is_set() && called_back.is_set());
        body.join().expect("body");
    });
}

#[test]
fn whoever_sees_the_state_of_a_task_sees_it_counted() {
    check_with(3, || {
        let runtime = Runtime::new(1);
        let state = Arc::new(AtomicUsize::new(0));
        let body = {
            let (runtime, state) = (runtime.clone(), state.clone());
            thread::spawn(move || {
                runtime.outstanding.count(Ending::Cancelled, 1);
                // As the handle stores it.
                state.store(1, Ordering::Release);
                assert!(!runtime.end());
            })
        };
        if state.load(Ordering::Acquire) == 1 {
            assert_eq!(runtime.outstanding.counts().cancelled, 1);
        }
        runtime.wait_outside();
        assert_eq!(runtime.outstanding.counts().ended(), 1);
        body.join().expect("body");
    });
}

#[test]
fn a_task_that_waits_for_all_wakes_when_the_others_have_ended() {
    check_with(3, || {
        let runtime = Runtime::new(3);
        let ended = [Flag::default(), Flag::default()];
        let bodies = ended.clone().map(|ended| {
            let runtime = runtime.clone();
            thread::spawn(move || {
                ended.set();
                assert!(!runtime.end());
            })
        });
        runtime.wait_inside();
        assert!(ended.iter().all(Flag::is_set), "it woke early");
        assert!(!runtime.end());
        bodies.into_iter().for_each(|body| body.join().expect("body"));
        assert_eq!(runtime.outstanding.unfinished(), 0);
    });
}

#[test]
fn two_tasks_that_wait_for_all_wake_each_other() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let other = {
            let runtime = runtime.clone();
            thread::spawn(move || {
                runtime.wait_inside();
                assert!(!runtime.end());
            })
        };
        runtime.wait_inside();
        assert!(!runtime.end());
        other.join().expect("body");
    });
}

#[test]
fn one_outside_waits_for_tasks_that_wait_for_all() {
    check_with(3, || {
        let runtime = Runtime::new(1);
        let returned = Flag::default();
        let body = {
            let (runtime, returned) = (runtime.clone(), returned.clone());
            thread::spawn(move || {
                runtime.wait_inside();
                returned.set();
                assert!(!runtime.end());
            })
        };
        runtime.wait_outside();
        assert!(returned.is_set(), "it woke early");
        body.join().expect("body");
    });
}

#[test]
fn a_task_that_waits_for_all_waits_for_the_child_of_another_that_does() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let child_ended = Flag::default();
        let other = {
            let (runtime, child_ended) = (runtime.clone(), child_ended.clone());
            thread::spawn(move || {
                assert!(runtime.outstanding.accept(1));
                let child = {
                    let (runtime, child_ended) = (runtime.clone(), child_ended.clone());
                    thread::spawn(move || {
                        child_ended.set();
                        assert!(!runtime.end());
                    })
                };
                runtime.wait_inside();
                assert!(child_ended.is_set(), "it woke early");
                assert!(!runtime.end());
                child.join().expect("child");
            })
        };
        runtime.wait_inside();
        assert!(child_ended.is_set(), "it woke early");
        assert!(!runtime.end());
        other.join().expect("body");
    });
}

#[test]
fn a_task_that_waits_for_all_wakes_when_the_last_other_begins_to_wait_for_it() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let returned = Arc::new(Parker::default());
        let other = {
            let (runtime, returned) = (runtime.clone(), returned.clone());
            thread::spawn(move || {
                runtime.stand_still(1, false);
                returned.park();
                runtime.go_on(1, false);
                assert!(!runtime.end());
            })
        };
        runtime.wait_inside();
        returned.unpark();
        assert!(!runtime.end());
        other.join().expect("body");
    });
}

#[test]
fn a_task_that_waits_for_all_wakes_when_one_of_another_runtime_holds_up_the_last_other() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let elsewhere = Runtime::beside(&runtime.waits, 1);
        let returned = Arc::new(Parker::default());
        // A task here waits for one of another runtime. When that waits for the one that waits for
        // all here, neither can go on, and both are left out: only one of them is of this runtime.
        let other = {
            let returned = returned.clone();
            thread::spawn(move || {
                elsewhere.stand_still(1, false);
                returned.park();
                elsewhere.go_on(1, false);
                assert!(!elsewhere.end());
            })
        };
        runtime.stand_still(1, true);
        let waits = runtime.waits.clone();
        runtime.wait(Some(move || *waits.list.lock().expect("never poisoned")));
        runtime.go_on(1, true);
        returned.unpark();
        other.join().expect("body");
    });
}

#[test]
fn a_worker_that_waits_between_two_bodies_is_left_out_by_tasks_that_wait() {
    check_with(3, || {
        let runtime = Runtime::new(2);
        let worker = {
            let runtime = runtime.clone();
            thread::spawn(move || {
                runtime.outstanding.enter_unnamed();
                // It knows of no other that could be left out, and waits for the task that waits.
                runtime.wait(Some(|| 0));
                runtime.outstanding.leave_unnamed();
                assert!(!runtime.end());
            })
        };
        runtime.wait_inside();
        assert!(!runtime.end());
        worker.join().expect("worker");
    });
}

#[test]
fn one_of_those_who_close_and_end_sees_that_all_is_over_and_nobody_before() {
    check_with(3, || {
        let runtime = Runtime::new(1);
        let body = {
            let runtime = runtime.clone();
            thread::spawn(move || runtime.end())
        };
        runtime.outstanding.close();
        let is_over = runtime.outstanding.is_over();
        if is_over {
            assert_eq!(runtime.outstanding.unfinished(), 0);
        }
        let seen = body.join().expect("body");
        assert!(seen || is_over, "nobody lets go of the threads");
    });
}

#[test]
fn a_task_is_accepted_before_the_close_or_refused() {
    check_with(3, || {
        let runtime = Runtime::new(0);
        let let_go = Flag::default();
        let submitter = {
            let (runtime, let_go) = (runtime.clone(), let_go.clone());
            thread::spawn(move || {
                let is_accepted = runtime.outstanding.accept(1);
                assert!(!(is_accepted && let_go.is_set()), "it has no threads any more");
                runtime.end()
            })
        };
        runtime.outstanding.close();
        let is_over = runtime.outstanding.is_over();
        if is_over {
            let_go.set();
        }
        runtime.wait_outside();
        let ended_last = submitter.join().expect("submitter");
        assert!(is_over || ended_last, "nobody lets go of the threads");
    });
}

#[test]
fn who_waits_wakes_when_a_task_was_refused() {
    check_with(3, || {
        let runtime = Runtime::new(0);
        runtime.outstanding.close();
        let submitter = {
            let runtime = runtime.clone();
            thread::spawn(move || {
                assert!(!runtime.outstanding.accept(1));
                assert!(runtime.end());
            })
        };
        runtime.wait_outside();
        submitter.join().expect("submitter");
    });
}
