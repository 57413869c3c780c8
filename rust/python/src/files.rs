//! Work on files as tasks: hashing on the compute lane, staging on the I/O lane.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use dftracer_core::files::{self, Staging};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::call::panic_text;
use crate::fork::apart_from_forks;
use crate::handle::{Content, NativeRun, Outcome, TaskHandle};
use crate::native::NativeOutcome;
use crate::shared::Shared;

pub(crate) fn hash<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    paths: Vec<PathBuf>,
    name: Option<Bound<'py, PyString>>,
) -> PyResult<Bound<'py, TaskHandle>> {
    let name = name.unwrap_or_else(|| PyString::new(py, "hash_files"));
    let (handle, job) =
        prepare(py, shared, name, move || NativeOutcome::Digests(files::hash(&paths)))?;
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
    let (handle, job) = prepare(py, shared, name, move || {
        NativeOutcome::Staged(files::stage(&source, &target, staging))
    })?;
    finish(handle, shared.with_io_lane(|lane| lane.spawn_blocking(job)))
}

/// Makes a task and the job that runs it, on whichever thread.
fn prepare<'py>(
    py: Python<'py>,
    shared: &Arc<Shared>,
    name: Bound<'py, PyString>,
    work: impl FnOnce() -> NativeOutcome + Send + 'static,
) -> PyResult<(Bound<'py, TaskHandle>, impl FnOnce() + Send + 'static)> {
    shared.task_begins()?;
    let content = Content::Native(None);
    let task = TaskHandle::new(py, shared.clone(), Some(name.unbind()), content, None, None, true);
    let handle = Bound::new(py, task).inspect_err(|_| shared.task_refused())?;
    TaskHandle::enter_ledger(shared, std::slice::from_ref(&handle));
    let (run, owner) = (NativeRun::of(&handle), shared.clone());
    let job = move || {
        let begun = apart_from_forks(|| {
            let claimed = run.task().claim();
            if claimed {
                owner.arm(run.task());
            }
            claimed
        });
        if !begun {
            return run.forget(); // cancelled before it began
        }
        let outcome = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| NativeOutcome::Panicked(panic_text(panic.as_ref())));
        run.settle(outcome, Some(owner));
    };
    Ok((handle, job))
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
