//! Calling functions that others gave us to be told by: what they raise is logged, and stops nobody.
//!
//! In a thread of the user's, what is no `Exception` goes to the user's own code there: Ctrl-C above
//! all, which the main thread gets wherever it is, also in such a function.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::interp::call::call_with;
use crate::interp::guard;
use crate::interp::slot;

/// Calls `callback` and logs what it raises.
pub(crate) fn call<'py>(
    py: Python<'py>,
    callback: &Py<PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) {
    guard::within_call(py, || {
        let Err(error) = call_as_given(py, callback, args) else { return };
        if log(py, callback, &error).is_err() {
            error.write_unraisable(py, Some(callback.bind(py)));
        }
    });
}

/// As `call`; but what is no `Exception` is an error here, for the caller to raise.
pub(crate) fn call_for_caller<'py>(
    py: Python<'py>,
    callback: &Py<PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<()> {
    guard::within_call(py, || {
        let Err(error) = call_as_given(py, callback, args) else { return Ok(()) };
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        match log(py, callback, &error) {
            Err(other) if other.is_instance_of::<PyException>(py) => {
                error.write_unraisable(py, Some(callback.bind(py)));
                Ok(())
            }
            logged => logged,
        }
    })
}

fn call_as_given<'py>(
    py: Python<'py>,
    callback: &Py<PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<()> {
    let result = args.into_pyobject(py).and_then(|args| call_with(callback.bind(py), &args));
    slot::leave_if_copied();
    result.map(drop)
}

fn log(py: Python<'_>, callback: &Py<PyAny>, error: &PyErr) -> PyResult<()> {
    let module = py.import("dftracer.utils.from_native.logs")?;
    module.call_method1("log_failure", (callback.clone_ref(py), error.value(py))).map(drop)
}
