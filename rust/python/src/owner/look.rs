//! What tasks look like to those who report on them.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::interp::names::derive_name;
use crate::interp::origin::Origin;

/// What a task was at one moment.
pub(crate) struct Look {
    pub(crate) state: u8,
    pub(crate) name: Option<Py<PyString>>,
    /// To derive the name from.
    pub(crate) callable: Option<Py<PyAny>>,
}

impl Look {
    /// The name, as well as it is known.
    pub(crate) fn name<'py>(
        &self,
        py: Python<'py>,
        origin: Option<&Py<Origin>>,
    ) -> Bound<'py, PyString> {
        if let Some(name) = &self.name {
            return name.bind(py).clone();
        }
        let of_origin = origin.and_then(|origin| origin.get().name(py));
        of_origin.unwrap_or_else(|| match &self.callable {
            Some(callable) => derive_name(callable.bind(py)),
            None => PyString::new(py, "task"),
        })
    }
}

/// An item of a batch that has no handle, as it was at one moment.
pub(crate) struct Shown {
    pub(crate) id: i64,
    pub(crate) look: Look,
    pub(crate) origin: Option<Py<Origin>>,
    pub(crate) submitted: u64,
    pub(crate) started: u64,
    pub(crate) ended: u64,
    pub(crate) parent: Option<i64>,
}
