//! What all parts of one runtime share: its lanes, its threads and its count of unfinished tasks.
//!
//! The counts themselves, and why nobody waits for ever or too short, are in
//! [`dftracer_core::outstanding`].
//!
//! Longer than most files here: what a runtime has, what it does with tasks, and how it ends are to be
//! read together.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dftracer_core::io::reactor::IoLane;
use dftracer_core::native::compute::ComputeLane;
use dftracer_core::outstanding::{Counts, Ending, Outstanding};
use dftracer_core::registry::{Entry, Registry};
use dftracer_core::sched::lane::{Lane, Order};
use dftracer_core::sched::parker::{Parker, Unpark, Wakeup};
use dftracer_core::sizes::Sizes;
use dftracer_core::task_state::state;
use once_cell::sync::OnceCell;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::batch::Batch;
use crate::interp::errors::{RuntimeShutdownError, refused};
use crate::interp::exit;
use crate::interp::fork::Process;
use crate::interp::origin::Origins;
use crate::interp::signals;
use crate::interp::slot::{LaneKind, Slot};
use crate::runtime::deadlines::Deadlines;
use crate::task::address::HandleAddress;
use crate::task::job::NativeOutcome;
use crate::task::kept::{Bounded, Failure, Failures, NewFailure, Spare};
use crate::task::waits::{self, Waiting};
use crate::task::{Content, Outcome, Sleepers, TaskHandle, wake};
use crate::trace::{Trace, Tracing};
use crate::worker;
use crate::worker::coroutine;
use crate::worker::stopping::{BodyWait, Stopping};

/// What a thread of Python's own gets on most systems. Python code can need it: its parser and its
/// `repr` recurse on the native stack.
const WORKER_STACK: usize = 8 << 20;

/// How many callbacks may be in progress at a time, at least, not counting those that wait for tasks:
/// one that takes long shall not hold up all others.
const MIN_CALLBACK_THREADS: usize = 4;

/// All runtimes of this process that may still have threads.
static RUNTIMES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

pub(crate) struct Shared {
    pub(crate) sizes: Sizes,
    python: Lane<Py<TaskHandle>>,
    coroutine: Lane<Py<TaskHandle>>,
    /// Python callables that were sent to the I/O lane.
    io_calls: Lane<Py<TaskHandle>>,
    /// Tasks that have ended and have callbacks, which are to be called here.
    callbacks: Lane<Py<TaskHandle>>,
    /// Started with the first job of their kind, taken away when the last task has ended.
    io: Mutex<OnceCell<IoLane>>,
    compute: Mutex<OnceCell<ComputeLane>>,
    pub(crate) deadlines: Deadlines,
    pub(crate) stopping: Stopping,
    pub(crate) origins: Origins,
    /// Every handle that is alive.
    pub(crate) ledger: Registry<HandleAddress>,
    /// Every batch that is alive, by the number of its first item.
    batches: Mutex<BTreeMap<i64, Weak<Batch>>>,
    /// The workers that run Python code and are alive.
    slots: Mutex<Vec<Arc<Slot>>>,
    next_task_id: AtomicI64,
    next_thread: [AtomicUsize; 4],
    /// The counts of tasks, who waits for all, and whether more are accepted.
    outstanding: Outstanding,
    failures: Mutex<Failures>,
    /// Whether failures that are kept hold the frames of their tracebacks, with all their variables.
    keeps_frames: bool,
    /// Called with the handle and the exception of each failed task.
    error_callback: Mutex<Option<Py<PyAny>>>,
    /// Where the lives of tasks are written.
    tracing: OnceCell<Tracing>,
    /// Who waits, at interpreter exit, for threads to leave.
    departures: Mutex<Option<Arc<Parker>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) process: Process,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(sizes: Sizes, keeps_frames: bool) -> Arc<Self> {
        let shared = Arc::new(Self {
            sizes,
            python: Lane::new(sizes.python_threads),
            coroutine: Lane::new(sizes.python_threads),
            io_calls: Lane::new(sizes.io_threads),
            callbacks: Lane::new(sizes.io_threads.max(MIN_CALLBACK_THREADS)),
            io: Mutex::default(),
            compute: Mutex::default(),
            deadlines: Deadlines::default(),
            stopping: Stopping::default(),
            origins: Origins::default(),
            ledger: Registry::new(),
            batches: Mutex::default(),
            slots: Mutex::default(),
            next_task_id: AtomicI64::new(0),
            next_thread: Default::default(),
            outstanding: Outstanding::new(),
            failures: Mutex::default(),
            keeps_frames,
            error_callback: Mutex::default(),
            tracing: OnceCell::new(),
            departures: Mutex::default(),
            threads: Mutex::default(),
            process: Process::current(),
        });
        let mut runtimes = lock(&RUNTIMES);
        runtimes.retain(|runtime| runtime.strong_count() > 0);
        runtimes.push(Arc::downgrade(&shared));
        shared
    }

    /// The first of so many numbers for tasks.
    pub(crate) fn next_task_ids(&self, count: usize) -> i64 {
        // Relaxed: only the numbers must differ.
        self.next_task_id.fetch_add(count as i64, Ordering::Relaxed)
    }

    pub(crate) fn lane(&self, kind: LaneKind) -> &Lane<Py<TaskHandle>> {
        match kind {
            LaneKind::Python => &self.python,
            LaneKind::Coroutine => &self.coroutine,
            LaneKind::Io => &self.io_calls,
            LaneKind::Callback => &self.callbacks,
        }
    }

    /// Whether tasks are still accepted, for all that is known.
    pub(crate) fn open_for_tasks(&self) -> bool {
        self.outstanding.is_open()
    }

    /// The trace, if there is one and its writer is in this process.
    pub(crate) fn tracing(&self) -> Option<&Tracing> {
        self.tracing.get().filter(|_| !self.process.is_copy())
    }

    /// Writes the tasks that are submitted from now on to a trace. Once: later calls do nothing.
    pub(crate) fn start_trace(&self, trace: Py<Trace>) {
        if self.tracing.set(Tracing::new(trace)).is_ok()
            && let Some(tracing) = self.tracing()
        {
            self.slots().iter().for_each(|slot| tracing.introduce(slot));
        }
    }

    // --- counting tasks -------------------------------------------------------------------------

    /// Accepts one task. Each success is followed by one `task_ended`.
    pub(crate) fn task_begins(&self) -> PyResult<()> {
        self.tasks_begin(1)
    }

    /// Accepts so many tasks, or none.
    pub(crate) fn tasks_begin(&self, count: usize) -> PyResult<()> {
        self.process.check()?;
        let is_open = self.outstanding.accept(count);
        // After they are counted: who makes the interpreter exit waits for them, or we see that it does.
        let exiting = exit::is_exiting();
        if is_open && !exiting {
            return Ok(());
        }
        self.tasks_refused(count);
        if exiting {
            return Err(RuntimeShutdownError::new_err("cannot submit: the interpreter is exiting"));
        }
        Err(RuntimeShutdownError::new_err(
            "cannot submit after shutdown: this Runtime is shut down; make a new one",
        ))
    }

    /// Takes back a `task_begins` that no task came of.
    pub(crate) fn task_refused(&self) {
        self.tasks_refused(1);
    }

    pub(crate) fn tasks_refused(&self, count: usize) {
        let mut sleepers = Sleepers::new();
        self.tasks_ended(count, &mut sleepers);
        wake(&mut sleepers);
    }

    /// Counts the ends of tasks; adds who waits for the end of all to `sleepers` if this was it.
    pub(crate) fn tasks_ended(&self, count: usize, sleepers: &mut Sleepers) {
        if self.outstanding.end(count, waits::standing_still(), sleepers) {
            self.retire();
        }
    }

    /// Has all who stand in `wait_all` look again.
    pub(crate) fn wake_idle_waiters(&self) {
        self.outstanding.wake_all();
    }

    /// Waits until no task is left but those that cannot end before this wait does, see
    /// [`waits`]; false if `timeout` came first. An error is what a signal's handler has
    /// raised.
    pub(crate) fn wait_idle(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<bool> {
        self.wait_idle_as(py, timeout, || py.check_signals())
    }

    /// The same, but signals stay pending.
    pub(crate) fn wait_idle_despite_signals(
        &self,
        py: Python<'_>,
        timeout: Duration,
    ) -> PyResult<bool> {
        self.wait_idle_as(py, Some(timeout), || Ok(()))
    }

    fn wait_idle_as(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        on_signal: impl Fn() -> PyResult<()>,
    ) -> PyResult<bool> {
        self.process.check()?;
        let _blocked = worker::enter_blocked(py)?;
        let waiting = Waiting::for_all(py, self);
        let unnamed = !waiting.is_inside() && worker::is_to_end_task_of(self);
        let unnamed = unnamed.then(|| InsideWaitAll::new(self));
        // From outside all are waited for, those inside `wait_all` too: they will return.
        let is_inside = unnamed.is_some() || waiting.is_inside();
        let left_out = is_inside.then_some(|| waiting.held_up(self));
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let parker = Arc::new(Parker::default());
        let waiter: Arc<dyn Unpark> = parker.clone();
        let body = BodyWait::begin(&parker);
        loop {
            let idle = self.outstanding.enter(waiter.clone(), left_out.as_ref());
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A body that was asked to stop gets the error though there is nothing left to wait for.
            let woken = body.check(py).and_then(|()| match idle {
                true => Ok(Wakeup::Notified),
                false => match signals::park(py, &parker, left) {
                    Wakeup::Interrupted => on_signal().map(|()| Wakeup::Interrupted),
                    other => Ok(other),
                },
            });
            self.outstanding.leave(&waiter);
            if woken? == Wakeup::TimedOut || idle {
                return Ok(idle);
            }
        }
    }

    /// Lets go of the threads that no task will need any more. Waits for none of them: this may be
    /// one of them.
    fn retire(&self) {
        drop(lock(&self.io).take());
        drop(lock(&self.compute).take());
        self.deadlines.retire();
    }

    /// Counts tasks that end with that state, before anybody can see it.
    pub(crate) fn count_ends(&self, state: u8, count: usize) {
        let ending = match state {
            state::DONE => Ending::Completed,
            state::FAILED => Ending::Failed,
            _ => Ending::Cancelled,
        };
        self.outstanding.count(ending, count);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.outstanding.counts()
    }

    /// Whether a task has ended since the last call.
    pub(crate) fn has_progressed(&self) -> bool {
        self.outstanding.has_progressed()
    }

    /// Makes the items of a batch visible for as long as it lives.
    pub(crate) fn enter_batch(&self, batch: &Arc<Batch>) {
        // A build for the benchmark that tells what records cost.
        if !cfg!(dft_no_records) {
            lock(&self.batches).insert(batch.first_id(), Arc::downgrade(batch));
        }
    }

    pub(crate) fn leave_batch(&self, first_id: i64) {
        // In a copy, the lock may be held for ever by a thread that was not copied.
        if !self.process.is_copy() {
            lock(&self.batches).remove(&first_id);
        }
    }

    /// The one that a task is an item of.
    pub(crate) fn batch_of(&self, task_id: i64) -> Option<Arc<Batch>> {
        let (_, batch) = lock(&self.batches)
            .range(..=task_id)
            .next_back()
            .map(|(first, batch)| (*first, batch.upgrade()))?;
        batch.filter(|batch| batch.has(task_id))
    }

    /// Those that are alive, the oldest first.
    pub(crate) fn batches(&self) -> Vec<Arc<Batch>> {
        lock(&self.batches).values().filter_map(Weak::upgrade).collect()
    }

    /// The handles of all tasks that have not ended; also of some that have.
    pub(crate) fn hold_unfinished(&self, py: Python<'_>) -> Vec<Py<TaskHandle>> {
        for batch in self.batches() {
            batch.show_unfinished(py);
        }
        self.hold_all(py)
    }

    /// The handles that are alive, whose tasks may have ended.
    pub(crate) fn hold_all(&self, py: Python<'_>) -> Vec<Py<TaskHandle>> {
        let mut handles = Vec::new();
        self.ledger.for_each(|address| {
            // SAFETY: called under the ledger's lock.
            handles.extend(unsafe { address.hold(py) });
        });
        handles
    }

    /// How many tasks wait in the queue of a lane.
    pub(crate) fn queued(&self, kind: LaneKind) -> usize {
        let mut queued = self.lane(kind).len();
        if kind == LaneKind::Python {
            for batch in self.batches() {
                let (items, tickets) = batch.queued();
                queued = (queued + items).saturating_sub(tickets);
            }
        }
        queued
    }

    pub(crate) fn leave_ledger(&self, entry: Entry) {
        // In a copy, the lock may be held for ever by a thread that was not copied.
        if !self.process.is_copy() {
            self.ledger.remove(entry);
        }
    }

    // --- failures -------------------------------------------------------------------------------

    /// What is to be kept of a task that is about to fail with this content.
    pub(crate) fn prepare_failure(
        &self,
        handle: &Py<TaskHandle>,
        content: &Content,
        py: Python<'_>,
    ) -> NewFailure {
        let has_room = lock(&self.failures).has_room();
        NewFailure::of(py, handle, content, has_room, self.keeps_frames)
    }

    /// The same on a thread without the interpreter.
    pub(crate) fn prepare_native_failure(
        &self,
        task: &TaskHandle,
        spare: [Spare; 2],
        outcome: &Arc<dyn NativeOutcome>,
    ) -> NewFailure {
        let has_room = lock(&self.failures).has_room();
        NewFailure::of_native(task, spare, outcome, has_room, self.keeps_frames)
    }

    /// Remembers a failed task for `get_failed` and `wait_all`; gives back what is not kept.
    pub(crate) fn record_failure(&self, failure: NewFailure) -> [Option<Failure>; 2] {
        lock(&self.failures).add(failure)
    }

    /// Remembers items of a batch that have failed together, all for the same reason.
    pub(crate) fn record_failures(
        &self,
        ids: &[i64],
        name: &Bound<'_, PyString>,
        outcome: &Arc<dyn NativeOutcome>,
    ) {
        for id in ids {
            let has_room = lock(&self.failures).has_room();
            let failure = NewFailure::of_item(*id, name, outcome, has_room);
            let not_kept = self.record_failure(failure);
            drop(not_kept);
        }
    }

    /// Whether somebody is told of each failure.
    pub(crate) fn has_error_callback(&self) -> bool {
        lock(&self.error_callback).is_some()
    }

    pub(crate) fn error_callback(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.error_callback).as_ref().map(|callback| callback.clone_ref(py))
    }

    pub(crate) fn set_error_callback(&self, callback: Option<Py<PyAny>>) {
        let previous = std::mem::replace(&mut *lock(&self.error_callback), callback);
        drop(previous);
    }

    /// The failures that are kept, the oldest first, and how many are not.
    pub(crate) fn failed(&self, py: Python<'_>) -> (Vec<Failure>, u64) {
        let failures = lock(&self.failures);
        (failures.all.list.iter().map(|failure| failure.clone_ref(py)).collect(), failures.all.more)
    }

    pub(crate) fn clear_failed(&self) {
        let cleared = lock(&self.failures).clear();
        drop(cleared);
    }

    /// Those since the last call, and how many more there were.
    pub(crate) fn take_unreported(&self) -> (Vec<Failure>, u64) {
        let Bounded { list, more } = std::mem::take(&mut lock(&self.failures).unreported);
        (list, more)
    }

    /// Shows the garbage collector what a runtime holds through this: to be called by the one
    /// `Runtime` of this. Tasks and workers hold this as well, but nothing that is shown here is
    /// theirs: without a `Runtime` nobody asks for failures or is told of them.
    ///
    /// Any thread adds failures; only attached ones take them or the callback away.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if self.process.is_copy() {
            return Ok(()); // its locks may be held for ever by threads that were not copied
        }
        visit.call(&*lock(&self.error_callback))?;
        lock(&self.failures).traverse(visit)?;
        self.origins.traverse(visit)
    }

    // --- threads --------------------------------------------------------------------------------

    /// Queues a task that was accepted. It ends in a settled handle even if no thread can run it.
    pub(crate) fn push(self: &Arc<Self>, kind: LaneKind, handle: &Bound<'_, TaskHandle>) {
        let order = self.lane(kind).push(handle.clone().unbind());
        self.obey_or_fail(kind, order, std::slice::from_ref(handle));
    }

    /// Has the callbacks of a task that has ended called on the callback lane, which any thread may
    /// ask for. Gives the task back if that has no thread and gets none.
    pub(crate) fn push_ended(self: &Arc<Self>, handle: Py<TaskHandle>) -> Option<Py<TaskHandle>> {
        let order = self.callbacks.push(handle);
        match self.obey(LaneKind::Callback, order) {
            Ok(()) => None,
            Err(_) => self.callbacks.pop().0,
        }
    }

    /// As `push` for many; if there is a turn, ahead of what waits, but for what is of that turn.
    ///
    /// The woken worker gets the interpreter at once: this thread lets go of it before it wakes, and
    /// takes it again when the worker sleeps or its time slice is over.
    pub(crate) fn push_all(
        self: &Arc<Self>,
        py: Python<'_>,
        kind: LaneKind,
        turn: Option<NonZeroU64>,
        handles: &[Bound<'_, TaskHandle>],
    ) {
        let jobs = handles.iter().map(|handle| handle.clone().unbind());
        let (sleeper, order) = match turn {
            Some(turn) => self.lane(kind).push_all_ahead(turn.get(), jobs),
            None => self.lane(kind).push_all(jobs),
        };
        if let Some(sleeper) = sleeper {
            py.detach(|| sleeper.unpark());
        }
        self.obey_or_fail(kind, order, handles);
    }

    /// As `push` for many, of a submitter that goes on submitting or is about to wait.
    pub(crate) fn push_each(self: &Arc<Self>, kind: LaneKind, handles: &[Bound<'_, TaskHandle>]) {
        let jobs = handles.iter().map(|handle| handle.clone().unbind());
        let (sleeper, order) = self.lane(kind).push_all(jobs);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
        self.obey_or_fail(kind, order, handles);
    }

    fn obey_or_fail(
        self: &Arc<Self>,
        kind: LaneKind,
        order: Order,
        handles: &[Bound<'_, TaskHandle>],
    ) {
        let Err(error) = self.obey(kind, order) else { return };
        for handle in handles.iter().filter(|handle| handle.get().claim()) {
            let outcome = Outcome::Error(error.clone_ref(handle.py()));
            TaskHandle::settle(handle.as_unbound(), outcome, handle.py());
        }
    }

    /// Does what a lane has ordered; an error if it needs a thread, has none and gets none.
    pub(crate) fn obey(self: &Arc<Self>, kind: LaneKind, order: Order) -> PyResult<()> {
        if order == Order::Nothing {
            return Ok(());
        }
        let number = self.next_thread[kind as usize].fetch_add(1, Ordering::Relaxed);
        let shared = self.clone();
        let serve = match kind {
            LaneKind::Python | LaneKind::Io | LaneKind::Callback => worker::serve,
            LaneKind::Coroutine => coroutine::serve,
        };
        let spawned = std::thread::Builder::new()
            .name(format!("dft-{}-{number}", kind.name()))
            .stack_size(WORKER_STACK)
            .spawn(move || serve(shared, kind, number));
        match spawned {
            Ok(thread) => {
                let mut threads = lock(&self.threads);
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                if self.lane(kind).worker_failed_to_start() {
                    return Ok(()); // the workers that there are will come to it
                }
                Err(refused("a worker thread", error))
            }
        }
    }

    /// Hands a job to the I/O lane, which is started with the first.
    pub(crate) fn with_io_lane(&self, act: impl FnOnce(&IoLane)) -> PyResult<()> {
        let io = lock(&self.io);
        act(io.get_or_try_init(|| {
            IoLane::start(self.sizes.io_threads)
                .map_err(|error| refused("the thread for I/O", error))
        })?);
        Ok(())
    }

    /// Hands a job to the compute lane, which is started with the first.
    pub(crate) fn with_compute_lane(&self, act: impl FnOnce(&ComputeLane)) -> PyResult<()> {
        let compute = lock(&self.compute);
        act(compute.get_or_try_init(|| {
            ComputeLane::start(self.sizes.threads)
                .map_err(|error| refused("the compute threads", error))
        })?);
        Ok(())
    }

    pub(crate) fn unfinished_compute_jobs(&self) -> usize {
        lock(&self.compute).get().map_or(0, ComputeLane::unfinished)
    }

    /// How long all compute threads have been busy with the same jobs while others wait.
    pub(crate) fn compute_waits_for(&self) -> Duration {
        lock(&self.compute).get().map_or(Duration::ZERO, ComputeLane::waits_for)
    }

    /// The Python workers that are alive.
    pub(crate) fn python_workers(&self) -> usize {
        self.python.workers() + self.coroutine.workers()
    }

    pub(crate) fn add_slot(&self, slot: Arc<Slot>) {
        lock(&self.slots).push(slot);
    }

    pub(crate) fn remove_slot(&self, slot: &Arc<Slot>) {
        lock(&self.slots).retain(|other| !Arc::ptr_eq(other, slot));
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).clone()
    }

    /// A worker's thread is about to end.
    pub(crate) fn departed(&self) {
        if let Some(parker) = &*lock(&self.departures) {
            parker.unpark();
        }
    }

    /// No task is accepted from now on; workers leave when their lane is empty.
    pub(crate) fn close(&self) {
        if self.process.is_copy() {
            return;
        }
        self.outstanding.close();
        self.python.close();
        self.coroutine.close();
        self.io_calls.close();
        self.callbacks.close();
        if self.outstanding.is_over() {
            self.retire();
        }
    }

    /// Nobody can ask for failures or be told of them any more. They hold this in turn.
    pub(crate) fn forget_failures(&self) {
        if !self.process.is_copy() {
            let cleared = lock(&self.failures).close();
            drop(cleared);
            self.set_error_callback(None);
            self.origins.clear();
        }
    }

    pub(crate) fn shutdown(&self, py: Python<'_>, wait: bool) -> PyResult<()> {
        if self.process.is_copy() {
            return Ok(());
        }
        let first = self.outstanding.close();
        let wait = wait && !worker::is_worker_of(self);
        if wait {
            self.wait_idle(py, None)?;
        }
        self.close();
        if first {
            log::debug!("runtime shut down");
        }
        if wait {
            let has_left = self.wait_for_bodies(py);
            let threads = std::mem::take(&mut *lock(&self.threads));
            let left = if has_left { Vec::new() } else { self.threads_left() };
            if !left.is_empty() {
                log::warn!(
                    target: "dftracer.utils",
                    "{} thread(s) of a runtime that is shut down are left behind, because the \
                     bodies that run there go on although they were cancelled or have run out of \
                     time (DFTRACER_EXIT_PATIENCE_S)",
                    left.len()
                );
            }
            py.detach(|| {
                for thread in threads.into_iter().filter(|t| !left.contains(&t.thread().id())) {
                    // An error means that the thread panicked, and its lane has been told.
                    let _ = thread.join();
                }
                if let Some(tracing) = self.tracing() {
                    tracing.flush();
                }
            });
        }
        Ok(())
    }

    /// Closes, then waits until no thread of ours can touch the interpreter, or the deadline.
    pub(crate) fn leave(&self, py: Python<'_>, deadline: Instant) {
        let parker = Arc::new(Parker::default());
        *lock(&self.departures) = Some(parker.clone());
        self.close();
        py.detach(|| {
            while !lock(&self.slots).is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if !parker.park_for(left) {
                    return;
                }
            }
            for thread in std::mem::take(&mut *lock(&self.threads)) {
                // Those that have no slot any more are past their last Python code.
                let _ = thread.join();
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.process.is_copy() {
            // Their locks may be held by threads that the fork did not copy.
            std::mem::forget(std::mem::take(&mut self.io));
            std::mem::forget(std::mem::take(&mut self.compute));
            self.deadlines.abandon();
        } else {
            self.retire();
            if let Some(tracing) = self.tracing.take() {
                // The last one to hold this is often a worker that has let go of the interpreter.
                // What it dropped then would be kept until somebody calls into this module.
                crate::interp::guard::attach(|_| drop(tracing));
            }
        }
    }
}

/// Counts one worker that stands in `wait_all` while it is about to end a task that cannot be named.
struct InsideWaitAll<'a>(&'a Shared);

impl<'a> InsideWaitAll<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.outstanding.enter_unnamed();
        Self(shared)
    }
}

impl Drop for InsideWaitAll<'_> {
    fn drop(&mut self) {
        self.0.outstanding.leave_unnamed();
    }
}

/// Those of this process that are alive.
pub(crate) fn alive() -> Vec<Arc<Shared>> {
    // Not under the lock: what is dropped here may be the last reference to one.
    let runtimes: Vec<_> = lock(&RUNTIMES).iter().filter_map(Weak::upgrade).collect();
    runtimes.into_iter().filter(|runtime| !runtime.process.is_copy()).collect()
}

/// Has all who stand in `wait_all`, of any runtime, look again.
pub(crate) fn wake_idle_waiters() {
    alive().iter().for_each(|runtime| runtime.wake_idle_waiters());
}
