//! Every interleaving of those who run a task, cancel it, interrupt it, let it run out of time, and
//! wait for it: it is run at most once, it ends once, nobody waits for ever, and a body that is to stop
//! is reached or sees it.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::interrupt_slot::{InterruptSlot, Marks, Outer};
use dftracer_core::sched::parker::Unpark;
use dftracer_core::task_state::{Cancel, TaskState, state};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use models::{Parker, check_with};
use state::{CANCELLED, DONE, FAILED, QUEUED};

fn check(model: impl Fn() + Send + Sync + 'static) {
    check_with(3, model);
}

const ID: i64 = 1;

/// A task as its handle keeps it, and the worker that may run it.
#[derive(Default)]
struct Task {
    state: TaskState,
    held: Mutex<Held>,
    worker: InterruptSlot,
    /// What the interpreter keeps for the worker's thread: an exception that its next code raises.
    pending: AtomicBool,
    /// How often its body was run, was called off in the last moment, and how often the task ended.
    runs: AtomicUsize,
    called_off: AtomicUsize,
    ends: AtomicUsize,
}

#[derive(Default)]
struct Held {
    outcome: Option<u8>,
    waiters: Vec<Arc<Parker>>,
    /// A coroutine that has suspended: the way to cancel it.
    suspended: Option<Arc<AtomicBool>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Dequeued,
    Requested,
    TooLate,
}

impl Task {
    fn settle(&self, end: u8) -> bool {
        let mut held = self.held.lock().expect("never poisoned");
        if self.state.has_ended() {
            return false;
        }
        held.outcome = Some(end);
        let waiters = std::mem::take(&mut held.waiters);
        // As the counts of a runtime: relaxed, and made visible by the state.
        self.ends.fetch_add(1, Ordering::Relaxed);
        assert!(self.state.end(end));
        drop(held);
        waiters.iter().for_each(|waiter| waiter.unpark());
        true
    }

    /// The worker claims the task, publishes it and looks whether it is to stop; `None` if somebody
    /// else has it.
    fn begin(&self) -> Option<(Outer, bool)> {
        if !self.state.claim() {
            return None;
        }
        let outer = self.worker.enter(ID);
        Some((outer, self.state.is_stop_requested()))
    }

    /// The worker: false if somebody else has the task.
    fn run(&self) -> bool {
        let Some((outer, is_to_stop)) = self.begin() else { return false };
        if is_to_stop {
            self.called_off.fetch_add(1, Ordering::Relaxed);
            self.leave(outer);
            self.settle(CANCELLED);
            return true;
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        let was_interrupted = self.leave(outer);
        self.settle(if was_interrupted { CANCELLED } else { DONE });
        true
    }

    fn leave(&self, outer: Outer) -> bool {
        let was_interrupted = self.worker.leave(outer).interrupted();
        if was_interrupted {
            // Taken back: it is not to be raised in what comes next.
            self.pending.store(false, Ordering::Relaxed);
        }
        was_interrupted
    }

    fn cancel(&self) -> Answer {
        match self.state.cancel() {
            Cancel::Claimed => {
                self.settle(CANCELLED);
                Answer::Dequeued
            }
            Cancel::TooLate => Answer::TooLate,
            Cancel::Running if self.state.may_interrupt() => {
                self.worker.reach(ID, |marks| {
                    self.pending.store(true, Ordering::Relaxed);
                    marks.and_interrupted()
                });
                Answer::Requested
            }
            Cancel::Running => match self.settle(CANCELLED) {
                true => Answer::Requested,
                false => Answer::TooLate,
            },
        }
    }

    /// Waits for the end and gives the outcome.
    fn wait(&self) -> u8 {
        let parker = Arc::new(Parker::default());
        let mut held = self.held.lock().expect("never poisoned");
        if !self.state.has_ended() {
            held.waiters.push(parker.clone());
            drop(held);
            parker.park();
            held = self.held.lock().expect("never poisoned");
        }
        let outcome = held.outcome.expect("an outcome");
        assert_eq!(self.state.get(), outcome, "state and outcome change as one");
        outcome
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    /// What holds when all is over.
    fn check_end(&self) -> u8 {
        assert_eq!(self.ends.load(Ordering::Relaxed), 1, "it ends once");
        assert!(self.runs() <= 1, "it runs at most once");
        assert!(!self.pending.load(Ordering::Relaxed), "what comes next would be hit");
        let end = self.state.get();
        assert_eq!(self.held.lock().expect("never poisoned").outcome, Some(end));
        end
    }
}

fn task() -> Arc<Task> {
    Arc::new(Task::default())
}

fn spawn<T: 'static>(
    task: &Arc<Task>,
    act: impl FnOnce(&Task) -> T + 'static,
) -> thread::JoinHandle<T> {
    let task = task.clone();
    thread::spawn(move || act(&task))
}

#[test]
fn a_cancellation_meets_the_start() {
    check(|| {
        let task = task();
        let canceller = spawn(&task, Task::cancel);
        let has_run = task.run();
        let answer = canceller.join().expect("canceller");
        let end = task.check_end();
        match answer {
            Answer::Dequeued => assert!(!has_run && task.runs() == 0 && end == CANCELLED),
            Answer::Requested => assert!(has_run && end == CANCELLED),
            // A body that was called off ends as cancelled, too, and not by the one who asked.
            Answer::TooLate => assert!(has_run && (end == DONE || task.runs() == 0)),
        }
        if end == DONE {
            assert_eq!(answer, Answer::TooLate);
        }
    });
}

#[test]
fn a_body_that_runs_for_ever_is_reached_or_called_off_when_it_is_cancelled() {
    check(|| {
        let task = task();
        let canceller = spawn(&task, |task| match task.state.cancel() {
            Cancel::Running => task.worker.reach(ID, Marks::and_given_up),
            Cancel::Claimed => false,
            Cancel::TooLate => unreachable!("it runs for ever"),
        });
        // It is never left.
        let begun = task.begin();
        let reached = canceller.join().expect("canceller");
        if let Some((_, sees)) = begun {
            assert!(sees || reached, "it runs on, and nobody knows");
        }
    });
}

#[test]
fn an_interruption_meets_the_end() {
    check(|| {
        let task = task();
        task.state.allow_interrupt();
        let canceller = spawn(&task, Task::cancel);
        let has_run = task.run();
        // The next body of this worker.
        let outer = task.worker.enter(ID + 1);
        assert!(!task.pending.load(Ordering::Relaxed), "the next body was hit");
        assert!(!task.leave(outer), "the next body was hit");
        let answer = canceller.join().expect("canceller");
        let end = task.check_end();
        assert_eq!(answer == Answer::Dequeued, !has_run);
        if answer == Answer::TooLate {
            assert!(end == DONE || task.called_off.load(Ordering::Relaxed) == 1);
        }
    });
}

#[test]
fn two_cancellations_meet_before_the_start() {
    check(|| {
        let task = task();
        let canceller = spawn(&task, Task::cancel);
        let mine = task.cancel();
        let other = canceller.join().expect("canceller");
        assert_eq!(task.check_end(), CANCELLED);
        assert!(!task.run(), "nobody runs it any more");
        let dequeued = [mine, other].iter().filter(|a| **a == Answer::Dequeued).count();
        assert_eq!(dequeued, 1, "one has taken it out of the queue");
    });
}

#[test]
fn two_cancellations_meet_the_start() {
    check_with(2, || {
        let task = task();
        let cancellers = [spawn(&task, Task::cancel), spawn(&task, Task::cancel)];
        let has_run = task.run();
        let answers = cancellers.map(|canceller| canceller.join().expect("canceller"));
        let end = task.check_end();
        assert_eq!(answers.contains(&Answer::Dequeued), !has_run);
        if end == DONE {
            assert_eq!(answers, [Answer::TooLate, Answer::TooLate]);
        }
    });
}

#[test]
fn two_interruptions_meet_the_end() {
    check_with(2, || {
        let task = task();
        task.state.allow_interrupt();
        let cancellers = [spawn(&task, Task::cancel), spawn(&task, Task::cancel)];
        task.run();
        let outer = task.worker.enter(ID + 1);
        assert!(!task.leave(outer), "the next body was hit");
        cancellers.into_iter().for_each(|canceller| {
            canceller.join().expect("canceller");
        });
        task.check_end();
    });
}

#[test]
fn two_workers_meet_at_one_task() {
    check(|| {
        let task = task();
        let other = spawn(&task, |task| task.state.claim());
        let mine = task.state.claim();
        assert!(mine != other.join().expect("worker"), "one of them has it");
    });
}

#[test]
fn a_deadline_meets_the_end_and_a_cancellation() {
    check_with(2, || {
        let task = task();
        let canceller = spawn(&task, Task::cancel);
        let deadline = spawn(&task, |task| {
            // One that has not begun never will.
            let _ = task.state.claim();
            task.state.request_stop();
            task.settle(FAILED)
        });
        task.run();
        let answer = canceller.join().expect("canceller");
        let has_run_out = deadline.join().expect("deadline");
        let end = task.check_end();
        assert_eq!(has_run_out, end == FAILED);
        if end == DONE {
            assert_eq!(answer, Answer::TooLate);
        }
    });
}

#[test]
fn who_waits_wakes_and_sees_the_outcome() {
    check_with(2, || {
        let task = task();
        let waiter = spawn(&task, Task::wait);
        let canceller = spawn(&task, Task::cancel);
        task.run();
        canceller.join().expect("canceller");
        let seen = waiter.join().expect("waiter");
        assert_eq!(seen, task.check_end());
    });
}

#[test]
fn who_only_looks_sees_the_outcome_of_what_has_ended() {
    check(|| {
        // As who gets a value at one look: the state first, the lock after it.
        let task = task();
        let other = spawn(&task, Task::run);
        let seen = task.state.get();
        if seen >= DONE {
            assert_eq!(task.ends.load(Ordering::Relaxed), 1, "count first, then publish");
            assert_eq!(task.held.lock().expect("never poisoned").outcome, Some(seen));
        } else {
            assert!(seen >= QUEUED);
        }
        other.join().expect("worker");
    });
}

#[test]
fn a_coroutine_that_suspends_is_cancelled_or_sees_that_it_was_asked() {
    check(|| {
        let task = task();
        assert!(task.state.claim());
        let cancelled = Arc::new(AtomicBool::new(false));
        let canceller = spawn(&task, |task| {
            assert_eq!(task.state.cancel(), Cancel::Running);
            let suspended = task.held.lock().expect("never poisoned").suspended.clone();
            if let Some(asyncio_task) = suspended {
                asyncio_task.store(true, Ordering::SeqCst);
            }
        });
        task.held.lock().expect("never poisoned").suspended = Some(cancelled.clone());
        // In this order: whoever asks later finds the task to cancel.
        let sees = task.state.is_stop_requested();
        canceller.join().expect("canceller");
        assert!(sees || cancelled.load(Ordering::SeqCst), "it runs on, and nobody knows");
    });
}
