//! The workers of the Python, I/O and callback lanes: attached to the interpreter for life, detached only to
//! sleep.
//!
//! Longer than most files here: all that depends on what a worker's thread knows of itself.

pub(crate) mod coroutine;
pub(crate) mod stopping;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use dftracer_core::interrupt_slot::{IDLE, Outer};
use dftracer_core::sched::lane::Rest;
use dftracer_core::sched::parker::{Parker, Unpark};
use dftracer_core::sched::spin::Spinner;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::batch::{self, Batch};
use crate::interp::call::{Call, in_context, panic_error, panic_text};
use crate::interp::clock::nanos_now;
use crate::interp::errors::TooManyBlockedError;
use crate::interp::guard;
use crate::interp::once::{Lazy, intern};
use crate::interp::signals;
use crate::interp::slot::{self, LaneKind, Slot};
use crate::runtime::shared::Shared;
use crate::task::family::Family;
use crate::task::waits::Within;
use crate::task::{Content, End, Outcome, Sleepers, TaskHandle, wake};

/// How deep a worker runs tasks it waits for on its own stack before it asks for a spare thread:
/// each level takes native stack and a part of Python's recursion limit.
const MAX_INLINE_DEPTH: u32 = 64;

/// How many Python frames may stand below a task that is run on the stack of its waiter.
const MAX_INLINE_FRAMES: usize = 150;

/// What a worker knows of itself.
struct Current {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    /// The innermost plain body that runs here.
    task: Option<Py<TaskHandle>>,
    /// What is being run: without a `task`, it is the item that the slot tells.
    batch: Option<Arc<Batch>>,
    /// The task whose body was last told to stop by a wait of ours.
    told: i64,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
    static INLINE_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Looks at what this thread knows of itself as a worker: nothing if it is none, or is the copy of
/// one in the child of a `fork()` that its body made.
fn with_current<T>(look: impl FnOnce(Option<&mut Current>) -> T) -> T {
    CURRENT
        .with_borrow_mut(|current| look(current.as_mut().filter(|c| !c.shared.process.is_copy())))
}

/// How often a worker asks whether others wait for the interpreter.
const TURN_NS: u64 = 1_000_000;

/// Since when a worker has not asked whether others wait for the interpreter; 0 if it has not yet.
#[derive(Default)]
pub(crate) struct Turn(u64);

impl Turn {
    /// Lets others have the interpreter between two bodies if it is their turn; gives the time.
    ///
    /// Only Python code is asked for it, and bodies may be functions written in C. To let go of it
    /// without being asked would not do: who waits would be woken, come too late, and wait anew.
    pub(crate) fn share(&mut self, py: Python<'_>, mut now: u64) -> u64 {
        static NOTHING: Lazy<Py<PyAny>> = Lazy::new();
        if now.saturating_sub(self.0) > TURN_NS {
            let nothing = NOTHING
                .get_or_try_init(py, || py.eval(c"lambda: None", None, None).map(Bound::unbind));
            if let Err(error) = nothing.and_then(|nothing| nothing.call0(py)) {
                error.write_unraisable(py, None);
            }
            now = nanos_now();
            self.0 = now;
        }
        now
    }
}

/// The life of a worker of the Python, the I/O or the callback lane.
pub(crate) fn serve(shared: Arc<Shared>, kind: LaneKind, number: usize) {
    let owner = shared.clone();
    let served = as_worker(shared.clone(), kind, number, move |py| {
        let parker = Arc::new(Parker::default());
        let wakeup: Arc<dyn Unpark> = parker.clone();
        let lane = owner.lane(kind);
        let mut patience = Spinner::NEW;
        let Some(slot) = slot::current() else { return false };
        lane.awake();
        // Who waits for the last task: woken before the next body, which may take long, or after
        // this thread has let go of the interpreter.
        let mut sleepers = Sleepers::new();
        // The end of the last task, where it is the beginning of the next.
        let mut last_end = None;
        let mut turn = Turn::default();
        loop {
            owner.process.leave_if_copied();
            let (job, order) = lane.pop();
            // A spare that cannot be started is missed only if nobody else comes to the jobs.
            let _ = owner.obey(kind, order);
            match job {
                Some(handle) => {
                    if !sleepers.is_empty() {
                        wake(&mut sleepers);
                        last_end = None;
                    }
                    let now = turn.share(py, last_end.take().unwrap_or_else(nanos_now));
                    if handle.get().claim_at(now) {
                        let end = run_claimed(py, &handle, &mut sleepers);
                        last_end = end.filter(|end| end.unheard).map(|end| end.at);
                        drop_handle(py, handle, &slot, &mut sleepers);
                    } else if let Some(batch) = handle.get().batch() {
                        drop(handle);
                        last_end = run_batch(py, batch, &slot, &mut sleepers, (now, &mut turn));
                    } else if kind == LaneKind::Callback {
                        TaskHandle::tell_at_last(py, &handle, &mut sleepers);
                        drop_handle(py, handle, &slot, &mut sleepers);
                    }
                }
                None => match lane.sleep(&wakeup, true) {
                    Rest::Sleep => {
                        last_end = None;
                        py.detach(|| {
                            wake(&mut sleepers);
                            signals::park_worker(&parker, &mut patience);
                        });
                        lane.awake();
                    }
                    Rest::Retry => {}
                    Rest::Exit => {
                        wake(&mut sleepers);
                        return true;
                    }
                },
            }
        }
    });
    mourn(&shared, kind, served);
}

/// Tells the lane of a worker that has ended, unless the lane has told it to (`Some(Some(true))`).
pub(crate) fn mourn(shared: &Arc<Shared>, kind: LaneKind, served: Option<Option<bool>>) {
    if served == Some(Some(true)) {
        return;
    }
    let order = shared.lane(kind).worker_died();
    // Without an interpreter the next one would end in the same way, and the next.
    if served.is_some() {
        let _ = shared.obey(kind, order);
    }
}

/// Runs the items of a batch. Tells when it ended, if nothing has happened since.
#[inline(never)] // the loop around it is that of single tasks
fn run_batch(
    py: Python<'_>,
    batch: Arc<Batch>,
    slot: &Slot,
    sleepers: &mut Sleepers,
    now: (u64, &mut Turn),
) -> Option<u64> {
    batch.ticket_taken();
    let show = |batch| {
        with_current(|current| current.map(|current| std::mem::replace(&mut current.batch, batch)))
    };
    show(Some(batch.clone()));
    let last_end = batch::run(py, &batch, slot, sleepers, now);
    drop(show(None));
    last_end
}

/// Attaches this thread as a worker for as long as `work` runs. `None` if the interpreter is gone,
/// `Some(None)` if `work` panicked.
pub(crate) fn as_worker<T>(
    shared: Arc<Shared>,
    kind: LaneKind,
    number: usize,
    work: impl FnOnce(Python<'_>) -> T,
) -> Option<Option<T>> {
    let slot = Arc::new(Slot::new(kind, number));
    let result = guard::attach(|py| {
        introduce(py, &slot);
        shared.add_slot(slot.clone());
        if let Some(tracing) = shared.tracing() {
            tracing.introduce(&slot);
        }
        slot::set_current(Some(slot.clone()));
        CURRENT.set(Some(Current {
            shared: shared.clone(),
            slot: slot.clone(),
            task: None,
            batch: None,
            told: IDLE,
        }));
        let result = catch_unwind(AssertUnwindSafe(|| work(py)));
        CURRENT.set(None);
        slot::set_current(None);
        shared.remove_slot(&slot);
        take_leave(py);
        result.ok()
    });
    shared.departed();
    result
}

/// Gives the thread its name in Python's `threading` too, where logs and debuggers look.
fn introduce(py: Python<'_>, slot: &Slot) {
    let name = std::thread::current().name().unwrap_or("dft").to_owned();
    let named = py.import("threading").and_then(|threading| {
        let ident: u64 = threading.call_method0("get_ident")?.extract()?;
        slot.ident.store(ident, Ordering::Relaxed);
        threading.call_method0("current_thread")?.setattr("name", name)
    });
    if let Err(error) = named {
        error.write_unraisable(py, None);
    }
}

/// Before CPython 3.13, `threading` would list this thread for ever.
fn take_leave(py: Python<'_>) {
    let _ = py.import("threading").and_then(|threading| {
        let ident = threading.call_method0("get_ident")?;
        threading.getattr("_active")?.call_method1("pop", (ident, py.None()))
    });
}

/// Drops the handle of a task that has ended here. If it is the last one, the result goes with it, whose
/// destructor may wait: for those who wait for the task, so these are woken before, and not for this
/// worker, which is about to end nothing.
fn drop_handle(_py: Python<'_>, handle: Py<TaskHandle>, slot: &Slot, sleepers: &mut Sleepers) {
    // SAFETY: attached, a live object.
    if unsafe { ffi::Py_REFCNT(handle.as_ptr()) } > 1 {
        return;
    }
    wake(sleepers);
    slot.owes_nothing.store(true, Ordering::Relaxed);
    drop(handle);
    slot.owes_nothing.store(false, Ordering::Relaxed);
}

/// Runs a task. `None` if it has not ended now.
pub(crate) fn run_claimed(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    sleepers: &mut Sleepers,
) -> Option<End> {
    if let Some(shared) = handle.get().shared() {
        shared.arm(handle.get());
    }
    let outcome = match catch_unwind(AssertUnwindSafe(|| run_body(py, handle))) {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return None, // it goes on elsewhere
        Err(panic) => Outcome::Error(panic_error(&panic_text(panic.as_ref()))),
    };
    settle(py, handle, outcome, sleepers)
}

/// Ends a task that has run here as an item of a batch: with the value and its context, or with an
/// error. `None` if it goes on elsewhere.
pub(crate) fn end_task(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    result: PyResult<(Py<PyAny>, Py<PyAny>)>,
    sleepers: &mut Sleepers,
) -> Option<End> {
    let outcome = outcome_of(py, handle, result)?;
    settle(py, handle, outcome, sleepers)
}

fn settle(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    outcome: Outcome,
    sleepers: &mut Sleepers,
) -> Option<End> {
    slot::set_ran_last(handle.get().task_id);
    TaskHandle::settle_quietly(handle, outcome, py, sleepers)
}

/// Calls the body. `None` if it turned out to be a coroutine, which now has another lane.
fn run_body(py: Python<'_>, handle: &Py<TaskHandle>) -> Option<Outcome> {
    let this = handle.get();
    let Content::Call(call) = this.take_content() else {
        return Some(Outcome::Error(PyRuntimeError::new_err("a queued task had no body")));
    };
    this.keep_name(call.callable().bind(py));
    let around = begin_body(py, handle);
    // After it can be reached: whoever asks later finds it.
    if this.is_cancel_requested() {
        end_body(py, around, call);
        return Some(Outcome::Cancelled);
    }
    this.tell_begun(py);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let context = call.context(py)?;
        let value = in_context(context.bind(py), || call.here(py))?;
        Ok((value.unbind(), context))
    }))
    .unwrap_or_else(|panic| Err(panic_error(&panic_text(panic.as_ref()))));
    end_body(py, around, call);
    outcome_of(py, handle, result)
}

/// What a body has come to, which has answered with a value in this context. `None` if that is a
/// coroutine, which now has another lane.
fn outcome_of(
    py: Python<'_>,
    handle: &Py<TaskHandle>,
    result: PyResult<(Py<PyAny>, Py<PyAny>)>,
) -> Option<Outcome> {
    match result {
        Ok((coroutine, _)) if handle.get().is_settled() && is_coroutine(coroutine.bind(py)) => {
            // Its task has ended without it: nobody awaits it. Closing one that has not begun runs
            // nothing of it.
            let _ = coroutine.call_method0(py, intern!(py, "close"));
            Some(Outcome::Cancelled)
        }
        Ok((coroutine, context)) if is_coroutine(coroutine.bind(py)) => {
            handle.get().become_(Content::Coroutine { coroutine, context });
            if let Some(shared) = handle.get().shared() {
                shared.pass_on(py, handle);
            }
            None
        }
        Ok((value, _)) => Some(Outcome::Value(value)),
        Err(error)
            if handle.get().is_cancel_requested()
                && error.is_instance(py, stopping::interruption(py).as_any()) =>
        {
            Some(Outcome::Cancelled)
        }
        Err(error) => Some(Outcome::Error(error)),
    }
}

/// Whether a body has answered with a coroutine, to be awaited rather than returned.
pub(crate) fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, a live object; `PyCoro_CheckExact` only compares its type.
    unsafe { ffi::PyCoro_CheckExact(value.as_ptr()) != 0 }
}

/// The body around the one that begins now: its task, and what the slot knew of it.
type Around = (Option<Py<TaskHandle>>, Outer);

/// `None` on a thread that is no worker.
fn begin_body(py: Python<'_>, handle: &Py<TaskHandle>) -> Option<Around> {
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
fn end_body(py: Python<'_>, around: Option<Around>, call: Call) {
    let Some((task, outer)) = around else { return };
    let mut call = Some(call);
    if !call.as_ref().is_some_and(Call::runs_code_when_dropped) {
        call = None; // there is nobody to ask who waits
    }
    let leave = |current: &Current| {
        stopping::leave_body(py, &current.shared, &current.slot, outer);
    };
    let back = |current: &mut Current| std::mem::replace(&mut current.task, task);
    let ended = match call {
        None => with_current(|current| {
            let current = current?;
            leave(current);
            Some(back(current))
        }),
        Some(call) => {
            with_current(|current| current.map(|current| leave(current)));
            drop(call);
            with_current(|current| current.map(back))
        }
    };
    drop(ended);
}

/// Runs a task on the stack of the thread that waits for it, if nobody has started it and this is
/// a worker of its lane. True if it ran.
pub(crate) fn run_inline(handle: &Bound<'_, TaskHandle>) -> bool {
    let this = handle.get();
    let ours = with_current(|current| {
        current.as_ref().is_some_and(|current| {
            this.lane == Some(current.slot.lane)
                && current.slot.lane != LaneKind::Coroutine
                && this.shared().is_some_and(|shared| Arc::ptr_eq(shared, &current.shared))
        })
    });
    let (py, depth) = (handle.py(), INLINE_DEPTH.get());
    // One that may run out of time ends for its waiter, too, at once: not on the stack of that.
    let has_limit = this.has_limit()
        || this.shared().is_some_and(|shared| shared.deadlines.task_timeout().is_some());
    if !ours || has_limit || depth >= MAX_INLINE_DEPTH || has_deep_stack(py) || !this.claim() {
        return false;
    }
    INLINE_DEPTH.set(depth + 1);
    let handled = HandledError::set_aside(py);
    let _within = (outer_body(py), Within::body(handle.clone().unbind()));
    let mut sleepers = Sleepers::new();
    run_claimed(py, handle.as_unbound(), &mut sleepers);
    handled.put_back(py);
    wake(&mut sleepers);
    INLINE_DEPTH.set(depth);
    // Whoever has asked the body that waits to stop did not find it: it was not the innermost.
    if let Some(outer) = known_task(py)
        && outer.get().is_cancel_requested()
    {
        stopping::stop_body(outer.get(), py);
    }
    true
}

/// The handle of the innermost plain body here, if it has one.
pub(crate) fn known_task(py: Python<'_>) -> Option<Py<TaskHandle>> {
    let (task, batch, id) = with_current(|current| {
        let current = current?;
        let task = current.task.as_ref().map(|task| task.clone_ref(py));
        Some((task, current.batch.clone(), current.slot.running.task()))
    })?;
    task.or_else(|| batch?.shown(py, id))
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

/// Names the body that waits while another one is run on its stack, if there is one.
fn outer_body(py: Python<'_>) -> Option<Within> {
    let (task, batch, id) = with_current(|current| {
        let current = current?;
        let task = current.task.as_ref().map(|task| task.clone_ref(py));
        Some((task, current.batch.clone(), current.slot.running.task()))
    })?;
    match task {
        Some(task) => Some(Within::body(task)),
        None => batch.map(|batch| Within::item(batch, id)),
    }
}

/// Whether Python's stack here is so deep that a body above it would have much less than its own
/// recursion limit.
fn has_deep_stack(py: Python<'_>) -> bool {
    static GETFRAME: Lazy<Py<PyAny>> = Lazy::new();
    // Raises if there are not so many frames; does not look at them.
    GETFRAME
        .import(py, "sys", "_getframe")
        .is_ok_and(|getframe| getframe.call1((MAX_INLINE_FRAMES,)).is_ok())
}

/// The error that the body below is handling, which is not that of the body above.
struct HandledError([*mut ffi::PyObject; 3]);

impl HandledError {
    fn set_aside(_py: Python<'_>) -> Self {
        let mut parts = [std::ptr::null_mut(); 3];
        let [kind, value, traceback] = &mut parts;
        // SAFETY: attached; the first call gives references that `put_back` gives back.
        unsafe {
            ffi::PyErr_GetExcInfo(kind, value, traceback);
            let null = std::ptr::null_mut();
            ffi::PyErr_SetExcInfo(null, null, null);
        }
        Self(parts)
    }

    fn put_back(self, _py: Python<'_>) {
        let [kind, value, traceback] = self.0;
        // SAFETY: attached; takes the references over.
        unsafe { ffi::PyErr_SetExcInfo(kind, value, traceback) };
    }
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
    let (task, batch, id) = with_current(|current| {
        let current = current?;
        let task = current.task.as_ref().map(|task| task.clone_ref(py));
        Some((task, current.batch.clone(), current.slot.running.task()))
    })?;
    task.or_else(|| batch?.handle_of(py, id))
}

/// The family of the task that is submitting, if a task is. A coroutine worker runs many bodies by
/// turns: there the context knows whose turn it is.
pub(crate) fn current_family(py: Python<'_>, shared: &Arc<Shared>) -> Option<Arc<Family>> {
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
