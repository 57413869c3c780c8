//! Calling functions that others gave us to be told by: whatever they raise is logged, and stops
//! nobody.

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
    guard::within_call(py, || call_and_log(py, callback, args));
}

fn call_and_log<'py>(
    py: Python<'py>,
    callback: &Py<PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) {
    let result = args.into_pyobject(py).and_then(|args| call_with(callback.bind(py), &args));
    slot::leave_if_copied();
    let Err(error) = result else { return };
    let logged = py.import("dftracer.utils.from_native.logs").and_then(|module| {
        module.call_method1("log_failure", (callback.clone_ref(py), error.value(py)))
    });
    if logged.is_err() {
        error.write_unraisable(py, Some(callback.bind(py)));
    }
}
