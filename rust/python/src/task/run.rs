//! Running the body of a task, on the thread that has claimed it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::given_up::interruption;
use super::stopping::stop_body;
use super::wait::graph::Within;
use super::{Content, End, Outcome, TaskHandle, current, limits};
use crate::interp::call::{in_context, panic_error, panic_text};
use crate::interp::objects::{HandledError, is_coroutine};
use crate::interp::once::{Lazy, intern};
use crate::interp::slot::{self, LaneKind};
use crate::owner::{Shared, Sleepers, wake};

/// How deep a worker runs tasks it waits for on its own stack before it asks for a spare thread:
/// each level takes native stack and a part of Python's recursion limit.
const MAX_INLINE_DEPTH: u32 = 64;

/// How many Python frames may stand below a task that is run on the stack of its waiter.
const MAX_INLINE_FRAMES: usize = 150;

thread_local! {
    static INLINE_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs a task. `None` if it has not ended now.
pub(crate) fn run_claimed(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    sleepers: &mut Sleepers,
) -> Option<End> {
    if let Some(shared) = handle.get().shared() {
        limits::arm(shared, handle.get());
    }
    let outcome = match catch_unwind(AssertUnwindSafe(|| run_body(py, handle))) {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return None, // it goes on elsewhere
        Err(panic) => Outcome::Error(panic_error(&panic_text(panic.as_ref()))),
    };
    settle(py, handle, outcome, sleepers)
}

/// Ends a task that has run here as an item of a batch: with the value and its context, or with an
/// error. `None` if it goes on elsewhere.
pub(crate) fn end_task(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    result: PyResult<(Py<PyAny>, Py<PyAny>)>,
    sleepers: &mut Sleepers,
) -> Option<End> {
    let outcome = outcome_of(py, handle, result)?;
    settle(py, handle, outcome, sleepers)
}

fn settle(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    outcome: Outcome,
    sleepers: &mut Sleepers,
) -> Option<End> {
    slot::set_ran_last(handle.get().task_id);
    TaskHandle::settle_quietly(handle, outcome, py, sleepers)
}

/// Calls the body. `None` if it turned out to be a coroutine, which now has another lane.
fn run_body(py: Python<'_>, handle: &Py<TaskHandle>) -> Option<Outcome> {
    let this = handle.get();
    let call = match this.take_content()? {
        Content::Call(call) => call,
        _ => return Some(Outcome::Error(PyRuntimeError::new_err("a queued task had no body"))),
    };
    this.keep_name(call.callable().bind(py));
    let around = current::begin_body(py, handle);
    // After it can be reached: whoever asks later finds it.
    if this.is_cancel_requested() {
        current::end_body(py, around, call);
        return Some(Outcome::Cancelled);
    }
    this.tell_begun(py);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let context = call.context(py)?;
        let value = in_context(context.bind(py), || call.here(py))?;
        Ok((value.unbind(), context))
    }))
    .unwrap_or_else(|panic| Err(panic_error(&panic_text(panic.as_ref()))));
    current::end_body(py, around, call);
    outcome_of(py, handle, result)
}

/// What a body has come to, which has answered with a value in this context. `None` if that is a
/// coroutine, which now has another lane.
fn outcome_of(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    result: PyResult<(Py<PyAny>, Py<PyAny>)>,
) -> Option<Outcome> {
    match result {
        Ok((coroutine, _)) if handle.get().is_settled() && is_coroutine(coroutine.bind(py)) => {
            // Its task has ended without it: nobody awaits it. Closing one that has not begun runs
            // nothing of it.
            let _ = coroutine.call_method0(py, intern!(py, "close"));
            Some(Outcome::Cancelled)
        }
        Ok((coroutine, context)) if is_coroutine(coroutine.bind(py)) => {
            handle.get().become_(Content::Coroutine { coroutine, context });
            if let Some(shared) = handle.get().shared() {
                pass_on(shared, py, handle);
            }
            None
        }
        Ok((value, _)) => Some(Outcome::Value(value)),
        Err(error)
            if handle.get().is_cancel_requested()
                && error.is_instance(py, interruption(py).as_any()) =>
        {
            Some(Outcome::Cancelled)
        }
        Err(error) => Some(Outcome::Error(error)),
    }
}

/// Runs a task on the stack of the thread that waits for it, if nobody has started it and this is
/// a worker of its lane. True if it ran.
pub(crate) fn run_inline(handle: &Bound<'_, TaskHandle>) -> bool {
    let this = handle.get();
    let ours = slot::current().is_some_and(|slot| {
        this.lane == Some(slot.lane)
            && slot.lane != LaneKind::Coroutine
            && this.shared().is_some_and(|shared| current::is_worker_of(shared))
    });
    let (py, depth) = (handle.py(), INLINE_DEPTH.get());
    // One that may run out of time ends for its waiter, too, at once: not on the stack of that.
    let has_limit = this.has_limit()
        || this.shared().is_some_and(|shared| shared.deadlines.task_timeout().is_some());
    if !ours || has_limit || depth >= MAX_INLINE_DEPTH || has_deep_stack(py) || !this.claim() {
        return false;
    }
    INLINE_DEPTH.set(depth + 1);
    let handled = HandledError::set_aside(py);
    let _within = (outer_body(py), Within::body(handle.clone().unbind()));
    let mut sleepers = Sleepers::new();
    run_claimed(py, handle.as_unbound(), &mut sleepers);
    handled.put_back(py);
    wake(&mut sleepers);
    INLINE_DEPTH.set(depth);
    // Whoever has asked the body that waits to stop did not find it: it was not the innermost.
    if let Some(outer) = current::known_task(py)
        && outer.get().is_cancel_requested()
    {
        stop_body(outer.get(), py);
    }
    true
}

/// Names the body that waits while another one is run on its stack, if there is one.
fn outer_body(py: Python<'_>) -> Option<Within> {
    let (task, batch, id) = current::innermost(py)?;
    match task {
        Some(task) => Some(Within::body(task)),
        None => batch.map(|batch| Within::item(batch, id)),
    }
}

/// Whether Python's stack here is so deep that a body above it would have much less than its own
/// recursion limit.
fn has_deep_stack(py: Python<'_>) -> bool {
    static GETFRAME: Lazy<Py<PyAny>> = Lazy::new();
    // Raises if there are not so many frames; does not look at them.
    GETFRAME
        .import(py, "sys", "_getframe")
        .is_ok_and(|getframe| getframe.call1((MAX_INLINE_FRAMES,)).is_ok())
}

/// Gives a task whose callable returned a coroutine to the coroutine lane.
fn pass_on(shared: &Arc<Shared>, py: Python<'_>, handle: &Py<TaskHandle>) {
    let order = shared.lane(LaneKind::Coroutine).push(handle.clone_ref(py).into_any());
    if let Err(error) = shared.obey(LaneKind::Coroutine, order) {
        TaskHandle::settle(handle, Outcome::Error(error), py);
    }
}
