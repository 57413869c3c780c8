//! Waiting for the end of one task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dftracer_core::sched::parker::{Parker, Wakeup};
use pyo3::prelude::*;

use super::body::BodyWait;
use super::graph::Waiting;
use crate::interp::errors::WaitRefusedError;
use crate::interp::signals;
use crate::task::run::run_inline;
use crate::task::waiter::Waiter;
use crate::task::{TaskHandle, current};

/// How often who waits inside a task looks whether that waits for it.
const LOOK_FOR_CIRCLES: Duration = Duration::from_secs(1);

impl TaskHandle {
    /// Whether the tasks of its runtime run out of time by themselves.
    fn may_time_out(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.deadlines.task_timeout().is_some())
    }

    /// Waits for the end of the task; false if `timeout` came first.
    pub(in crate::task) fn wait_settled(
        self_: &Bound<'_, Self>,
        timeout: Option<Duration>,
    ) -> PyResult<bool> {
        let py = self_.py();
        let this = self_.get();
        if this.is_settled() {
            return Ok(true);
        }
        if let Some(shared) = &this.shared {
            shared.process.check()?;
        }
        if timeout.is_none() && run_inline(self_) && this.is_settled() {
            return Ok(true);
        }
        let _blocked = current::enter_blocked(py)?;
        let waiting = Waiting::for_one(py, self_.as_unbound(), timeout.is_none());
        let parker = Arc::new(Parker::default());
        if this.add_waiter(Waiter::Thread(parker.clone())).is_err() {
            return Ok(true);
        }
        let body = BodyWait::begin(&parker);
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        // Inside a task it could wait for a task that waits for this one, for ever.
        let looks_for_circles = deadline.is_none() && waiting.is_inside() && !this.may_time_out();
        // Not counted from each wake-up: there may be many, where signals are looked for by the clock.
        let mut next_look = Instant::now() + LOOK_FOR_CIRCLES;
        loop {
            if let Err(error) = body.check(py) {
                this.remove_waiter(&parker);
                return Err(error);
            }
            let left = match deadline {
                Some(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
                None => {
                    looks_for_circles.then(|| next_look.saturating_duration_since(Instant::now()))
                }
            };
            match signals::park(py, &parker, left) {
                Wakeup::Notified if this.is_settled() => return body.check(py).map(|()| true),
                Wakeup::Notified => {} // the body that waits is asked to stop
                Wakeup::TimedOut if deadline.is_none() => {
                    next_look = Instant::now() + LOOK_FOR_CIRCLES;
                    if waiting.is_circle() {
                        this.remove_waiter(&parker);
                        return Err(WaitRefusedError::new_err(format!(
                            "task {} '{}' waits for the task that waits for it here, itself or \
                             through others: none of them could ever go on",
                            this.task_id,
                            this.name_now(py),
                        )));
                    }
                }
                Wakeup::TimedOut => {
                    this.remove_waiter(&parker);
                    return Ok(this.is_settled());
                }
                Wakeup::Interrupted => {
                    if let Err(error) = py.check_signals() {
                        this.remove_waiter(&parker);
                        return Err(error);
                    }
                }
            }
        }
    }
}
