//! The workers of the Python, I/O and callback lanes: attached to the interpreter for life, detached only to
//! sleep.

pub(crate) mod coroutine;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dftracer_core::sched::lane::Rest;
use dftracer_core::sched::parker::{Parker, Unpark};
use dftracer_core::sched::spin::Spinner;
use pyo3::prelude::*;

use crate::interp::clock::nanos_now;
use crate::interp::guard;
use crate::interp::objects::references;
use crate::interp::signals::{self, Turn};
use crate::interp::slot::{self, LaneKind, Slot};
use crate::owner::{Shared, Sleepers, wake};
use crate::task::queue::Job;
use crate::task::run::run_claimed;
use crate::task::{TaskHandle, current};

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
                Some(job) => {
                    if !sleepers.is_empty() {
                        wake(&mut sleepers);
                        last_end = None;
                    }
                    let now = turn.share(py, last_end.take().unwrap_or_else(nanos_now));
                    match Job::of(py, job) {
                        Some(Job::Task(handle)) if handle.get().claim_at(now) => {
                            let end = run_claimed(py, &handle, &mut sleepers);
                            last_end = end.filter(|end| end.unheard).map(|end| end.at);
                            drop_handle(py, handle, &slot, &mut sleepers);
                        }
                        Some(Job::Task(handle)) if kind == LaneKind::Callback => {
                            TaskHandle::tell_at_last(py, &handle, &mut sleepers);
                            drop_handle(py, handle, &slot, &mut sleepers);
                        }
                        Some(Job::Items(items)) => {
                            let outer = current::set_batch(Some(items.clone()));
                            last_end = items.run(py, &slot, &mut sleepers, (now, &mut turn));
                            drop(current::set_batch(outer));
                        }
                        Some(Job::Task(_)) | None => {}
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
        current::set(Some((shared.clone(), slot.clone())));
        let result = catch_unwind(AssertUnwindSafe(|| work(py)));
        current::set(None);
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
fn drop_handle(py: Python<'_>, handle: Py<TaskHandle>, slot: &Slot, sleepers: &mut Sleepers) {
    if references(handle.bind(py).as_any()) > 1 {
        return;
    }
    wake(sleepers);
    slot.owes_nothing.store(true, Ordering::Relaxed);
    drop(handle);
    slot.owes_nothing.store(false, Ordering::Relaxed);
}
