//! Child processes as tasks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dftracer_core::forks::DroppedApart;
use dftracer_core::io::process::{
    Environment, Kill, ProcessOutcome, ProcessOutput, ProcessSpec, SignalMask, Sink, Source,
};
use dftracer_core::sched::completion::CompletionQueue as CoreMailbox;
use dftracer_core::task_state::state;
use dftracer_core::trace::Failure;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::interp::clock::seconds;
use crate::interp::errors::{os_error, timeout_error};
use crate::interp::fork::apart_from_forks;
use crate::native::outcome::because;
use crate::owner::Shared;
use crate::owner::job::{Named, NativeJob, NativeOutcome};
use crate::task::completion::Completion;
use crate::task::{Content, NativeRun, Outcome, TaskHandle};
use crate::trace::failure::end_of;

/// How a child process ended.
#[pyclass(frozen, get_all, module = "dftracer.utils._native")]
pub(crate) struct ProcessResult {
    /// The exit code, or ``None`` if a signal ended it.
    ///
    /// Both are ``None`` if somebody else has taken its exit status: where ``SIGCHLD`` is ignored,
    /// or another thread of this process has waited for it.
    exit_code: Option<i32>,
    /// The number of the signal that ended it.
    signal: Option<i32>,
    /// All that it wrote to its standard output.
    stdout: Py<PyBytes>,
    /// All that it wrote to its standard error.
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
        format!("<ProcessResult {end}, {out} bytes of stdout, {err} of stderr>")
    }
}

/// What the caller asked for, before it becomes a task.
pub(crate) struct Request {
    pub(crate) argv: Vec<OsString>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) env: Option<Vec<(OsString, OsString)>>,
    pub(crate) stdin: Source,
    pub(crate) stdout: Sink,
    pub(crate) stderr: Sink,
    pub(crate) timeout: Option<f64>,
    pub(crate) tty: bool,
    pub(crate) name: Option<Py<PyString>>,
    /// Whether `wait_all` and `get_failed` speak of it.
    pub(crate) tracked: bool,
    /// Who is told that it begins.
    pub(crate) begun: Option<(Arc<CoreMailbox<Completion>>, Py<PyAny>)>,
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
        env: Some(request.env.map_or_else(|| environment(py), Arc::new)),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        timeout: shared.deadlines.shorter_timeout(timeout),
        mask: Some(SignalMask::current()),
        tty: request.tty,
    };
    let begun = request.begun;
    let kill = Kill::default();
    shared.task_begins()?;
    let content = Content::Native(NativeJob::Program(kill.clone()));
    let handle =
        TaskHandle::new(py, shared.clone(), Some(name), content, None, None, request.tracked);
    let handle = Bound::new(py, handle).inspect_err(|_| shared.task_refused())?;
    TaskHandle::enter_ledger(shared, std::slice::from_ref(&handle));
    before_start(&handle);
    // Whatever becomes of the jobs: threads without the interpreter drop Python objects only where
    // no fork can come between.
    let mut claimer = DroppedApart::new((handle.clone().unbind(), begun));
    let run = DroppedApart::new(NativeRun::of(&handle));
    let started = shared.with_io_lane(|lane| {
        let begin = move || {
            apart_from_forks(|| {
                let claimed = claimer.0.get().claim();
                if claimed && let Some((mailbox, token)) = claimer.1.take() {
                    mailbox.push(Completion::begun(token));
                }
                claimed
            })
        };
        lane.spawn_process(spec, kill, begin, move |outcome| {
            run.take().settle(ProgramEnded(outcome), None);
        });
    });
    if let Err(error) = started {
        TaskHandle::settle(handle.as_unbound(), Outcome::Error(error), py);
    }
    Ok(handle)
}

/// That of this process. Programs that are started one after another mostly share it.
fn environment(py: Python<'_>) -> Environment {
    static LAST: Mutex<Option<Environment>> = Mutex::new(None);
    let now = variables(py);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some(last) if **last == now => last.clone(),
        _ => last.insert(Arc::new(now)).clone(),
    }
}

/// The variables of this process. Python code changes them with the interpreter.
#[cfg(not(Py_GIL_DISABLED))]
fn variables(_py: Python<'_>) -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// The variables of this process, as `os.environ` has them: other threads can change those of the C
/// library at any time, which would free them in the middle of a look.
#[cfg(Py_GIL_DISABLED)]
fn variables(py: Python<'_>) -> Vec<(OsString, OsString)> {
    use std::os::unix::ffi::OsStringExt;

    use pyo3::types::PyDict;

    let text = |value: Bound<'_, PyAny>| -> PyResult<OsString> {
        Ok(OsString::from_vec(value.cast::<PyBytes>()?.as_bytes().to_vec()))
    };
    let known = || -> PyResult<Vec<_>> {
        let data = py.import("os")?.getattr("environb")?.getattr("_data")?;
        let copy = data.cast::<PyDict>()?.copy()?;
        copy.iter().map(|(name, value)| Ok((text(name)?, text(value)?))).collect()
    };
    // Only if somebody has put something else in the place of `os.environb`.
    known().unwrap_or_else(|_| std::env::vars_os().collect())
}

/// How a program has ended.
struct ProgramEnded(ProcessOutcome);

impl NativeOutcome for ProgramEnded {
    fn terminal_state(&self) -> u8 {
        match &self.0 {
            ProcessOutcome::Exited(_) => state::DONE,
            ProcessOutcome::NotStarted { .. } | ProcessOutcome::TimedOut(_) => state::FAILED,
            ProcessOutcome::Killed(_) => state::CANCELLED,
        }
    }

    fn decode(&self, task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        let py = task.name.py();
        match &self.0 {
            ProcessOutcome::Exited(output) => {
                Ok(Some(Py::new(py, ProcessResult::of(py, output)?)?.into_any()))
            }
            ProcessOutcome::Killed(_) => Ok(None),
            ProcessOutcome::NotStarted { program, error } => Err(os_error(py, error, program)),
            ProcessOutcome::TimedOut(output) => {
                let error = timeout_error(&task.name, task.task_id, GROUP_KILLED)?;
                let result = ProcessResult::of(py, output)?;
                error.value(py).setattr("result", result)?;
                Err(error)
            }
        }
    }

    fn failure(&self) -> Option<Failure> {
        match &self.0 {
            ProcessOutcome::Exited(output) if output.exit_code == Some(0) => None,
            ProcessOutcome::Exited(output) => {
                let message = match output.signal {
                    Some(signal) => format!("killed by signal {signal}"),
                    None => end_of(&output.stderr),
                };
                let exit_code = output.exit_code.or(output.signal.map(|signal| -signal));
                Some(Failure { exit_code, ..because("exit code", message) })
            }
            ProcessOutcome::NotStarted { program, error } => {
                Some(because("OSError", format!("{}: {error}", program.to_string_lossy())))
            }
            ProcessOutcome::TimedOut(_) => {
                Some(because("TaskTimeoutError", GROUP_KILLED.to_owned()))
            }
            ProcessOutcome::Killed(_) => None,
        }
    }
}

const GROUP_KILLED: &str = "its process group was killed";

impl ProcessResult {
    fn of(py: Python<'_>, output: &ProcessOutput) -> PyResult<Self> {
        let copy = |bytes: &[u8]| {
            let fill = |copy: &mut [u8]| {
                copy.copy_from_slice(bytes);
                Ok(())
            };
            PyBytes::new_with(py, bytes.len(), fill).map(Bound::unbind)
        };
        Ok(Self {
            exit_code: output.exit_code,
            signal: output.signal,
            stdout: copy(&output.stdout)?,
            stderr: copy(&output.stderr)?,
        })
    }
}
