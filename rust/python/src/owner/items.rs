//! Batches, as those see them who do not know what a batch is made of.

use std::sync::Arc;

use pyo3::prelude::*;

use super::Sleepers;
use super::look::Shown;
use crate::interp::signals::Turn;
use crate::interp::slot::Slot;

/// Tasks that are kept as one record, each a task of its own only for those who ask for its handle.
/// Handles are `TaskHandle`s.
pub(crate) trait Items: Send + Sync {
    /// Whether the task with that id is one of these.
    fn has(&self, id: i64) -> bool;

    /// How many no worker has come to yet, and how many tickets stand for them in the queue.
    fn queued(&self) -> (usize, usize);

    /// Lets another worker go on with them, if there is something left: this one cannot.
    fn pass_on(self: Arc<Self>, py: Python<'_>) -> PyResult<()>;

    /// The handle of the one with that task id, made if there is none.
    fn handle_of(&self, py: Python<'_>, id: i64) -> Option<Py<PyAny>>;

    /// The same, unless nobody has wanted to see it as a task yet.
    fn shown(&self, py: Python<'_>, id: i64) -> Option<Py<PyAny>>;

    /// Gives every one that has not ended a handle, for somebody who looks for those.
    fn show_unfinished(&self, py: Python<'_>);

    /// Tells of every one that has no handle.
    fn tell(&self, py: Python<'_>, tell: &mut dyn FnMut(Shown));

    /// Ends every one that has not begun, as failed, and shows those that are being called.
    fn run_out(&self, py: Python<'_>);

    /// Runs one after the other, as the worker that has taken a ticket, until none is left that has not
    /// begun. Begins and ends with the time, if nothing has happened since.
    fn run(
        self: Arc<Self>,
        py: Python<'_>,
        slot: &Slot,
        sleepers: &mut Sleepers,
        now: (u64, &mut Turn),
    ) -> Option<u64>;
}

/// What stands for items in the queue of a lane: a worker that takes it runs some of them.
#[pyclass(frozen, module = "dftracer.utils._native")]
pub(crate) struct Ticket(pub(crate) Arc<dyn Items>);
