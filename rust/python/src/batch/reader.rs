//! What the one who reads the results asks of a batch.

use std::sync::Arc;

use dftracer_core::task_state::state;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::{Batch, Item};
use crate::owner::items::Items;
use crate::task::{TaskHandle, cancelled_error};

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes out the value of an item, if it has ended with one and without a handle.
    pub(crate) fn take_value(&self, index: usize) -> Option<Py<PyAny>> {
        let mut places = self.lock();
        let item = &mut places.list[index].item;
        if !matches!(item, Item::Done(_)) {
            return None;
        }
        match std::mem::replace(item, Item::Gone) {
            Item::Done(value) => Some(value),
            _ => None,
        }
    }

    /// Waits for an item, and takes out its result. If the wait fails, the item is cancelled if it
    /// has not begun.
    pub(crate) fn get(&self, py: Python<'_>, index: usize) -> PyResult<Py<PyAny>> {
        if let Some(value) = self.take_value(index) {
            return Ok(value);
        }
        self.shared.process.check()?;
        let Some(handle) = self.handle(py, index)? else {
            // It has ended meanwhile.
            if let Some(value) = self.take_value(index) {
                return Ok(value);
            }
            let item = std::mem::replace(&mut self.lock().list[index].item, Item::Gone);
            return Err(match item {
                Item::Failed(error) => *error,
                _ => cancelled_error(py),
            });
        };
        let handle = handle.bind(py);
        let result = TaskHandle::get(handle, None);
        if result.is_err() && !handle.get().has_begun() {
            TaskHandle::cancel_or_stop(handle)?;
        }
        if handle.get().is_settled() {
            self.forget(index);
        }
        result
    }

    fn forget(&self, index: usize) {
        let mut places = self.lock();
        let place = &mut places.list[index];
        if place.is_being_called() {
            return;
        }
        let item = std::mem::replace(&mut place.item, Item::Gone);
        drop(places);
        drop(item);
    }

    /// Nobody will ask for the results of the items from `first` on: cancels those that have not
    /// begun.
    pub(crate) fn close(&self, py: Python<'_>, first: usize) -> PyResult<()> {
        if self.shared.process.is_copy() {
            return Ok(());
        }
        if self.shared.tracing().is_some() {
            self.show_unfinished(py); // the trace tells of each
        }
        let (mut unneeded, mut handles, mut cancelled) = (Vec::new(), Vec::new(), 0);
        let mut places = self.lock();
        places.wanted = first.min(places.wanted);
        for place in &mut places.list[first..] {
            match &place.item {
                Item::Running | Item::Gone => continue,
                Item::Shown(handle) if !handle.get().is_settled() || place.is_being_called() => {
                    handles.push(handle.clone_ref(py));
                    continue;
                }
                Item::Queued(_) => cancelled += 1,
                Item::Shown(_) | Item::Done(_) | Item::Failed(_) | Item::OutOfTime => {}
            }
            unneeded.push(std::mem::replace(&mut place.item, Item::Gone));
        }
        self.shared.count_ends(state::CANCELLED, cancelled);
        drop(places);
        drop(unneeded);
        self.have_ended(cancelled);
        let mut outcome = Ok(());
        for handle in handles.iter().filter(|handle| !handle.get().has_begun()) {
            // A callback may raise what stops a program: all others are cancelled all the same.
            outcome = outcome.and(TaskHandle::cancel_or_stop(handle.bind(py)).map(drop));
        }
        outcome
    }

    /// Drops what ended items have come to, as the garbage collector wants it.
    pub(crate) fn clear(&self) {
        let mut unneeded = Vec::new();
        let mut places = self.lock();
        places.wanted = 0;
        for place in &mut places.list {
            if matches!(place.item, Item::Done(_)) {
                unneeded.push(std::mem::replace(&mut place.item, Item::Gone));
            }
        }
        drop(places);
        drop(unneeded);
    }

    /// Shows the garbage collector what the reader of the results holds through this.
    ///
    /// What its calls need belongs to the workers, through their tickets, as long as there are any:
    /// these count as users that the collector does not know. Who holds a batch changes only while
    /// a thread is attached.
    pub(crate) fn traverse(self: &Arc<Self>, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let is_all_ours = Arc::strong_count(self) == 1;
        if is_all_ours {
            visit.call(&self.function)?;
            visit.call(&self.context)?;
            visit.call(&self.origin)?;
        }
        // Never locked while the collector runs, see `places`.
        if let Ok(places) = self.places.try_lock() {
            for place in &places.list {
                match &place.item {
                    Item::Done(value) => visit.call(value)?,
                    Item::Shown(handle) => visit.call(handle)?,
                    Item::Queued(argument) if is_all_ours => visit.call(argument)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
