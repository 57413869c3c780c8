//! Finished tasks on their way to an event loop.

use std::sync::Arc;

use dftracer_core::mailbox::Mailbox as CoreMailbox;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::handle::TaskHandle;

/// One finished task and the object that its submitter gave to recognise it by.
pub(crate) struct Delivery {
    pub(crate) token: Py<PyAny>,
    pub(crate) handle: Py<TaskHandle>,
}

#[pyclass(frozen, weakref, module = "dftracer.utils._native")]
pub(crate) struct Mailbox {
    pub(crate) core: Arc<CoreMailbox<Delivery>>,
}

#[pymethods]
impl Mailbox {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self { core: Arc::new(CoreMailbox::new()?) })
    }

    fn fileno(&self) -> i32 {
        self.core.fileno()
    }

    fn drain<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyList>> {
        let deliveries = self.core.drain(limit);
        let items = PyList::empty(py);
        for Delivery { token, handle } in deliveries {
            let (state, value) = handle.get().report(py);
            items.append((token, state, value))?;
        }
        Ok(items)
    }
}
