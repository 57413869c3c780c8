//! The end of a task: the books first, then those who wait, then the functions that are to be called.
//!
//! In this order: the state and the content change as one; the failure, the counts by state and the
//! trace show it; the error callback is called; threads and event loops that wait are woken; the done
//! callbacks are called; last, the task is counted as ended. So `wait_all` and `shutdown` wait for
//! callbacks in progress, and one of these finds everything as it is after the task.
//!
//! A callback may do whatever a user does: wait, fork, take long. It is called by the thread that has
//! ended the task, if that is one of Python's, and otherwise by a worker of the callback lane: threads
//! that end native tasks, and the one that keeps deadlines, must not wait for anybody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;

use dftracer_core::task_state::state::FAILED;

use super::failed::{self, Spare};
use super::handle::Left;
use super::wait::graph::Within;
use super::waiter::Waiters;
use super::{Content, End, Outcome, TaskHandle};
use crate::interp::callbacks;
use crate::interp::clock::nanos_now;
use crate::interp::fork::apart_from_forks;
use crate::interp::guard;
use crate::owner::failures::NewFailure;
use crate::owner::job::NativeOutcome;
use crate::owner::{Shared, Sleepers, wake};

/// Who ends a task.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum EndedBy {
    /// Whoever has run it.
    Itself,
    /// One who asks its body to stop. The request is made together with the end: a body that sees it
    /// cannot end the task otherwise.
    Other,
}

/// What is left to be done when the state of a task has changed.
struct Ended {
    /// As `nanos_now`.
    at: u64,
    waiters: Waiters,
    /// What the task needed in order to run, if that may be Python objects.
    left_over: Option<Content>,
    /// Whether something is left with the task that another thread is to do.
    has_rest: bool,
    /// Whether it is among the failures.
    failed: bool,
}

impl TaskHandle {
    /// Ends the task and wakes who waits for it; false if it had ended already.
    pub(crate) fn settle(self_: &Py<Self>, outcome: Outcome, py: Python<'_>) -> bool {
        let mut sleepers = Sleepers::new();
        let end = Self::settle_quietly(self_, outcome, py, &mut sleepers);
        wake(&mut sleepers);
        end.is_some()
    }

    /// Ends the task as cancelled, in a thread of the user's; `stop` is called when it has ended,
    /// before any code of the user's, which may wait for what is stopped. An error is the first that
    /// a callback has raised here and that is no `Exception`.
    pub(super) fn settle_for_caller(
        self_: &Bound<'_, Self>,
        by: EndedBy,
        stop: impl FnOnce(),
    ) -> PyResult<()> {
        let (this, py, mut raised) = (self_.as_unbound(), self_.py(), Ok(()));
        let mut sleepers = Sleepers::new();
        let cancelled = Outcome::Cancelled;
        Self::settle_first(this, cancelled, py, &mut sleepers, by, stop, Some(&mut raised));
        wake(&mut sleepers);
        raised
    }

    /// Ends the task, once: `None` if it had ended already, and then `outcome` is dropped. Its
    /// callbacks are called here. Who waits for the task is added to `sleepers`, for the caller to
    /// wake soon: one that wakes while this thread still holds the interpreter would only fall asleep
    /// again to wait for that.
    pub(crate) fn settle_quietly(
        self_: &Py<Self>,
        outcome: Outcome,
        py: Python<'_>,
        sleepers: &mut Sleepers,
    ) -> Option<End> {
        Self::settle_first(self_, outcome, py, sleepers, EndedBy::Itself, || (), None)
    }

    fn settle_first(
        self_: &Py<Self>,
        outcome: Outcome,
        py: Python<'_>,
        sleepers: &mut Sleepers,
        by: EndedBy,
        stop: impl FnOnce(),
        raised: Option<&mut PyResult<()>>,
    ) -> Option<End> {
        let this = self_.get();
        let (state, content) = Content::of_outcome(outcome, py);
        let failure = this.failure(self_, state, &content, py);
        let Ended { at, waiters, failed, left_over, .. } =
            Self::end(self_, (state, content), failure, Some(py), Left::Nothing, by)?;
        stop();
        if let Some(left_over) = left_over {
            // The destructor of an argument may do what a callback may.
            let _within = Within::ending(self_.clone_ref(py), !waiters.is_none());
            guard::within_call(py, || left_over.let_go(py));
        }
        let unheard = !failed && waiters.is_none();
        if !unheard {
            let is_untold = !waiters.is_none();
            let callbacks = waiters.deliver(sleepers, Some(py));
            this.call_back(self_, py, failed, (callbacks, is_untold), sleepers, raised);
        }
        if let Some(shared) = &this.shared {
            shared.tasks_ended(1, sleepers);
        }
        Some(End { at, unheard })
    }

    /// As `settle`, of a task that is asked to stop, on a thread of ours that must not wait for
    /// callbacks.
    pub(crate) fn settle_in_passing(self_: &Py<Self>, outcome: Outcome, py: Python<'_>) -> bool {
        let (state, content) = Content::of_outcome(outcome, py);
        let failure = self_.get().failure(self_, state, &content, py);
        let handle = self_.clone_ref(py);
        let by = EndedBy::Other;
        let (ended, untold) =
            Self::settle_elsewhere(handle, (state, content), failure, Some(py), by);
        if let Some(handle) = untold.and_then(|handle| Self::of(py, handle)) {
            Self::tell_at_last(py, &handle, &mut Sleepers::new());
        }
        ended
    }

    /// What is to be kept of it if it is about to fail.
    fn failure(
        &self,
        self_: &Py<Self>,
        state: u8,
        content: &Content,
        py: Python<'_>,
    ) -> Option<NewFailure> {
        self.who_hears_of_failure(state).map(|shared| failed::of_task(py, shared, self_, content))
    }

    /// The runtime, if that keeps the failure of this task with that end, and tells of it.
    fn who_hears_of_failure(&self, state: u8) -> Option<&Arc<Shared>> {
        self.shared.as_ref().filter(|_| state == FAILED && self.tracked)
    }

    /// Changes the state, and shows it to all who look; `None` if it had changed already.
    fn end(
        self_: &Py<Self>,
        (state, content): (u8, Content),
        failure: Option<NewFailure>,
        py: Option<Python<'_>>,
        left: Left,
        by: EndedBy,
    ) -> Option<Ended> {
        let this = self_.get();
        // Who reports on all tasks reads the counts and the states while no attached thread runs.
        // Of the others none may end a task meanwhile. Before the lock of the cell, which that
        // reader takes within.
        let apart_from_reports = match (&this.shared, py) {
            (Some(shared), None) => Some(shared.living.pause()),
            (Some(shared), Some(_)) if cfg!(Py_GIL_DISABLED) => Some(shared.living.pause()),
            _ => None,
        };
        let mut cell = this.lock();
        if this.is_settled() {
            drop(cell);
            drop(apart_from_reports);
            drop((content, failure));
            return None;
        }
        // Whoever sees that it has failed finds it among the failures.
        let failed = failure.is_some();
        let not_kept = match (&this.shared, failure) {
            (Some(shared), Some(failure)) => Some(shared.record_failure(failure)),
            _ => None,
        };
        if let Some(py) = py {
            Self::track_for(self_, &content, py);
        }
        let left_over = std::mem::replace(&mut cell.content, content);
        let (waiters, alarm, parent) = cell.end_extras(left);
        let at = nanos_now();
        this.times.ended.store(at, Ordering::Relaxed);
        if let Some(shared) = &this.shared {
            shared.count_ends(state, 1);
        }
        if by == EndedBy::Other {
            this.request_cancel();
        }
        // Under the lock, and after the content: they change as one.
        let ends = this.state.end(state);
        debug_assert!(ends, "it had not ended, and is locked");
        let tracing = this.shared.as_ref().and_then(|shared| shared.tracing());
        let name = match (tracing, py) {
            (Some(_), Some(py)) => cell.name.as_ref().map(|name| name.clone_ref(py)),
            _ => None,
        };
        drop(cell);
        drop(apart_from_reports);
        drop(not_kept);
        // Before anybody wakes who may shut the runtime down, and so close the trace.
        if let Some(tracing) = tracing {
            let parent = parent.as_ref().map_or(-1, |family| family.parent);
            this.trace_end(tracing, name, &left_over, parent, py);
        }
        let left_over = match left_over {
            Content::Native(_) | Content::Running => None,
            objects => Some(objects),
        };
        let (left_over, has_rest) = match left {
            Left::Nothing => (left_over, false),
            Left::Callbacks | Left::All => (None, this.leave(left_over)),
        };
        if let Some(parent) = parent {
            parent.ended(1);
        }
        if let (Some(shared), Some(alarm)) = (&this.shared, alarm) {
            shared.cancel_deadline(alarm);
        }
        Some(Ended { at, waiters, left_over, has_rest, failed })
    }

    /// Calls the functions that want to know of the end. All others who do are woken between the
    /// error callback and the done callbacks, if there are any (`is_untold`). What a done callback
    /// raises that is no `Exception` goes to `raised`, if somebody hears of that.
    fn call_back(
        &self,
        self_: &Py<Self>,
        py: Python<'_>,
        failed: bool,
        (callbacks, is_untold): (Vec<Py<PyAny>>, bool),
        sleepers: &mut Sleepers,
        mut raised: Option<&mut PyResult<()>>,
    ) {
        let error_callback = self.shared.as_ref().filter(|_| failed);
        let error_callback = error_callback.and_then(|shared| shared.error_callback(py));
        if error_callback.is_none() && callbacks.is_empty() {
            return;
        }
        if let Some(callback) = error_callback {
            let _within = Within::ending(self_.clone_ref(py), is_untold);
            let (_, error) = self.report(py);
            callbacks::call(py, &callback, (self_.clone_ref(py), error));
        }
        wake(sleepers);
        let _within = Within::ending(self_.clone_ref(py), false);
        for callback in callbacks {
            let args = (self_.clone_ref(py),);
            match &mut raised {
                // Of several errors the caller can raise one only.
                Some(first) if first.is_ok() => {
                    **first = callbacks::call_for_caller(py, &callback, args);
                }
                _ => callbacks::call(py, &callback, args),
            }
        }
    }

    /// Leaves what a task needed in order to run to the thread that will call its callbacks. Tells
    /// whether there is something to do for that.
    fn leave(&self, left_over: Option<Content>) -> bool {
        let mut cell = self.lock();
        if left_over.is_some() {
            cell.extras().left_over = left_over;
            return true;
        }
        cell.extras.as_ref().is_some_and(|extras| !matches!(extras.waiters, Waiters::None))
    }

    /// Ends the task without calling anybody, also on a thread without the interpreter, and gives it
    /// to the callback lane if somebody is to be called. If that has no thread and gets none, gives
    /// the task back for `tell_at_last`. Tells first whether it has ended now.
    fn settle_elsewhere(
        handle: Py<Self>,
        end: (u8, Content),
        failure: Option<NewFailure>,
        py: Option<Python<'_>>,
        by: EndedBy,
    ) -> (bool, Option<Py<PyAny>>) {
        let shared = handle.get().shared.clone();
        let error_callback =
            failure.is_some() && shared.as_ref().is_some_and(|s| s.has_error_callback());
        let left = if error_callback { Left::All } else { Left::Callbacks };
        let Some(ended) = Self::end(&handle, end, failure, py, left, by) else {
            return (false, None);
        };
        let mut sleepers = Sleepers::new();
        ended.waiters.deliver(&mut sleepers, py);
        let Some(shared) = shared else {
            wake(&mut sleepers);
            return (true, ended.has_rest.then_some(handle.into_any()));
        };
        let is_wanted = ended.has_rest || error_callback;
        if !is_wanted {
            shared.tasks_ended(1, &mut sleepers);
            wake(&mut sleepers);
            return (true, None);
        }
        wake(&mut sleepers);
        (true, shared.push_ended(handle.into_any()))
    }

    /// Drops what is left of a task that has ended elsewhere, calls the functions that want to know
    /// of its end, and counts it.
    pub(crate) fn tell_at_last(py: Python<'_>, self_: &Py<Self>, sleepers: &mut Sleepers) {
        let this = self_.get();
        let left_over = this.lock().extras.as_mut().and_then(|extras| extras.left_over.take());
        let waiters = this.forget_waiters();
        let is_untold = !waiters.is_none();
        if let Some(left_over) = left_over {
            let _within = Within::ending(self_.clone_ref(py), is_untold);
            guard::within_call(py, || left_over.let_go(py));
        }
        let callbacks = waiters.deliver(sleepers, Some(py));
        this.call_back(
            self_,
            py,
            this.who_hears_of_failure(this.state()).is_some(),
            (callbacks, is_untold),
            sleepers,
            None,
        );
        if let Some(shared) = &this.shared {
            shared.tasks_ended(1, sleepers);
        }
    }
}

/// What the thread that runs a native task holds of it, to end it without the interpreter.
pub(crate) struct NativeRun {
    handle: Py<TaskHandle>,
    spare: [Spare; 2],
}

impl NativeRun {
    pub(crate) fn of(handle: &Bound<'_, TaskHandle>) -> Self {
        Self { handle: handle.clone().unbind(), spare: [Spare::of(handle), Spare::of(handle)] }
    }

    /// Ends the task; `owned` is dropped with what is held of it.
    pub(crate) fn settle(self, outcome: impl NativeOutcome + 'static, owned: Option<Arc<Shared>>) {
        let untold = apart_from_forks(|| {
            let Self { handle, spare } = self;
            let state = outcome.terminal_state();
            let outcome: Arc<dyn NativeOutcome> = Arc::new(outcome);
            let (failure, spare) = match handle.get().who_hears_of_failure(state) {
                Some(shared) => {
                    (Some(failed::of_native(shared, handle.get(), spare, &outcome)), None)
                }
                None => (None, Some(spare)),
            };
            let end = (state, Content::Undecoded(outcome));
            let (_, untold) =
                TaskHandle::settle_elsewhere(handle, end, failure, None, EndedBy::Itself);
            drop((spare, owned));
            untold
        });
        if let Some(handle) = untold {
            // Rather here than never.
            guard::attach(|py| {
                let Some(handle) = TaskHandle::of(py, handle) else { return };
                let mut sleepers = Sleepers::new();
                TaskHandle::tell_at_last(py, &handle, &mut sleepers);
                wake(&mut sleepers);
                drop(handle);
            });
        }
    }
}
