//! Native jobs, as their tasks know them: how one is stopped, and how it has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dftracer_core::io::process::Kill;
use dftracer_core::task_state::state;
use dftracer_core::trace::{Failure, Kind};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::interp::errors::timeout_error;

/// What a native job is, and how it is stopped.
#[derive(Clone)]
pub(crate) enum NativeJob {
    Program(Kill),
    /// Ends at once when it is stopped.
    Staging(Kill),
    /// Looks whether it is unwanted. Its task ends without it: what it reads may not answer.
    Hashing(Arc<AtomicBool>),
}

impl NativeJob {
    pub(crate) fn stop(&self) {
        match self {
            Self::Program(kill) | Self::Staging(kill) => kill.kill(),
            // Relaxed: only the flag itself counts.
            Self::Hashing(unwanted) => unwanted.store(true, Ordering::Relaxed),
        }
    }

    /// Whether its task ends when it is cancelled, and not when the job does.
    pub(crate) fn is_left_behind(&self) -> bool {
        matches!(self, Self::Hashing(_))
    }

    /// What it is in a trace.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Program(_) => Kind::Process,
            Self::Staging(_) | Self::Hashing(_) => Kind::Files,
        }
    }
}

/// The task of a native job, to be named in errors.
pub(crate) struct Named<'py> {
    pub(crate) task_id: i64,
    pub(crate) name: Bound<'py, PyString>,
}

/// How a native job has ended: made on a thread without the interpreter, and decoded by one that has
/// it when somebody asks.
pub(crate) trait NativeOutcome: Send + Sync {
    /// The state in which its task ends.
    fn terminal_state(&self) -> u8;

    /// The value, `None` if it was cancelled, or the error.
    fn decode(&self, task: &Named<'_>) -> PyResult<Option<Py<PyAny>>>;

    /// Why it has failed, for a trace; of a program, also that its exit code says so.
    fn failure(&self) -> Option<Failure>;
}

/// A deadline has passed before anybody wanted to see it as a task.
pub(crate) struct OutOfTime(pub(crate) &'static str);

impl NativeOutcome for OutOfTime {
    fn terminal_state(&self) -> u8 {
        state::FAILED
    }

    fn decode(&self, task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        Err(timeout_error(&task.name, task.task_id, self.0)?)
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure {
            error: "TaskTimeoutError".to_owned(),
            message: self.0.to_owned(),
            ..Failure::default()
        })
    }
}
