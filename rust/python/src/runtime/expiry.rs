//! What happens to tasks whose deadlines have passed.

use std::sync::Weak;

use pyo3::prelude::*;

use crate::batch::OUT_OF_TIME;
use crate::interp::errors::{timeout_error, timeout_error_saying};
use crate::interp::guard;
use crate::owner::Shared;
use crate::owner::deadlines::Due;
use crate::task::queue::hold_all;
use crate::task::{Outcome, TaskHandle};

/// On the thread that keeps deadlines: these are due.
pub(crate) fn expire(shared: &Weak<Shared>, due: &[Due]) {
    let Some(shared) = shared.upgrade() else { return };
    guard::attach(|py| {
        for due in due {
            match due {
                Due::Task { entry, task_id, text } => {
                    if let Some(handle) = TaskHandle::living(py, &shared, *entry, *task_id) {
                        run_out(py, &handle, |handle| match text {
                            Some(text) => timeout_error_saying(py, text.clone()),
                            None => timeout_error(
                                &handle.name_now(py),
                                handle.task_id,
                                "it was asked to stop",
                            ),
                        });
                    }
                }
                Due::All { generation } => {
                    let is_current = shared.deadlines.is_current(*generation);
                    if is_current {
                        run_out_all(py, &shared);
                    }
                }
            }
        }
        // Attached, because what it holds may be Python objects.
        drop(shared);
    });
}

/// After how many tasks others may have the interpreter.
const SLICE: usize = 100;

fn run_out_all(py: Python<'_>, shared: &Shared) {
    // Who is told of each failure gets a handle of each. Otherwise items of a batch that nobody has
    // seen stay what they are.
    let told_of_each = shared.has_error_callback() || shared.tracing().is_some();
    for batch in shared.batches() {
        if told_of_each {
            batch.show_unfinished(py);
        } else {
            batch.run_out(py);
        }
    }
    let handles = hold_all(shared, py);
    // Those that run come last: a worker that stands in for one would begin what is queued.
    let (running, queued): (Vec<_>, Vec<_>) =
        handles.into_iter().partition(|handle| handle.get().has_begun());
    for (index, handle) in queued.iter().chain(&running).enumerate() {
        run_out(py, handle, |handle| {
            timeout_error(&handle.name_now(py), handle.task_id, OUT_OF_TIME)
        });
        if index % SLICE == SLICE - 1 {
            py.detach(|| ());
        }
    }
}

/// Ends a task for who waits for it, and tells what still runs to stop.
fn run_out(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    error: impl FnOnce(&TaskHandle) -> PyResult<PyErr>,
) {
    let this = handle.get();
    if this.is_settled() {
        return;
    }
    // One that has not begun never will.
    let begun = !this.claim();
    let stopper = this.stopper(py);
    let error = error(this).unwrap_or_else(|error| error);
    // Made now: it takes Python code, in which a body that sees the request could come to its end
    // before it has run out of time.
    error.value(py);
    let ours = TaskHandle::settle_in_passing(handle, Outcome::Error(error), py);
    if ours
        && begun
        && let Err(error) = this.stop(py, stopper)
    {
        error.write_unraisable(py, None);
    }
}
