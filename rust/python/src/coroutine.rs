//! The workers of the coroutine lane: each is a thread with a persistent asyncio event loop, which
//! `dftracer/utils/coroutines.py` drives through the class here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dftracer_core::lane::Rest;
use dftracer_core::notify::Notifier;
use dftracer_core::park::Unpark;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;

use crate::call::call_for_life;
use crate::handle::{Content, Outcome, Sleepers, TaskHandle, restore_traceback, wake};
use crate::progress::{IDLE, Slot, nanos_now};
use crate::shared::{LaneKind, Shared};
use crate::worker;

/// The life of a coroutine worker.
pub(crate) fn serve(shared: Arc<Shared>, kind: LaneKind, number: usize) {
    let lane_owner = shared.clone();
    let served = worker::as_worker(shared.clone(), kind, number, move |py| {
        let served = CoroutineWorker::new(lane_owner.clone()).and_then(|worker| {
            let worker = Bound::new(py, worker)?;
            let serve = py.import("dftracer.utils.coroutines")?.getattr("serve")?;
            call_for_life(&serve, worker.into_any())
        });
        let Err(error) = served else { return true };
        // No event loop could be had. The task that this worker was started for is told so; for the
        // next one it is tried again.
        if let (Some(handle), _) = lane_owner.lane(kind).pop()
            && handle.get().claim()
        {
            TaskHandle::settle(&handle, Outcome::Error(error), Some(py));
        }
        false
    });
    if served != Some(true) {
        let order = shared.lane(LaneKind::Coroutine).worker_died();
        let _ = shared.obey(LaneKind::Coroutine, order);
    }
}

/// What a coroutine worker asks of its lane and tells it.
#[pyclass(frozen, module = "dftracer.utils._native")]
pub(crate) struct CoroutineWorker {
    shared: Arc<Shared>,
    notifier: Arc<Notifier>,
    /// Who waits for tasks that have ended in their first step: woken before the next body, which
    /// may block, or when there is none. Only this worker's thread uses it.
    sleepers: Mutex<Sleepers>,
    /// Whether this worker is taking tasks from the queue, and so will come to `sleepers` at once.
    /// Relaxed: of this worker's thread alone.
    taking: AtomicBool,
    slot: Option<Arc<Slot>>,
}

/// A claimed task: its handle, its callable or coroutine, its arguments (`None` with a coroutine),
/// and its context.
type Claimed = (Py<TaskHandle>, Py<PyAny>, Option<Py<PyAny>>, Option<Py<PyAny>>, Py<PyAny>);

impl CoroutineWorker {
    fn new(shared: Arc<Shared>) -> PyResult<Self> {
        let notifier = Arc::new(Notifier::new()?);
        Ok(Self {
            shared,
            notifier,
            sleepers: Mutex::default(),
            taking: AtomicBool::new(false),
            slot: worker::current_slot(),
        })
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakeup(&self) -> Arc<dyn Unpark> {
        self.notifier.clone()
    }
}

#[pymethods]
impl CoroutineWorker {
    fn fileno(&self) -> i32 {
        self.notifier.fileno()
    }

    /// Called when the descriptor is readable, before looking for tasks.
    fn awake(&self) {
        self.notifier.acknowledge();
        self.shared.lane(LaneKind::Coroutine).awake();
    }

    /// Called when something else than the descriptor has ended the sleep.
    fn rise(&self) {
        let order = self.shared.lane(LaneKind::Coroutine).rise(&self.wakeup());
        let _ = self.shared.obey(LaneKind::Coroutine, order);
    }

    /// The next task for this worker, claimed, or `None`.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Claimed>> {
        loop {
            let (job, order) = self.shared.lane(LaneKind::Coroutine).pop();
            let _ = self.shared.obey(LaneKind::Coroutine, order);
            let Some(handle) = job else { return Ok(None) };
            self.taking.store(true, Ordering::Relaxed);
            wake(&mut self.sleepers());
            let this = handle.get();
            // One that a Python worker has begun and passed on is claimed already.
            if !this.claim() && !this.is_passed_on() {
                continue;
            }
            self.shared.arm(this);
            self.show(this.task_id);
            match this.take_content() {
                Content::Call { callable, args, kwargs, context } => {
                    this.keep_name(callable.bind(py));
                    let kwargs = kwargs.map(Py::into_any);
                    return Ok(Some((handle, callable, Some(args.into_any()), kwargs, context)));
                }
                Content::Coroutine { coroutine, context } => {
                    return Ok(Some((handle, coroutine, None, None, context)));
                }
                _ => {
                    let error = PyRuntimeError::new_err("a queued task had no body");
                    TaskHandle::settle(&handle, Outcome::Error(error), Some(py));
                }
            }
        }
    }

    /// What to do when there is no task: `"sleep"`, `"retry"` or `"exit"`.
    fn rest(&self, py: Python<'_>, may_exit: bool) -> &'static str {
        let rest = self.shared.lane(LaneKind::Coroutine).sleep(&self.wakeup(), may_exit);
        self.pause(py);
        match rest {
            Rest::Sleep => "sleep",
            Rest::Retry => "retry",
            Rest::Exit => "exit",
        }
    }

    /// Tells that no task is taken for now. Wakes who waits for those that have ended, after
    /// letting go of the interpreter.
    fn pause(&self, py: Python<'_>) {
        self.taking.store(false, Ordering::Relaxed);
        self.show(IDLE);
        let mut sleepers = std::mem::take(&mut *self.sleepers());
        if !sleepers.is_empty() {
            py.detach(|| wake(&mut sleepers));
        }
    }

    /// The task's coroutine has suspended, and can be cancelled through its asyncio task. True if
    /// that is to be done at once.
    #[staticmethod]
    fn suspended(handle: &Bound<'_, TaskHandle>, task: Py<PyAny>, event_loop: Py<PyAny>) -> bool {
        let this = handle.get();
        let runs = this.become_(Content::Suspended { task, event_loop });
        // In this order: whoever asks later finds the task to cancel.
        !runs || this.is_cancel_requested()
    }

    fn succeed(&self, handle: &Bound<'_, TaskHandle>, value: Py<PyAny>) {
        self.settle(handle, Outcome::Value(value));
    }

    /// The coroutine has raised; `cancelled` if that was `asyncio.CancelledError`. The traceback
    /// loses its first frame, that of the caller.
    fn fail(&self, handle: &Bound<'_, TaskHandle>, error: Bound<'_, PyAny>, cancelled: bool) {
        let outcome = if cancelled {
            Outcome::Cancelled
        } else {
            let py = handle.py();
            let error = PyErr::from_value(error);
            let next = error.traceback(py).and_then(|traceback| {
                traceback.getattr("tb_next").ok()?.cast_into::<PyTraceback>().ok()
            });
            if let Some(next) = next {
                restore_traceback(py, error.value(py).as_unbound(), Some(next.as_unbound()));
                error.set_traceback(py, Some(next));
            }
            Outcome::Error(error)
        };
        self.settle(handle, outcome);
    }
}

impl CoroutineWorker {
    /// Shows which task's first step this worker makes.
    fn show(&self, task_id: i64) {
        if let Some(slot) = &self.slot {
            slot.since.store(nanos_now(), Ordering::Relaxed);
            slot.task.store(task_id, Ordering::Relaxed);
        }
    }

    fn settle(&self, handle: &Bound<'_, TaskHandle>, outcome: Outcome) {
        let mut ended = Sleepers::new();
        TaskHandle::settle_quietly(handle.as_unbound(), outcome, Some(handle.py()), &mut ended);
        if self.taking.load(Ordering::Relaxed) {
            self.sleepers().append(&mut ended);
        } else {
            wake(&mut ended);
        }
    }
}

impl Shared {
    /// Gives a task whose callable returned a coroutine to the coroutine lane.
    pub(crate) fn pass_on(self: &Arc<Self>, py: Python<'_>, handle: &Py<TaskHandle>) {
        let order = self.lane(LaneKind::Coroutine).push(handle.clone_ref(py));
        if let Err(error) = self.obey(LaneKind::Coroutine, order) {
            TaskHandle::settle(handle, Outcome::Error(error), Some(py));
        }
    }
}

/// The code object of a callable, if it is a plain function or method, and whether calling it gives
/// a coroutine, as far as can be told without calling it.
pub(crate) fn code_of<'py>(callable: &Bound<'py, PyAny>) -> (Option<Bound<'py, PyAny>>, bool) {
    /// `inspect.CO_COROUTINE`.
    const CO_COROUTINE: u32 = 0x80;
    let py = callable.py();
    let Ok(code) = callable.getattr(pyo3::intern!(py, "__code__")) else { return (None, false) };
    let is_coroutine = code
        .getattr(pyo3::intern!(py, "co_flags"))
        .and_then(|flags| flags.extract::<u32>())
        .is_ok_and(|flags| flags & CO_COROUTINE != 0);
    (Some(code), is_coroutine)
}
