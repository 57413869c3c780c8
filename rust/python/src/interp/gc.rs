//! What the interpreter's garbage collector looks through.
//!
//! # What a `__traverse__` here may rely on
//!
//! The collector visits every object twice: first to count the references that come from inside the
//! heap, then to follow them. A reference that is shown the first time and not the second makes
//! something in use look like garbage. So between the two visits nothing that is shown may go away:
//!
//! 1. What a `__traverse__` shows is taken away by attached threads only. None of these runs while
//!    the collector does, and the one that runs the collector is in the middle of nothing, because
//!    no Python object is made or dropped under a lock of ours.
//! 2. A thread without the interpreter may look, and may add what was not shown before: that is a
//!    reference more than was counted, which keeps things alive.
//! 3. A lock that such a thread may hold is waited for, not tried: what is skipped once would be
//!    missing. It is held for moments and inside [`apart_from_forks`](crate::interp::fork), and its holder
//!    never waits for the interpreter, so neither can the collector wait for ever, nor the child of
//!    a fork.
//! 4. In that child, what another process's threads shared is not shown at all, neither the first
//!    time nor the second.

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyList, PyType};

use crate::interp::once::Lazy;

/// Takes a new object of ours off the collector's list, which is walked again and again while many
/// are made.
///
/// For what certainly lives on until it is put back: meanwhile nothing that it is part of is found
/// to be garbage.
#[inline]
pub(crate) fn untrack(object: &Bound<'_, PyAny>) {
    let object = object.as_ptr();
    // SAFETY: attached; a live object, which has the collector's header if `PyObject_IS_GC` says so.
    unsafe {
        if ffi::PyObject_IS_GC(object) != 0 {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
    }
}

/// Takes an unfinished asyncio future off the list, as [`untrack`] does. Whoever asks for it hands
/// the future to a task as its token, which puts it back when it posts the task's end, or puts it
/// back itself with [`track_all`].
///
/// Of other kinds of objects nobody here knows for how long they are in use, so they are refused.
#[pyfunction]
#[pyo3(name = "untrack", signature = (future, /))]
pub(crate) fn untrack_future(future: &Bound<'_, PyAny>) -> PyResult<()> {
    static FUTURE: Lazy<Py<PyType>> = Lazy::new();
    if !future.is_instance(FUTURE.import(future.py(), "asyncio", "Future")?)? {
        return Err(PyTypeError::new_err(format!(
            "untrack() takes an asyncio future that a task will end, not {}",
            future.get_type().qualname()?
        )));
    }
    untrack(future);
    Ok(())
}

/// Puts an object back on the collector's list, if it is not there.
///
/// Several threads may do so with a task's token: the one that ends the task, and the one that has
/// submitted it. CPython aborts the process when an object is put there twice, so without the GIL
/// this locks the object, which can let go of the interpreter: not to be called under a lock.
#[inline]
pub(crate) fn track(object: &Bound<'_, PyAny>) {
    with_critical_section(object, || track_alone(object));
}

/// The same where no other thread can do so, such as under a lock that all of them take.
pub(crate) fn track_alone(object: &Bound<'_, PyAny>) {
    let object = object.as_ptr();
    // SAFETY: as above; and only what is not on the list is put there, which nobody else does
    // meanwhile.
    unsafe {
        if ffi::PyObject_IS_GC(object) != 0 && ffi::PyObject_GC_IsTracked(object) == 0 {
            ffi::PyObject_GC_Track(object.cast());
        }
    }
}

/// Puts objects back on the collector's list, those that are not there.
#[pyfunction]
#[pyo3(signature = (objects, /))]
pub(crate) fn track_all(objects: &Bound<'_, PyList>) {
    for object in objects {
        track(&object);
    }
}
