//! Calling a task's body: in its own context, whatever it raises, even at interpreter exit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

// PyO3 declares this function as one that never unwinds. It does: until CPython 3.13 a thread that
// wants the interpreter while it shuts down is ended by a forced unwind through our frames.
unsafe extern "C-unwind" {
    fn PyObject_Call(
        callable: *mut ffi::PyObject,
        args: *mut ffi::PyObject,
        kwargs: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
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
    let (entered, result) = unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            (false, std::ptr::null_mut())
        } else {
            let guard = HangOnUnwind;
            let result = PyObject_Call(callable.as_ptr(), args.as_ptr(), kwargs);
            std::mem::forget(guard);
            ffi::PyContext_Exit(context.as_ptr());
            (true, result)
        }
    };
    debug_assert!(entered || result.is_null());
    // PyO3 turns a PanicException back into a panic when it fetches the error.
    // SAFETY: a new reference or null with an exception set.
    catch_unwind(AssertUnwindSafe(|| unsafe { Bound::from_owned_ptr_or_err(py, result) }))
        .unwrap_or_else(|panic| Err(panic_error(panic.as_ref())))
}

/// The exception that stands for a panic at a job's boundary.
pub(crate) fn panic_error(panic: &(dyn std::any::Any + Send)) -> PyErr {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    PyRuntimeError::new_err(format!("panic in native code: {text}"))
}

/// The name of a task that was given none: that of its callable, with the module before it unless
/// that is `__main__`.
pub(crate) fn derive_name<'py>(callable: &Bound<'py, PyAny>) -> Bound<'py, PyString> {
    let py = callable.py();
    let text =
        |attribute: &str| -> Option<String> { callable.getattr(attribute).ok()?.extract().ok() };
    let Some(base) = text("__qualname__").or_else(|| text("__name__")) else {
        // functools.partial and the like wear the name of what they call.
        let inner =
            callable.getattr(pyo3::intern!(py, "func")).ok().filter(|inner| inner.is_callable());
        if let Some(inner) = inner {
            return derive_name(&inner);
        }
        return callable.get_type().qualname().unwrap_or_else(|_| PyString::new(py, "callable"));
    };
    match text("__module__") {
        Some(module) if module != "__main__" => PyString::new(py, &format!("{module}.{base}")),
        _ => PyString::new(py, &base),
    }
}
