//! What becomes of tasks, on its way to an event loop.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use dftracer_core::sched::completion::CompletionQueue as CoreMailbox;
use dftracer_core::task_state::state;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::TaskHandle;
use super::completion::{Completion, Event};
use crate::interp::fork::Process;
use crate::interp::once::intern;
use crate::interp::signals;

/// A queue of outcomes, on their way to an event loop, which is woken once per burst.
#[pyclass(frozen, weakref, module = "dftracer.utils._native")]
pub(crate) struct Mailbox {
    pub(crate) core: Arc<CoreMailbox<Completion>>,
    /// What the reader calls the states of a task, from `RUNNING` on.
    states: [Py<PyAny>; 4],
    /// In which it was made: in a copy, the lock of what waits may be held for ever.
    process: Process,
}

#[pymethods]
impl Mailbox {
    #[new]
    #[pyo3(signature = (states=None))]
    fn new(py: Python<'_>, states: Option<[Py<PyAny>; 4]>) -> PyResult<Self> {
        let states = states.unwrap_or_else(|| {
            let names = [
                intern!(py, "running"),
                intern!(py, "done"),
                intern!(py, "failed"),
                intern!(py, "cancelled"),
            ];
            names.map(|name| name.clone().into_any().unbind())
        });
        let core = Arc::new(CoreMailbox::new()?);
        Ok(Self { core, states, process: Process::current() })
    }

    /// Return the descriptor that is readable while something waits.
    fn fileno(&self) -> i32 {
        self.core.fileno()
    }

    /// Post, from any thread, that the task of ``token`` begins now.
    fn post(&self, token: Py<PyAny>) {
        self.core.push(Completion::begun(token));
    }

    /// Take what is oldest, at most ``limit``: token, state, and value or exception.
    ///
    /// For ``running`` the value is the time at which the task began, in seconds since the epoch.
    ///
    /// With ``look`` it is given a moment, of at most 50 µs, in which something may come: where
    /// such moments have not been in vain lately.
    ///
    /// They are added to ``into``, a list, where a signal's handler that raises when this returns does
    /// not lose them.
    #[pyo3(signature = (limit, *, look=false, into=None))]
    fn drain<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        look: bool,
        into: Option<Bound<'py, PyList>>,
    ) -> PyResult<Bound<'py, PyList>> {
        // Looked for without the interpreter, but taken with it, see `__traverse__`.
        let completions = match look {
            true if !signals::look(py, || self.core.spin()) => Vec::new(),
            true => self.core.take(limit),
            false => self.core.drain(limit),
        };
        let items = into.unwrap_or_else(|| PyList::empty(py));
        for Completion { token, event } in completions {
            match event {
                Event::Begun(at) => {
                    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
                    items.append((token, self.name(py, state::RUNNING), seconds))?;
                }
                Event::Ended(handle) => {
                    let handle = handle.bind(py).cast::<TaskHandle>()?;
                    let (state, value) = handle.get().report(py);
                    items.append((token, self.name(py, state), value))?;
                }
            }
        }
        Ok(items)
    }

    /// What waits for the reader is this object's, whoever else can post. Any thread adds to it; it
    /// is taken away by attached threads only, see [`gc`](crate::interp::gc).
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut shown = self.states.iter().try_for_each(|state| visit.call(state));
        if !self.process.is_copy() {
            self.core.for_each(|completion| {
                if shown.is_ok() {
                    shown = completion.traverse(&visit);
                }
            });
        }
        shown
    }

    fn __clear__(&self) {
        if !self.process.is_copy() {
            let unread = self.core.take_all();
            drop(unread);
        }
    }
}

impl Mailbox {
    /// What the reader calls a state.
    fn name<'py>(&self, py: Python<'py>, state: u8) -> &Bound<'py, PyAny> {
        self.states[usize::from(state - state::RUNNING)].bind(py)
    }
}
