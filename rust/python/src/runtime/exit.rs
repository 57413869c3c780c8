//! The end of the interpreter, and of the process's being one: exit and `fork`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dftracer_core::sizes;
use pyo3::prelude::*;

use super::closing;
use crate::interp::exit;
use crate::owner::{Shared, alive};
use crate::task::queue::hold_unfinished;
use crate::task::wait::all::{wait_idle, wait_idle_despite_signals};
use crate::task::{TaskHandle, current};
use crate::trace;

/// How long tasks have to end that were cancelled, and how long threads have to leave then.
const LEAVE_GRACE: Duration = Duration::from_secs(1);

/// At interpreter exit: finishes what can be finished, so that no thread of ours is left that could
/// touch a dying interpreter. As long as tasks end, it waits; when none has ended for `patience`
/// seconds, or a signal's handler raises, the rest is cancelled, and whoever does not end within a
/// second is left behind. Then all traces are written.
///
/// Only the waiting can be interrupted: all that follows is done for every runtime, in this one
/// call, and takes no longer than the graces.
///
/// Returns the names of the tasks that were given up, and what a signal's handler has raised. Does
/// nothing when it is called again.
#[pyfunction]
pub(crate) fn shutdown_all(py: Python<'_>, patience: f64) -> (Vec<String>, Option<PyErr>) {
    if !exit::begin() {
        return (Vec::new(), None);
    }
    let patience = Duration::try_from_secs_f64(patience.max(0.0)).unwrap_or(Duration::MAX);
    let runtimes = alive();
    let interruption = wait_for_tasks(py, &runtimes, patience).err();
    let mut given_up = Vec::new();
    for runtime in &runtimes {
        given_up.extend(cancel_unfinished(runtime, py));
    }
    let deadline = Instant::now() + LEAVE_GRACE;
    for runtime in runtimes.iter().filter(|_| !given_up.is_empty()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(error) = wait_idle_despite_signals(runtime, py, left) {
            error.write_unraisable(py, None);
        }
    }
    let deadline = Instant::now() + LEAVE_GRACE;
    for runtime in &runtimes {
        closing::leave(runtime, py, deadline);
    }
    trace::flush_all(py, Instant::now() + trace::GRACE);
    (given_up, interruption)
}

/// Waits, as long as tasks end. An error is what a signal's handler has raised.
fn wait_for_tasks(py: Python<'_>, runtimes: &[Arc<Shared>], patience: Duration) -> PyResult<()> {
    for runtime in runtimes {
        while !wait_idle(runtime, py, Some(patience))? && runtime.has_progressed() {}
    }
    Ok(())
}

/// Cancels every task that has not ended, and returns their names.
fn cancel_unfinished(shared: &Shared, py: Python<'_>) -> Vec<String> {
    let handles = hold_unfinished(shared, py);
    let unfinished = handles.iter().filter(|handle| !handle.get().is_settled());
    unfinished
        .map(|handle| {
            let name = handle.get().name_now(py).to_string();
            if let Err(error) = TaskHandle::cancel_or_stop(handle.bind(py)) {
                error.write_unraisable(py, None);
            }
            name
        })
        .collect()
}

/// Return how many CPUs this process may use.
///
/// That is the smaller of its affinity mask and its cgroup's quota, not the number in the box.
#[pyfunction]
pub(crate) fn available_cpus() -> usize {
    sizes::available_cpus()
}

/// The task whose plain body runs on this thread.
#[pyfunction]
pub(crate) fn running_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    current::running_task(py)
}
