//! A task and the claim check for its outcome: one object is both, so a task costs one allocation.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dftracer_core::mailbox::Mailbox as CoreMailbox;
use dftracer_core::park::{Parker, Unpark, Wakeup};
use dftracer_core::process::{Kill, ProcessOutcome};
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyBaseException, PyTimeoutError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTraceback, PyTuple, PyType};

use crate::call::derive_name;
use crate::mailbox::Delivery;
use crate::process;
use crate::shared::{LaneKind, Shared};
use crate::worker;

/// The states of a task, in the only order in which they follow each other.
pub(crate) mod state {
    pub(crate) const QUEUED: u8 = 0;
    pub(crate) const RUNNING: u8 = 1;
    /// The first terminal state.
    pub(crate) const DONE: u8 = 2;
    pub(crate) const FAILED: u8 = 3;
    pub(crate) const CANCELLED: u8 = 4;
}
use state::{CANCELLED, DONE, FAILED, QUEUED, RUNNING};

/// How a cancellation went; `dftracer.utils.Cancellation` gives these numbers their names.
const TOO_LATE: u8 = 0;
const REQUESTED: u8 = 1;
const DEQUEUED: u8 = 2;

/// What a task still needs in order to run, or to be stopped.
pub(crate) enum Work {
    /// Nothing: it runs where nobody can stop it, or has ended.
    None,
    /// `callable(*args, **kwargs)`, not begun.
    Call { callable: Py<PyAny>, args: Py<PyTuple>, kwargs: Option<Py<PyDict>>, context: Py<PyAny> },
    /// A coroutine that a callable returned, not begun.
    Coroutine { coroutine: Py<PyAny>, context: Py<PyAny> },
    /// A suspended coroutine: its asyncio task and the loop that owns it.
    Suspended { task: Py<PyAny>, event_loop: Py<PyAny> },
    /// A child process.
    Process(Kill),
}

/// How a task ended.
pub(crate) enum Outcome {
    Value(Py<PyAny>),
    Error(PyErr),
    Cancelled,
    Process(ProcessOutcome),
}

/// The outcome as the handle keeps it.
enum Slot {
    Empty,
    Value(Py<PyAny>),
    Error {
        exception: Py<PyBaseException>,
        /// The traceback as it was when the body ended. Raising adds the raiser's frames to the
        /// exception; each raise starts from here again.
        traceback: Option<Py<PyTraceback>>,
    },
    Cancelled,
    /// Of a native task that ended on a thread without the interpreter; becomes one of the above
    /// when it is first looked at.
    Process(Arc<ProcessOutcome>),
}

/// Threads and event loops that are to be woken.
pub(crate) type Sleepers = Vec<Arc<dyn Unpark>>;

/// Wakes them all.
pub(crate) fn wake(sleepers: &mut Sleepers) {
    for sleeper in sleepers.drain(..) {
        sleeper.unpark();
    }
}

/// Who wants to know.
enum Waiter {
    Thread(Arc<Parker>),
    /// The delivery is complete from the start (it holds the task itself until then), so that a
    /// thread without the interpreter can post it.
    Mailbox {
        mailbox: Arc<CoreMailbox<Delivery>>,
        delivery: Delivery,
    },
}

impl Waiter {
    /// Hands over what it waits for, and leaves it to the caller to wake it.
    fn deliver(self) -> Option<Arc<dyn Unpark>> {
        match self {
            Self::Thread(parker) => Some(parker),
            Self::Mailbox { mailbox, delivery } => {
                mailbox.post_quietly(delivery).then_some(mailbox as Arc<dyn Unpark>)
            }
        }
    }
}

#[pyclass(frozen, generic, weakref, module = "dftracer.utils._native")]
pub(crate) struct TaskHandle {
    /// `QUEUED` → `RUNNING` by whoever claims the task; `QUEUED` or `RUNNING` → a terminal state
    /// once, by `settle`. Stored with Release after the slot is filled.
    state: AtomicU8,
    /// Where it is queued; `None` for a native task, which is never queued.
    lane: Option<LaneKind>,
    /// Whether `wait_all` and `get_failed` of the runtime speak of this task.
    tracked: bool,
    #[pyo3(get)]
    task_id: i64,
    /// Given, or derived when the task starts and somebody still holds the handle.
    name: Mutex<Option<Py<PyString>>>,
    work: Mutex<Work>,
    /// Holds Python objects only while locked by an attached thread, so the garbage collector
    /// (which runs while every such thread stands still) always finds it unlocked or without any.
    slot: Mutex<Slot>,
    /// Emptied once, after the state has become terminal.
    waiters: Mutex<Vec<Waiter>>,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskHandle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        name: Option<Py<PyString>>,
        work: Work,
        lane: Option<LaneKind>,
        tracked: bool,
    ) -> Self {
        Self {
            state: AtomicU8::new(QUEUED),
            lane,
            tracked,
            task_id: shared.next_task_id(),
            name: Mutex::new(name),
            work: Mutex::new(work),
            slot: Mutex::new(Slot::Empty),
            waiters: Mutex::new(Vec::new()),
            shared,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Makes the caller the one who runs this task; false if somebody else is, or it was cancelled.
    pub(crate) fn claim(&self) -> bool {
        self.state.compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn take_work(&self) -> Work {
        std::mem::replace(&mut *lock(&self.work), Work::None)
    }

    /// Tells how the running task can be stopped from now on.
    pub(crate) fn set_work(&self, work: Work) {
        let previous = std::mem::replace(&mut *lock(&self.work), work);
        drop(previous);
    }

    /// Whether it is a callable that nobody has begun and that gives no coroutine, as far as known.
    pub(crate) fn is_plain_call(&self) -> bool {
        self.lane == Some(LaneKind::Python) && self.state.load(Ordering::Acquire) == QUEUED
    }

    /// Whether its callable has run and returned a coroutine that waits to be begun.
    pub(crate) fn is_passed_on(&self) -> bool {
        matches!(&*lock(&self.work), Work::Coroutine { .. })
    }

    pub(crate) fn is_settled(&self) -> bool {
        // Acquire: pairs with the Release in `settle`, so the slot is filled.
        self.state.load(Ordering::Acquire) >= DONE
    }

    /// Names the task after its callable, if it has no name and somebody may ask for it.
    pub(crate) fn keep_name(&self, callable: &Bound<'_, PyAny>) {
        if lock(&self.name).is_none() {
            // No lock while Python code runs: `__qualname__` may be a property.
            let name = derive_name(callable).unbind();
            lock(&self.name).get_or_insert(name);
        }
    }

    /// Ends the task and wakes who waits for it; false if it had ended already.
    pub(crate) fn settle(self_: &Py<Self>, outcome: Outcome, py: Option<Python<'_>>) -> bool {
        let mut sleepers = Sleepers::new();
        let settled = Self::settle_quietly(self_, outcome, py, &mut sleepers);
        wake(&mut sleepers);
        settled
    }

    /// Ends the task, once: false if it had ended already, and then `outcome` is dropped. Outcomes
    /// that hold Python objects are settled only by attached threads. Who waits for the task is
    /// added to `sleepers`, for the caller to wake soon: one that wakes while this thread still
    /// holds the interpreter would only fall asleep again to wait for that.
    pub(crate) fn settle_quietly(
        self_: &Py<Self>,
        outcome: Outcome,
        py: Option<Python<'_>>,
        sleepers: &mut Sleepers,
    ) -> bool {
        let this = self_.get();
        let (state, slot) = match (outcome, py) {
            (Outcome::Value(value), _) => (DONE, Slot::Value(value)),
            (Outcome::Cancelled, _) => (CANCELLED, Slot::Cancelled),
            (Outcome::Process(outcome), _) => {
                (process::terminal_state(&outcome), Slot::Process(Arc::new(outcome)))
            }
            (Outcome::Error(error), Some(py)) => (FAILED, Slot::of_error(py, &error)),
            (Outcome::Error(_), None) => unreachable!("errors are Python objects"),
        };
        {
            let mut current = lock(&this.slot);
            if !matches!(*current, Slot::Empty) {
                drop(current);
                drop(slot);
                return false;
            }
            *current = slot;
            // Under the lock, so that the slot and the state change as one. Release: whoever sees
            // the state sees the slot.
            this.state.store(state, Ordering::Release);
        }
        drop(this.take_work());
        if state == FAILED && this.tracked {
            this.shared.record_failure(self_);
        }
        let waiters = std::mem::take(&mut *lock(&this.waiters));
        sleepers.extend(waiters.into_iter().filter_map(Waiter::deliver));
        this.shared.task_ended(sleepers);
        true
    }

    /// Posts `token` to `mailbox` when the task has ended; at once if it has.
    pub(crate) fn deliver_to(
        self_: &Bound<'_, Self>,
        mailbox: &Arc<CoreMailbox<Delivery>>,
        token: Py<PyAny>,
    ) {
        let this = self_.get();
        let delivery = Delivery { token, handle: self_.clone().unbind() };
        if let Err(waiter) = this.add_waiter(Waiter::Mailbox { mailbox: mailbox.clone(), delivery })
        {
            wake(&mut waiter.deliver().into_iter().collect());
        }
    }

    /// Gives the waiter back if the task has ended: nobody would notify it.
    fn add_waiter(&self, waiter: Waiter) -> Result<(), Waiter> {
        let mut waiters = lock(&self.waiters);
        // `settle` stores the state before it takes this lock to empty the list.
        if self.is_settled() {
            return Err(waiter);
        }
        waiters.push(waiter);
        Ok(())
    }

    /// Nobody who was promised this task's end will hear of it.
    pub(crate) fn forget_waiters(&self) {
        let waiters = std::mem::take(&mut *lock(&self.waiters));
        drop(waiters);
    }

    fn remove_thread_waiter(&self, parker: &Arc<Parker>) {
        lock(&self.waiters)
            .retain(|w| !matches!(w, Waiter::Thread(other) if Arc::ptr_eq(other, parker)));
    }

    /// Waits for the end of the task; false if `timeout` came first.
    fn wait_settled(self_: &Bound<'_, Self>, timeout: Option<Duration>) -> PyResult<bool> {
        let py = self_.py();
        let this = self_.get();
        if this.is_settled() {
            return Ok(true);
        }
        this.shared.check_process()?;
        if timeout.is_none() && worker::run_inline(self_) && this.is_settled() {
            return Ok(true);
        }
        let _blocked = worker::enter_blocked(py)?;
        let parker = Arc::new(Parker::default());
        if this.add_waiter(Waiter::Thread(parker.clone())).is_err() {
            return Ok(true);
        }
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            match py.detach(|| parker.park(left)) {
                Wakeup::Notified => return Ok(true),
                Wakeup::TimedOut => {
                    this.remove_thread_waiter(&parker);
                    return Ok(this.is_settled());
                }
                Wakeup::Interrupted => {
                    if let Err(error) = py.check_signals() {
                        this.remove_thread_waiter(&parker);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The outcome of a task that has ended: its value, or the error to raise.
    pub(crate) fn outcome(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.decode(py);
        let (exception, traceback) = match &*lock(&self.slot) {
            Slot::Value(value) => return Ok(value.clone_ref(py)),
            Slot::Error { exception, traceback } => {
                (exception.clone_ref(py), traceback.as_ref().map(|t| t.clone_ref(py)))
            }
            Slot::Cancelled => return Err(cancelled_error(py)?),
            Slot::Empty | Slot::Process(_) => unreachable!("the task has ended and is decoded"),
        };
        exception.setattr(py, pyo3::intern!(py, "__traceback__"), traceback)?;
        Err(PyErr::from_value(exception.into_bound(py).into_any()))
    }

    /// How the task ended, for one who asks without wanting an error raised: the state, and the
    /// value or the exception.
    pub(crate) fn report(&self, py: Python<'_>) -> (&'static str, Option<Py<PyAny>>) {
        self.decode(py);
        match &*lock(&self.slot) {
            Slot::Value(value) => (self.state_name(), Some(value.clone_ref(py))),
            Slot::Error { exception, .. } => {
                (self.state_name(), Some(exception.clone_ref(py).into_any()))
            }
            Slot::Cancelled | Slot::Empty | Slot::Process(_) => (self.state_name(), None),
        }
    }

    /// Gives a native outcome its Python form.
    fn decode(&self, py: Python<'_>) {
        let native = match &*lock(&self.slot) {
            Slot::Process(outcome) => outcome.clone(),
            _ => return,
        };
        // No lock is held here: making objects can run the garbage collector, and so anything.
        let decoded = match process::decode(py, &native) {
            Ok(Some(value)) => Slot::Value(value),
            Ok(None) => Slot::Cancelled,
            Err(error) => Slot::of_error(py, &error),
        };
        let mut slot = lock(&self.slot);
        // Another thread may have been faster: then all callers see its objects, not ours.
        let spare = match &*slot {
            Slot::Process(_) => std::mem::replace(&mut *slot, decoded),
            _ => decoded,
        };
        drop(slot);
        drop(spare);
    }

    pub(crate) fn state_name(&self) -> &'static str {
        match self.state.load(Ordering::Acquire) {
            QUEUED => "queued",
            RUNNING => "running",
            DONE => "done",
            FAILED => "failed",
            _ => "cancelled",
        }
    }
}

impl Slot {
    fn of_error(py: Python<'_>, error: &PyErr) -> Self {
        Self::Error {
            exception: error.value(py).clone().unbind(),
            traceback: error.traceback(py).map(Bound::unbind),
        }
    }
}

/// `concurrent.futures.CancelledError`.
fn cancelled_error(py: Python<'_>) -> PyResult<PyErr> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.import(py, "concurrent.futures", "CancelledError")?;
    Ok(PyErr::from_type(class.clone(), ()))
}

/// A number of seconds as a duration; `None` waits for ever.
pub(crate) fn seconds(timeout: Option<f64>, what: &str) -> PyResult<Option<Duration>> {
    match timeout {
        None => Ok(None),
        Some(s) if s.is_nan() => Err(pyo3::exceptions::PyValueError::new_err(format!(
            "{what} must be a number of seconds, not nan"
        ))),
        // A time too long for the clock is as good as no limit.
        Some(s) => Ok(Duration::try_from_secs_f64(s.max(0.0)).ok()),
    }
}

#[pymethods]
impl TaskHandle {
    #[pyo3(signature = (timeout=None))]
    fn get(self_: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        Self::wait(self_, timeout)?;
        self_.get().outcome(self_.py())
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(self_: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        if Self::wait_settled(self_, seconds(timeout, "timeout")?)? {
            return Ok(());
        }
        let this = self_.get();
        Err(PyTimeoutError::new_err(format!(
            "task {} '{}' is still {} after {} s",
            this.task_id,
            Self::name(self_),
            this.state_name(),
            timeout.unwrap_or_default(),
        )))
    }

    fn done(&self) -> bool {
        self.is_settled()
    }

    #[getter]
    fn name<'py>(self_: &Bound<'py, Self>) -> Bound<'py, PyString> {
        let py = self_.py();
        let this = self_.get();
        let callable = match (&*lock(&this.name), &*lock(&this.work)) {
            (Some(name), _) => return name.bind(py).clone(),
            (None, Work::Call { callable, .. }) => callable.clone_ref(py),
            _ => return PyString::new(py, "task"),
        };
        this.keep_name(callable.bind(py));
        Self::name(self_)
    }

    /// The exception of a failed task; `None` while it runs, if it is done, or was cancelled.
    #[getter]
    fn exception(&self, py: Python<'_>) -> Option<Py<PyBaseException>> {
        if !self.is_settled() {
            return None;
        }
        self.decode(py);
        match &*lock(&self.slot) {
            Slot::Error { exception, .. } => Some(exception.clone_ref(py)),
            _ => None,
        }
    }

    #[getter]
    fn state(&self) -> &'static str {
        self.state_name()
    }

    /// Stops the task if that can be done, and tells how far it came.
    fn cancel(self_: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = self_.py();
        let class = CLASS.import(py, "dftracer.utils.handle", "Cancellation")?;
        let outcome = Self::cancel_code(self_)?;
        class.call1((outcome,)).map(Bound::unbind)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Held only by a native thread that stores an outcome without Python objects, see `slot`.
        if let Ok(slot) = self.slot.try_lock() {
            match &*slot {
                Slot::Value(value) => visit.call(value)?,
                Slot::Error { exception, traceback } => {
                    visit.call(exception)?;
                    visit.call(traceback)?;
                }
                Slot::Empty | Slot::Cancelled | Slot::Process(_) => {}
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let slot = std::mem::replace(&mut *lock(&self.slot), Slot::Cancelled);
        drop(slot);
    }

    fn __repr__(self_: &Bound<'_, Self>) -> String {
        let this = self_.get();
        format!("<TaskHandle {} '{}' {}>", this.task_id, Self::name(self_), this.state_name())
    }
}

impl TaskHandle {
    fn cancel_code(self_: &Bound<'_, Self>) -> PyResult<u8> {
        let py = self_.py();
        let this = self_.get();
        // A queued task becomes ours, as if to run it; its place in the queue is skipped later.
        if this.claim() {
            Self::settle(self_.as_unbound(), Outcome::Cancelled, Some(py));
            return Ok(DEQUEUED);
        }
        let (task, event_loop) = match &*lock(&this.work) {
            Work::Suspended { task, event_loop } => (task.clone_ref(py), event_loop.clone_ref(py)),
            Work::Process(kill) => {
                kill.kill();
                return Ok(REQUESTED);
            }
            _ => return Ok(TOO_LATE),
        };
        let cancel = task.getattr(py, pyo3::intern!(py, "cancel"))?;
        event_loop.call_method1(py, pyo3::intern!(py, "call_soon_threadsafe"), (cancel,))?;
        Ok(REQUESTED)
    }
}
