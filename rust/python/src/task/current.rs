//! What a worker's thread knows of itself: whose it is, and which body it runs.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use dftracer_core::interrupt_slot::{IDLE, Outer};
use pyo3::prelude::*;

use super::TaskHandle;
use super::family::Family;
use super::given_up::{leave_body, swallow};
use crate::interp::call::Call;
use crate::interp::errors::TooManyBlockedError;
use crate::interp::objects;
use crate::interp::once::Lazy;
use crate::interp::slot::{self, LaneKind, Slot};
use crate::owner::Shared;
use crate::owner::items::Items;

/// What a worker knows of itself.
struct Current {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    /// The innermost plain body that runs here.
    task: Option<Py<TaskHandle>>,
    /// What is being run: without a `task`, it is the item that the slot tells.
    batch: Option<Arc<dyn Items>>,
    /// The task whose body was last told to stop by a wait of ours.
    told: i64,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Looks at what this thread knows of itself as a worker: nothing if it is none, or is the copy of
/// one in the child of a `fork()` that its body made.
#[inline]
fn with_current<T>(look: impl FnOnce(Option<&mut Current>) -> T) -> T {
    CURRENT
        .with_borrow_mut(|current| look(current.as_mut().filter(|c| !c.shared.process.is_copy())))
}

/// Makes this thread a worker, which knows nothing yet of what it runs, or none any more.
pub(crate) fn set(worker: Option<(Arc<Shared>, Arc<Slot>)>) {
    slot::set_current(worker.as_ref().map(|(_, slot)| slot.clone()));
    let current =
        worker.map(|(shared, slot)| Current { shared, slot, task: None, batch: None, told: IDLE });
    CURRENT.set(current);
}

/// Says which items this worker is at; gives those that it was at before.
pub(crate) fn set_batch(batch: Option<Arc<dyn Items>>) -> Option<Arc<dyn Items>> {
    with_current(|current| current.and_then(|current| std::mem::replace(&mut current.batch, batch)))
}

/// The body around the one that begins now: its task, and what the slot knew of it.
pub(super) type Around = (Option<Py<TaskHandle>>, Outer);

/// `None` on a thread that is no worker.
#[inline]
pub(super) fn begin_body(py: Python<'_>, handle: &Py<TaskHandle>) -> Option<Around> {
    with_current(|current| {
        let current = current?;
        let task = current.task.replace(handle.clone_ref(py));
        let since = handle.get().times.started.load(Ordering::Relaxed);
        current.slot.since.store(since, Ordering::Relaxed);
        Some((task, current.slot.running.enter(handle.get().task_id)))
    })
}

/// Goes back to the outer body: nothing that others do to the inner one reaches anybody else from
/// here on. The arguments go meanwhile, before the outcome is told: who waits for it sees them
/// released, and what their destructors wait for is known to wait for this task.
#[inline]
pub(super) fn end_body(py: Python<'_>, around: Option<Around>, call: Call) {
    let Some((task, outer)) = around else { return };
    let interrupted = with_current(|current| {
        let current = current?;
        let sent = leave_body(&current.shared, &current.slot, outer)?;
        Some((current.slot.clone(), sent))
    });
    if let Some((slot, sent)) = interrupted {
        swallow(py, &slot, sent);
    }
    drop(call);
    let ended = with_current(|current| Some(std::mem::replace(&mut current?.task, task)));
    drop(ended);
}

/// The task of a body, if that is known, or the items that it is one of, and its number.
pub(super) type Innermost = (Option<Py<TaskHandle>>, Option<Arc<dyn Items>>, i64);

/// The innermost plain body here.
pub(super) fn innermost(py: Python<'_>) -> Option<Innermost> {
    with_current(|current| {
        let current = current?;
        let task = current.task.as_ref().map(|task| task.clone_ref(py));
        Some((task, current.batch.clone(), current.slot.running.task()))
    })
}

/// The handle of the innermost plain body here, if it has one.
pub(crate) fn known_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    let (task, batch, id) = innermost(py)?;
    task.or_else(|| TaskHandle::of(py, batch?.shown(py, id)?))
}

/// The slot of the worker that this thread is and the plain body that runs here, if one does.
pub(crate) fn current_body() -> Option<(Arc<Slot>, i64)> {
    with_current(|current| {
        let slot = &current?.slot;
        let task = slot.running.task();
        (slot.lane != LaneKind::Coroutine && task != IDLE).then(|| (slot.clone(), task))
    })
}

/// Whether the plain body that runs here is asked to stop and has not been told so. It is told now.
pub(crate) fn tell_to_stop(py: Python<'_>, task: i64) -> bool {
    let is_told = with_current(|current| current.is_none_or(|current| current.told == task));
    if is_told || !known_task(py).is_some_and(|handle| handle.get().is_cancel_requested()) {
        return false;
    }
    with_current(|current| current.map(|current| current.told = task));
    true
}

/// Whether the calling thread is a worker of this runtime.
pub(crate) fn is_worker_of(shared: &Shared) -> bool {
    with_current(|current| {
        current.as_ref().is_some_and(|current| std::ptr::eq(Arc::as_ptr(&current.shared), shared))
    })
}

/// Whether the calling thread is a worker of this runtime that may be about to end a task.
pub(crate) fn is_to_end_task_of(shared: &Shared) -> bool {
    with_current(|current| {
        current.is_some_and(|current| {
            std::ptr::eq(Arc::as_ptr(&current.shared), shared)
                && !current.slot.owes_nothing.load(Ordering::Relaxed)
        })
    })
}

/// The task whose plain body runs on this thread.
pub(crate) fn running_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    let (task, batch, id) = innermost(py)?;
    task.or_else(|| TaskHandle::of(py, batch?.handle_of(py, id)?))
}

/// The family of the task that is submitting, if a task is. A coroutine worker runs many bodies by
/// turns: there the context knows whose turn it is.
pub(crate) fn family(py: Python<'_>, shared: &Arc<Shared>) -> Option<Arc<Family>> {
    let lane = with_current(|current| current.map(|current| current.slot.lane))?;
    let task = if lane == LaneKind::Coroutine {
        let current =
            py.import("dftracer.utils.current").ok()?.call_method0("current_task").ok()?;
        current.cast_into::<TaskHandle>().ok()?.unbind()
    } else {
        running_task(py)?
    };
    // A task of another runtime has a number that means something else here.
    let is_ours = task.get().shared().is_some_and(|own| Arc::ptr_eq(own, shared));
    is_ours.then(|| task.get().family())
}

/// Told before a wait: if this thread is a worker, its lane may start a spare for the time of it.
pub(crate) fn enter_blocked(py: Python<'_>) -> PyResult<Option<Blocked>> {
    let current = with_current(|current| {
        let current = current?;
        Some((current.shared.clone(), current.slot.lane, current.batch.clone()))
    });
    let Some((shared, kind, batch)) = current else { return Ok(None) };
    if kind == LaneKind::Coroutine {
        // A blocked loop must not hold the fate of others: they might be what is waited for.
        py.import("dftracer.utils.from_native.coroutines")?.call_method0("check_may_block")?;
    }
    if let Some(batch) = batch {
        batch.pass_on(py)?;
    }
    let order = shared.lane(kind).enter_blocked().map_err(|_| {
        TooManyBlockedError::new_err(
            "too many tasks of this Runtime wait for other tasks: waiting here could block for \
             ever; return futures instead of waiting inside so many tasks",
        )
    })?;
    let blocked = Blocked { shared: shared.clone(), kind };
    shared.obey(kind, order)?;
    Ok(Some(blocked))
}

/// A worker that waits for another task.
pub(crate) struct Blocked {
    shared: Arc<Shared>,
    kind: LaneKind,
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.shared.lane(self.kind).leave_blocked();
    }
}

/// The same for Python code that waits in its own way, as a context manager.
#[pyclass(frozen, name = "Blocked", module = "dftracer.utils._native")]
pub(crate) struct PyBlocked {
    entered: Mutex<Option<Blocked>>,
}

#[pymethods]
impl PyBlocked {
    #[new]
    fn new() -> Self {
        Self { entered: Mutex::default() }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        let blocked = enter_blocked(py)?;
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = blocked;
        Ok(())
    }

    fn __exit__(
        &self,
        _exc_type: Option<Py<PyAny>>,
        _exc: Option<Py<PyAny>>,
        _traceback: Option<Py<PyAny>>,
    ) {
        let blocked = self.entered.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(blocked);
    }
}

/// The context variable that says whose body is run.
fn coroutine_task_variable(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static VARIABLE: Lazy<Py<PyAny>> = Lazy::new();
    VARIABLE.import(py, "dftracer.utils.current", "coroutine_task")
}

/// The task whose coroutine body the current context belongs to.
pub(crate) fn coroutine_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    let variable = coroutine_task_variable(py).ok()?;
    let task = objects::variable(variable)?;
    task.cast_into::<TaskHandle>().ok().map(Bound::unbind)
}

/// Says in the current context whose body this is.
pub(crate) fn set_coroutine_task(py: Python<'_>, task: &Py<PyAny>) -> PyResult<()> {
    objects::set_variable(coroutine_task_variable(py)?, task)
}
