//! Outcomes of native jobs, and their Python form.

use std::path::PathBuf;

use dftracer_core::io::process::ProcessOutcome;
use dftracer_core::task_state::state;
use pyo3::exceptions::{PyMemoryError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::native::process;
use crate::task::TaskHandle;

/// What a native job has to tell, made on a thread without the interpreter.
pub(crate) enum NativeOutcome {
    Process(ProcessOutcome),
    /// Hexadecimal digests, one per file, or the first error and its file.
    Digests(Result<Vec<String>, (PathBuf, std::io::Error)>),
    /// Where a file was staged to, or the error and the file that it is about.
    Staged(Result<PathBuf, (PathBuf, std::io::Error)>),
    /// It was stopped.
    Stopped,
    /// The job panicked.
    Panicked(String),
    /// Its deadline has passed before anybody wanted to see it as a task.
    OutOfTime(&'static str),
}

impl NativeOutcome {
    pub(crate) fn terminal_state(&self) -> u8 {
        match self {
            Self::Process(outcome) => process::terminal_state(outcome),
            Self::Digests(Ok(_)) | Self::Staged(Ok(_)) => state::DONE,
            Self::Digests(Err(_))
            | Self::Staged(Err(_))
            | Self::Panicked(_)
            | Self::OutOfTime(_) => state::FAILED,
            Self::Stopped => state::CANCELLED,
        }
    }

    /// The value, `None` if it was cancelled, or the error.
    pub(crate) fn decode(
        &self,
        py: Python<'_>,
        handle: &TaskHandle,
    ) -> PyResult<Option<Py<PyAny>>> {
        match self {
            Self::Process(outcome) => process::decode(py, outcome, handle),
            Self::Digests(Ok(digests)) => Ok(Some(PyList::new(py, digests)?.into_any().unbind())),
            Self::Staged(Ok(path)) => {
                path.into_pyobject(py).map(|path| Some(path.into_any().unbind()))
            }
            Self::Digests(Err((path, error))) | Self::Staged(Err((path, error))) => {
                Err(os_error(py, error, path.as_os_str()))
            }
            Self::Stopped => Ok(None),
            Self::Panicked(text) => Err(crate::interp::call::panic_error(text)),
            Self::OutOfTime(what) => Err(process::timeout_error(py, handle, what)?),
        }
    }
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
