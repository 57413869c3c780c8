//! `dftracer.utils._native`: the Python face of `dftracer-core`. This file only registers.

// The classes and functions here are documented where their users look: in `_native.pyi`.
#![allow(missing_docs)]
#![deny(unsafe_code)]

mod batch;
mod graph;
#[allow(unsafe_code, reason = "functions of CPython that PyO3 does not wrap, or wraps otherwise")]
mod interp;
mod native;
mod owner;
mod runtime;
mod task;
mod trace;
mod worker;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::graph::Graph;
    #[pymodule_export]
    use crate::interp::fork::{after_fork_in_child, after_fork_in_parent, before_fork};
    #[pymodule_export]
    use crate::interp::frames::bare_frame;
    #[pymodule_export]
    use crate::interp::gc::{track_all, untrack_future};
    #[pymodule_export]
    use crate::native::process::ProcessResult;
    #[pymodule_export]
    use crate::runtime::api::Runtime;
    #[pymodule_export]
    use crate::runtime::exit::{available_cpus, running_task, shutdown_all};
    #[pymodule_export]
    use crate::runtime::results::Results;
    #[pymodule_export]
    use crate::task::TaskHandle;
    #[pymodule_export]
    use crate::task::current::PyBlocked;
    #[pymodule_export]
    use crate::task::mailbox::Mailbox;
    #[pymodule_export]
    use crate::task::wait::body::py_sleep;
    #[pymodule_export]
    use crate::task::wait::graph::PyWaiting;
    #[pymodule_export]
    use crate::trace::Trace;
    #[pymodule_export]
    use crate::trace::redact::{hide_secrets, keep_secret};
    #[pymodule_export]
    use crate::worker::coroutine::CoroutineWorker;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::refuse_subinterpreters(module.py())?;
        // Fails only if another extension has set a logger already; then that one is used.
        // Nothing is cached: Python's levels may change, and we log little.
        let _ = pyo3_log::Logger::new(module.py(), pyo3_log::Caching::Nothing)?.install();
        crate::interp::once::make_early(&module.py().get_type::<Runtime>())?;
        crate::interp::fork::in_child(crate::task::wait::graph::forked);
        crate::interp::errors::add_to(module)?;
        crate::runtime::submit::install(&module.py().get_type::<Runtime>())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Statics of this module belong to one interpreter. CPython 3.12 refuses by itself.
fn refuse_subinterpreters(py: Python<'_>) -> PyResult<()> {
    if interp::objects::is_main_interpreter(py) {
        Ok(())
    } else {
        Err(pyo3::exceptions::PyImportError::new_err(
            "dftracer.utils cannot be imported in a subinterpreter: use processes or threads instead",
        ))
    }
}
