//! Calling a task's body: in its own context, whatever it raises, even at interpreter exit.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

// PyO3 declares this function as one that never unwinds. It does: until CPython 3.13 a thread that
// wants the interpreter while it shuts down is ended by a forced unwind through our frames.
unsafe extern "C-unwind" {
    fn PyObject_Call(
        callable: *mut ffi::PyObject,
        args: *mut ffi::PyObject,
        kwargs: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
    fn PyIter_Send(
        iterator: *mut ffi::PyObject,
        argument: *mut ffi::PyObject,
        result: *mut *mut ffi::PyObject,
    ) -> c_int;
}

/// Dropped only by a forced unwind: stops it here, before it runs destructors that would touch an
/// interpreter that is gone. The thread then waits for the end of the process.
struct HangOnUnwind;

impl Drop for HangOnUnwind {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// A copy of the calling thread's current context.
pub(crate) fn copy_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    // SAFETY: attached; a new reference or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }.map(Bound::unbind)
}

/// Calls `callable(*args, **kwargs)` with `context` as the current context. A Rust panic below the
/// call becomes an exception.
pub(crate) fn call_in_context<'py>(
    py: Python<'py>,
    context: &Py<PyAny>,
    callable: &Py<PyAny>,
    args: &Py<PyTuple>,
    kwargs: Option<&Py<PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = kwargs.map_or(std::ptr::null_mut(), Py::as_ptr);
    // SAFETY: attached, all pointers are live objects of the right types held by the caller, and
    // the context is exited on the thread that entered it, before the error is looked at.
    let result = unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            std::ptr::null_mut()
        } else {
            let result = guarded_call(callable.as_ptr(), args.as_ptr(), kwargs);
            ffi::PyContext_Exit(context.as_ptr());
            result
        }
    };
    owned(py, result)
}

/// What a call has returned, or the error that is set.
fn owned(py: Python<'_>, result: *mut ffi::PyObject) -> PyResult<Bound<'_, PyAny>> {
    // PyO3 turns a PanicException back into a panic when it fetches the error.
    // SAFETY: a new reference or null with an exception set.
    catch_unwind(AssertUnwindSafe(|| unsafe { Bound::from_owned_ptr_or_err(py, result) }))
        .unwrap_or_else(|panic| Err(panic_error(&panic_text(panic.as_ref()))))
}

/// As [`call_in_context`], in the context that is current.
pub(crate) fn call_here<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = kwargs.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: attached, all pointers are live objects of the right types.
    let result = unsafe { guarded_call(callable.as_ptr(), args.as_ptr(), kwargs) };
    owned(callable.py(), result)
}

/// What a step of a coroutine has come to.
pub(crate) enum Step<'py> {
    /// It waits for this.
    Suspended(Bound<'py, PyAny>),
    /// It has ended with this.
    Ended(Bound<'py, PyAny>),
}

/// Makes the first step of `coroutine`, whatever it raises.
pub(crate) fn begin_coroutine<'py>(coroutine: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = coroutine.py();
    let none = py.None();
    let mut result = std::ptr::null_mut();
    let guard = HangOnUnwind;
    // SAFETY: attached, live objects; a coroutine can be sent to.
    let end = unsafe { PyIter_Send(coroutine.as_ptr(), none.as_ptr(), &raw mut result) };
    std::mem::forget(guard);
    let result = owned(py, result)?;
    Ok(if end == ffi::PySendResult::PYGEN_RETURN as c_int {
        Step::Ended(result)
    } else {
        Step::Suspended(result)
    })
}

/// Does `work` with `context` as the current context.
pub(crate) fn in_context<'py, T>(
    context: &Bound<'py, PyAny>,
    work: impl FnOnce() -> PyResult<T>,
) -> PyResult<T> {
    // SAFETY: attached, and a context; an exception is set if it is refused.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(context.py()));
    }
    let result = work();
    // SAFETY: the thread that entered it leaves it.
    unsafe { ffi::PyContext_Exit(context.as_ptr()) };
    result
}

/// Calls `callable(argument)` for the rest of a thread's life, as above, but in no context.
pub(crate) fn call_for_life<'py>(
    callable: &Bound<'py, PyAny>,
    argument: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = callable.py();
    let args = PyTuple::new(py, [argument])?;
    // SAFETY: attached, live objects of the right types; a new reference or null with an
    // exception set.
    unsafe {
        let result = guarded_call(callable.as_ptr(), args.as_ptr(), std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, result)
    }
}

/// # Safety
///
/// As for `PyObject_Call`.
unsafe fn guarded_call(
    callable: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
    kwargs: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let guard = HangOnUnwind;
    // SAFETY: the caller's promise.
    let result = unsafe { PyObject_Call(callable, args, kwargs) };
    std::mem::forget(guard);
    result
}

/// The exception that stands for a panic at a job's boundary.
pub(crate) fn panic_error(text: &str) -> PyErr {
    PyRuntimeError::new_err(format!("panic in native code: {text}"))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}
