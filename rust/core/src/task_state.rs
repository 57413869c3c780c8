//! How far a task is, who may run it, and whether it is asked to stop.
//!
//! ```text
//! queued ── claim ──▶ running ── end ──▶ done, failed or cancelled
//!    └────────────────── end ────────────────▲
//! ```
//!
//! A task is *claimed* once: by the worker that will run it, or by the one who cancels it, so that
//! nobody runs it. It is *ended* once: by whoever has run it, or by one for whom it ends although its
//! body goes on, such as a deadline. What a task holds (its outcome, who waits for it) stands under a
//! lock of its owner, and changes together with the state:
//!
//! - [`end`](TaskState::end) is called while that is locked, after the outcome was put there and those
//!   who wait were taken out. So whoever sees the end finds the outcome.
//! - Who wants to wait looks at the state while it is locked, and enters itself only if the task has
//!   not ended. So whoever ends it finds all who wait.
//!
//! # Whoever is asked to stop is either reached or sees that it was asked
//!
//! Who cancels [asks](TaskState::cancel), and then looks for the worker that runs the task
//! ([`InterruptSlot::reach`](crate::interrupt_slot::InterruptSlot::reach)); a worker publishes which task it runs
//! ([`InterruptSlot::enter`](crate::interrupt_slot::InterruptSlot::enter)), and then looks whether it
//! [was asked](TaskState::is_stop_requested). Whoever comes second sees the other.
//!
//! `tests/loom_task_state.rs` tries every interleaving of starts, ends, cancellations, interruptions and
//! waits.

use std::sync::atomic::Ordering;

use crate::sched::sync::{AtomicU8, in_total_order};

/// The states, in the only order in which they follow each other.
pub mod state {
    /// Nobody has claimed it.
    pub const QUEUED: u8 = 0;
    /// Somebody has: to run it, or to cancel it.
    pub const RUNNING: u8 = 1;
    /// It has ended with a value. The first terminal state.
    pub const DONE: u8 = 2;
    /// It has ended with an error.
    pub const FAILED: u8 = 3;
    /// It has ended with neither.
    pub const CANCELLED: u8 = 4;
    /// It is no task at all: nobody can claim it.
    pub const NONE: u8 = 5;

    /// What users call a state.
    pub fn name(state: u8) -> &'static str {
        match state {
            QUEUED => "queued",
            RUNNING => "running",
            DONE => "done",
            FAILED => "failed",
            _ => "cancelled",
        }
    }
}

use state::{DONE, NONE, QUEUED, RUNNING};

/// Somebody wants the task to stop.
const STOP_REQUESTED: u8 = 1;
/// A plain body that is to stop gets an exception, as whoever submitted it has asked.
const MAY_INTERRUPT: u8 = 2;
/// Its begin is to be reported.
const REPORTS_BEGIN: u8 = 4;
/// It has a time limit of its own.
const IS_LIMITED: u8 = 8;

/// What one who cancels a task finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Cancel {
    /// It had not begun, and never will: the caller has claimed it, and is to end it.
    Claimed,
    /// It runs, for all that is known: its worker is to be reached.
    Running,
    /// It has ended.
    TooLate,
}

/// The state of one task, in two bytes.
///
/// ```
/// use dftracer_core::task_state::{Cancel, TaskState, state};
///
/// let task = TaskState::default();
/// assert!(task.claim(), "a worker runs it");
/// assert_eq!(task.cancel(), Cancel::Running, "its body is to be reached");
/// assert!(task.end(state::CANCELLED));
/// assert!(!task.end(state::DONE), "it has ended");
/// ```
pub struct TaskState {
    /// `QUEUED` → `RUNNING` by whoever claims the task; `QUEUED` or `RUNNING` → a terminal state
    /// once, while what the task holds is locked. Acquire and Release: who sees a state sees what was
    /// done before.
    state: AtomicU8,
    /// `STOP_REQUESTED`, and what is set before anybody else sees the task. SeqCst: whoever asks a
    /// body to stop sets this, then looks for its worker, which publishes the body, then reads this:
    /// one sees the other.
    requests: AtomicU8,
}

impl Default for TaskState {
    /// Queued.
    fn default() -> Self {
        Self::new(QUEUED)
    }
}

impl TaskState {
    /// A task that begins in this state.
    pub fn new(state: u8) -> Self {
        Self { state: AtomicU8::new(state), requests: AtomicU8::new(0) }
    }

    /// What is no task: nobody can claim it.
    pub fn none() -> Self {
        Self::new(NONE)
    }

    /// The state now. Who sees that the task has ended sees its outcome.
    #[inline]
    pub fn get(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Whether somebody has claimed it.
    #[inline]
    pub fn has_begun(&self) -> bool {
        self.get() != QUEUED
    }

    /// Whether it has ended.
    #[inline]
    pub fn has_ended(&self) -> bool {
        self.get() >= DONE
    }

    /// Makes the caller the one who runs this task; false if somebody else is, or it was cancelled.
    #[inline]
    #[must_use = "if false, somebody else has it"]
    pub fn claim(&self) -> bool {
        self.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Makes a task that nobody has seen yet one that has come so far.
    pub fn start_with(&self, state: u8) {
        self.state.store(state, Ordering::Release);
    }

    /// Ends the task, once. To be called while what the task holds is locked, and after the outcome is
    /// there: whoever sees the state sees that. False if it had ended.
    #[inline]
    #[must_use = "if false, it had ended otherwise"]
    pub fn end(&self, state: u8) -> bool {
        debug_assert!(state >= DONE, "{state} is no end");
        if self.has_ended() {
            return false;
        }
        // Not an exchange: that it has not ended cannot change under the lock. A claim may come
        // between, and be overwritten; whoever has claimed it finds that it has ended.
        self.state.store(state, Ordering::Release);
        true
    }

    /// Asks the task to stop, and claims it if it has not begun.
    pub fn cancel(&self) -> Cancel {
        self.request_stop();
        if self.claim() {
            return Cancel::Claimed;
        }
        if self.has_ended() { Cancel::TooLate } else { Cancel::Running }
    }

    /// Asks the task to stop. Its worker is to be looked for after that.
    pub fn request_stop(&self) {
        self.requests.fetch_or(STOP_REQUESTED, Ordering::SeqCst);
        in_total_order();
    }

    /// Whether it was asked to stop. A worker looks after it has published that it runs the task.
    #[inline]
    pub fn is_stop_requested(&self) -> bool {
        in_total_order();
        self.requests.load(Ordering::SeqCst) & STOP_REQUESTED != 0
    }

    /// Of a task that nobody has seen yet: its body is to be interrupted rather than given up.
    pub fn allow_interrupt(&self) {
        // Relaxed: what makes the task visible orders it.
        self.requests.fetch_or(MAY_INTERRUPT, Ordering::Relaxed);
    }

    /// Whether its body is to be interrupted when it is to stop.
    pub fn may_interrupt(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & MAY_INTERRUPT != 0
    }

    /// Of a task that nobody has seen yet: its begin is to be reported.
    pub fn report_begin(&self) {
        self.requests.fetch_or(REPORTS_BEGIN, Ordering::Relaxed);
    }

    /// Whether its begin is to be reported.
    pub fn reports_begin(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & REPORTS_BEGIN != 0
    }

    /// Of a task that nobody has seen yet: it has a time limit of its own.
    pub fn limit(&self) {
        self.requests.fetch_or(IS_LIMITED, Ordering::Relaxed);
    }

    /// Whether it has a time limit of its own.
    pub fn is_limited(&self) -> bool {
        self.requests.load(Ordering::Relaxed) & IS_LIMITED != 0
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use super::state::{CANCELLED, FAILED};
    use super::*;

    #[test]
    fn a_task_is_claimed_once_and_ended_once() {
        let task = TaskState::default();
        assert!(!task.has_begun());
        assert!(task.claim());
        assert!(!task.claim());
        assert!(task.has_begun() && !task.has_ended());
        assert!(task.end(DONE));
        assert!(!task.end(FAILED));
        assert_eq!(task.get(), DONE);
        assert!(!task.claim());
    }

    #[test]
    fn who_cancels_claims_what_has_not_begun_and_learns_what_has_become_of_the_rest() {
        let queued = TaskState::default();
        assert_eq!(queued.cancel(), Cancel::Claimed);
        assert!(!queued.claim(), "nobody runs it any more");
        assert_eq!(queued.cancel(), Cancel::Running, "until whoever has claimed it ends it");
        assert!(queued.end(CANCELLED));
        assert_eq!(queued.cancel(), Cancel::TooLate);
        assert!(queued.is_stop_requested());

        let running = TaskState::default();
        assert!(running.claim());
        assert!(!running.is_stop_requested());
        assert_eq!(running.cancel(), Cancel::Running);
        assert!(running.is_stop_requested());
    }

    #[test]
    fn a_task_can_end_before_anybody_has_claimed_it() {
        let task = TaskState::default();
        assert!(task.end(FAILED));
        assert!(!task.claim());
    }

    #[test]
    fn nobody_claims_or_ends_what_is_no_task() {
        let none = TaskState::none();
        assert!(!none.claim());
        assert!(!none.end(CANCELLED));
        assert_eq!(none.cancel(), Cancel::TooLate);
    }

    #[test]
    fn a_request_to_stop_leaves_what_was_allowed() {
        let task = TaskState::default();
        assert!(!task.may_interrupt());
        task.allow_interrupt();
        assert!(!task.is_stop_requested());
        task.request_stop();
        assert!(task.may_interrupt() && task.is_stop_requested());
    }

    #[test]
    fn it_takes_two_bytes() {
        assert_eq!(size_of::<TaskState>(), 2);
    }
}
