//! The exceptions of refusals, which `dftracer.utils.errors` shows to users: each a `RuntimeError`.

#![expect(
    clippy::disallowed_types,
    reason = "what the macro keeps a class in is filled while this module is imported"
)]

use std::fmt::Display;

use pyo3::create_exception;
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use super::once::Lazy;

create_exception!(
    dftracer.utils.errors,
    RuntimeShutdownError,
    PyRuntimeError,
    "A task was submitted to a runtime that is shut down, or while the interpreter exits."
);
create_exception!(
    dftracer.utils.errors,
    ForkedRuntimeError,
    PyRuntimeError,
    "A runtime that was made before a ``fork()`` was used in the child process.

It has no threads there. :func:`~dftracer.utils.get_default_runtime` makes a new one."
);
create_exception!(
    dftracer.utils.errors,
    WaitRefusedError,
    PyRuntimeError,
    "Waiting here could block for ever.

For example because the task that is waited for waits, itself or through others, for the one
that waits."
);
create_exception!(
    dftracer.utils.errors,
    TooManyBlockedError,
    WaitRefusedError,
    "So many tasks of a runtime wait for others that one more could block for ever.

Return futures, or use ``await``, instead of waiting inside so many tasks."
);
create_exception!(
    dftracer.utils.errors,
    SystemLimitError,
    PyRuntimeError,
    "The system has refused a thread that a runtime needs.

End other threads, or raise the limit."
);

/// That the system has refused to start `what`.
pub(crate) fn refused(what: &str, error: impl Display) -> PyErr {
    SystemLimitError::new_err(format!(
        "the system refused to start {what} ({error}): end other threads or raise its limit"
    ))
}

/// Adds the classes to the module. Made here and now: at their first use it could be too late for that,
/// see [`once`](super::once).
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("RuntimeShutdownError", py.get_type::<RuntimeShutdownError>())?;
    module.add("ForkedRuntimeError", py.get_type::<ForkedRuntimeError>())?;
    module.add("WaitRefusedError", py.get_type::<WaitRefusedError>())?;
    module.add("TooManyBlockedError", py.get_type::<TooManyBlockedError>())?;
    module.add("SystemLimitError", py.get_type::<SystemLimitError>())
}

/// A `TaskTimeoutError` for a task that was stopped at its deadline.
pub(crate) fn timeout_error(
    name: &Bound<'_, PyString>,
    task_id: i64,
    what: &str,
) -> PyResult<PyErr> {
    let text = format!("task {task_id} '{name}' has run out of time: {what}");
    timeout_error_saying(name.py(), text)
}

/// The same with a text that says it all.
pub(crate) fn timeout_error_saying(py: Python<'_>, text: String) -> PyResult<PyErr> {
    static CLASS: Lazy<Py<PyType>> = Lazy::new();
    let class = CLASS.import(py, "dftracer.utils.errors", "TaskTimeoutError")?;
    Ok(PyErr::from_type(class.clone(), (text,)))
}

/// The exception that Python itself would raise: with an errno, `OSError` becomes
/// `FileNotFoundError`, `PermissionError` and so on.
pub(crate) fn os_error(py: Python<'_>, error: &std::io::Error, about: &std::ffi::OsStr) -> PyErr {
    let Some(errno) = error.raw_os_error() else {
        if error.kind() == std::io::ErrorKind::OutOfMemory {
            return PyMemoryError::new_err(format!("{}: {error}", about.to_string_lossy()));
        }
        return PyOSError::new_err(format!("{}: {error}", about.to_string_lossy()));
    };
    let text = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (errno,)))
        .and_then(|text| text.extract::<String>())
        .unwrap_or_else(|_| error.to_string());
    PyOSError::new_err((errno, text, about.to_owned()))
}
