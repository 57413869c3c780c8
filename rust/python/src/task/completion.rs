//! What happens to a task, on its way to an event loop.

use std::time::SystemTime;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

/// One task, by the object that its submitter gave to recognise it by, and what has happened to it.
pub(crate) struct Completion {
    pub(crate) token: Py<PyAny>,
    pub(crate) event: Event,
}

pub(crate) enum Event {
    /// It has begun, at this time.
    Begun(SystemTime),
    /// It has ended: its handle, which knows the outcome.
    Ended(Py<PyAny>),
}

impl Completion {
    /// That the task of `token` begins now.
    pub(crate) fn begun(token: Py<PyAny>) -> Self {
        Self { token, event: Event::Begun(SystemTime::now()) }
    }

    /// Shows the garbage collector what this holds.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.token)?;
        match &self.event {
            Event::Begun(_) => Ok(()),
            Event::Ended(handle) => visit.call(handle),
        }
    }
}
