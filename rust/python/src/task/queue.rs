//! Putting tasks into the queues of their runtime, and finding those that it has.

use std::num::NonZeroU64;
use std::sync::Arc;

use dftracer_core::sched::lane::Order;
use pyo3::prelude::*;

use super::{Outcome, TaskHandle};
use crate::interp::slot::LaneKind;
use crate::owner::Shared;
use crate::owner::items::{Items, Ticket};

/// What a worker takes out of a queue.
pub(crate) enum Job {
    Task(Py<TaskHandle>),
    Items(Arc<dyn Items>),
}

impl Job {
    #[inline]
    pub(crate) fn of(py: Python<'_>, job: Py<PyAny>) -> Option<Self> {
        match job.into_bound(py).cast_into_exact::<TaskHandle>() {
            Ok(task) => Some(Self::Task(task.unbind())),
            Err(other) => {
                let other = other.into_inner().cast_into_exact::<Ticket>().ok()?;
                Some(Self::Items(other.get().0.clone()))
            }
        }
    }
}

/// Queues a task that was accepted. It ends in a settled handle even if no thread can run it.
pub(crate) fn push(shared: &Arc<Shared>, kind: LaneKind, handle: &Bound<'_, TaskHandle>) {
    let order = shared.lane(kind).push(handle.clone().into_any().unbind());
    obey_or_fail(shared, kind, order, std::slice::from_ref(handle));
}

/// As `push` for many; if there is a turn, ahead of what waits, but for what is of that turn.
///
/// The woken worker gets the interpreter at once: this thread lets go of it before it wakes, and
/// takes it again when the worker sleeps or its time slice is over.
pub(crate) fn push_all(
    shared: &Arc<Shared>,
    py: Python<'_>,
    kind: LaneKind,
    turn: Option<NonZeroU64>,
    handles: &[Bound<'_, TaskHandle>],
) {
    let jobs = handles.iter().map(|handle| handle.clone().into_any().unbind());
    let (sleeper, order) = match turn {
        Some(turn) => shared.lane(kind).push_all_ahead(turn.get(), jobs),
        None => shared.lane(kind).push_all(jobs),
    };
    if let Some(sleeper) = sleeper {
        py.detach(|| sleeper.unpark());
    }
    obey_or_fail(shared, kind, order, handles);
}

/// As `push` for many, of a submitter that goes on submitting or is about to wait.
pub(crate) fn push_each(shared: &Arc<Shared>, kind: LaneKind, handles: &[Bound<'_, TaskHandle>]) {
    let jobs = handles.iter().map(|handle| handle.clone().into_any().unbind());
    let (sleeper, order) = shared.lane(kind).push_all(jobs);
    if let Some(sleeper) = sleeper {
        sleeper.unpark();
    }
    obey_or_fail(shared, kind, order, handles);
}

fn obey_or_fail(
    shared: &Arc<Shared>,
    kind: LaneKind,
    order: Order,
    handles: &[Bound<'_, TaskHandle>],
) {
    let Err(error) = shared.obey(kind, order) else { return };
    for handle in handles.iter().filter(|handle| handle.get().claim()) {
        let outcome = Outcome::Error(error.clone_ref(handle.py()));
        TaskHandle::settle(handle.as_unbound(), outcome, handle.py());
    }
}

/// The handles of all tasks that have not ended; also of some that have.
pub(crate) fn hold_unfinished(shared: &Shared, py: Python<'_>) -> Vec<Py<TaskHandle>> {
    for batch in shared.batches() {
        batch.show_unfinished(py);
    }
    hold_all(shared, py)
}

/// The handles that are alive, whose tasks may have ended.
pub(crate) fn hold_all(shared: &Shared, py: Python<'_>) -> Vec<Py<TaskHandle>> {
    let handles = shared.living.hold_all(py);
    handles.into_iter().filter_map(|handle| TaskHandle::of(py, handle)).collect()
}
