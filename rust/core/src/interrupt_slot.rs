//! Which body runs on a worker, and how another thread reaches it without hitting the next one.
//!
//! The worker publishes the number of its innermost body. A thread that wants something of that body
//! takes hold of it for a moment ([`InterruptSlot::reach`]): meanwhile the worker cannot leave the body, so
//! what is done there happens to this body and to no other. The worker waits, spinning, until the
//! hold is over. So who holds must be quick and must not wait for anything that the worker may have:
//! with a GIL, to release the interpreter while holding would let the worker spin with it for ever.
//! Everything that takes the interpreter (imports, look-ups) is to be done before.
//!
//! # Whoever is asked to stop is either reached or sees that it was asked
//!
//! One who asks a body to stop sets a flag of the task, then looks for the worker that runs it. A
//! worker publishes a body, then looks at the flag. All four steps are sequentially consistent, so
//! one of the two sees the other. `tests/loom_interrupt_slot.rs` tries every interleaving.

use std::sync::atomic::Ordering;

use crate::sched::sync::{AtomicI64, AtomicU8, in_total_order, spin};

/// In place of a task: no body runs.
pub const IDLE: i64 = -1;
/// In place of a task: another thread has hold of the innermost body.
const HELD: i64 = -2;

/// What others have done to a body while it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(u8);

impl Marks {
    const INTERRUPTED: u8 = 1;
    const GIVEN_UP: u8 = 2;
    const RAISED_IN_WAIT: u8 = 4;

    /// Nothing.
    pub const NONE: Self = Self(0);

    /// These, and that an exception was sent to its thread.
    #[must_use]
    pub fn and_interrupted(self) -> Self {
        Self(self.0 | Self::INTERRUPTED)
    }

    /// These, and that its task has ended without it, and another worker may stand in for its own.
    #[must_use]
    pub fn and_given_up(self) -> Self {
        Self(self.0 | Self::GIVEN_UP)
    }

    /// These, and that a wait of its own has raised the error that asks it to stop.
    #[must_use]
    pub fn and_raised_in_wait(self) -> Self {
        Self(self.0 | Self::RAISED_IN_WAIT)
    }

    /// Whether an exception was sent to its thread.
    pub fn interrupted(self) -> bool {
        self.0 & Self::INTERRUPTED != 0
    }

    /// Whether a wait of its own has raised the error that asks it to stop.
    pub fn raised_in_wait(self) -> bool {
        self.0 & Self::RAISED_IN_WAIT != 0
    }

    /// Whether its task has ended without it.
    pub fn given_up(self) -> bool {
        self.0 & Self::GIVEN_UP != 0
    }
}

/// The body around the one that runs: what [`InterruptSlot::enter`] gives and [`InterruptSlot::leave`] takes.
#[derive(Debug)]
#[must_use]
pub struct Outer {
    task: i64,
    marks: Marks,
}

impl Outer {
    /// Whether an exception was sent to it before the one within it began.
    pub fn was_interrupted(&self) -> bool {
        self.marks.interrupted()
    }

    /// Whether there is such a body.
    pub fn is_body(&self) -> bool {
        self.task != IDLE
    }
}

/// The innermost body of one worker.
///
/// ```
/// use dftracer_core::interrupt_slot::{InterruptSlot, Marks};
///
/// let slot = InterruptSlot::default();
/// let outer = slot.enter(7);
/// // From another thread:
/// assert!(slot.reach(7, Marks::and_interrupted));
/// assert!(!slot.reach(8, Marks::and_interrupted), "another task runs here");
/// // The worker finds what was done to its body, once that has ended:
/// assert!(slot.leave(outer).interrupted());
/// ```
pub struct InterruptSlot {
    /// Its task, `IDLE`, or `HELD`.
    task: AtomicI64,
    /// What was done to it. Written only by who has hold of it, and by its worker while it may not
    /// be held. Relaxed: `task` orders it.
    marks: AtomicU8,
}

impl Default for InterruptSlot {
    fn default() -> Self {
        Self { task: AtomicI64::new(IDLE), marks: AtomicU8::new(0) }
    }
}

impl InterruptSlot {
    /// The worker begins a body, perhaps inside of another one. From here on it can be reached.
    pub fn enter(&self, task: i64) -> Outer {
        // Relaxed: this thread's own. One that is idle is held by nobody and has no marks.
        if self.task.load(Ordering::Relaxed) == IDLE {
            // SeqCst: before the look at the flag of the task, see above.
            self.task.swap(task, Ordering::SeqCst);
            in_total_order();
            return Outer { task: IDLE, marks: Marks::NONE };
        }
        let outer = self.hold();
        let marks = Marks(self.marks.swap(0, Ordering::Relaxed));
        // SeqCst: as above. Releases the hold: who reaches the body sees that it has no marks.
        self.task.swap(task, Ordering::SeqCst);
        in_total_order();
        Outer { task: outer, marks }
    }

    /// The body has ended, and the one around it goes on. What was done to it is done: nothing more
    /// happens to it from here on.
    pub fn leave(&self, outer: Outer) -> Marks {
        self.hold();
        // Relaxed: `hold` has acquired what was done by those who held it before.
        let marks = Marks(self.marks.swap(outer.marks.0, Ordering::Relaxed));
        if outer.task == IDLE {
            // Release: the marks are cleared before the next body can be reached.
            self.task.store(IDLE, Ordering::Release);
        } else {
            // SeqCst: before the look at the flag of the outer task, see above.
            self.task.swap(outer.task, Ordering::SeqCst);
            in_total_order();
        }
        marks
    }

    /// Does something to the body of `task` if it is the innermost here, and it cannot be left
    /// meanwhile; `act` is given what was done before and answers with what is done now. False if
    /// it is not here.
    ///
    /// `act` must be quick, and must neither wait for anything nor let go of an interpreter.
    pub fn reach(&self, task: i64, act: impl FnOnce(Marks) -> Marks) -> bool {
        in_total_order();
        // SeqCst: after the flag of the task was set, see above. Acquires what others did to it.
        if self.task.compare_exchange(task, HELD, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        let _hold = Hold { slot: self, task };
        let marks = act(Marks(self.marks.load(Ordering::Relaxed)));
        self.marks.store(marks.0, Ordering::Relaxed);
        true
    }

    /// The same for the worker itself, whose innermost body it is; gives what was done to it before.
    pub fn mark(&self, act: impl FnOnce(Marks) -> Marks) -> Marks {
        let task = self.hold();
        let _hold = Hold { slot: self, task };
        // Relaxed: `hold` has acquired what was done by those who held it before.
        let before = Marks(self.marks.load(Ordering::Relaxed));
        self.marks.store(act(before).0, Ordering::Relaxed);
        before
    }

    /// The innermost task, or [`IDLE`]: for its own thread, which waits while another has hold of it.
    pub fn task(&self) -> i64 {
        loop {
            match self.task.load(Ordering::Acquire) {
                HELD => spin(),
                task => return task,
            }
        }
    }

    /// The same without waiting, for those who only show it: some other number while it is held.
    pub fn peek(&self) -> i64 {
        self.task.load(Ordering::Relaxed)
    }

    /// Shows a task that nobody tries to reach.
    pub fn show(&self, task: i64) {
        self.task.store(task, Ordering::Relaxed);
    }

    /// Takes hold of the worker's own body, once others have let it go.
    fn hold(&self) -> i64 {
        loop {
            let task = self.task.load(Ordering::Relaxed);
            // Acquire: what others did while they held it. Nobody but its worker changes it to
            // another task, so this fails only while it is held.
            if task != HELD
                && self
                    .task
                    .compare_exchange(task, HELD, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return task;
            }
            spin();
        }
    }
}

/// Ends a hold, also when what is done meanwhile panics.
struct Hold<'a> {
    slot: &'a InterruptSlot,
    task: i64,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // Release: the worker sees the marks.
        self.slot.task.store(self.task, Ordering::Release);
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_body_keeps_its_own_marks_when_another_runs_inside_of_it() {
        let slot = InterruptSlot::default();
        let none = slot.enter(1);
        assert!(slot.reach(1, Marks::and_given_up));
        let outer = slot.enter(2);
        assert!(!slot.reach(1, Marks::and_interrupted), "it is not the innermost");
        assert!(slot.reach(2, Marks::and_interrupted));
        let inner = slot.leave(outer);
        assert!(inner.interrupted() && !inner.given_up());
        let marks = slot.leave(none);
        assert!(marks.given_up() && !marks.interrupted());
        assert_eq!((slot.task(), slot.leave_nothing()), (IDLE, Marks::NONE));
    }

    #[test]
    fn a_worker_can_leave_its_body_when_what_was_done_to_it_has_panicked() {
        let slot = InterruptSlot::default();
        let none = slot.enter(1);
        let panicked = catch_unwind(AssertUnwindSafe(|| slot.reach(1, |_| panic!("act"))));
        assert!(panicked.is_err());
        assert_eq!(slot.leave(none), Marks::NONE);
    }

    impl InterruptSlot {
        fn leave_nothing(&self) -> Marks {
            let outer = self.enter(9);
            self.leave(outer)
        }
    }
}
