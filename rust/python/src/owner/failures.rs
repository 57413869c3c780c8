//! The failures that a runtime keeps, for those who ask later what has gone wrong.
//!
//! A failed task is kept without what it has worked on. As long as somebody holds its handle, that is
//! what is given out; afterwards a handle is made of what was taken down when it failed: a copy of
//! the exception, whose traceback has the same lines but none of the frames, which would hold all
//! variables of all functions on the way, and those of whoever has asked for the outcome.

use std::sync::Arc;

use dftracer_core::registry::Entry;
use pyo3::PyTraverseError;
use pyo3::exceptions::PyBaseException;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::job::NativeOutcome;

/// How many failures are kept, the first ones; the others are counted.
pub(crate) const MOST: usize = 10_000;

/// A task that has failed.
pub(crate) struct Failure {
    pub(crate) id: i64,
    pub(crate) entry: Option<Entry>,
    pub(crate) name: Py<PyString>,
    pub(crate) end: End,
}

/// How it has ended.
pub(crate) enum End {
    /// All that there is to know, frames and variables too.
    Whole(Py<PyAny>),
    /// A copy of the exception that nobody else has.
    Error(Py<PyBaseException>),
    /// Without the interpreter.
    Native(Arc<dyn NativeOutcome>),
}

/// What two lists are to keep of a task that is about to fail: each its own references, so that the
/// garbage collector sees every one of them once. `None` is only counted.
#[derive(Default)]
pub(crate) struct NewFailure(pub(crate) Option<[Failure; 2]>);

/// The first failures, and how many more there were.
#[derive(Default)]
pub(crate) struct Bounded {
    pub(crate) list: Vec<Failure>,
    pub(crate) more: u64,
}

#[derive(Default)]
pub(crate) struct Failures {
    /// Since the last `clear_failed`, which empties both.
    pub(crate) all: Bounded,
    /// Since the last `wait_all`.
    pub(crate) unreported: Bounded,
    /// Whether nobody can ask any more.
    is_closed: bool,
}

impl Failure {
    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        let end = match &self.end {
            End::Whole(handle) => End::Whole(handle.clone_ref(py)),
            End::Error(exception) => End::Error(exception.clone_ref(py)),
            End::Native(outcome) => End::Native(outcome.clone()),
        };
        Self { id: self.id, entry: self.entry, name: self.name.clone_ref(py), end }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.name)?;
        match &self.end {
            End::Whole(handle) => visit.call(handle),
            End::Error(exception) => visit.call(exception),
            End::Native(_) => Ok(()),
        }
    }
}

impl NewFailure {
    /// Of an item of a batch that has no handle.
    pub(crate) fn of_item(
        id: i64,
        name: &Bound<'_, PyString>,
        outcome: &Arc<dyn NativeOutcome>,
        has_room: bool,
    ) -> Self {
        let failure = || {
            let end = End::Native(outcome.clone());
            Failure { id, entry: None, name: name.clone().unbind(), end }
        };
        Self(has_room.then(|| [failure(), failure()]))
    }
}

impl Bounded {
    fn has_room(&self) -> bool {
        self.list.len() < MOST
    }

    /// Gives it back if it is only counted.
    fn add(&mut self, failure: Option<Failure>) -> Option<Failure> {
        if self.has_room()
            && let Some(failure) = failure
        {
            self.list.push(failure);
            return None;
        }
        self.more += 1;
        failure
    }
}

impl Failures {
    pub(crate) fn has_room(&self) -> bool {
        !self.is_closed && (self.all.has_room() || self.unreported.has_room())
    }

    /// Gives back what is not kept, to be dropped when nothing is locked.
    pub(crate) fn add(&mut self, NewFailure(failure): NewFailure) -> [Option<Failure>; 2] {
        let (one, two) = match failure {
            Some([one, two]) => (Some(one), Some(two)),
            None => (None, None),
        };
        if self.is_closed { [one, two] } else { [self.all.add(one), self.unreported.add(two)] }
    }

    /// Empties it; what was in it is to be dropped when nothing is locked.
    pub(crate) fn clear(&mut self) -> [Bounded; 2] {
        [std::mem::take(&mut self.all), std::mem::take(&mut self.unreported)]
    }

    /// Empties it for ever.
    pub(crate) fn close(&mut self) -> [Bounded; 2] {
        self.is_closed = true;
        self.clear()
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.all.list.iter().chain(&self.unreported.list).try_for_each(|each| each.traverse(visit))
    }
}
