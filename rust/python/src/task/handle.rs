//! A task and the claim check for its outcome: one object is both, so a task costs one allocation.
//!
//! Longer than most files here: it is the one state machine of a task, from queued to settled.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dftracer_core::registry::Entry;
use dftracer_core::sched::completion::CompletionQueue as CoreMailbox;
use dftracer_core::sched::parker::{Parker, Unpark};
use dftracer_core::sched::timer::TimerKey as Alarm;
use dftracer_core::task_state::TaskState;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTraceback};

use super::completion::{Completion, Event};
use super::content::{Content, cancelled_error};
use super::family::Family;
use super::waiter::{Waiter, Waiters};
use crate::interp::call::Call;
use crate::interp::callbacks;
use crate::interp::clock::nanos_now;
use crate::interp::gc;
use crate::interp::names::{derive_name, exact};
use crate::interp::objects::{may_refer, restore_traceback};
use crate::interp::origin::Origin;
use crate::interp::slot::LaneKind;
use crate::owner::job::{Named, NativeOutcome};
use crate::owner::look::Look;
use crate::owner::{Shared, wake};
use dftracer_core::task_state::state::{self, DONE, FAILED, RUNNING};

/// One task and its outcome. Made by :meth:`Runtime.submit`.
///
/// Every task has exactly one outcome: done, failed or cancelled. It lives as long as the handle;
/// the arguments are released when the body has returned.
///
/// A handle can be awaited in any asyncio event loop: ``await handle`` gives the result or raises,
/// and cancels the task if the wait is cancelled.
///
/// Parameters
/// ----------
/// native, future:
///     A handle of any runtime or a :class:`concurrent.futures.Future` to make a handle around; at
///     most one of them. Without either the handle has ended with ``None``.
/// name, task_id:
///     Name and number of the new handle; by default those of ``native``.
#[pyclass(
    frozen,
    subclass,
    generic,
    weakref,
    name = "TaskHandle",
    module = "dftracer.utils._native"
)]
pub(crate) struct TaskHandle {
    /// How far it is, and whether it is to stop. It ends while `cell` is locked.
    pub(super) state: TaskState,
    /// Where it is queued; `None` for a native task, which never is.
    pub(crate) lane: Option<LaneKind>,
    /// Whether `wait_all` and `get_failed` of the runtime speak of this task.
    pub(super) tracked: bool,
    /// The number of the task within its runtime, from 0.
    #[pyo3(get)]
    pub(crate) task_id: i64,
    /// What is known of its callable, if that has a code object.
    pub(crate) origin: Option<Py<Origin>>,
    pub(crate) times: Times,
    /// Values and exceptions are put here and taken from here by attached threads only. Others lock
    /// it to end a native task, and may find that a deadline has ended it, with an exception: they
    /// look at that and leave it where it is. No Python code runs and no Python object is made or
    /// dropped while it is locked, and nobody who has locked it waits for the interpreter, so the
    /// garbage collector waits for it, see [`gc`](crate::interp::gc).
    cell: Mutex<Cell>,
    /// `None` for a handle around somebody else's task.
    pub(super) shared: Option<Arc<Shared>>,
    /// Its place in the ledger, or `NO_ENTRY`. Relaxed: written once, before anybody else has it.
    entry: AtomicU32,
}

const NO_ENTRY: u32 = u32::MAX;

pub(super) struct Cell {
    /// Of the built-in class, so that it refers to nothing. Given, or, if its origin has none,
    /// derived when the task starts and somebody still holds the handle.
    pub(super) name: Option<Py<PyString>>,
    pub(super) content: Content,
    pub(super) extras: Option<Box<Extras>>,
}

/// What few tasks have.
#[derive(Default)]
pub(super) struct Extras {
    /// Emptied once, when the state becomes terminal; but for those that another thread is to call
    /// or wake then.
    pub(super) waiters: Waiters,
    /// What that thread is to drop.
    pub(super) left_over: Option<Content>,
    deadline: Deadline,
    /// The task that submitted it.
    parent: Option<Arc<Family>>,
    /// Made when it submits its first child.
    family: Option<Arc<Family>>,
}

/// When a task runs out of time.
#[derive(Default)]
enum Deadline {
    #[default]
    None,
    /// It has not begun.
    Limit(Box<Limit>),
    /// It runs.
    Alarm(Alarm),
}

/// How long a task may run, and what its error says then.
pub(crate) struct Limit {
    pub(crate) timeout: Duration,
    pub(crate) text: String,
}

impl Cell {
    pub(super) fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// Takes out who waits for the task and the alarm of its deadline, and looks who is its parent. Functions
    /// that another thread is to call stay.
    pub(super) fn end_extras(
        &mut self,
        left: Left,
    ) -> (Waiters, Option<Alarm>, Option<Arc<Family>>) {
        let Some(extras) = &mut self.extras else { return (Waiters::None, None, None) };
        let mut waiters = std::mem::take(&mut extras.waiters);
        match left {
            Left::Nothing => {}
            Left::Callbacks => extras.waiters = waiters.take_callbacks(),
            Left::All => extras.waiters = std::mem::take(&mut waiters),
        }
        let has_callbacks = !matches!(extras.waiters, Waiters::None);
        let alarm = match std::mem::take(&mut extras.deadline) {
            Deadline::Alarm(alarm) => Some(alarm),
            Deadline::None | Deadline::Limit(_) => None,
        };
        let parent = extras.parent.clone();
        if parent.is_none() && extras.family.is_none() && !has_callbacks {
            self.extras = None;
        }
        (waiters, alarm, parent)
    }
}

/// When things happened, as `nanos_now` counts; 0 means not yet.
/// Relaxed: written by one thread each, and only shown.
#[derive(Default)]
pub(crate) struct Times {
    pub(crate) submitted: AtomicU64,
    pub(crate) started: AtomicU64,
    pub(crate) ended: AtomicU64,
}

/// What tasks that are submitted together have in common.
pub(crate) struct Birth {
    pub(crate) first_id: i64,
    /// As `nanos_now`.
    pub(crate) at: u64,
    pub(crate) parent: Option<Arc<Family>>,
}

/// What is left for another thread to do when a task ends.
#[derive(Clone, Copy)]
pub(super) enum Left {
    Nothing,
    /// To call the done callbacks.
    Callbacks,
    /// To call the error callback, and then to wake and call all others.
    All,
}

/// That a task has ended just now.
pub(crate) struct End {
    /// As `nanos_now`.
    pub(crate) at: u64,
    /// Nobody was told, which could have taken any time since.
    pub(crate) unheard: bool,
}

impl Times {
    /// When it was submitted, when it was started and when it ended.
    pub(crate) fn all(&self) -> (u64, u64, u64) {
        let load = |time: &AtomicU64| time.load(Ordering::Relaxed);
        (load(&self.submitted), load(&self.started), load(&self.ended))
    }
}

impl TaskHandle {
    /// The task of that number among those that are born together.
    #[allow(clippy::too_many_arguments)] // what a task begins with
    pub(crate) fn of_birth(
        py: Python<'_>,
        birth: &Birth,
        number: usize,
        shared: Arc<Shared>,
        name: Option<Py<PyString>>,
        content: Content,
        lane: Option<LaneKind>,
        origin: Option<Py<Origin>>,
        tracked: bool,
    ) -> Self {
        let task_id = birth.first_id + number as i64;
        let times = Times { submitted: AtomicU64::new(birth.at), ..Times::default() };
        let extras =
            birth.parent.clone().map(|parent| Extras { parent: Some(parent), ..Extras::default() });
        if let (Content::Native(_), Some(name), Some(tracing)) = (&content, &name, shared.tracing())
        {
            tracing.name_native(task_id, name.bind(py));
        }
        let name = name.map(|name| exact(py, name));
        let cell = Cell { name, content, extras: extras.map(Box::new) };
        Self {
            state: TaskState::default(),
            lane,
            tracked,
            task_id,
            origin,
            times,
            cell: Mutex::new(cell),
            shared: Some(shared),
            entry: AtomicU32::new(NO_ENTRY),
        }
    }

    /// A handle around a task of somebody else, or around nothing.
    pub(crate) fn foreign(name: Py<PyString>, task_id: i64, cancel: Option<Py<PyAny>>) -> Self {
        let content = cancel.map_or(Content::Running, |cancel| Content::Foreign { cancel });
        let cell = Cell { name: Some(name), content, extras: None };
        Self {
            state: TaskState::new(RUNNING),
            lane: None,
            tracked: false,
            task_id,
            origin: None,
            times: Times::default(),
            cell: Mutex::new(cell),
            shared: None,
            entry: AtomicU32::new(NO_ENTRY),
        }
    }

    /// A handle of a task that has failed, in the place of its own, which is gone.
    pub(crate) fn of_failure(name: Py<PyString>, task_id: i64, content: Content) -> Self {
        let handle = Self::foreign(name, task_id, None);
        handle.lock().content = content;
        handle.state.start_with(FAILED);
        handle
    }

    /// Makes a task that nobody has seen yet one that stands in a queue.
    pub(crate) fn be_queued(&self, call: Option<Call>) {
        self.lock().content = call.map_or(Content::Running, Content::Call);
    }

    /// Makes a task that nobody has seen yet one that has begun at that time.
    pub(crate) fn be_running(&self, started: u64) {
        self.lock().content = Content::Running;
        self.state.start_with(RUNNING);
        self.times.started.store(started, Ordering::Relaxed);
    }

    /// The task that is at this place among those that are alive, if it is still the same and somebody
    /// holds its handle.
    pub(crate) fn living(
        py: Python<'_>,
        shared: &Shared,
        entry: Entry,
        task_id: i64,
    ) -> Option<Py<Self>> {
        let held = shared.living.hold(py, entry);
        Self::of(py, held?).filter(|handle| handle.get().task_id == task_id)
    }

    /// A handle that was kept as any object.
    pub(crate) fn of(py: Python<'_>, object: Py<PyAny>) -> Option<Py<Self>> {
        object.into_bound(py).cast_into::<Self>().ok().map(Bound::unbind)
    }

    /// Makes tasks of this runtime visible to `get_progress` for as long as their handles live.
    /// Called once, when they have their final addresses.
    pub(crate) fn enter_ledger(shared: &Shared, handles: &[Bound<'_, Self>]) {
        // A build for the benchmark that tells what records cost.
        if cfg!(dft_no_records) {
            return;
        }
        let objects = handles.iter().map(Bound::as_any);
        shared.living.insert_all(objects, |index, Entry(place)| {
            handles[index].get().entry.store(place, Ordering::Relaxed);
        });
    }

    pub(crate) fn entry(&self) -> Option<Entry> {
        let place = self.entry.load(Ordering::Relaxed);
        (place != NO_ENTRY).then_some(Entry(place))
    }

    /// Takes a new task off the garbage collector's list, which it would look through again and
    /// again: what a task needs in order to run it does not visit anyway.
    pub(crate) fn untrack(self_: &Bound<'_, Self>) {
        gc::untrack(self_.as_any());
    }

    /// Puts it back on the list before it gets an outcome that could lead to the task itself. Under
    /// the lock of its cell, and once.
    pub(super) fn track_for(self_: &Py<Self>, content: &Content, py: Python<'_>) {
        let may_lead_here = match content {
            Content::Value(value) => may_refer(value),
            Content::Error { .. } => true,
            _ => false,
        };
        if may_lead_here {
            gc::track_alone(self_.bind(py).as_any());
        }
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    pub(crate) fn state(&self) -> u8 {
        self.state.get()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.state.has_ended()
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.state.has_begun()
    }

    pub(crate) fn is_cancel_requested(&self) -> bool {
        self.state.is_stop_requested()
    }

    /// Of a task that nobody has seen yet: its body is to be interrupted rather than given up.
    pub(crate) fn allow_interrupt(&self) {
        self.state.allow_interrupt();
    }

    /// Of a task that nobody has seen yet: that it begins is posted to its mailbox, too.
    pub(crate) fn report_begin(&self) {
        self.state.report_begin();
    }

    /// Of a task that nobody has seen yet: it may run for so long.
    pub(crate) fn set_limit(&self, limit: Limit) {
        self.state.limit();
        self.lock().extras().deadline = Deadline::Limit(Box::new(limit));
    }

    /// Whether it has a limit of its own.
    pub(crate) fn has_limit(&self) -> bool {
        self.state.is_limited()
    }

    /// Takes out the limit of a task that begins.
    pub(crate) fn take_limit(&self) -> Option<Limit> {
        if !self.has_limit() {
            return None;
        }
        let mut cell = self.lock();
        let deadline = &mut cell.extras().deadline;
        match std::mem::take(deadline) {
            Deadline::Limit(limit) => Some(*limit),
            other => {
                *deadline = other;
                None
            }
        }
    }

    /// The body begins: posts that to the mailbox of the task, if its reader wants to know it.
    pub(crate) fn tell_begun(&self, py: Python<'_>) {
        if !self.state.reports_begin() {
            return;
        }
        let cell = self.lock();
        let waiters = cell.extras.as_ref().map(|extras| &extras.waiters);
        let Some((mailbox, token)) = waiters.and_then(Waiters::mailbox) else { return };
        let (mailbox, begun) = (mailbox.clone(), Completion::begun(token.clone_ref(py)));
        // Still locked, so that it comes before the end: whoever ends the task takes its waiters
        // out under this lock, and posts after that.
        let is_asleep = mailbox.push_without_wake(begun);
        drop(cell);
        if is_asleep {
            mailbox.unpark();
        }
    }

    /// Whether a plain body that is to stop gets an exception. If not, its task ends without it.
    pub(crate) fn may_interrupt(&self) -> bool {
        self.state.may_interrupt()
            || self.shared.as_ref().is_some_and(|shared| shared.stopping.interrupts())
    }

    /// The tasks that this one submits.
    pub(crate) fn family(&self) -> Arc<Family> {
        let mut cell = self.lock();
        let family = &mut cell.extras().family;
        family.get_or_insert_with(|| Arc::new(Family::new(self.task_id))).clone()
    }

    /// The task that submitted this one, and those that this one has submitted, as families.
    pub(crate) fn relations(&self) -> (Option<Arc<Family>>, Option<Arc<Family>>) {
        let cell = self.lock();
        cell.extras
            .as_ref()
            .map_or((None, None), |extras| (extras.parent.clone(), extras.family.clone()))
    }

    /// Makes the caller the one who runs this task; false if somebody else is, or it was cancelled.
    pub(crate) fn claim(&self) -> bool {
        self.claim_at(nanos_now())
    }

    /// As `claim`, when the time is known already.
    pub(crate) fn claim_at(&self, now: u64) -> bool {
        let claimed = self.state.claim();
        if claimed {
            self.times.started.store(now, Ordering::Relaxed);
        }
        claimed
    }

    /// Takes out what is to be run; `None` if somebody has ended the task since it was claimed, as a
    /// deadline does. What it has ended with stays then.
    pub(crate) fn take_content(&self) -> Option<Content> {
        let mut cell = self.lock();
        if self.is_settled() {
            return None;
        }
        Some(std::mem::replace(&mut cell.content, Content::Running))
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
        let has_name = self.origin.as_ref().is_some_and(|origin| origin.get().has_name());
        if !has_name && self.lock().name.is_none() {
            // Unlocked, because `__qualname__` may be a property.
            let name = derive_name(callable).unbind();
            self.lock().name.get_or_insert(name);
        }
    }

    /// The state, and the name or the callable to derive it from.
    pub(crate) fn look(&self, py: Python<'_>) -> Look {
        let cell = self.lock();
        let name = cell.name.as_ref().map(|name| name.clone_ref(py));
        let callable = match &cell.content {
            Content::Call(call) if name.is_none() => Some(call.callable().clone_ref(py)),
            _ => None,
        };
        Look { state: self.state(), name, callable }
    }

    /// The name, as well as it is known now.
    pub(crate) fn name_now<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        let look = self.look(py);
        if let Some(callable) = &look.callable {
            self.keep_name(callable.bind(py));
            return self.look(py).name(py, self.origin.as_ref());
        }
        look.name(py, self.origin.as_ref())
    }

    /// Remembers the deadline of the running task, or gives it back if the task has ended, or has
    /// had one since an earlier part of its body.
    pub(crate) fn set_alarm(&self, alarm: Alarm) -> Result<(), Alarm> {
        let mut cell = self.lock();
        if self.is_settled() {
            return Err(alarm);
        }
        let deadline = &mut cell.extras().deadline;
        if matches!(deadline, Deadline::Alarm(_)) {
            return Err(alarm);
        }
        *deadline = Deadline::Alarm(alarm);
        Ok(())
    }

    /// Posts `token` to `mailbox` when the task has ended; at once if it has.
    pub(crate) fn deliver_to(
        self_: &Bound<'_, Self>,
        mailbox: &Arc<CoreMailbox<Completion>>,
        token: Py<PyAny>,
    ) {
        let handle = self_.clone().into_any().unbind();
        let completion = Completion { token, event: Event::Ended(handle) };
        let waiter = Waiter::Mailbox { mailbox: mailbox.clone(), completion };
        let Err(waiter) = self_.get().add_waiter(waiter) else { return };
        if let Ok(sleeper) = waiter.deliver(Some(self_.py())) {
            wake(&mut sleeper.into_iter().collect());
        }
    }

    /// Calls `callback` when the task has ended; at once if it has, and then what it raises may be an
    /// error here.
    pub(super) fn call_at_end(self_: &Bound<'_, Self>, callback: Py<PyAny>) -> PyResult<()> {
        let py = self_.py();
        let Err(waiter) = self_.get().add_waiter(Waiter::Callback(callback)) else { return Ok(()) };
        match waiter.deliver(Some(py)) {
            Err(callback) => callbacks::call_for_caller(py, &callback, (self_.clone(),)),
            Ok(_) => Ok(()),
        }
    }

    /// Gives the waiter back if the task has ended: nobody would notify it.
    pub(super) fn add_waiter(&self, waiter: Waiter) -> Result<(), Waiter> {
        let mut cell = self.lock();
        if self.is_settled() {
            return Err(waiter);
        }
        cell.extras().waiters.add(waiter);
        Ok(())
    }

    pub(super) fn remove_waiter(&self, parker: &Arc<Parker>) {
        if let Some(extras) = &mut self.lock().extras {
            extras.waiters.remove_thread(parker);
        }
    }

    /// Does not post `token` when the task ends; false if that was not to be, or has been.
    pub(super) fn withdraw(&self, token: &Py<PyAny>) -> bool {
        let mut cell = self.lock();
        let waiter = cell.extras.as_mut().and_then(|extras| extras.waiters.take_mailbox(token));
        drop(cell);
        waiter.is_some()
    }

    /// Takes out who was promised this task's end.
    pub(crate) fn forget_waiters(&self) -> Waiters {
        let extras = &mut self.lock().extras;
        extras.as_mut().map_or(Waiters::None, |extras| std::mem::take(&mut extras.waiters))
    }

    /// The value of a task that is done: what most who ask want, at one look.
    pub(super) fn value_if_done(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        if self.state() != DONE {
            return None;
        }
        match &self.lock().content {
            Content::Value(value) => Some(value.clone_ref(py)),
            _ => None, // not decoded yet
        }
    }

    /// The outcome of a task that has ended: its value, or the error to raise.
    pub(crate) fn outcome(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.decode(py);
        let failed = match &self.lock().content {
            Content::Value(value) => return Ok(value.clone_ref(py)),
            Content::Error { exception, traceback } => {
                Some((exception.clone_ref(py), traceback.as_ref().map(|t| t.clone_ref(py))))
            }
            _ => None,
        };
        // Unlocked, because to look for the class can let others have the interpreter.
        let Some((exception, traceback)) = failed else { return Err(cancelled_error(py)) };
        restore_traceback(py, &exception, traceback.as_ref());
        Err(PyErr::from_value(exception.into_bound(py).into_any()))
    }

    /// How the task ended, for one who asks without wanting an error raised: the state, and the
    /// value or the exception.
    pub(crate) fn report(&self, py: Python<'_>) -> (u8, Option<Py<PyAny>>) {
        self.decode(py);
        let value = match &self.lock().content {
            Content::Value(value) => Some(value.clone_ref(py)),
            Content::Error { exception, .. } => Some(exception.clone_ref(py).into_any()),
            _ => None,
        };
        (self.state(), value)
    }

    /// The outcome of a native job, as long as nobody has looked at it.
    pub(crate) fn native_outcome(&self) -> Option<Arc<dyn NativeOutcome>> {
        match &self.lock().content {
            Content::Undecoded(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// The error of a task that has failed, and the traceback it had.
    pub(crate) fn error_now(
        &self,
        py: Python<'_>,
    ) -> Option<(Py<PyBaseException>, Option<Py<PyTraceback>>)> {
        match &self.lock().content {
            Content::Error { exception, traceback } => {
                Some((exception.clone_ref(py), traceback.as_ref().map(|t| t.clone_ref(py))))
            }
            _ => None,
        }
    }

    /// Gives a native outcome its Python form.
    pub(super) fn decode(&self, py: Python<'_>) {
        let native = match &self.lock().content {
            Content::Undecoded(outcome) => outcome.clone(),
            _ => return,
        };
        // Unlocked, because making objects can run the garbage collector, and so anything.
        let task = Named { task_id: self.task_id, name: self.name_now(py) };
        let decoded = match native.decode(&task) {
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        // Before any field goes: a reader of the ledger holds its lock while it reads them.
        if let (Some(shared), Some(entry)) = (&self.shared, self.entry()) {
            shared.remove_living(entry);
        }
    }
}
