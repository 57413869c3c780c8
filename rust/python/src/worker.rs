//! The workers of the Python lane: attached to the interpreter for life, detached only to sleep.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use dftracer_core::lane::Rest;
use dftracer_core::park::{Parker, Unpark};
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::call::{call_in_context, panic_error};
use crate::handle::{Outcome, Sleepers, TaskHandle, Work, wake};
use crate::shared::{LaneKind, Shared};

/// How deep a worker runs tasks it waits for on its own stack before it asks for a spare thread:
/// each level takes native stack and a part of Python's recursion limit.
const MAX_INLINE_DEPTH: u32 = 64;

thread_local! {
    /// The runtime and lane that this thread works for, if it is a worker.
    static CURRENT: RefCell<Option<(Arc<Shared>, LaneKind)>> = const { RefCell::new(None) };
    static INLINE_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The life of a Python worker.
pub(crate) fn serve(shared: Arc<Shared>) {
    let for_loop = shared.clone();
    let served = as_worker(shared.clone(), LaneKind::Python, move |py| {
        let parker = Arc::new(Parker::default());
        let wakeup: Arc<dyn Unpark> = parker.clone();
        let lane = for_loop.lane(LaneKind::Python);
        lane.awake();
        // Who waits for the last task: woken before the next body, which may take long, or after
        // this thread has let go of the interpreter.
        let mut sleepers = Sleepers::new();
        loop {
            let (job, order) = lane.pop();
            // A spare that cannot be started is missed only if nobody else comes to the jobs.
            let _ = for_loop.obey(LaneKind::Python, order);
            match job {
                Some(handle) => {
                    wake(&mut sleepers);
                    if handle.get().claim() {
                        run_claimed(py, &handle, &mut sleepers);
                    }
                }
                None => match lane.sleep(&wakeup, true) {
                    Rest::Sleep => {
                        py.detach(|| {
                            wake(&mut sleepers);
                            parker.park_until_notified();
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
    if served != Some(true) {
        let _ = shared.lane(LaneKind::Python).worker_died();
    }
}

/// Attaches this thread as a worker for as long as `work` runs. `None` if the interpreter is gone
/// or `work` panicked.
pub(crate) fn as_worker<T>(
    shared: Arc<Shared>,
    kind: LaneKind,
    work: impl FnOnce(Python<'_>) -> T,
) -> Option<T> {
    Python::try_attach(|py| {
        CURRENT.set(Some((shared, kind)));
        introduce(py);
        let result = catch_unwind(AssertUnwindSafe(|| work(py)));
        take_leave(py);
        CURRENT.set(None);
        result.ok()
    })
    .flatten()
}

/// Gives the thread its name in Python's `threading` too, where logs and debuggers look.
fn introduce(py: Python<'_>) {
    let name = std::thread::current().name().unwrap_or("dft").to_owned();
    let named = py
        .import("threading")
        .and_then(|threading| threading.call_method0("current_thread"))
        .and_then(|thread| thread.setattr("name", name));
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

fn run_claimed(py: Python<'_>, handle: &Py<TaskHandle>, sleepers: &mut Sleepers) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run_body(py, handle)));
    let outcome = match outcome {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return, // it goes on elsewhere
        Err(panic) => Outcome::Error(panic_error(panic.as_ref())),
    };
    TaskHandle::settle_quietly(handle, outcome, Some(py), sleepers);
}

/// Calls the body. `None` if it turned out to be a coroutine, which now has another lane.
fn run_body(py: Python<'_>, handle: &Py<TaskHandle>) -> Option<Outcome> {
    let this = handle.get();
    let Work::Call { callable, args, kwargs, context } = this.take_work() else {
        return Some(Outcome::Error(PyRuntimeError::new_err("a queued task had no body")));
    };
    // Nobody but the queue holds the handle: nobody will ask for its name.
    // SAFETY: attached; the handle is a live object.
    if unsafe { ffi::Py_REFCNT(handle.as_ptr()) } > 1 {
        this.keep_name(callable.bind(py));
    }
    let result = call_in_context(py, &context, &callable, &args, kwargs.as_ref());
    if result.is_err() {
        this.keep_name(callable.bind(py));
    }
    // The arguments go before the outcome is told: who waits for it sees them released.
    drop((args, kwargs, callable));
    match result {
        Ok(value) if is_coroutine(&value) => {
            this.set_work(Work::Coroutine { coroutine: value.unbind(), context });
            this.shared().clone().pass_on(py, handle);
            None
        }
        Ok(value) => Some(Outcome::Value(value.unbind())),
        Err(error) => Some(Outcome::Error(error)),
    }
}

/// Whether a body has answered with a coroutine, to be awaited rather than returned.
fn is_coroutine(value: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, a live object; `PyCoro_CheckExact` only compares its type.
    unsafe { ffi::PyCoro_CheckExact(value.as_ptr()) != 0 }
}

/// Runs a task on the stack of the thread that waits for it, if nobody has started it and this is
/// a Python worker of the same runtime. True if it ran.
pub(crate) fn run_inline(handle: &Bound<'_, TaskHandle>) -> bool {
    let ours = CURRENT.with_borrow(|current| {
        current.as_ref().is_some_and(|(shared, kind)| {
            *kind == LaneKind::Python && Arc::ptr_eq(shared, handle.get().shared())
        })
    });
    let depth = INLINE_DEPTH.get();
    if !ours || depth >= MAX_INLINE_DEPTH || !handle.get().is_plain_call() || !handle.get().claim()
    {
        return false;
    }
    INLINE_DEPTH.set(depth + 1);
    let mut sleepers = Sleepers::new();
    run_claimed(handle.py(), handle.as_unbound(), &mut sleepers);
    wake(&mut sleepers);
    INLINE_DEPTH.set(depth);
    true
}

/// Whether the calling thread is a worker of this runtime.
pub(crate) fn is_worker_of(shared: &Shared) -> bool {
    CURRENT.with_borrow(|current| {
        current.as_ref().is_some_and(|(own, _)| std::ptr::eq(Arc::as_ptr(own), shared))
    })
}

/// Told before a wait: if this thread is a worker, its lane may start a spare for the time of it.
pub(crate) fn enter_blocked(_py: Python<'_>) -> PyResult<Option<Blocked>> {
    let Some((shared, kind)) = CURRENT.with_borrow(Clone::clone) else { return Ok(None) };
    let order = shared.lane(kind).enter_blocked().map_err(|_| {
        PyRuntimeError::new_err(
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
