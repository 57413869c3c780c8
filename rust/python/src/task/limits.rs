//! How long a task may run.

use std::time::Instant;

use super::TaskHandle;
use crate::owner::Shared;
use crate::owner::deadlines::Due;

/// Sets the deadline of a task that begins.
#[inline]
pub(crate) fn arm(shared: &Shared, handle: &TaskHandle) {
    let (limit, default) = (handle.take_limit(), shared.deadlines.task_timeout());
    if (limit.is_none() && default.is_none()) || shared.process.is_copy() {
        return;
    }
    let (timeout, text) = match (limit, default) {
        (Some(limit), Some(default)) if limit.timeout > default => (default, None),
        (Some(limit), _) => (limit.timeout, Some(limit.text)),
        (None, Some(default)) => (default, None),
        (None, None) => return,
    };
    let (Some(entry), Some(at)) = (handle.entry(), Instant::now().checked_add(timeout)) else {
        return;
    };
    let due = Due::Task { entry, task_id: handle.task_id, text };
    let alarm = shared.deadlines.insert(at, due);
    match alarm {
        Ok(alarm) => {
            if let Err(alarm) = handle.set_alarm(alarm) {
                shared.cancel_deadline(alarm);
            }
        }
        Err(error) => log::warn!(
            target: "dftracer.utils",
            "timeouts are not kept: no thread for them: {error}"
        ),
    }
}
