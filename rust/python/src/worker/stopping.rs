//! How a plain body is stopped, which nobody can do but itself.
//!
//! Its task has ended when somebody asks the body to stop, and the body goes on: it is *given up*. Its
//! thread keeps its place until the body returns, and its lane may start a spare worker meanwhile. A
//! body that waits in a call of ours is told there. Where the user has asked for it, an exception is
//! sent to the thread instead, which can lose locks that the body holds; see `docs/lifecycle.md`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use dftracer_core::interrupt_slot::Outer;
use dftracer_core::sched::parker::{Parker, Unpark, Wakeup};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::interp::call::call_for_life;
use crate::interp::exit;
use crate::interp::guard;
use crate::interp::once::Lazy;
use crate::interp::signals;
use crate::interp::slot::{LaneKind, Slot, Wait};
use crate::runtime::shared::Shared;
use crate::task::{TaskHandle, seconds};
use crate::worker;

/// Stops the plain body of a task that was asked to stop, as far as that can be done.
pub(crate) fn stop_body(handle: &TaskHandle, py: Python<'_>) {
    let Some(shared) = handle.shared() else { return };
    if !handle.may_interrupt() {
        give_up(shared, handle, py);
    } else if !end_wait(shared, handle.task_id) {
        interrupt(shared, handle.task_id, py);
    }
}

/// Lets another worker stand in for the one that runs the body, until that has returned.
fn give_up(shared: &Arc<Shared>, handle: &TaskHandle, py: Python<'_>) {
    let task = handle.task_id;
    if exit::is_exiting() {
        // What is queued is not to begin any more.
        end_wait(shared, task);
        return;
    }
    let mut ordered = None;
    let mut has_spare = true;
    for slot in plain_slots(shared) {
        let found = slot.running.reach(task, |marks| {
            if marks.given_up() {
                return marks;
            }
            // Takes two locks, under which nobody waits for anything.
            match shared.lane(slot.lane).enter_blocked() {
                Ok(order) => {
                    ordered = Some((slot.lane, order));
                    slot.given_up.fetch_add(1, Ordering::Relaxed);
                    shared.stopping.count(1);
                    marks.and_given_up()
                }
                Err(_) => {
                    has_spare = false;
                    marks
                }
            }
        });
        if found {
            break;
        }
    }
    if let Some((lane, order)) = ordered {
        // A spare that cannot be started is missed until the body returns.
        let _ = shared.obey(lane, order);
        if lane == LaneKind::Python
            && let Some(batch) = shared.batch_of(task)
            && let Err(error) = batch.pass_on(py)
        {
            error.write_unraisable(py, None);
        }
    }
    end_wait(shared, task);
    if ordered.is_some() || !has_spare {
        shared.say_given_up(handle, py);
    }
}

/// The worker of a body has left it.
pub(crate) fn leave_body(_py: Python<'_>, shared: &Shared, slot: &Slot, outer: Outer) {
    let marks = slot.running.leave(outer);
    if marks.interrupted() {
        let ident = slot.ident.load(Ordering::Relaxed);
        // SAFETY: attached; null takes back what was sent to this thread and not yet raised.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, std::ptr::null_mut()) };
    }
    if marks.given_up() {
        shared.lane(slot.lane).leave_blocked();
        slot.given_up.fetch_sub(1, Ordering::Relaxed);
        shared.stopping.count(-1);
    }
}

/// Sends an exception to the worker that runs a plain body, if that is its innermost one. It is
/// raised when the body next runs Python code, and never outside of it.
fn interrupt(shared: &Shared, task: i64, py: Python<'_>) {
    // Before anything is held: the first time it is imported, which lets go of the interpreter.
    let class = interruption(py);
    for slot in plain_slots(shared) {
        let ident = slot.ident.load(Ordering::Relaxed);
        slot.running.reach(task, |marks| {
            if marks.raised_in_wait() {
                return marks; // by a wait of its own, and what it does about that is not to be hit
            }
            // SAFETY: attached; the class is a live object; the worker cannot leave the body
            // meanwhile. Nothing in there lets go of the interpreter.
            match unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, class.as_ptr()) } {
                1 => marks.and_interrupted(),
                _ => marks,
            }
        });
    }
}

/// What a body that is stopped sees: `asyncio.CancelledError`, which `except Exception` lets pass.
pub(crate) fn interruption(py: Python<'_>) -> Bound<'_, PyType> {
    static CLASS: Lazy<Py<PyType>> = Lazy::new();
    match CLASS.import(py, "asyncio", "CancelledError") {
        Ok(class) => class.clone(),
        Err(_) => py.get_type::<pyo3::exceptions::PyKeyboardInterrupt>(),
    }
}

fn plain_slots(shared: &Shared) -> impl Iterator<Item = Arc<Slot>> {
    shared.slots().into_iter().filter(|slot| slot.lane != LaneKind::Coroutine)
}

/// Wakes a body that waits in a call of ours; false if it does not.
fn end_wait(shared: &Shared, task: i64) -> bool {
    plain_slots(shared).any(|slot| match &*lock(&slot) {
        Some(waiting) if waiting.task == task => {
            waiting.parker.unpark();
            true
        }
        _ => false,
    })
}

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Wait>> {
    slot.waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A wait of the plain body that runs on this thread, if one does: it ends when the body is asked to
/// stop.
pub(crate) struct BodyWait(Option<(Arc<Slot>, i64)>);

impl BodyWait {
    pub(crate) fn begin(parker: &Arc<Parker>) -> Self {
        let body = worker::current_body();
        if let Some((slot, task)) = &body {
            let parker = parker.clone();
            *lock(slot) = Some(Wait { task: *task, parker });
        }
        Self(body)
    }

    /// Raises if the body is asked to stop: once, so that it can wait for what it does then. To be
    /// asked after the begin and before each sleep: who asks it to stop later wakes it.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        let Some((slot, task)) = &self.0 else { return Ok(()) };
        if !worker::tell_to_stop(py, *task) {
            return Ok(());
        }
        let before = slot
            .running
            .mark(|marks| if marks.interrupted() { marks } else { marks.and_raised_in_wait() });
        if before.interrupted() {
            // It is told by the exception that was sent to it. If that was not raised yet, this
            // raises it, as any Python code does.
            static PASS: Lazy<Py<PyAny>> = Lazy::new();
            let pass = PASS.import(py, "dftracer.utils.from_native.logs", "let_pending_raise")?;
            return pass.call0().map(drop);
        }
        Err(PyErr::from_type(interruption(py), ()))
    }
}

impl Drop for BodyWait {
    fn drop(&mut self) {
        if let Some((slot, _)) = &self.0 {
            *lock(slot) = None;
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
    let time = self::seconds(Some(seconds), "seconds")?;
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

/// Whether bodies of a runtime are interrupted, and whether it was said that one was given up.
#[derive(Default)]
pub(crate) struct Stopping {
    /// Relaxed: set before the first task.
    interrupts: AtomicBool,
    /// Relaxed: only to say it once.
    was_said: AtomicBool,
    /// How many bodies were given up and have not returned.
    given_up: Mutex<isize>,
    /// For those who wait until that is none.
    has_returned: Condvar,
}

impl Stopping {
    fn count(&self, change: isize) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) += change;
        self.has_returned.notify_all();
    }

    /// Waits until every body that was given up has returned; false if `patience` is over before.
    /// Called without the interpreter, which they need.
    pub(crate) fn wait_returned(&self, patience: Duration) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, _) = self
            .has_returned
            .wait_timeout_while(given_up, patience, |left| *left > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *left <= 0
    }

    fn is_any_left(&self) -> bool {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }
}

/// How long a shutdown waits for bodies that were given up. As at interpreter exit.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("DFTRACER_EXIT_PATIENCE_S").ok().and_then(|s| s.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(3.0)).unwrap_or(Duration::from_secs(3))
}

impl Shared {
    /// Lets every plain body of this runtime be interrupted.
    pub(crate) fn interrupt_bodies(&self) {
        self.stopping.interrupts.store(true, Ordering::Relaxed);
    }

    pub(crate) fn interrupts(&self) -> bool {
        self.stopping.interrupts.load(Ordering::Relaxed)
    }

    /// Waits for bodies that were given up, for some time; false if some have not returned.
    pub(crate) fn wait_for_bodies(&self, py: Python<'_>) -> bool {
        !self.stopping.is_any_left() || py.detach(|| self.stopping.wait_returned(patience()))
    }

    /// The threads that are still in a body that was given up.
    pub(crate) fn threads_left(&self) -> Vec<ThreadId> {
        let slots = self.slots();
        let left = slots.iter().filter(|slot| slot.given_up.load(Ordering::Relaxed) > 0);
        left.map(|slot| slot.id).collect()
    }

    /// Logs, once, that a body runs on without its task. On a thread of its own, which may wait for
    /// a handler's lock: the body that was given up may be the one that has it.
    fn say_given_up(&self, handle: &TaskHandle, py: Python<'_>) {
        if self.stopping.was_said.swap(true, Ordering::Relaxed) {
            return;
        }
        let name = handle.name_now(py).into_any().unbind();
        let log =
            py.import("dftracer.utils.from_native.logs").and_then(|m| m.getattr("log_given_up"));
        let Ok(log) = log.map(Bound::unbind) else { return };
        let say = move || {
            guard::attach(|py| {
                let said = call_for_life(log.bind(py), name.bind(py).clone());
                if let Err(error) = said {
                    error.write_unraisable(py, None);
                }
                drop((log, name));
            });
        };
        // Refused a thread, it is not said.
        let _ = std::thread::Builder::new().name("dft-log".into()).spawn(say);
    }
}
