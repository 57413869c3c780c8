//! Work on files as tasks: hashing on the compute lane, staging on the I/O lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dftracer_core::forks::DroppedApart;
use dftracer_core::io::process::Kill;
use dftracer_core::native::files::{self, Staging};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::interp::call::panic_text;
use crate::interp::fork::apart_from_forks;
use crate::native::outcome::NativeOutcome;
use crate::runtime::shared::Shared;
use crate::task::{Content, Job, NativeRun, Outcome, TaskHandle};

pub(crate) fn hash<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    paths: Vec<PathBuf>,
    name: Option<Bound<'py, PyString>>,
) -> PyResult<Bound<'py, TaskHandle>> {
    let name = name.unwrap_or_else(|| PyString::new(py, "hash_files"));
    let unwanted = Arc::new(AtomicBool::new(false));
    let (handle, FileWork { beginner, run }) =
        prepare(py, shared, name, Job::Hashing(unwanted.clone()))?;
    let job = move || {
        if begin(&beginner) {
            let outcome = outcome_of(|| NativeOutcome::Digests(files::hash(&paths, &unwanted)));
            run.take().settle(outcome, None);
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
        prepare(py, shared, name, Job::Staging(kill.clone()))?;
    let staged = shared.with_io_lane(|lane| {
        let stage = move |unwanted: &AtomicBool| {
            let stage = || NativeOutcome::Staged(files::stage(&source, &target, staging, unwanted));
            begin(&beginner).then(|| outcome_of(stage))
        };
        lane.spawn_staging(stage, kill, move |staged| {
            let outcome = match staged {
                Ok(outcome) => outcome.unwrap_or(NativeOutcome::Stopped),
                Err(error) => NativeOutcome::Staged(Err((PathBuf::from("a thread"), error))),
            };
            run.take().settle(outcome, None);
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
            owner.arm(task.get());
        }
        claimed
    })
}

fn outcome_of(work: impl FnOnce() -> NativeOutcome) -> NativeOutcome {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| NativeOutcome::Panicked(panic_text(panic.as_ref())))
}

/// Makes a task and the job that runs it, on whichever thread.
fn prepare<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    name: Bound<'py, PyString>,
    job: Job,
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
