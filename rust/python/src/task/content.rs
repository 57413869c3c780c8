//! What a task holds: first what it needs in order to run, later how it ended.

use std::sync::Arc;

use dftracer_core::task_state::state;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::{PyTraceback, PyType};

use crate::interp::call::Call;
#[cfg(not(Py_3_12))]
use crate::interp::objects::restore_traceback;
use crate::interp::once::{Lazy, intern};
use crate::owner::job::{NativeJob, NativeOutcome};

/// The one slot of a task. It goes down this list, never up.
pub(crate) enum Content {
    /// A call, not begun.
    Call(Call),
    /// A native job, not begun or begun.
    Native(NativeJob),
    /// A plain body that runs.
    Running,
    /// A coroutine that a callable returned, not begun.
    Coroutine { coroutine: Py<PyAny>, context: Py<PyAny> },
    /// A suspended coroutine: its asyncio task and the loop that owns it.
    Suspended { task: Py<PyAny>, event_loop: Py<PyAny> },
    /// A task of somebody else, and the way to cancel it.
    Foreign { cancel: Py<PyAny> },

    /// Ended with a value.
    Value(Py<PyAny>),
    /// Ended with an exception.
    Error {
        exception: Py<PyBaseException>,
        /// The traceback as it was when the body ended. Raising adds the raiser's frames to the
        /// exception; each raise starts from here again.
        traceback: Option<Py<PyTraceback>>,
    },
    /// Ended as cancelled.
    Cancelled,
    /// Ended, on a thread without the interpreter. Becomes one of the three above when it is first
    /// looked at.
    Undecoded(Arc<dyn NativeOutcome>),
}

/// How a task ended, as whoever ran it tells.
pub(crate) enum Outcome {
    Value(Py<PyAny>),
    Error(PyErr),
    Cancelled,
}

impl Content {
    pub(crate) fn of_error(py: Python<'_>, error: &PyErr) -> Self {
        let (exception, traceback) = (error.value(py), error.traceback(py));
        // Before CPython 3.12 an error that is caught in native code has not been given its
        // traceback yet.
        #[cfg(not(Py_3_12))]
        restore_traceback(
            py,
            exception.as_unbound(),
            traceback.clone().map(Bound::unbind).as_ref(),
        );
        Self::Error {
            exception: exception.clone().unbind(),
            traceback: traceback.map(Bound::unbind),
        }
    }

    /// Drops what a task needed in order to run. A coroutine that nobody will await is closed before,
    /// which runs nothing of it: Python would warn of it otherwise.
    pub(crate) fn let_go(self, py: Python<'_>) {
        if let Self::Coroutine { coroutine, .. } = &self {
            let _ = coroutine.call_method0(py, intern!(py, "close"));
        }
    }

    /// The terminal state and content that an outcome means.
    pub(crate) fn of_outcome(outcome: Outcome, py: Python<'_>) -> (u8, Self) {
        match outcome {
            Outcome::Value(value) => (state::DONE, Self::Value(value)),
            Outcome::Cancelled => (state::CANCELLED, Self::Cancelled),
            Outcome::Error(error) => (state::FAILED, Self::of_error(py, &error)),
        }
    }
}

/// `concurrent.futures.CancelledError`.
pub(crate) fn cancelled_error(py: Python<'_>) -> PyErr {
    static CLASS: Lazy<Py<PyType>> = Lazy::new();
    match CLASS.import(py, "concurrent.futures", "CancelledError") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}
