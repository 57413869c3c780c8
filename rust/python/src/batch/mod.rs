//! One function called with many items, kept as one record: what `Runtime.map` submits of items
//! that are there already.
//!
//! An item is a place in a list, for as long as nobody wants to see it as a task. Who does (who
//! waits for it, asks `current_task()` in it, cancels it, tells of its failure) has it given a
//! [`handle`](Batch::handle), and from then on that handle is the task, as if it had been submitted
//! alone. In the queue stand tickets for the batch, as many as there may be workers; a worker that
//! takes one runs item after item ([`run`]). A worker that comes to wait for something inside an
//! item puts another ticket into the queue, for the spare worker that takes its place.
//!
//! Longer than most files here: the states of an item, under one lock, are to be read together.
//!
//! What ended items have come to belongs to the one who reads the results, also for the garbage
//! collector.

mod items;
mod reader;
mod run;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use dftracer_core::interrupt_slot::Outer;
use dftracer_core::task_state::state;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::interp::call::{Call, copy_context, copy_of};
use crate::interp::names::derive_name;
use crate::interp::origin::Origin;
use crate::interp::slot::{LaneKind, Slot};
use crate::owner::items::{Items, Ticket};
use crate::owner::job::{NativeOutcome, OutOfTime};
use crate::owner::{Shared, Sleepers, wake};
use crate::task::{Birth, Content, Outcome, TaskHandle};

/// Why items end that a deadline finds.
pub(crate) const OUT_OF_TIME: &str = "the runtime's deadline has passed";

pub(crate) struct Batch {
    shared: Arc<Shared>,
    function: Py<PyAny>,
    /// That of the submission, copied for each item; `None` if it was empty.
    context: Option<Py<PyAny>>,
    origin: Option<Py<Origin>>,
    birth: Birth,
    len: usize,
    /// Locked by attached threads only, and never while Python code runs.
    places: Mutex<Places>,
}

struct Places {
    list: Vec<Place>,
    /// Those before it have been taken out to be run.
    next: usize,
    /// The results of those from here on are not wanted any more.
    wanted: usize,
    /// How many tickets for this batch stand in the queue.
    tickets: usize,
}

struct Place {
    item: Item,
    /// When a worker has called it as an item, as `nanos_now`; 0 before.
    started: u64,
    ended: u64,
}

impl Place {
    /// Whether a worker is in the middle of its call. What it was shown as stays then, whoever has
    /// ended it: the body may ask for its own task.
    fn is_being_called(&self) -> bool {
        self.started != 0 && self.ended == 0
    }
}

/// It goes down this list, never up.
enum Item {
    /// The argument.
    Queued(Py<PyAny>),
    Running,
    /// Somebody wanted to see it: all that there is to know stands in the handle.
    Shown(Py<TaskHandle>),
    /// Ended without a handle.
    Done(Py<PyAny>),
    /// Ended with the error that there was no memory for a handle.
    Failed(Box<PyErr>),
    /// Its deadline has passed before it began.
    OutOfTime,
    /// Its outcome was taken, or is not wanted.
    Gone,
}

/// What is next for a worker.
enum Next {
    /// To be called with this, as it has no handle. Its worker has entered it.
    Call(usize, Py<PyAny>, Outer),
    /// To be claimed through its handle, which may have to be made.
    Claim(usize),
}

impl Batch {
    /// Accepts and queues `function(item)` for each of the items, for the lane of plain callables,
    /// each in its own copy of the current context.
    pub(crate) fn submit(
        function: &Bound<'_, PyAny>,
        shared: &Arc<Shared>,
        origin: Option<Py<Origin>>,
        items: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<Arc<Self>> {
        let (py, count) = (function.py(), items.len());
        let context = copy_context(py)?;
        let tickets = count.min(shared.sizes.python_threads);
        let place = |item: Bound<'_, PyAny>| Place {
            item: Item::Queued(item.unbind()),
            started: 0,
            ended: 0,
        };
        let list = items.into_iter().map(place).collect();
        shared.tasks_begin(count)?;
        let batch = Arc::new(Self {
            shared: shared.clone(),
            function: function.clone().unbind(),
            context,
            origin,
            birth: Birth::now(py, shared, count),
            len: count,
            places: Mutex::new(Places { list, next: 0, wanted: count, tickets: 0 }),
        });
        let items: Weak<dyn Items> = Arc::downgrade(&(batch.clone() as Arc<dyn Items>));
        shared.enter_batch(batch.first_id(), items);
        if let Err(error) = batch.queue_tickets(py, tickets) {
            batch.fail(py, &error);
        }
        Ok(batch)
    }

    pub(crate) fn first_id(&self) -> i64 {
        self.birth.first_id
    }

    /// A worker has taken a ticket.
    fn ticket_taken(&self) {
        self.lock().tickets -= 1;
    }

    fn queue_tickets(self: &Arc<Self>, py: Python<'_>, count: usize) -> PyResult<()> {
        let ticket = Py::new(py, Ticket(self.clone()))?;
        self.lock().tickets += count;
        let tickets = std::iter::repeat_with(|| ticket.clone_ref(py).into_any()).take(count);
        let (sleeper, order) = self.shared.lane(LaneKind::Python).push_all(tickets);
        if let Some(sleeper) = sleeper {
            sleeper.unpark();
        }
        self.shared.obey(LaneKind::Python, order)
    }

    /// The handle of an item, made if there is none; `None` if it has ended without one.
    pub(crate) fn handle(&self, py: Python<'_>, index: usize) -> PyResult<Option<Py<TaskHandle>>> {
        let argument = match &self.lock().list[index].item {
            Item::Shown(handle) => return Ok(Some(handle.clone_ref(py))),
            Item::Done(_) | Item::Failed(_) | Item::Gone => return Ok(None),
            Item::OutOfTime => return self.handle_out_of_time(py, index).map(Some),
            Item::Running => None,
            Item::Queued(argument) => Some(argument.clone_ref(py)),
        };
        // All is made before the lock is taken again: it can run the garbage collector, and that
        // anything.
        let mut call = argument.map(|argument| self.call(py, argument)).transpose()?;
        let has_name = self.origin.as_ref().is_some_and(|origin| origin.get().has_name());
        let name = (!has_name).then(|| derive_name(self.function.bind(py)).unbind());
        let task = TaskHandle::of_birth(
            py,
            &self.birth,
            index,
            self.shared.clone(),
            name,
            Content::Running,
            Some(LaneKind::Python),
            self.origin.as_ref().map(|origin| origin.clone_ref(py)),
            true,
        );
        let handle = Bound::new(py, task)?;
        TaskHandle::untrack(&handle);

        let mut places = self.lock();
        let place = &mut places.list[index];
        match &place.item {
            Item::Queued(_) => handle.get().be_queued(call.take()),
            Item::Running => handle.get().be_running(place.started),
            Item::Shown(faster) => return Ok(Some(faster.clone_ref(py))),
            Item::OutOfTime => {
                drop(places);
                return self.handle_out_of_time(py, index).map(Some);
            }
            _ => return Ok(None),
        }
        TaskHandle::enter_ledger(&self.shared, std::slice::from_ref(&handle));
        let argument = std::mem::replace(&mut place.item, Item::Shown(handle.clone().unbind()));
        drop(places);
        drop(argument);
        Ok(Some(handle.unbind()))
    }

    /// A handle of an item that has run out of time, for the one who asks: all have the same to
    /// tell.
    fn handle_out_of_time(&self, py: Python<'_>, index: usize) -> PyResult<Py<TaskHandle>> {
        let name = self.name(py).unbind();
        let content = Content::Undecoded(self.out_of_time());
        Py::new(py, TaskHandle::of_failure(name, self.first_id() + index as i64, content))
    }

    fn name<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        let of_origin = self.origin.as_ref().and_then(|origin| origin.get().name(py));
        of_origin.unwrap_or_else(|| derive_name(self.function.bind(py)))
    }

    /// How items end that a deadline finds without a handle.
    fn out_of_time(&self) -> Arc<dyn NativeOutcome> {
        static OUTCOME: OnceLock<Arc<dyn NativeOutcome>> = OnceLock::new();
        OUTCOME.get_or_init(|| Arc::new(OutOfTime(OUT_OF_TIME))).clone()
    }

    fn index_of(&self, id: i64) -> Option<usize> {
        usize::try_from(id - self.first_id()).ok().filter(|index| *index < self.len)
    }

    fn call(&self, py: Python<'_>, argument: Py<PyAny>) -> PyResult<Call> {
        let callable = self.function.bind(py).clone();
        match &self.context {
            None => Ok(Call::One { callable: callable.unbind(), argument }),
            Some(context) => {
                let context = copy_of(context.bind(py))?;
                Call::new(callable, PyTuple::new(py, [argument])?, None, Some(context))
            }
        }
    }

    /// Lets everything fail that has not begun.
    fn fail(&self, py: Python<'_>, error: &PyErr) {
        self.show_unfinished(py);
        let mut handles = Vec::new();
        for place in &self.lock().list {
            if let Item::Shown(handle) = &place.item {
                handles.push(handle.clone_ref(py));
            }
        }
        for handle in handles.iter().filter(|handle| handle.get().claim()) {
            TaskHandle::settle(handle, Outcome::Error(error.clone_ref(py)), py);
        }
    }

    /// The next item that has not begun. It begins now, unless there is or is to be a handle: under the
    /// lock, so that whoever is given a handle from now on and cancels it finds who runs it.
    fn begin_next(&self, slot: &Slot, now: u64, with_handle: bool) -> Option<Next> {
        let mut places = self.lock();
        loop {
            let index = places.next;
            let place = places.list.get_mut(index)?;
            let item = match &place.item {
                Item::Queued(_) if !with_handle => {
                    place.started = now;
                    std::mem::replace(&mut place.item, Item::Running)
                }
                Item::Queued(_) | Item::Shown(_) => {
                    places.next += 1;
                    return Some(Next::Claim(index));
                }
                _ => Item::Gone,
            };
            places.next += 1;
            if let Item::Queued(argument) = item {
                slot.since.store(now, Ordering::Relaxed);
                let outer = slot.running.enter(self.first_id() + index as i64);
                return Some(Next::Call(index, argument, outer));
            }
        }
    }

    /// The call of an item has come back; it has a handle, or needs one.
    fn was_called(&self, index: usize, at: u64) {
        self.lock().list[index].ended = at;
    }

    /// Ends an item that runs without a handle; otherwise gives the value back.
    fn end(
        &self,
        index: usize,
        value: Py<PyAny>,
        at: u64,
        sleepers: &mut Sleepers,
    ) -> Result<(), Py<PyAny>> {
        let mut places = self.lock();
        let is_wanted = index < places.wanted;
        let place = &mut places.list[index];
        if !matches!(place.item, Item::Running) {
            return Err(value);
        }
        place.ended = at;
        let (item, unneeded) = match is_wanted {
            true => (Item::Done(value), None),
            false => (Item::Gone, Some(value)),
        };
        place.item = item;
        self.shared.count_ends(state::DONE, 1);
        drop(places);
        drop(unneeded);
        self.have_ended_quietly(1, sleepers);
        Ok(())
    }

    /// Ends an item for which no handle could be made.
    fn end_without(&self, index: usize, error: PyErr, sleepers: &mut Sleepers) {
        let failed = Item::Failed(Box::new(error));
        let item = std::mem::replace(&mut self.lock().list[index].item, failed);
        drop(item);
        self.shared.count_ends(state::FAILED, 1);
        self.have_ended_quietly(1, sleepers);
    }

    fn have_ended(&self, count: usize) {
        let mut sleepers = Sleepers::new();
        self.have_ended_quietly(count, &mut sleepers);
        wake(&mut sleepers);
    }

    /// Adds who is to be woken to `sleepers`.
    fn have_ended_quietly(&self, count: usize, sleepers: &mut Sleepers) {
        if let Some(parent) = &self.birth.parent {
            parent.ended(count);
        }
        self.shared.tasks_ended(count, sleepers);
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.shared.leave_batch(self.first_id());
    }
}
