//! The failures of tasks, as they are kept, and the handles that are made of them later.

use std::sync::Arc;

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTraceback, PyTuple};

use super::{Content, TaskHandle};
use crate::interp::call::call_one;
use crate::interp::names;
use crate::interp::once::{Lazy, intern};
use crate::owner::Shared;
use crate::owner::failures::{End, Failure, NewFailure};
use crate::owner::job::NativeOutcome;
use crate::trace::failure::describe;

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

/// What is to be kept of a task that is about to fail with this content.
pub(super) fn of_task(
    py: Python<'_>,
    shared: &Shared,
    handle: &Py<TaskHandle>,
    content: &Content,
) -> NewFailure {
    if !shared.has_room_for_failures() {
        return NewFailure::default();
    }
    let this = handle.get();
    let end = match content {
        _ if shared.keeps_frames() => End::Whole(handle.clone_ref(py).into_any()),
        Content::Error { exception, traceback } => {
            let traceback = traceback.as_ref().map(|traceback| traceback.bind(py).clone());
            End::Error(stand_in(py, exception.bind(py), traceback))
        }
        Content::Undecoded(outcome) => End::Native(outcome.clone()),
        _ => return NewFailure::default(),
    };
    let name = this.name_now(py).unbind();
    let failure = Failure { id: this.task_id, entry: this.entry(), name, end };
    NewFailure(Some([failure.clone_ref(py), failure]))
}

/// Of a native task that is about to end so, on a thread without the interpreter.
pub(super) fn of_native(
    shared: &Shared,
    task: &TaskHandle,
    spare: [Spare; 2],
    outcome: &Arc<dyn NativeOutcome>,
) -> NewFailure {
    let with_frames = shared.keeps_frames();
    let failure = |Spare { handle, name }: Spare| {
        let end = match with_frames {
            true => End::Whole(handle.into_any()),
            false => End::Native(outcome.clone()),
        };
        Failure { id: task.task_id, entry: task.entry(), name, end }
    };
    NewFailure(shared.has_room_for_failures().then(|| spare.map(failure)))
}

/// The task's own handle if somebody holds that, or another that tells the same. It is made for
/// the caller alone: an exception that is raised collects the frames it passes.
pub(crate) fn handle_of<'py>(
    py: Python<'py>,
    shared: &Shared,
    failure: &Failure,
) -> PyResult<Bound<'py, TaskHandle>> {
    if let End::Whole(handle) = &failure.end {
        return Ok(handle.bind(py).clone().cast_into()?);
    }
    if let Some(handle) = own_handle(py, shared, failure) {
        return Ok(handle.into_bound(py));
    }
    let content = match &failure.end {
        End::Error(exception) => {
            let exception = stand_in(py, exception.bind(py), traceback_of(exception.bind(py)));
            let traceback = traceback_of(exception.bind(py)).map(Bound::unbind);
            Content::Error { exception, traceback }
        }
        End::Native(outcome) => Content::Undecoded(outcome.clone()),
        End::Whole(_) => Content::Cancelled, // answered above
    };
    Bound::new(py, TaskHandle::of_failure(failure.name.clone_ref(py), failure.id, content))
}

/// The class and text of its exception.
pub(crate) fn text_of(py: Python<'_>, shared: &Shared, failure: &Failure) -> PyResult<String> {
    Ok(match &failure.end {
        End::Error(exception) => names::describe(exception.bind(py)),
        End::Whole(_) | End::Native(_) => {
            names::describe(&handle_of(py, shared, failure)?.getattr("exception")?)
        }
    })
}

fn own_handle(py: Python<'_>, shared: &Shared, failure: &Failure) -> Option<Py<TaskHandle>> {
    TaskHandle::living(py, shared, failure.entry?, failure.id)
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
