//! Waiting for all tasks of a runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dftracer_core::sched::parker::{Parker, Unpark, Wakeup};
use pyo3::prelude::*;

use super::body::BodyWait;
use super::graph::Waiting;
use crate::interp::signals;
use crate::owner::Shared;
use crate::task::current;

/// Waits until no task is left but those that cannot end before this wait does, see
/// [`graph`](super::graph); false if `timeout` came first. An error is what a signal's handler has
/// raised.
pub(crate) fn wait_idle(
    shared: &Shared,
    py: Python<'_>,
    timeout: Option<Duration>,
) -> PyResult<bool> {
    wait_idle_as(shared, py, timeout, || py.check_signals())
}

/// The same, but signals stay pending.
pub(crate) fn wait_idle_despite_signals(
    shared: &Shared,
    py: Python<'_>,
    timeout: Duration,
) -> PyResult<bool> {
    wait_idle_as(shared, py, Some(timeout), || Ok(()))
}

fn wait_idle_as(
    shared: &Shared,
    py: Python<'_>,
    timeout: Option<Duration>,
    on_signal: impl Fn() -> PyResult<()>,
) -> PyResult<bool> {
    shared.process.check()?;
    let _blocked = current::enter_blocked(py)?;
    let waiting = Waiting::for_all(py, shared);
    let unnamed = !waiting.is_inside() && current::is_to_end_task_of(shared);
    let unnamed = unnamed.then(|| InsideWaitAll::new(shared));
    // From outside all are waited for, those inside `wait_all` too: they will return.
    let is_inside = unnamed.is_some() || waiting.is_inside();
    let left_out = is_inside.then_some(|| waiting.held_up(shared));
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let parker = Arc::new(Parker::default());
    let waiter: Arc<dyn Unpark> = parker.clone();
    let body = BodyWait::begin(&parker);
    loop {
        let idle = shared.outstanding.enter(waiter.clone(), left_out.as_ref());
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A body that was asked to stop gets the error though there is nothing left to wait for.
        let woken = body.check(py).and_then(|()| match idle {
            true => Ok(Wakeup::Notified),
            false => match signals::park(py, &parker, left) {
                Wakeup::Interrupted => on_signal().map(|()| Wakeup::Interrupted),
                other => Ok(other),
            },
        });
        shared.outstanding.leave(&waiter);
        if woken? == Wakeup::TimedOut || idle {
            return Ok(idle);
        }
    }
}

/// Counts one worker that stands in `wait_all` while it is about to end a task that cannot be named.
struct InsideWaitAll<'a>(&'a Shared);

impl<'a> InsideWaitAll<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.outstanding.enter_unnamed();
        Self(shared)
    }
}

impl Drop for InsideWaitAll<'_> {
    fn drop(&mut self) {
        self.0.outstanding.leave_unnamed();
    }
}
