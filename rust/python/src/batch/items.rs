//! A batch, as the rest of the runtime sees it.

use std::sync::Arc;

use dftracer_core::task_state::state;
use pyo3::prelude::*;

use super::run::run;
use super::{Batch, Item};
use crate::interp::clock::nanos_now;
use crate::interp::signals::Turn;
use crate::interp::slot::Slot;
use crate::owner::Sleepers;
use crate::owner::items::Items;
use crate::owner::look::{Look, Shown};

impl Items for Batch {
    /// Whether the task with that id is one of its items.
    fn has(&self, id: i64) -> bool {
        self.index_of(id).is_some()
    }

    /// The handle of the item with that task id.
    fn handle_of(&self, py: Python<'_>, id: i64) -> Option<Py<PyAny>> {
        self.handle(py, self.index_of(id)?).ok().flatten().map(Py::into_any)
    }

    /// The same, unless nobody has wanted to see it as a task yet.
    fn shown(&self, py: Python<'_>, id: i64) -> Option<Py<PyAny>> {
        match &self.lock().list[self.index_of(id)?].item {
            Item::Shown(handle) => Some(handle.clone_ref(py).into_any()),
            _ => None,
        }
    }

    /// Gives every item that has not ended a handle, for somebody who looks for those.
    fn show_unfinished(&self, py: Python<'_>) {
        for index in 0..self.len {
            if matches!(self.lock().list[index].item, Item::OutOfTime) {
                continue;
            }
            if let Err(error) = self.handle(py, index) {
                error.write_unraisable(py, None);
            }
        }
    }

    /// Tells of every item that has no handle, under the lock.
    fn tell(&self, py: Python<'_>, tell: &mut dyn FnMut(Shown)) {
        let parent = self.birth.parent.as_ref().map(|family| family.parent);
        for (index, place) in self.lock().list.iter().enumerate() {
            let state = match &place.item {
                Item::Queued(_) => state::QUEUED,
                Item::Running => state::RUNNING,
                Item::Done(_) => state::DONE,
                Item::Failed(_) | Item::OutOfTime => state::FAILED,
                Item::Shown(_) | Item::Gone => continue,
            };
            tell(Shown {
                id: self.first_id() + index as i64,
                look: Look { state, name: None, callable: Some(self.function.clone_ref(py)) },
                origin: self.origin.as_ref().map(|origin| origin.clone_ref(py)),
                submitted: self.birth.at,
                started: place.started,
                ended: place.ended,
                parent,
            });
        }
    }

    /// How many items no worker has come to yet, and how many tickets stand for them in the queue.
    fn queued(&self) -> (usize, usize) {
        let places = self.lock();
        (self.len - places.next, places.tickets)
    }

    /// Lets another worker go on with the batch, if there is something left: this one cannot.
    fn pass_on(self: Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let places = self.lock();
        let is_enough = places.tickets >= self.len - places.next;
        drop(places);
        if is_enough { Ok(()) } else { self.queue_tickets(py, 1) }
    }

    /// Ends every item that has not begun, as failed, and shows those that are being called. No
    /// item is made a task for that.
    fn run_out(&self, py: Python<'_>) {
        let name = self.name(py);
        let (mut ended, mut arguments, mut running) = (Vec::new(), Vec::new(), Vec::new());
        let at = nanos_now();
        let mut places = self.lock();
        for (index, place) in places.list.iter_mut().enumerate() {
            match &place.item {
                Item::Queued(_) => {
                    arguments.push(std::mem::replace(&mut place.item, Item::OutOfTime));
                    place.ended = at;
                    ended.push(self.first_id() + index as i64);
                }
                Item::Running => running.push(index),
                _ => {}
            }
        }
        // Those that are left have handles, which are ended like all others.
        places.next = self.len;
        // Attached, so that whoever sees them as ended finds them among the failures.
        self.shared.count_ends(state::FAILED, ended.len());
        drop(places);
        self.shared.record_failures(&ended, &name, &self.out_of_time());
        drop(arguments);
        self.have_ended(ended.len());
        for index in running {
            if let Err(error) = self.handle(py, index) {
                error.write_unraisable(py, None);
            }
        }
    }

    fn run(
        self: Arc<Self>,
        py: Python<'_>,
        slot: &Slot,
        sleepers: &mut Sleepers,
        now: (u64, &mut Turn),
    ) -> Option<u64> {
        self.ticket_taken();
        run(py, &self, slot, sleepers, now)
    }
}
