//! Frames for tracebacks.

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict};

use super::once::intern;

/// A frame that runs nothing and holds no variables, to stand in a traceback. `code` has no free
/// variables, which a frame would look for in its function.
#[pyfunction]
#[pyo3(signature = (code, globals, /))]
pub(crate) fn bare_frame<'py>(
    code: &Bound<'py, PyCode>,
    globals: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = code.py();
    if code.getattr(intern!(py, "co_freevars"))?.len()? > 0 {
        return Err(PyValueError::new_err("the code of a bare frame has no free variables"));
    }
    // SAFETY: attached; a code object and a dictionary, both live; a new reference or null with an
    // exception set.
    unsafe {
        let frame = ffi::PyFrame_New(
            ffi::PyThreadState_Get(),
            code.as_ptr().cast(),
            globals.as_ptr(),
            std::ptr::null_mut(),
        );
        Bound::from_owned_ptr_or_err(py, frame.cast())
    }
}
