//! Work on files as tasks: hashing on the compute lane, staging on the I/O lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dftracer_core::forks::DroppedApart;
use dftracer_core::io::process::Kill;
use dftracer_core::native::files::{self, Staging};
use dftracer_core::task_state::state;
use dftracer_core::trace::Failure;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use crate::interp::call::panic_text;
use crate::interp::errors::os_error;
use crate::interp::fork::apart_from_forks;
use crate::native::outcome::{Panicked, Stopped, because};
use crate::owner::Shared;
use crate::owner::job::{Named, NativeJob, NativeOutcome};
use crate::task::{Content, NativeRun, Outcome, TaskHandle, limits};

pub(crate) fn hash<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    paths: Vec<PathBuf>,
    name: Option<Bound<'py, PyString>>,
) -> PyResult<Bound<'py, TaskHandle>> {
    let name = name.unwrap_or_else(|| PyString::new(py, "hash_files"));
    let unwanted = Arc::new(AtomicBool::new(false));
    let (handle, FileWork { beginner, run }) =
        prepare(py, shared, name, NativeJob::Hashing(unwanted.clone()))?;
    let job = move || {
        if begin(&beginner) {
            match caught(|| files::hash(&paths, &unwanted)) {
                Ok(digests) => run.take().settle(Digests(digests), None),
                Err(panicked) => run.take().settle(panicked, None),
            }
        }
    };
    finish(handle, shared.with_compute_lane(|lane| lane.spawn(job)))
}

pub(crate) fn stage<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    source: PathBuf,
    target: PathBuf,
    how: &str,
    name: Option<Bound<'py, PyString>>,
) -> PyResult<Bound<'py, TaskHandle>> {
    let staging = match how {
        "copy" => Staging::Copy,
        "link" => Staging::HardLink,
        "symlink" => Staging::SymbolicLink,
        _ => {
            return Err(PyValueError::new_err(format!(
                "how must be 'copy', 'link' or 'symlink', not '{how}'"
            )));
        }
    };
    let name = name.unwrap_or_else(|| PyString::new(py, "stage_file"));
    let kill = Kill::default();
    let (handle, FileWork { beginner, run }) =
        prepare(py, shared, name, NativeJob::Staging(kill.clone()))?;
    let staged = shared.with_io_lane(|lane| {
        let stage = move |unwanted: &AtomicBool| {
            let stage = || files::stage(&source, &target, staging, unwanted);
            begin(&beginner).then(|| caught(stage))
        };
        lane.spawn_staging(stage, kill, move |staged| match staged {
            Ok(Some(Ok(staged))) => run.take().settle(Staged(staged), None),
            Ok(Some(Err(panicked))) => run.take().settle(panicked, None),
            Ok(None) => run.take().settle(Stopped, None),
            Err(error) => {
                run.take().settle(Staged(Err((PathBuf::from("a thread"), error))), None);
            }
        });
    });
    finish(handle, staged)
}

type Beginner = DroppedApart<(Py<TaskHandle>, Arc<Shared>)>;

/// What begins a task that is work on files, and what ends it.
struct FileWork {
    beginner: Beginner,
    run: DroppedApart<NativeRun>,
}

/// False if the task was cancelled before it could begin.
fn begin(beginner: &Beginner) -> bool {
    apart_from_forks(|| {
        let (task, owner) = &**beginner;
        let claimed = task.get().claim();
        if claimed {
            limits::arm(owner, task.get());
        }
        claimed
    })
}

fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Panicked(panic_text(panic.as_ref())))
}

/// The first error, and the file that it is about.
type FileError = (PathBuf, std::io::Error);

/// Hexadecimal digests, one for each file.
struct Digests(Result<Vec<String>, FileError>);

impl NativeOutcome for Digests {
    fn terminal_state(&self) -> u8 {
        if self.0.is_ok() { state::DONE } else { state::FAILED }
    }

    fn decode(&self, task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        let py = task.name.py();
        let digests = self.0.as_ref().map_err(|error| raised(py, error))?;
        Ok(Some(PyList::new(py, digests)?.into_any().unbind()))
    }

    fn failure(&self) -> Option<Failure> {
        self.0.as_ref().err().map(told)
    }
}

/// Where a file was staged to.
struct Staged(Result<PathBuf, FileError>);

impl NativeOutcome for Staged {
    fn terminal_state(&self) -> u8 {
        if self.0.is_ok() { state::DONE } else { state::FAILED }
    }

    fn decode(&self, task: &Named<'_>) -> PyResult<Option<Py<PyAny>>> {
        let py = task.name.py();
        let path = self.0.as_ref().map_err(|error| raised(py, error))?;
        Ok(Some(path.into_pyobject(py)?.into_any().unbind()))
    }

    fn failure(&self) -> Option<Failure> {
        self.0.as_ref().err().map(told)
    }
}

fn raised(py: Python<'_>, (path, error): &FileError) -> PyErr {
    os_error(py, error, path.as_os_str())
}

fn told((path, error): &FileError) -> Failure {
    because("OSError", format!("{}: {error}", path.display()))
}

/// Makes a task and the job that runs it, on whichever thread.
fn prepare<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    name: Bound<'py, PyString>,
    job: NativeJob,
) -> PyResult<(Bound<'py, TaskHandle>, FileWork)> {
    shared.task_begins()?;
    let content = Content::Native(job);
    let task = TaskHandle::new(py, shared.clone(), Some(name.unbind()), content, None, None, true);
    let handle = Bound::new(py, task).inspect_err(|_| shared.task_refused())?;
    TaskHandle::enter_ledger(shared, std::slice::from_ref(&handle));
    let beginner = DroppedApart::new((handle.clone().unbind(), shared.clone()));
    let work = FileWork { beginner, run: DroppedApart::new(NativeRun::of(&handle)) };
    Ok((handle, work))
}

/// Settles a task whose job could not be handed to its lane.
fn finish<'py>(
    handle: Bound<'py, TaskHandle>,
    handed_over: PyResult<()>,
) -> PyResult<Bound<'py, TaskHandle>> {
    if let Err(error) = handed_over {
        TaskHandle::settle(handle.as_unbound(), Outcome::Error(error), handle.py());
    }
    Ok(handle)
}
