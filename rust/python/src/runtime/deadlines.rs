//! Timeouts: how long a task may run, and how long all of them together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use dftracer_core::registry::Entry;
use dftracer_core::sched::timer::{Timer as Watchdog, TimerKey as Alarm};
use pyo3::prelude::*;

use crate::batch::OUT_OF_TIME;
use crate::interp::errors::{refused, timeout_error, timeout_error_saying};
use crate::interp::guard;
use crate::runtime::shared::Shared;
use crate::task::{Outcome, TaskHandle};

/// What the watchdog keeps for a deadline.
pub(crate) enum Due {
    /// Of one task: where its handle stands, and the id to tell it from a later one there.
    /// And what its error says, if it has a limit of its own.
    Task { entry: Entry, task_id: i64, text: Option<String> },
    /// Of all tasks, and which of the deadlines for all that were set.
    All { generation: u64 },
}

/// The deadlines of one runtime. The thread that keeps them is started with the first.
#[derive(Default)]
pub(crate) struct Deadlines {
    /// In milliseconds; 0 is none. Relaxed: applies to tasks that begin after it is seen.
    task_timeout_ms: AtomicU64,
    keeper: Mutex<Keeper>,
}

#[derive(Default)]
struct Keeper {
    watchdog: Option<Watchdog<Due>>,
    for_all: Option<Alarm>,
    /// Of the deadline for all that counts. One that has been replaced or taken back may be about
    /// to ring.
    generation: u64,
}

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn task_timeout(&self) -> Option<Duration> {
        match self.task_timeout_ms.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// No deadline matters any more. Does not wait for the thread that keeps them.
    pub(crate) fn retire(&self) {
        let watchdog = self.lock().watchdog.take();
        if let Some(watchdog) = watchdog {
            watchdog.stop_in_background();
        }
    }

    /// In the copy of a runtime, whose lock may be held for ever: leaks the watchdog.
    pub(crate) fn abandon(&mut self) {
        std::mem::forget(std::mem::take(&mut self.keeper));
    }
}

impl Keeper {
    fn set(&mut self, shared: &Arc<Shared>, at: Instant, due: Due) -> PyResult<Alarm> {
        Ok(self.watchdog(shared)?.insert(at, due))
    }

    fn watchdog(&mut self, shared: &Arc<Shared>) -> PyResult<&Watchdog<Due>> {
        if self.watchdog.is_none() {
            let shared = Arc::downgrade(shared);
            let started = Watchdog::start(move |due| ring(&shared, &due));
            self.watchdog =
                Some(started.map_err(|error| refused("the thread that keeps timeouts", error))?);
        }
        Ok(self.watchdog.as_ref().expect("started above"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.stop_in_background();
        }
    }
}

impl Shared {
    /// The thread that keeps the deadlines is started now: a task that began without it could run
    /// for ever.
    pub(crate) fn set_task_timeout(self: &Arc<Self>, millis: u64) -> PyResult<()> {
        if millis > 0 && self.open_for_tasks() {
            self.deadlines.lock().watchdog(self)?;
        }
        self.deadlines.task_timeout_ms.store(millis, Ordering::Relaxed);
        Ok(())
    }

    /// Starts the thread that keeps deadlines, as `set_task_timeout` does, for tasks with limits of
    /// their own that are about to be submitted.
    pub(crate) fn keep_deadlines(self: &Arc<Self>) -> PyResult<()> {
        self.deadlines.lock().watchdog(self).map(drop)
    }

    /// Lets every task that is unfinished `millis` from now run out of time; 0 takes that back.
    pub(crate) fn set_timeout_for_all(self: &Arc<Self>, millis: u64) -> PyResult<()> {
        let mut keeper = self.deadlines.lock();
        if let (Some(watchdog), Some(alarm)) = (&keeper.watchdog, keeper.for_all) {
            watchdog.cancel(alarm);
        }
        keeper.for_all = None;
        keeper.generation += 1;
        let generation = keeper.generation;
        let at = Instant::now().checked_add(Duration::from_millis(millis));
        if let Some(at) = at.filter(|_| millis > 0) {
            keeper.for_all = Some(keeper.set(self, at, Due::All { generation })?);
        }
        Ok(())
    }

    /// The shorter of a job's own timeout and the default one.
    pub(crate) fn shorter_timeout(&self, own: Option<Duration>) -> Option<Duration> {
        own.into_iter().chain(self.deadlines.task_timeout()).min()
    }

    /// Sets the deadline of a task that begins.
    pub(crate) fn arm(self: &Arc<Self>, handle: &TaskHandle) {
        let (limit, default) = (handle.take_limit(), self.deadlines.task_timeout());
        if (limit.is_none() && default.is_none()) || self.process.is_copy() {
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
        let alarm = self.deadlines.lock().set(self, at, due);
        match alarm {
            Ok(alarm) => {
                if let Err(alarm) = handle.set_alarm(alarm) {
                    self.take_back(alarm);
                }
            }
            Err(error) => log::warn!("timeouts are not kept: no thread for them: {error}"),
        }
    }

    pub(crate) fn take_back(&self, alarm: Alarm) {
        // In a copy, the watchdog's lock may be held for ever by its thread, which was not copied.
        if self.process.is_copy() {
            return;
        }
        if let Some(watchdog) = &self.deadlines.lock().watchdog {
            watchdog.cancel(alarm);
        }
    }
}

/// On the watchdog's thread: these are due.
fn ring(shared: &Weak<Shared>, due: &[Due]) {
    let Some(shared) = shared.upgrade() else { return };
    guard::attach(|py| {
        for due in due {
            match due {
                Due::Task { entry, task_id, text } => {
                    let handle = shared
                        .ledger
                        // SAFETY: called under the ledger's lock.
                        .with(*entry, |address| unsafe { address.hold(py) })
                        .flatten()
                        .filter(|handle| handle.get().task_id == *task_id);
                    if let Some(handle) = handle {
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
                    let counts = shared.deadlines.lock().generation == *generation;
                    if counts {
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
    let handles = shared.hold_all(py);
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
