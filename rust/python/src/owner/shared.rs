//! What all parts of one runtime share: its lanes, its threads and its count of unfinished tasks. It
//! knows handles of tasks as objects, and nothing of what they are.
//!
//! The counts themselves, and why nobody waits for ever or too short, are in
//! [`dftracer_core::outstanding`].
//!
//! Longer than most files here: what a runtime has, what it does with tasks, and how it ends are to be
//! read together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::thread::ThreadId;
use std::time::Duration;

use dftracer_core::io::reactor::IoLane;
use dftracer_core::native::compute::ComputeLane;
use dftracer_core::outstanding::{Counts, Ending, Outstanding, StandingStill};
use dftracer_core::registry::Entry;
use dftracer_core::sched::lane::{Lane, Order};
use dftracer_core::sched::parker::{Parker, Unpark};
use dftracer_core::sched::timer::TimerKey;
use dftracer_core::sizes::Sizes;
use dftracer_core::task_state::state;
use once_cell::sync::OnceCell;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::deadlines::{Deadlines, Due};
use super::failures::{Bounded, Failure, Failures, NewFailure};
use super::items::Items;
use super::job::NativeOutcome;
use super::living::Living;
use super::sleepers::{Sleepers, wake};
use super::stopping::Stopping;
use crate::interp::errors::{RuntimeShutdownError, refused};
use crate::interp::exit;
use crate::interp::fork::Process;
use crate::interp::guard;
use crate::interp::origin::Origins;
use crate::interp::slot::{LaneKind, Slot};
use crate::trace::{Trace, Tracing};

/// What a thread of Python's own gets on most systems. Python code can need it: its parser and its
/// `repr` recurse on the native stack.
const WORKER_STACK: usize = 8 << 20;

/// How many callbacks may be in progress at a time, at least, not counting those that wait for tasks:
/// one that takes long shall not hold up all others.
const MIN_CALLBACK_THREADS: usize = 4;

/// All runtimes of this process that may still have threads.
static RUNTIMES: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// How many tasks stand still, of all runtimes, because they wait for others.
pub(crate) static STANDING_STILL: StandingStill = StandingStill::new();

/// What threads of a runtime do: written by those who know tasks, and handed in when it is made.
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    /// The life of a worker of the Python, the I/O or the callback lane.
    pub(crate) plain: fn(Arc<Shared>, LaneKind, usize),
    /// The life of a worker of the coroutine lane.
    pub(crate) coroutine: fn(Arc<Shared>, LaneKind, usize),
    /// Ends those that are due, on the thread that keeps deadlines.
    pub(crate) expire: fn(&Weak<Shared>, &[Due]),
}

/// A runtime, as its tasks and workers know it. The queues hold `TaskHandle`s, and tickets for items.
pub(crate) struct Shared {
    loops: Loops,
    pub(crate) sizes: Sizes,
    python: Lane<Py<PyAny>>,
    coroutine: Lane<Py<PyAny>>,
    /// Python callables that were sent to the I/O lane.
    io_calls: Lane<Py<PyAny>>,
    /// Tasks that have ended and have callbacks, which are to be called here.
    callbacks: Lane<Py<PyAny>>,
    /// Started with the first job of their kind, taken away when the last task has ended.
    io: Mutex<OnceCell<IoLane>>,
    compute: Mutex<OnceCell<ComputeLane>>,
    pub(crate) deadlines: Deadlines,
    pub(crate) stopping: Stopping,
    pub(crate) origins: Origins,
    /// Every handle that is alive.
    pub(crate) living: Living,
    /// Every batch that is alive, by the number of its first item.
    batches: Mutex<BTreeMap<i64, Weak<dyn Items>>>,
    /// The workers that run Python code and are alive.
    slots: Mutex<Vec<Arc<Slot>>>,
    next_task_id: AtomicI64,
    next_thread: [AtomicUsize; LaneKind::COUNT],
    /// The counts of tasks, who waits for all, and whether more are accepted.
    pub(crate) outstanding: Outstanding,
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
    pub(crate) fn new(sizes: Sizes, keeps_frames: bool, loops: Loops) -> Arc<Self> {
        let shared = Arc::new_cyclic(|shared: &Weak<Self>| Self {
            loops,
            sizes,
            python: Lane::new(sizes.python_threads),
            coroutine: Lane::new(sizes.python_threads),
            io_calls: Lane::new(sizes.io_threads),
            callbacks: Lane::new(sizes.io_threads.max(MIN_CALLBACK_THREADS)),
            io: Mutex::default(),
            compute: Mutex::default(),
            deadlines: Deadlines::new({
                let shared = shared.clone();
                move |due| (loops.expire)(&shared, due)
            }),
            stopping: Stopping::default(),
            origins: Origins::default(),
            living: Living::new(),
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

    pub(crate) fn lane(&self, kind: LaneKind) -> &Lane<Py<PyAny>> {
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
        if self.outstanding.end(count, &STANDING_STILL, sleepers) {
            self.retire();
        }
    }

    /// Has all who stand in `wait_all` look again.
    pub(crate) fn wake_idle_waiters(&self) {
        self.outstanding.wake_all();
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
    pub(crate) fn enter_batch(&self, first_id: i64, batch: Weak<dyn Items>) {
        // A build for the benchmark that tells what records cost.
        if !cfg!(dft_no_records) {
            lock(&self.batches).insert(first_id, batch);
        }
    }

    pub(crate) fn leave_batch(&self, first_id: i64) {
        // In a copy, the lock may be held for ever by a thread that was not copied.
        if !self.process.is_copy() {
            lock(&self.batches).remove(&first_id);
        }
    }

    /// The one that a task is an item of.
    pub(crate) fn batch_of(&self, task_id: i64) -> Option<Arc<dyn Items>> {
        let (_, batch) = lock(&self.batches)
            .range(..=task_id)
            .next_back()
            .map(|(first, batch)| (*first, batch.upgrade()))?;
        batch.filter(|batch| batch.has(task_id))
    }

    /// Those that are alive, the oldest first.
    pub(crate) fn batches(&self) -> Vec<Arc<dyn Items>> {
        lock(&self.batches).values().filter_map(Weak::upgrade).collect()
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

    pub(crate) fn remove_living(&self, entry: Entry) {
        // In a copy, the lock may be held for ever by a thread that was not copied.
        if !self.process.is_copy() {
            self.living.remove(entry);
        }
    }

    // --- failures -------------------------------------------------------------------------------

    /// Whether one more would be kept.
    pub(crate) fn has_room_for_failures(&self) -> bool {
        lock(&self.failures).has_room()
    }

    /// Whether those that are kept hold the frames of their tracebacks.
    pub(crate) fn keeps_frames(&self) -> bool {
        self.keeps_frames
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

    /// Has the callbacks of a task that has ended called on the callback lane, which any thread may
    /// ask for. Gives the task back if that has no thread and gets none.
    pub(crate) fn push_ended(self: &Arc<Self>, handle: Py<PyAny>) -> Option<Py<PyAny>> {
        let order = self.callbacks.push(handle);
        match self.obey(LaneKind::Callback, order) {
            Ok(()) => None,
            Err(_) => self.callbacks.pop().0,
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
            LaneKind::Python | LaneKind::Io | LaneKind::Callback => self.loops.plain,
            LaneKind::Coroutine => self.loops.coroutine,
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

    /// The threads that are still in a body that was given up.
    pub(crate) fn threads_left(&self) -> Vec<ThreadId> {
        let slots = self.slots();
        let left = slots.iter().filter(|slot| slot.given_up.load(Ordering::Relaxed) > 0);
        left.map(|slot| slot.id).collect()
    }

    /// Those that have not been joined.
    pub(crate) fn take_threads(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *lock(&self.threads))
    }

    /// Has `parker` woken whenever a worker's thread is about to end.
    pub(crate) fn watch_departures(&self, parker: Arc<Parker>) {
        *lock(&self.departures) = Some(parker);
    }

    /// Takes back the deadline of a task.
    pub(crate) fn cancel_deadline(&self, key: TimerKey) {
        // In a copy, the timer's lock may be held for ever by its thread, which was not copied.
        if !self.process.is_copy() {
            self.deadlines.cancel(key);
        }
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
                guard::attach(|_| drop(tracing));
            }
        }
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
