//! The workers of the coroutine lane: each is a thread with a persistent asyncio event loop, which
//! `dftracer/utils/coroutines.py` drives through the class here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dftracer_core::lane::Rest;
use dftracer_core::notify::Notifier;
use dftracer_core::park::Unpark;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::handle::{Outcome, Sleepers, TaskHandle, Work, wake};
use crate::shared::{LaneKind, Shared};
use crate::worker;

/// The life of a coroutine worker.
pub(crate) fn serve(shared: Arc<Shared>) {
    let lane_owner = shared.clone();
    let served = worker::as_worker(shared.clone(), LaneKind::Coroutine, move |py| {
        let served = CoroutineWorker::new(lane_owner).and_then(|worker| {
            let worker = Bound::new(py, worker)?;
            py.import("dftracer.utils.coroutines")?.call_method1("serve", (worker,))
        });
        match served {
            Ok(_) => true,
            Err(error) => {
                error.write_unraisable(py, None);
                false
            }
        }
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
}

/// A claimed task: its handle, its callable or coroutine, its arguments (`None` with a coroutine),
/// and its context.
type Claimed = (Py<TaskHandle>, Py<PyAny>, Option<Py<PyAny>>, Option<Py<PyAny>>, Py<PyAny>);

impl CoroutineWorker {
    fn new(shared: Arc<Shared>) -> PyResult<Self> {
        let notifier = Arc::new(Notifier::new()?);
        Ok(Self { shared, notifier, sleepers: Mutex::default(), taking: AtomicBool::new(false) })
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
        let lane = self.shared.lane(LaneKind::Coroutine);
        // It may have been woken by `notify_self`, unknown to the lane.
        lane.rise(&self.wakeup());
        lane.awake();
    }

    /// Makes the worker look again, as if the lane had woken it.
    fn notify_self(&self) {
        self.notifier.notify();
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
            match this.take_work() {
                Work::Call { callable, args, kwargs, context } => {
                    this.keep_name(callable.bind(py));
                    let kwargs = kwargs.map(Py::into_any);
                    return Ok(Some((handle, callable, Some(args.into_any()), kwargs, context)));
                }
                Work::Coroutine { coroutine, context } => {
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
        let mut sleepers = std::mem::take(&mut *self.sleepers());
        if !sleepers.is_empty() {
            py.detach(|| wake(&mut sleepers));
        }
    }

    /// The task's coroutine has suspended: it can be cancelled through its asyncio task.
    #[staticmethod]
    fn suspended(handle: &Bound<'_, TaskHandle>, task: Py<PyAny>, event_loop: Py<PyAny>) {
        if !handle.get().is_settled() {
            handle.get().set_work(Work::Suspended { task, event_loop });
        }
    }

    fn succeed(&self, handle: &Bound<'_, TaskHandle>, value: Py<PyAny>) {
        self.settle(handle, Outcome::Value(value));
    }

    /// The coroutine has raised; `cancelled` if that was `asyncio.CancelledError`.
    fn fail(&self, handle: &Bound<'_, TaskHandle>, error: Bound<'_, PyAny>, cancelled: bool) {
        let outcome =
            if cancelled { Outcome::Cancelled } else { Outcome::Error(PyErr::from_value(error)) };
        self.settle(handle, outcome);
    }
}

impl CoroutineWorker {
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

/// Whether calling `callable` gives a coroutine, as far as can be told without calling it.
pub(crate) fn is_coroutine_function(callable: &Bound<'_, PyAny>) -> bool {
    /// `inspect.CO_COROUTINE`.
    const CO_COROUTINE: u32 = 0x80;
    let py = callable.py();
    callable
        .getattr(pyo3::intern!(py, "__code__"))
        .and_then(|code| code.getattr(pyo3::intern!(py, "co_flags")))
        .and_then(|flags| flags.extract::<u32>())
        .is_ok_and(|flags| flags & CO_COROUTINE != 0)
}
