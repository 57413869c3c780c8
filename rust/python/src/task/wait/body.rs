//! Waits of plain bodies, which end when a body is asked to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dftracer_core::sched::parker::{Parker, Wakeup};
use pyo3::prelude::*;

use crate::interp::clock;
use crate::interp::signals;
use crate::interp::slot::{Slot, Wait};
use crate::task::current;
use crate::task::given_up::{interruption, let_pending_raise};

/// A wait of the plain body that runs on this thread, if one does: it ends when the body is asked to
/// stop.
pub(crate) struct BodyWait(Option<(Arc<Slot>, i64)>);

impl BodyWait {
    pub(crate) fn begin(parker: &Arc<Parker>) -> Self {
        let body = current::current_body();
        if let Some((slot, task)) = &body {
            let parker = parker.clone();
            *slot.wait() = Some(Wait { task: *task, parker });
        }
        Self(body)
    }

    /// Raises if the body is asked to stop: once, so that it can wait for what it does then. To be
    /// asked after the begin and before each sleep: who asks it to stop later wakes it.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        let Some((slot, task)) = &self.0 else { return Ok(()) };
        if !current::tell_to_stop(py, *task) {
            return Ok(());
        }
        let before = slot
            .running
            .mark(|marks| if marks.interrupted() { marks } else { marks.and_raised_in_wait() });
        if before.interrupted() {
            // It is told by the exception that was sent to it. If that was not raised yet, this
            // raises it, as any Python code does.
            return let_pending_raise(py);
        }
        Err(PyErr::from_type(interruption(py), ()))
    }
}

impl Drop for BodyWait {
    fn drop(&mut self) {
        if let Some((slot, _)) = &self.0 {
            *slot.wait() = None;
        }
    }
}

/// Sleep, and wake at once if the task that calls this is cancelled or times out.
///
/// Parameters
/// ----------
/// seconds:
///     How long; the interpreter is released meanwhile.
///
/// Raises
/// ------
/// asyncio.CancelledError
///     If the task, whose plain body calls this, is cancelled or times out.
/// ValueError
///     If ``seconds`` is not a number.
#[pyfunction]
#[pyo3(name = "sleep", signature = (seconds, /))]
pub(crate) fn py_sleep(py: Python<'_>, seconds: f64) -> PyResult<()> {
    let time = clock::seconds(Some(seconds), "seconds")?;
    let deadline = Instant::now().checked_add(time.unwrap_or(Duration::MAX));
    let parker = Arc::new(Parker::default());
    let body = BodyWait::begin(&parker);
    loop {
        body.check(py)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match signals::park(py, &parker, left) {
            Wakeup::TimedOut => return body.check(py),
            Wakeup::Interrupted => py.check_signals()?,
            Wakeup::Notified => {}
        }
    }
}
