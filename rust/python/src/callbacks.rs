//! Calling functions that others gave us to be told by: whatever they raise is logged, and stops
//! nobody.

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

/// Calls `callback` and logs what it raises.
pub(crate) fn call<'py>(py: Python<'py>, callback: &Py<PyAny>, args: impl PyCallArgs<'py>) {
    let Err(error) = callback.bind(py).call1(args) else { return };
    let logged = py.import("dftracer.utils.callbacks").and_then(|module| {
        module.call_method1("log_failure", (callback.clone_ref(py), error.value(py)))
    });
    if logged.is_err() {
        error.write_unraisable(py, Some(callback.bind(py)));
    }
}
