//! One call for each item, and their results in order: what `Runtime.map` returns.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyRange, PyTuple};

use super::api::{Runtime, Submitted};
use crate::batch::Batch;
use crate::interp::guard;
use crate::task::TaskHandle;

/// How many calls are submitted at a time, of items that are there already.
const BATCH: usize = 256;

/// The results of one call for each item, in order; see :meth:`dftracer.utils.Runtime.map`.
#[pyclass(frozen, generic, subclass, module = "dftracer.utils._native")]
pub(crate) struct Results {
    state: Mutex<State>,
    /// Whether each item is a tuple of arguments; otherwise it is the one argument.
    spread: bool,
}

#[derive(Default)]
struct State {
    /// Those whose results have not been taken.
    calls: VecDeque<Calls>,
    /// What is not submitted yet.
    rest: Option<Rest>,
}

enum Calls {
    One(Py<TaskHandle>),
    /// The items of a batch from this one on.
    Many(Arc<Batch>, usize),
}

/// A result to be waited for.
enum Awaited {
    Call(Py<TaskHandle>),
    Item(Arc<Batch>, usize),
}

struct Rest {
    runtime: Py<Runtime>,
    function: Py<PyAny>,
    items: Py<PyIterator>,
}

impl Results {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits the call of the next item, if there is one and it is to be read now.
    fn refill(&self, py: Python<'_>) -> PyResult<()> {
        let rest = self.lock().rest.as_ref().map(|rest| {
            let Rest { runtime, function, items } = rest;
            (runtime.clone_ref(py), function.clone_ref(py), items.clone_ref(py))
        });
        let Some((runtime, function, items)) = rest else { return Ok(()) };
        // Unlocked: reading an item can run anything.
        if let Some(item) = guard::within_call(py, || items.into_bound(py).next()) {
            let calls = runtime.get().submit_each(function.bind(py), self.spread, vec![item?])?;
            self.lock().add(calls);
        }
        Ok(())
    }

    /// Waits for the next result; `None` if there is none.
    fn next_result(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        let awaited = self.lock().take_next()?;
        match awaited {
            Awaited::Item(batch, index) => Some(batch.get(py, index)),
            Awaited::Call(handle) => {
                let result = TaskHandle::get(handle.bind(py), None);
                if result.is_err() {
                    self.lock().calls.push_front(Calls::One(handle));
                }
                Some(result)
            }
        }
    }
}

impl State {
    fn add(&mut self, submitted: Submitted) {
        match submitted {
            Submitted::Together(batch) => self.calls.push_back(Calls::Many(batch, 0)),
            Submitted::OneByOne(handles) => self.calls.extend(handles.into_iter().map(Calls::One)),
        }
    }

    /// The next result, where that takes nothing but to take it: most are so.
    fn take_ready(&mut self) -> Option<Py<PyAny>> {
        match (self.calls.front_mut()?, &self.rest) {
            (Calls::Many(batch, next), None) if *next + 1 < batch.len() => {
                let value = batch.take_value(*next)?;
                *next += 1;
                Some(value)
            }
            _ => None,
        }
    }

    fn take_next(&mut self) -> Option<Awaited> {
        if let Calls::Many(batch, next) = self.calls.front_mut()? {
            let index = *next;
            *next += 1;
            if *next < batch.len() {
                return Some(Awaited::Item(batch.clone(), index));
            }
        }
        // Moved out, not dropped: that could run anything.
        Some(match self.calls.pop_front()? {
            Calls::One(handle) => Awaited::Call(handle),
            Calls::Many(batch, next) => Awaited::Item(batch, next - 1),
        })
    }
}

#[pymethods]
impl Results {
    #[new]
    fn new(
        runtime: Bound<'_, Runtime>,
        function: Bound<'_, PyAny>,
        items: &Bound<'_, PyAny>,
        spread: bool,
        buffersize: Option<usize>,
    ) -> PyResult<Self> {
        // To read these takes no time and runs nobody's code, so they are read in batches. What
        // comes from elsewhere is submitted one by one, as it comes.
        let at_hand = items.is_exact_instance_of::<PyRange>()
            || items.is_exact_instance_of::<PyList>()
            || items.is_exact_instance_of::<PyTuple>();
        let batch_size = if at_hand { BATCH } else { 1 };
        let py = items.py();
        let items = items.try_iter()?;
        let mut state = State::default();
        let mut first = items.clone().take(buffersize.unwrap_or(usize::MAX));
        loop {
            let read = || first.by_ref().take(batch_size).collect::<PyResult<Vec<_>>>();
            let batch = guard::within_call(py, read)?;
            if batch.is_empty() {
                break;
            }
            state.add(runtime.get().submit_each(&function, spread, batch)?);
        }
        state.rest = buffersize.is_some().then(|| Rest {
            runtime: runtime.unbind(),
            function: function.unbind(),
            items: items.unbind(),
        });
        Ok(Self { state: Mutex::new(state), spread })
    }

    fn __iter__(self_: Py<Self>) -> Py<Self> {
        self_
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if let Some(value) = self.lock().take_ready() {
            return Ok(Some(value));
        }
        let Some(result) = self.next_result(py) else { return Ok(None) };
        let taken = result.and_then(|result| self.refill(py).map(|()| Some(result)));
        if taken.is_err() {
            self.close(py)?;
        }
        taken
    }

    /// Cancel the calls that have not begun.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let State { calls, rest } = std::mem::take(&mut *self.lock());
        drop(rest);
        let mut outcome = Ok(());
        for calls in calls {
            // A callback may raise what stops a program: all others are cancelled all the same.
            outcome = outcome.and(match calls {
                Calls::Many(batch, next) => batch.close(py, next),
                Calls::One(handle) if !handle.get().has_begun() => {
                    TaskHandle::cancel_or_stop(handle.bind(py)).map(drop)
                }
                Calls::One(_) => Ok(()),
            });
        }
        outcome
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Never locked while the collector runs: that takes Python code.
        if let Ok(state) = self.state.try_lock() {
            for calls in &state.calls {
                match calls {
                    Calls::One(handle) => visit.call(handle)?,
                    Calls::Many(batch, _) => Batch::traverse(batch, &visit)?,
                }
            }
            if let Some(Rest { runtime, function, items }) = &state.rest {
                visit.call(runtime)?;
                visit.call(function)?;
                visit.call(items)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let state = std::mem::take(&mut *self.lock());
        for calls in &state.calls {
            if let Calls::Many(batch, _) = calls {
                batch.clear();
            }
        }
    }
}
