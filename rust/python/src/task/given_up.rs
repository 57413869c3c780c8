//! How a worker leaves a body that others may have given up or interrupted.

use std::sync::atomic::Ordering;

use dftracer_core::interrupt_slot::Outer;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::interp::call::call_with;
use crate::interp::objects::raise_in_thread;
use crate::interp::once::Lazy;
use crate::interp::slot::Slot;
use crate::owner::Shared;

/// An exception was sent to a body that its worker has left, which may not have been raised:
/// [`swallow`] is to be called, where Python code may run.
#[must_use]
pub(crate) struct Sent {
    /// Whether one had been sent to the body around it before.
    to_outer: bool,
}

/// The worker of a body has left it.
#[inline]
pub(crate) fn leave_body(shared: &Shared, slot: &Slot, outer: Outer) -> Option<Sent> {
    let to_outer = outer.was_interrupted();
    let marks = slot.running.leave(outer);
    if marks.given_up() {
        shared.lane(slot.lane).leave_blocked();
        slot.given_up.fetch_sub(1, Ordering::Relaxed);
        shared.stopping.count(-1);
    }
    marks.interrupted().then_some(Sent { to_outer })
}

/// Has the exception that was sent to a body raised here, if it has not been, and drops it.
///
/// To take it back instead, with null for the class, would leave the interpreter's note that some
/// thread has one to raise: all threads look for it from then on at each call, and on CPython 3.11
/// none goes on that has a profiler or a debugger.
#[cold]
pub(crate) fn swallow(py: Python<'_>, slot: &Slot, sent: Sent) {
    if let Err(error) = let_pending_raise(py)
        && !error.get_type(py).is(interruption(py))
    {
        error.write_unraisable(py, None);
    }
    // One that was sent to the outer body meanwhile may be gone with it.
    if !sent.to_outer && slot.running.mark(|marks| marks).interrupted() {
        raise_in_thread(slot.ident.load(Ordering::Relaxed), &interruption(py));
    }
}

/// Raises what was sent to this thread, as any Python code does.
pub(super) fn let_pending_raise(py: Python<'_>) -> PyResult<()> {
    call_with(pass(py)?, &PyTuple::empty(py)).map(drop)
}

/// The function in which it is raised. To be had before anything is sent: while an exception is
/// pending, nothing can be imported.
pub(super) fn pass(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static PASS: Lazy<Py<PyAny>> = Lazy::new();
    PASS.import(py, "dftracer.utils.from_native.logs", "let_pending_raise")
}

/// What a body that is stopped sees: `asyncio.CancelledError`, which `except Exception` lets pass.
pub(crate) fn interruption(py: Python<'_>) -> Bound<'_, PyType> {
    static CLASS: Lazy<Py<PyType>> = Lazy::new();
    match CLASS.import(py, "asyncio", "CancelledError") {
        Ok(class) => class.clone(),
        Err(_) => py.get_type::<pyo3::exceptions::PyKeyboardInterrupt>(),
    }
}
