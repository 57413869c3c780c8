//! One call for each item, and their results in order: what `Runtime.map` returns.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyRange, PyTuple};

use crate::handle::TaskHandle;
use crate::runtime::Runtime;

/// How many calls are submitted at a time, of items that are there already.
const BATCH: usize = 256;

#[pyclass(frozen, generic, subclass, module = "dftracer.utils._native")]
pub(crate) struct Results {
    state: Mutex<State>,
    /// Whether each item is a tuple of arguments; otherwise it is the one argument.
    spread: bool,
}

#[derive(Default)]
struct State {
    /// Those whose results have not been taken.
    handles: VecDeque<Py<TaskHandle>>,
    /// What is not submitted yet.
    rest: Option<Rest>,
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
        if let Some(item) = items.into_bound(py).next() {
            let handles = runtime.get().submit_each(function.bind(py), self.spread, vec![item?])?;
            self.lock().handles.extend(handles);
        }
        Ok(())
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
        let items = items.try_iter()?;
        let mut handles = VecDeque::new();
        let mut first = items.clone().take(buffersize.unwrap_or(usize::MAX));
        loop {
            let batch = first.by_ref().take(batch_size).collect::<PyResult<Vec<_>>>()?;
            if batch.is_empty() {
                break;
            }
            handles.extend(runtime.get().submit_each(&function, spread, batch)?);
        }
        let rest = buffersize.is_some().then(|| Rest {
            runtime: runtime.unbind(),
            function: function.unbind(),
            items: items.unbind(),
        });
        Ok(Self { state: Mutex::new(State { handles, rest }), spread })
    }

    fn __iter__(self_: Py<Self>) -> Py<Self> {
        self_
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(handle) = self.lock().handles.pop_front() else { return Ok(None) };
        match TaskHandle::get(handle.bind(py), None) {
            Ok(result) => match self.refill(py) {
                Ok(()) => Ok(Some(result)),
                Err(error) => {
                    self.close(py)?;
                    Err(error)
                }
            },
            Err(error) => {
                self.lock().handles.push_front(handle);
                self.close(py)?;
                Err(error)
            }
        }
    }

    /// Cancels the calls that have not begun.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let State { handles, rest } = std::mem::take(&mut *self.lock());
        drop(rest);
        for handle in handles {
            if !handle.get().has_begun() {
                TaskHandle::cancel_or_stop(handle.bind(py))?;
            }
        }
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Never locked while the collector runs: that takes Python code.
        if let Ok(state) = self.state.try_lock() {
            for handle in &state.handles {
                visit.call(handle)?;
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
        drop(state);
    }
}
