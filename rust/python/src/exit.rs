//! The end of the interpreter, and of the process's being one: exit and `fork`.

use std::time::Duration;

use dftracer_core::sizes;
use pyo3::prelude::*;

use crate::handle::TaskHandle;
use crate::shared::{self, Shared};

/// How long threads have to leave, after all that could be done to end their tasks.
const LEAVE_GRACE: Duration = Duration::from_secs(1);

/// At interpreter exit: finishes what can be finished, so that no thread of ours is left that could
/// touch a dying interpreter. As long as tasks end, it waits; when none has ended for `patience`
/// seconds, the rest is cancelled, and whoever does not heed that is left behind.
///
/// Returns the names of the tasks that were given up.
#[pyfunction]
pub(crate) fn shutdown_all(py: Python<'_>, patience: f64) -> PyResult<Vec<String>> {
    let patience = Duration::try_from_secs_f64(patience.max(0.0)).unwrap_or(Duration::MAX);
    let runtimes = shared::begin_exit();
    let mut given_up = Vec::new();
    for runtime in &runtimes {
        while !runtime.wait_idle(py, Some(patience))? {
            if !runtime.has_progressed() {
                given_up.extend(runtime.cancel_unfinished(py));
                runtime.wait_idle(py, Some(LEAVE_GRACE))?;
                break;
            }
        }
    }
    for runtime in &runtimes {
        runtime.leave(py, LEAVE_GRACE);
    }
    Ok(given_up)
}

impl Shared {
    /// Cancels every task that has not ended, and returns their names.
    fn cancel_unfinished(&self, py: Python<'_>) -> Vec<String> {
        let handles = self.hold_unfinished(py);
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
}

/// The CPUs this process may use: its affinity and cgroup limits, not the number in the box.
#[pyfunction]
pub(crate) fn available_cpus() -> usize {
    sizes::available_cpus()
}

/// The task whose plain body runs on this thread.
#[pyfunction]
pub(crate) fn running_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    crate::worker::running_task(py)
}
