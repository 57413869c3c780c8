//! Questions about objects, and things to do with them, for which PyO3 has no safe way.

use pyo3::exceptions::PyBaseException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTraceback, PyType};

/// How many references there are to an object.
#[inline]
pub(crate) fn references(object: &Bound<'_, PyAny>) -> ffi::Py_ssize_t {
    // SAFETY: attached, a live object.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) }
}

/// Whether a body has answered with a coroutine, to be awaited rather than returned.
#[inline]
pub(crate) fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, a live object; `PyCoro_CheckExact` only compares its type.
    unsafe { ffi::PyCoro_CheckExact(value.as_ptr()) != 0 }
}

/// Gives an exception the traceback it had, whatever its class says to setting attributes.
pub(crate) fn restore_traceback(
    py: Python<'_>,
    exception: &Py<PyBaseException>,
    traceback: Option<&Py<PyTraceback>>,
) {
    let none = py.None();
    let traceback = traceback.map_or(none.as_ptr(), Py::as_ptr);
    // SAFETY: attached; an exception, and a traceback or None.
    unsafe { pyo3::ffi::PyException_SetTraceback(exception.as_ptr(), traceback) };
}

/// Whether an object could refer to others, now or later. A tuple could not if the collector has
/// found that none of its items can.
#[inline]
pub(crate) fn may_refer(value: &Py<PyAny>) -> bool {
    // SAFETY: the caller is attached, a live object.
    unsafe {
        ffi::PyObject_IS_GC(value.as_ptr()) != 0
            && (ffi::PyTuple_CheckExact(value.as_ptr()) == 0
                || ffi::PyObject_GC_IsTracked(value.as_ptr()) != 0)
    }
}

/// The error that the body below is handling, which is not that of the body above.
pub(crate) struct HandledError([*mut ffi::PyObject; 3]);

impl HandledError {
    pub(crate) fn set_aside(_py: Python<'_>) -> Self {
        let mut parts = [std::ptr::null_mut(); 3];
        let [kind, value, traceback] = &mut parts;
        // SAFETY: attached; the first call gives references that `put_back` gives back.
        unsafe {
            ffi::PyErr_GetExcInfo(kind, value, traceback);
            let null = std::ptr::null_mut();
            ffi::PyErr_SetExcInfo(null, null, null);
        }
        Self(parts)
    }

    pub(crate) fn put_back(self, _py: Python<'_>) {
        let [kind, value, traceback] = self.0;
        // SAFETY: attached; takes the references over.
        unsafe { ffi::PyErr_SetExcInfo(kind, value, traceback) };
    }
}

/// The value of a context variable in the current context, if it has one.
pub(crate) fn variable<'py>(variable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let mut value = std::ptr::null_mut();
    // SAFETY: attached, a context variable; gives a new reference, or null if there is no value.
    unsafe {
        ffi::PyContextVar_Get(variable.as_ptr(), std::ptr::null_mut(), &raw mut value);
        Bound::from_owned_ptr_or_opt(variable.py(), value)
    }
}

/// Sets a context variable in the current context.
pub(crate) fn set_variable(variable: &Bound<'_, PyAny>, value: &Py<PyAny>) -> PyResult<()> {
    // SAFETY: attached, a context variable and a live object; a new reference or null with an
    // exception set.
    unsafe {
        let token = ffi::PyContextVar_Set(variable.as_ptr(), value.as_ptr());
        Bound::from_owned_ptr_or_err(variable.py(), token).map(drop)
    }
}

/// Has an exception raised in the thread with that identity, when it next runs Python code; false if
/// there is no such thread. Nothing in here lets go of the interpreter.
pub(crate) fn raise_in_thread(ident: u64, class: &Bound<'_, PyType>) -> bool {
    // SAFETY: attached; the class is a live object.
    unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, class.as_ptr()) == 1 }
}

/// Whether this is the first interpreter of the process.
pub(crate) fn is_main_interpreter(_py: Python<'_>) -> bool {
    // SAFETY: attached; both calls only read.
    unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) == 0 }
}
