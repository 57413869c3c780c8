//! A task and the claim check for its outcome: one object is both, so a task costs one allocation.
//!
//! Longer than most files here: it is the one state machine of a task, from queued to settled.

mod content;
mod methods;
mod waiter;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dftracer_core::ledger::Entry;
use dftracer_core::mailbox::Mailbox as CoreMailbox;
use dftracer_core::park::{Parker, Wakeup};
use dftracer_core::watchdog::Alarm;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::mailbox::{Delivery, News};
use crate::progress::{Family, HandleAddress, derive_name, nanos_now};
use crate::shared::{LaneKind, Shared};
use crate::{signals, worker};
use content::cancelled_error;
pub(crate) use content::{Content, Outcome, restore_traceback};
pub(crate) use methods::seconds;
pub(crate) use waiter::{Sleepers, wake};
use waiter::{Waiter, Waiters};

/// The states of a task, in the only order in which they follow each other.
pub(crate) mod state {
    pub(crate) const QUEUED: u8 = 0;
    pub(crate) const RUNNING: u8 = 1;
    /// The first terminal state.
    pub(crate) const DONE: u8 = 2;
    pub(crate) const FAILED: u8 = 3;
    pub(crate) const CANCELLED: u8 = 4;

    pub(crate) fn name(state: u8) -> &'static str {
        match state {
            QUEUED => "queued",
            RUNNING => "running",
            DONE => "done",
            FAILED => "failed",
            _ => "cancelled",
        }
    }
}
use state::{DONE, FAILED, QUEUED, RUNNING};

#[pyclass(frozen, generic, weakref, name = "TaskHandle", module = "dftracer.utils._native")]
pub(crate) struct TaskHandle {
    /// `QUEUED` → `RUNNING` by whoever claims the task; `QUEUED` or `RUNNING` → a terminal state
    /// once, by `settle`. Stored with Release while `cell` is locked, after its content.
    state: AtomicU8,
    /// Where it is queued; `None` for a native task, which never is.
    pub(crate) lane: Option<LaneKind>,
    /// Whether `wait_all` and `get_failed` of the runtime speak of this task.
    tracked: bool,
    /// Somebody wants it to stop. Relaxed: a hint that the body may look at when it likes.
    cancel_requested: AtomicBool,
    #[pyo3(get)]
    pub(crate) task_id: i64,
    /// The code object of its callable, where there is one: tells where it is defined.
    pub(crate) code: Option<Py<PyAny>>,
    pub(crate) times: Times,
    /// The task that submitted it.
    pub(crate) parent: Option<Arc<Family>>,
    /// Made when it submits its first child.
    family: OnceLock<Arc<Family>>,
    /// Values and exceptions are put here and taken from here only by attached threads, so the
    /// garbage collector, which runs while all of these stand still, finds it unlocked or without
    /// any. No Python code runs while it is locked.
    cell: Mutex<Cell>,
    /// `None` for a handle around somebody else's task.
    shared: Option<Arc<Shared>>,
    entry: OnceLock<Entry>,
}

struct Cell {
    /// Given, or derived when the task starts and somebody still holds the handle.
    name: Option<Py<PyString>>,
    content: Content,
    /// Emptied once, when the state becomes terminal.
    waiters: Waiters,
    /// Its deadline, while it runs.
    alarm: Option<Alarm>,
}

/// When things happened, in nanoseconds since the process's own beginning of time; 0 means not yet.
/// Relaxed: written by one thread each, and only shown.
#[derive(Default)]
pub(crate) struct Times {
    pub(crate) submitted: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) ended: AtomicU64,
}

impl TaskHandle {
    pub(crate) fn new(
        py: Python<'_>,
        shared: Arc<Shared>,
        name: Option<Py<PyString>>,
        content: Content,
        lane: Option<LaneKind>,
        code: Option<Py<PyAny>>,
        tracked: bool,
    ) -> Self {
        let task_id = shared.next_task_id();
        let parent = worker::current_family(py, &shared);
        if let Some(parent) = &parent {
            parent.begun();
        }
        let times = Times { submitted: AtomicU64::new(nanos_now()), ..Times::default() };
        let cell = Cell { name, content, waiters: Waiters::None, alarm: None };
        Self {
            state: AtomicU8::new(QUEUED),
            lane,
            tracked,
            cancel_requested: AtomicBool::new(false),
            task_id,
            code,
            times,
            parent,
            family: OnceLock::new(),
            cell: Mutex::new(cell),
            shared: Some(shared),
            entry: OnceLock::new(),
        }
    }

    /// A handle around a task of somebody else, or around nothing.
    pub(crate) fn foreign(name: Py<PyString>, task_id: i64, cancel: Option<Py<PyAny>>) -> Self {
        let content = cancel.map_or(Content::Running, |cancel| Content::Foreign { cancel });
        let cell = Cell { name: Some(name), content, waiters: Waiters::None, alarm: None };
        Self {
            state: AtomicU8::new(RUNNING),
            lane: None,
            tracked: false,
            cancel_requested: AtomicBool::new(false),
            task_id,
            code: None,
            times: Times::default(),
            parent: None,
            family: OnceLock::new(),
            cell: Mutex::new(cell),
            shared: None,
            entry: OnceLock::new(),
        }
    }

    /// Makes the task visible to `get_progress` for as long as the handle lives. Called once, when
    /// it has its final address.
    pub(crate) fn enter_ledger(self_: &Bound<'_, Self>) {
        let this = self_.get();
        if let Some(shared) = &this.shared {
            let _ = this.entry.set(shared.ledger.enter(HandleAddress::of(self_)));
        }
    }

    pub(crate) fn entry(&self) -> Option<Entry> {
        self.entry.get().copied()
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    pub(crate) fn state(&self) -> u8 {
        // Acquire: pairs with the Release in `settle`, so the content is there.
        self.state.load(Ordering::Acquire)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.state() >= DONE
    }

    pub(crate) fn is_cancel_requested(&self) -> bool {
        self.cancel_requested.load(Ordering::Relaxed)
    }

    pub(crate) fn family(&self) -> &Arc<Family> {
        self.family.get_or_init(|| Arc::new(Family::new(self.task_id)))
    }

    pub(crate) fn family_if_any(&self) -> Option<&Arc<Family>> {
        self.family.get()
    }

    /// Makes the caller the one who runs this task; false if somebody else is, or it was cancelled.
    pub(crate) fn claim(&self) -> bool {
        let claimed = self
            .state
            .compare_exchange(QUEUED, RUNNING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if claimed {
            self.times.started.store(nanos_now(), Ordering::Relaxed);
        }
        claimed
    }

    /// Takes out what is to be run.
    pub(crate) fn take_content(&self) -> Content {
        std::mem::replace(&mut self.lock().content, Content::Running)
    }

    /// Tells what the running task has become; false if it has ended meanwhile.
    pub(crate) fn become_(&self, content: Content) -> bool {
        let mut cell = self.lock();
        let runs = !self.is_settled();
        let unneeded = if runs { std::mem::replace(&mut cell.content, content) } else { content };
        drop(cell);
        drop(unneeded);
        runs
    }

    /// Whether its callable has run and returned a coroutine that waits to be begun.
    pub(crate) fn is_passed_on(&self) -> bool {
        matches!(self.lock().content, Content::Coroutine { .. })
    }

    /// Names the task after its callable if it has no name.
    pub(crate) fn keep_name(&self, callable: &Bound<'_, PyAny>) {
        if self.lock().name.is_none() {
            // Unlocked, because `__qualname__` may be a property.
            let name = derive_name(callable).unbind();
            self.lock().name.get_or_insert(name);
        }
    }

    /// The state, and the name or the callable to derive it from.
    pub(crate) fn look(&self, py: Python<'_>) -> (u8, Option<Py<PyString>>, Option<Py<PyAny>>) {
        let cell = self.lock();
        let state = self.state();
        match (&cell.name, &cell.content) {
            (Some(name), _) => (state, Some(name.clone_ref(py)), None),
            (None, Content::Call { callable, .. }) => (state, None, Some(callable.clone_ref(py))),
            _ => (state, None, None),
        }
    }

    /// The name, as well as it is known now.
    pub(crate) fn name_now<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        match self.look(py) {
            (_, Some(name), _) => name.into_bound(py),
            (_, None, Some(callable)) => {
                self.keep_name(callable.bind(py));
                self.name_now(py)
            }
            (_, None, None) => PyString::new(py, "task"),
        }
    }

    /// Remembers the deadline of the running task, or gives it back if the task has ended.
    pub(crate) fn set_alarm(&self, alarm: Alarm) -> Result<(), Alarm> {
        let mut cell = self.lock();
        if self.is_settled() {
            return Err(alarm);
        }
        cell.alarm = Some(alarm);
        Ok(())
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
        let (state, content) = Content::of_outcome(outcome, py);
        // Held before anything is locked: it may take the interpreter.
        let failure = match (&this.shared, state == FAILED && this.tracked) {
            (Some(shared), true) => shared.prepare_failure(self_, py),
            _ => None,
        };
        let mut cell = this.lock();
        if this.is_settled() {
            drop(cell);
            drop((content, failure));
            return false;
        }
        // Whoever sees that it has failed finds it among the failures.
        let failed = failure.is_some();
        if let (Some(shared), Some(failure)) = (&this.shared, failure) {
            shared.record_failure(failure);
        }
        let left_over = std::mem::replace(&mut cell.content, content);
        let waiters = std::mem::replace(&mut cell.waiters, Waiters::None);
        let alarm = cell.alarm.take();
        this.times.ended.store(nanos_now(), Ordering::Relaxed);
        if let Some(shared) = &this.shared {
            shared.count_end(state);
        }
        // Release: whoever sees the state sees the content. Under the lock: they change as one.
        this.state.store(state, Ordering::Release);
        drop(cell);
        drop(left_over);

        if let Some(parent) = &this.parent {
            parent.ended();
        }
        if let Some(shared) = &this.shared {
            if let Some(alarm) = alarm {
                shared.take_back(alarm);
            }
            if failed {
                shared.tell_failure(self_);
            }
        }
        waiters.deliver(self_, sleepers);
        if let Some(shared) = &this.shared {
            shared.task_ended(sleepers);
        }
        true
    }

    /// Posts `token` to `mailbox` when the task has ended; at once if it has.
    pub(crate) fn deliver_to(
        self_: &Bound<'_, Self>,
        mailbox: &Arc<CoreMailbox<Delivery>>,
        token: Py<PyAny>,
    ) {
        let delivery = Delivery { token, news: News::Ended(self_.clone().unbind()) };
        Self::tell(self_, Waiter::Mailbox { mailbox: mailbox.clone(), delivery });
    }

    /// Tells `waiter` of the end of the task; at once if it has ended.
    fn tell(self_: &Bound<'_, Self>, waiter: Waiter) {
        if let Err(waiter) = self_.get().add_waiter(waiter) {
            wake(&mut waiter.deliver(self_.as_unbound()).into_iter().collect());
        }
    }

    /// Gives the waiter back if the task has ended: nobody would notify it.
    fn add_waiter(&self, waiter: Waiter) -> Result<(), Waiter> {
        let mut cell = self.lock();
        if self.is_settled() {
            return Err(waiter);
        }
        cell.waiters.add(waiter);
        Ok(())
    }

    /// Nobody who was promised this task's end will hear of it.
    pub(crate) fn forget_waiters(&self) {
        let waiters = std::mem::replace(&mut self.lock().waiters, Waiters::None);
        drop(waiters);
    }

    /// Waits for the end of the task; false if `timeout` came first.
    fn wait_settled(self_: &Bound<'_, Self>, timeout: Option<Duration>) -> PyResult<bool> {
        let py = self_.py();
        let this = self_.get();
        if this.is_settled() {
            return Ok(true);
        }
        if let Some(shared) = &this.shared {
            shared.check_process()?;
        }
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
            match signals::park(py, &parker, left) {
                Wakeup::Notified => return Ok(true),
                Wakeup::TimedOut => {
                    this.lock().waiters.remove_thread(&parker);
                    return Ok(this.is_settled());
                }
                Wakeup::Interrupted => {
                    if let Err(error) = py.check_signals() {
                        this.lock().waiters.remove_thread(&parker);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The outcome of a task that has ended: its value, or the error to raise.
    pub(crate) fn outcome(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.decode(py);
        let (exception, traceback) = match &self.lock().content {
            Content::Value(value) => return Ok(value.clone_ref(py)),
            Content::Error { exception, traceback } => {
                (exception.clone_ref(py), traceback.as_ref().map(|t| t.clone_ref(py)))
            }
            _ => return Err(cancelled_error(py)),
        };
        restore_traceback(py, &exception, traceback.as_ref());
        Err(PyErr::from_value(exception.into_bound(py).into_any()))
    }

    /// How the task ended, for one who asks without wanting an error raised: the state, and the
    /// value or the exception.
    pub(crate) fn report(&self, py: Python<'_>) -> (&'static str, Option<Py<PyAny>>) {
        self.decode(py);
        let value = match &self.lock().content {
            Content::Value(value) => Some(value.clone_ref(py)),
            Content::Error { exception, .. } => Some(exception.clone_ref(py).into_any()),
            _ => None,
        };
        (self.state_name(), value)
    }

    /// Gives a native outcome its Python form.
    fn decode(&self, py: Python<'_>) {
        let native = match &self.lock().content {
            Content::Undecoded(outcome) => outcome.clone(),
            _ => return,
        };
        // Unlocked, because making objects can run the garbage collector, and so anything.
        let decoded = match native.decode(py, self) {
            Ok(Some(value)) => Content::Value(value),
            Ok(None) => Content::Cancelled,
            Err(error) => Content::of_error(py, &error),
        };
        let mut cell = self.lock();
        // Another thread may have been faster: then all callers see its objects, not ours.
        let spare = match &cell.content {
            Content::Undecoded(_) => std::mem::replace(&mut cell.content, decoded),
            _ => decoded,
        };
        drop(cell);
        drop(spare);
    }

    pub(crate) fn state_name(&self) -> &'static str {
        state::name(self.state())
    }

    fn lock(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        // Before any field goes: a reader of the ledger holds its lock while it reads them.
        if let (Some(shared), Some(entry)) = (&self.shared, self.entry.get()) {
            shared.leave_ledger(*entry);
        }
    }
}
