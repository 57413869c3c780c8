//! The exceptions of refusals, which `dftracer.utils.errors` shows to users: each a `RuntimeError`.

#![expect(
    clippy::disallowed_types,
    reason = "what the macro keeps a class in is filled while this module is imported"
)]

use std::fmt::Display;

use pyo3::create_exception;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

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
