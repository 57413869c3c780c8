//! Outcomes that any native job may have.

use dftracer_core::task_state::state;
use dftracer_core::trace::Failure;
use pyo3::prelude::*;

use crate::interp::call::panic_error;
use crate::owner::job::{Named, NativeOutcome};

/// It was stopped.
pub(crate) struct Stopped;

impl NativeOutcome for Stopped {
    fn terminal_state(&self) -> u8 {
        state::CANCELLED
    }

    fn decode(&self, _task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(None)
    }

    fn failure(&self) -> Option<Failure> {
        None
    }
}

/// It panicked, and said this.
pub(crate) struct Panicked(pub(crate) String);

impl NativeOutcome for Panicked {
    fn terminal_state(&self) -> u8 {
        state::FAILED
    }

    fn decode(&self, _task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        Err(panic_error(&self.0))
    }

    fn failure(&self) -> Option<Failure> {
        Some(because("panic", self.0.clone()))
    }
}

/// A failure of this kind, for a trace.
pub(crate) fn because(error: &str, message: String) -> Failure {
    Failure { error: error.to_owned(), message, ..Failure::default() }
}
