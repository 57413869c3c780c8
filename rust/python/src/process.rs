//! Child processes as tasks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use dftracer_core::process::{Kill, ProcessOutcome, ProcessOutput, ProcessSpec};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::handle::{Outcome, TaskHandle, Work, seconds, state};
use crate::shared::Shared;

#[pyclass(frozen, get_all, module = "dftracer.utils._native")]
pub(crate) struct ProcessResult {
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    stdout: Py<PyBytes>,
    stderr: Py<PyBytes>,
}

#[pymethods]
impl ProcessResult {
    fn __repr__(&self, py: Python<'_>) -> String {
        let end = match (self.exit_code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown end".to_owned(),
        };
        let (out, err) = (self.stdout.as_bytes(py).len(), self.stderr.as_bytes(py).len());
        let late = if self.timed_out { ", timed out" } else { "" };
        format!("<ProcessResult {end}{late}, {out} bytes of stdout, {err} of stderr>")
    }
}

/// What the caller asked for, before it becomes a task.
pub(crate) struct Request {
    pub(crate) argv: Vec<OsString>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) env: Option<Vec<(OsString, OsString)>>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) timeout: Option<f64>,
    pub(crate) name: Option<Py<PyString>>,
    /// Whether `wait_all` and `get_failed` speak of it.
    pub(crate) tracked: bool,
}

/// Starts the process on the I/O lane and returns its handle, which is not yet begun to be waited
/// for: `before_start` sees it first.
pub(crate) fn submit<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    request: Request,
    before_start: impl FnOnce(&Bound<'py, TaskHandle>),
) -> PyResult<Bound<'py, TaskHandle>> {
    if request.argv.is_empty() {
        return Err(pyo3::exceptions::PyValueError::new_err(
            "argv is empty: name a program to run",
        ));
    }
    let timeout = seconds(request.timeout, "timeout")?;
    let name = match request.name {
        Some(name) => name,
        None => PyString::new(py, &request.argv[0].to_string_lossy()).unbind(),
    };
    let spec = ProcessSpec {
        argv: request.argv,
        cwd: request.cwd,
        env: request.env,
        stdin: request.stdin,
        timeout,
    };
    let kill = Kill::default();
    shared.task_begins()?;
    let work = Work::Process(kill.clone());
    let handle = TaskHandle::new(shared.clone(), Some(name), work, None, request.tracked);
    let handle = Bound::new(py, handle)?;
    before_start(&handle);
    let (claimer, runner) = (handle.clone().unbind(), handle.clone().unbind());
    let started = shared.with_io_lane(|lane| {
        let begin = move || claimer.get().claim();
        lane.spawn_process(spec, kill, begin, move |outcome| {
            TaskHandle::settle(&runner, Outcome::Process(outcome), None);
        });
    });
    if let Err(error) = started {
        TaskHandle::settle(handle.as_unbound(), Outcome::Error(error), Some(py));
    }
    Ok(handle)
}

/// The state of a task that ended so.
pub(crate) fn terminal_state(outcome: &ProcessOutcome) -> u8 {
    match outcome {
        ProcessOutcome::Exited(_) | ProcessOutcome::TimedOut(_) => state::DONE,
        ProcessOutcome::NotStarted { .. } => state::FAILED,
        ProcessOutcome::Killed(_) => state::CANCELLED,
    }
}

/// The Python form: a result, `None` if it was cancelled, or the error.
pub(crate) fn decode(py: Python<'_>, outcome: &ProcessOutcome) -> PyResult<Option<Py<PyAny>>> {
    match outcome {
        ProcessOutcome::Exited(output) => result(py, output, false).map(Some),
        ProcessOutcome::TimedOut(output) => result(py, output, true).map(Some),
        ProcessOutcome::Killed(_) => Ok(None),
        ProcessOutcome::NotStarted { program, error } => Err(not_started(py, program, error)),
    }
}

/// With an errno, `OSError` becomes `FileNotFoundError`, `PermissionError` and so on.
fn not_started(py: Python<'_>, program: &OsString, error: &std::io::Error) -> PyErr {
    let Some(errno) = error.raw_os_error() else { return PyOSError::new_err(error.to_string()) };
    let text = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (errno,)))
        .and_then(|text| text.extract::<String>())
        .unwrap_or_else(|_| error.to_string());
    PyOSError::new_err((errno, text, program.clone()))
}

fn result(py: Python<'_>, output: &ProcessOutput, timed_out: bool) -> PyResult<Py<PyAny>> {
    let result = ProcessResult {
        exit_code: output.exit_code,
        signal: output.signal,
        timed_out,
        stdout: PyBytes::new(py, &output.stdout).unbind(),
        stderr: PyBytes::new(py, &output.stderr).unbind(),
    };
    Ok(Py::new(py, result)?.into_any())
}
