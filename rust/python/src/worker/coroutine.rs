//! The workers of the coroutine lane: each is a thread with a persistent asyncio event loop, which
//! `dftracer/utils/from_native/coroutines.py` drives through the class here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dftracer_core::interrupt_slot::IDLE;
use dftracer_core::sched::lane::Rest;
use dftracer_core::sched::parker::Unpark;
use dftracer_core::sched::waker::LoopWaker;
use pyo3::PyTraverseError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;

use crate::interp::call::{Call, Step, begin_coroutine, call_for_life, in_context};
use crate::interp::clock::nanos_now;
use crate::interp::objects::{is_coroutine, references, restore_traceback};
use crate::interp::once::{Lazy, intern};
use crate::interp::signals;
use crate::interp::slot::{self, LaneKind, Slot};
use crate::owner::{Shared, Sleepers, wake};
use crate::task::current::set_coroutine_task;
use crate::task::limits;
use crate::task::queue::Job;
use crate::task::{Content, Outcome, TaskHandle};
use crate::worker;

/// For how long one turn of the event loop may be spent waiting for more tasks: those that are
/// suspended in it want to go on.
const TURN_NS: u64 = 1_000_000;

/// The life of a coroutine worker.
pub(crate) fn serve(shared: Arc<Shared>, kind: LaneKind, number: usize) {
    let lane_owner = shared.clone();
    let served = worker::as_worker(shared.clone(), kind, number, move |py| {
        let served = CoroutineWorker::new(py, lane_owner.clone()).and_then(|worker| {
            let worker = Bound::new(py, worker)?;
            let serve = py.import("dftracer.utils.from_native.coroutines")?.getattr("serve")?;
            call_for_life(&serve, worker.into_any())
        });
        let Err(error) = served else { return true };
        // No event loop could be had. The task that this worker was started for is told so; for the
        // next one it is tried again.
        if let (Some(job), _) = lane_owner.lane(kind).pop()
            && let Some(Job::Task(handle)) = Job::of(py, job)
            && handle.get().claim()
        {
            TaskHandle::settle(&handle, Outcome::Error(error), py);
        }
        false
    });
    worker::mourn(&shared, kind, served);
}

/// What a coroutine worker asks of its lane and tells it.
#[pyclass(frozen, module = "dftracer.utils._native")]
pub(crate) struct CoroutineWorker {
    shared: Arc<Shared>,
    bell: Arc<LoopWaker>,
    /// Who waits for tasks that have ended in their first step: woken before the next body, which
    /// may block, or when there is none. Only this worker's thread uses it.
    sleepers: Mutex<Sleepers>,
    /// Whether this worker is taking tasks from the queue, and so will come to `sleepers` at once.
    /// Relaxed: of this worker's thread alone.
    taking: AtomicBool,
    /// Whether this worker has waited in vain for the task after the last. Relaxed: as above.
    has_looked: AtomicBool,
    slot: Option<Arc<Slot>>,
    /// `asyncio.CancelledError`, which cannot be imported any more when a body ends late at exit.
    cancellation: Py<PyAny>,
}

/// A body that has suspended: its handle, its coroutine, its context, and what it waits for.
type Suspended = (Py<TaskHandle>, Py<PyAny>, Py<PyAny>, Py<PyAny>);

/// What is to be run of a claimed task.
enum Body {
    Call(Call),
    Coroutine(Py<PyAny>),
}

impl CoroutineWorker {
    fn new(py: Python<'_>, shared: Arc<Shared>) -> PyResult<Self> {
        let cancellation = py.import("asyncio")?.getattr("CancelledError")?.unbind();
        let bell = Arc::new(LoopWaker::new()?);
        Ok(Self {
            shared,
            bell,
            sleepers: Mutex::default(),
            taking: AtomicBool::new(false),
            has_looked: AtomicBool::new(false),
            slot: slot::current(),
            cancellation,
        })
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakeup(&self) -> Arc<dyn Unpark> {
        self.bell.clone()
    }
}

#[pymethods]
impl CoroutineWorker {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // A class, which is not cleared: it holds nothing of a worker.
        visit.call(&self.cancellation)
    }

    fn fileno(&self) -> i32 {
        self.bell.fileno()
    }

    /// Called when the descriptor is readable, before looking for tasks.
    fn awake(&self) {
        self.bell.acknowledge();
        self.stand_up();
    }

    /// A body has forked, and the loop has its turn in the child: ends the child, which is no worker.
    fn leave(&self) {
        self.shared.process.leave_if_copied();
    }

    /// Called when something else than the descriptor has ended the sleep.
    fn rise(&self) {
        let order = self.shared.lane(LaneKind::Coroutine).cancel_sleep_and_pass_on(&self.wakeup());
        let _ = self.shared.obey(LaneKind::Coroutine, order);
    }

    /// Makes the first step of queued bodies, for at most `limit` of them, as parts of the caller's
    /// asyncio task, which is `driver`. Tells how many may still be begun in this turn (-1 if the
    /// queue is empty, and no task comes at once), and the body that has suspended, if one has: it
    /// must go on in that task.
    fn begin(
        &self,
        driver: &Bound<'_, PyAny>,
        limit: isize,
    ) -> PyResult<(isize, Option<Suspended>)> {
        let py = driver.py();
        let untouched = references(driver);
        let since = nanos_now();
        let mut left = limit;
        while left > 0 {
            let Some(handle) = self.next(py) else {
                if nanos_now().saturating_sub(since) < TURN_NS && self.look(py) {
                    continue;
                }
                return Ok((-1, None));
            };
            left -= 1;
            let Some(body) = self.body_of(py, &handle) else { continue };
            if let Some(suspended) = self.first_step(py, handle, body) {
                return Ok((left, Some(suspended)));
            }
            // A body that has kept its asyncio task, cancelled it or hung a callback on it shall
            // not share it with the next one.
            if references(driver) != untouched
                || driver.getattr(intern!(py, "_must_cancel"))?.is_truthy()?
                || !driver.getattr(intern!(py, "_callbacks"))?.is_none()
            {
                break;
            }
        }
        Ok((left, None))
    }

    /// What to do when there is no task: `"sleep"`, `"retry"` or `"exit"`.
    fn rest(&self, py: Python<'_>, may_exit: bool) -> &'static str {
        let rest = self.shared.lane(LaneKind::Coroutine).sleep(&self.wakeup(), may_exit);
        match rest {
            Rest::Sleep => {
                if self.has_looked.load(Ordering::Relaxed) {
                    self.pause(py);
                    return "sleep";
                }
                if !self.is_called_at_once(py) {
                    return "sleep";
                }
                self.stand_up();
                "retry"
            }
            Rest::Retry => {
                self.pause(py);
                "retry"
            }
            Rest::Exit => {
                self.pause(py);
                "exit"
            }
        }
    }

    /// Tells that no task is taken for now. Wakes who waits for those that have ended, after
    /// letting go of the interpreter.
    fn pause(&self, py: Python<'_>) {
        let mut sleepers = self.stop_taking();
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
    /// Waits for a moment for the next task, in the asyncio task of the last: a turn of the event
    /// loop would take as long as a short body. True if the queue is to be looked at again.
    fn look(&self, py: Python<'_>) -> bool {
        let (lane, wakeup) = (self.shared.lane(LaneKind::Coroutine), self.wakeup());
        match lane.sleep(&wakeup, false) {
            Rest::Retry => true,
            Rest::Sleep | Rest::Exit => {
                // In this order: it rises even if it is called. That may be for a task of before.
                let is_called = self.is_called_at_once(py) | self.stand_up();
                self.has_looked.store(!is_called, Ordering::Relaxed);
                is_called
            }
        }
    }

    /// No longer to be woken: true if this worker has been chosen to look at the queue just now.
    fn stand_up(&self) -> bool {
        let lane = self.shared.lane(LaneKind::Coroutine);
        let is_chosen = lane.cancel_sleep(&self.wakeup());
        if is_chosen {
            lane.awake();
        }
        is_chosen
    }

    /// Looks for a moment whether this worker, which is registered to sleep, is called.
    fn is_called_at_once(&self, py: Python<'_>) -> bool {
        let mut sleepers = self.stop_taking();
        py.detach(|| {
            wake(&mut sleepers);
            signals::look_as_worker(|| self.bell.spin())
        })
    }

    /// Tells that no task is taken for now; gives those who wait for the last to end.
    fn stop_taking(&self) -> Sleepers {
        self.taking.store(false, Ordering::Relaxed);
        self.show(IDLE);
        std::mem::take(&mut *self.sleepers())
    }

    /// The next task for this worker, claimed.
    fn next(&self, py: Python<'_>) -> Option<Py<TaskHandle>> {
        loop {
            self.shared.process.leave_if_copied();
            let (job, order) = self.shared.lane(LaneKind::Coroutine).pop();
            let _ = self.shared.obey(LaneKind::Coroutine, order);
            let Some(Job::Task(handle)) = Job::of(py, job?) else { continue };
            self.taking.store(true, Ordering::Relaxed);
            self.has_looked.store(false, Ordering::Relaxed);
            wake(&mut self.sleepers());
            let this = handle.get();
            // One that a Python worker has begun and passed on is claimed already.
            if this.claim() || this.is_passed_on() {
                limits::arm(&self.shared, this);
                self.show(this.task_id);
                return Some(handle);
            }
        }
    }

    /// The body of a claimed task, and its context.
    fn body_of(&self, py: Python<'_>, handle: &Py<TaskHandle>) -> Option<(Body, Py<PyAny>)> {
        let this = handle.get();
        match this.take_content()? {
            Content::Call(call) => {
                this.keep_name(call.callable().bind(py));
                match call.context(py) {
                    Ok(context) => {
                        this.tell_begun(py);
                        Some((Body::Call(call), context))
                    }
                    Err(error) => {
                        TaskHandle::settle(handle, Outcome::Error(error), py);
                        None
                    }
                }
            }
            Content::Coroutine { coroutine, context } => {
                Some((Body::Coroutine(coroutine), context))
            }
            _ => {
                let error = PyRuntimeError::new_err("a queued task had no body");
                TaskHandle::settle(handle, Outcome::Error(error), py);
                None
            }
        }
    }

    /// Makes the first step of a body in its context, and settles its handle if that is its last.
    fn first_step(
        &self,
        py: Python<'_>,
        handle: Py<TaskHandle>,
        (body, context): (Body, Py<PyAny>),
    ) -> Option<Suspended> {
        let context = context.bind(py);
        let step = in_context(context, || {
            set_coroutine_task(py, handle.as_any())?;
            let coroutine = coroutine_of(py, body)?;
            let step = begin_coroutine(&coroutine);
            if !matches!(step, Ok(Step::Suspended(_))) {
                // The context may outlive the task, and shall not keep its result.
                set_coroutine_task(py, &py.None())?;
            }
            Ok((coroutine, step?))
        });
        let outcome = match step {
            Ok((coroutine, Step::Suspended(awaited))) => {
                self.shared.process.leave_if_copied();
                let context = context.clone().unbind();
                return Some((handle, coroutine.unbind(), context, awaited.unbind()));
            }
            Ok((_, Step::Ended(value))) => Outcome::Value(value.unbind()),
            Err(error) if error.is_instance(py, self.cancellation.bind(py)) => Outcome::Cancelled,
            Err(error) => Outcome::Error(error),
        };
        self.settle(handle.bind(py), outcome);
        None
    }

    /// Shows which task's first step this worker makes.
    fn show(&self, task_id: i64) {
        if let Some(slot) = &self.slot {
            slot.since.store(nanos_now(), Ordering::Relaxed);
            slot.running.show(task_id);
        }
    }

    fn settle(&self, handle: &Bound<'_, TaskHandle>, outcome: Outcome) {
        self.shared.process.leave_if_copied();
        let mut ended = Sleepers::new();
        TaskHandle::settle_quietly(handle.as_unbound(), outcome, handle.py(), &mut ended);
        if self.taking.load(Ordering::Relaxed) {
            self.sleepers().append(&mut ended);
        } else {
            wake(&mut ended);
        }
    }
}

/// The coroutine that is a body: what calling it has given, or a new one that awaits that.
fn coroutine_of(py: Python<'_>, body: Body) -> PyResult<Bound<'_, PyAny>> {
    static AWAIT: Lazy<Py<PyAny>> = Lazy::new();
    let coroutine = match body {
        Body::Call(call) => call.here(py)?,
        Body::Coroutine(coroutine) => coroutine.into_bound(py),
    };
    if is_coroutine(&coroutine) {
        return Ok(coroutine);
    }
    AWAIT.import(py, "dftracer.utils.from_native.coroutines", "as_coroutine")?.call1((coroutine,))
}
