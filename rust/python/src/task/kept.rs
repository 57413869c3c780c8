//! The failures that a runtime keeps, for those who ask later what has gone wrong.
//!
//! A failed task is kept without what it has worked on. As long as somebody holds its handle, that is
//! what is given out; afterwards a handle is made of what was taken down when it failed: a copy of
//! the exception, whose traceback has the same lines but none of the frames, which would hold all
//! variables of all functions on the way, and those of whoever has asked for the outcome.

use std::sync::Arc;

use dftracer_core::registry::Entry;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict, PyString, PyTraceback, PyTuple};

use crate::interp::call::call_one;
use crate::interp::names;
use crate::interp::once::{Lazy, intern};
use crate::runtime::shared::Shared;
use crate::task::job::NativeOutcome;
use crate::task::{Content, TaskHandle};
use crate::trace::failure::describe;

/// How many failures are kept, the first ones; the others are counted.
pub(crate) const MOST: usize = 10_000;

/// A task that has failed.
pub(crate) struct Failure {
    pub(crate) id: i64,
    entry: Option<Entry>,
    pub(crate) name: Py<PyString>,
    end: End,
}

/// How it has ended.
enum End {
    /// All that there is to know, frames and variables too.
    Whole(Py<TaskHandle>),
    /// A copy of the exception that nobody else has.
    Error(Py<PyBaseException>),
    /// Without the interpreter.
    Native(Arc<dyn NativeOutcome>),
}

/// What the record of a native task's failure will need of Python: made while there is an interpreter.
pub(crate) struct Spare {
    pub(crate) handle: Py<TaskHandle>,
    pub(crate) name: Py<PyString>,
}

impl Spare {
    pub(crate) fn of(handle: &Bound<'_, TaskHandle>) -> Self {
        Self { handle: handle.clone().unbind(), name: handle.get().name_now(handle.py()).unbind() }
    }
}

/// What two lists are to keep of a task that is about to fail: each its own references, so that the
/// garbage collector sees every one of them once. `None` is only counted.
#[derive(Default)]
pub(crate) struct NewFailure(Option<[Failure; 2]>);

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

    /// The task's own handle if somebody holds that, or another that tells the same. It is made for
    /// the caller alone: an exception that is raised collects the frames it passes.
    pub(crate) fn handle<'py>(
        &self,
        py: Python<'py>,
        shared: &Shared,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let content = match &self.end {
            End::Whole(handle) => return Ok(handle.bind(py).clone()),
            End::Error(exception) => {
                if let Some(handle) = self.own_handle(py, shared) {
                    return Ok(handle.into_bound(py));
                }
                let exception = stand_in(py, exception.bind(py), traceback_of(exception.bind(py)));
                let traceback = traceback_of(exception.bind(py)).map(Bound::unbind);
                Content::Error { exception, traceback }
            }
            End::Native(outcome) => {
                if let Some(handle) = self.own_handle(py, shared) {
                    return Ok(handle.into_bound(py));
                }
                Content::Undecoded(outcome.clone())
            }
        };
        Bound::new(py, TaskHandle::of_failure(self.name.clone_ref(py), self.id, content))
    }

    /// The class and text of its exception.
    pub(crate) fn text(&self, py: Python<'_>, shared: &Shared) -> PyResult<String> {
        Ok(match &self.end {
            End::Error(exception) => names::describe(exception.bind(py)),
            End::Whole(_) | End::Native(_) => {
                names::describe(&self.handle(py, shared)?.getattr("exception")?)
            }
        })
    }

    fn own_handle(&self, py: Python<'_>, shared: &Shared) -> Option<Py<TaskHandle>> {
        shared
            .ledger
            // SAFETY: called under the ledger's lock.
            .with(self.entry?, |address| unsafe { address.hold(py) })
            .flatten()
            .filter(|handle| handle.get().task_id == self.id)
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
    /// Of a task that is about to end with that content.
    pub(crate) fn of(
        py: Python<'_>,
        handle: &Py<TaskHandle>,
        content: &Content,
        has_room: bool,
        with_frames: bool,
    ) -> Self {
        if !has_room {
            return Self(None);
        }
        let this = handle.get();
        let end = match content {
            _ if with_frames => End::Whole(handle.clone_ref(py)),
            Content::Error { exception, traceback } => {
                let traceback = traceback.as_ref().map(|traceback| traceback.bind(py).clone());
                End::Error(stand_in(py, exception.bind(py), traceback))
            }
            Content::Undecoded(outcome) => End::Native(outcome.clone()),
            _ => return Self(None),
        };
        let name = this.name_now(py).unbind();
        let failure = Failure { id: this.task_id, entry: this.entry(), name, end };
        Self(Some([failure.clone_ref(py), failure]))
    }

    /// Of a native task that is about to end so, on a thread without the interpreter.
    pub(crate) fn of_native(
        task: &TaskHandle,
        spare: [Spare; 2],
        outcome: &Arc<dyn NativeOutcome>,
        has_room: bool,
        with_frames: bool,
    ) -> Self {
        let failure = |Spare { handle, name }: Spare| {
            let end = match with_frames {
                true => End::Whole(handle),
                false => End::Native(outcome.clone()),
            };
            Failure { id: task.task_id, entry: task.entry(), name, end }
        };
        Self(has_room.then(|| spare.map(failure)))
    }

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

/// A copy of an exception without the frames of its traceback; where it cannot be copied, another
/// that says what it was.
fn stand_in(
    py: Python<'_>,
    exception: &Bound<'_, PyBaseException>,
    traceback: Option<Bound<'_, PyTraceback>>,
) -> Py<PyBaseException> {
    static STAND_IN: Lazy<Py<PyAny>> = Lazy::new();
    let make = || -> PyResult<Py<PyBaseException>> {
        let stand_in = STAND_IN.import(py, "dftracer.utils.failures.copies", "stand_in")?;
        let argument =
            PyTuple::new(py, [exception.as_any(), traceback.into_pyobject(py)?.as_any()])?;
        let made = call_one(py, stand_in.as_unbound(), argument.as_any().as_unbound())?;
        Ok(made.cast_into::<PyBaseException>()?.unbind())
    };
    make().unwrap_or_else(|_| {
        let told = describe(exception.as_any(), None);
        PyRuntimeError::new_err(format!("{}: {}", told.error, told.message)).into_value(py)
    })
}

fn traceback_of<'py>(exception: &Bound<'py, PyBaseException>) -> Option<Bound<'py, PyTraceback>> {
    exception.getattr(intern!(exception.py(), "__traceback__")).ok()?.cast_into().ok()
}

/// A frame that runs nothing and holds no variables, to stand in a traceback. `code` has no free
/// variables, which a frame would look for in its function.
#[pyfunction]
#[pyo3(signature = (code, globals, /))]
pub(crate) fn bare_frame<'py>(
    code: &Bound<'py, PyCode>,
    globals: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = code.py();
    if code.getattr(intern!(py, "co_freevars"))?.len()? > 0 {
        return Err(PyValueError::new_err("the code of a bare frame has no free variables"));
    }
    // SAFETY: attached; a code object and a dictionary, both live; a new reference or null with an
    // exception set.
    unsafe {
        let frame = ffi::PyFrame_New(
            ffi::PyThreadState_Get(),
            code.as_ptr().cast(),
            globals.as_ptr(),
            std::ptr::null_mut(),
        );
        Bound::from_owned_ptr_or_err(py, frame.cast())
    }
}
