//! The arguments of a call, in the interpreter's own calling convention.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::interp::once::intern;

/// What `submit` was called with.
pub(crate) struct Arguments<'a, 'py> {
    /// The positional ones: live objects.
    positional: &'a [*mut ffi::PyObject],
    pub(crate) name: Option<Bound<'py, PyString>>,
    /// Whether the body may be interrupted.
    pub(crate) interrupt: bool,
    pub(crate) kwargs: Option<Bound<'py, PyDict>>,
    py: Python<'py>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    /// # Safety
    ///
    /// As CPython calls a function that is declared with `METH_FASTCALL | METH_KEYWORDS`.
    pub(super) unsafe fn new(
        py: Python<'py>,
        args: *const *mut ffi::PyObject,
        count: ffi::Py_ssize_t,
        keywords: *mut ffi::PyObject,
    ) -> PyResult<Self> {
        let count = count as usize;
        let positional = match count {
            0 => &[][..],
            // SAFETY: the caller's promise: so many pointers stand there.
            _ => unsafe { std::slice::from_raw_parts(args, count) },
        };
        let mut arguments = Self { positional, name: None, interrupt: false, kwargs: None, py };
        // SAFETY: a tuple of names, or null.
        if let Some(keywords) = unsafe { Borrowed::from_ptr_or_opt(py, keywords) } {
            for (index, keyword) in keywords.cast::<PyTuple>()?.iter().enumerate() {
                // SAFETY: the values of the keywords follow the positional arguments.
                let value = unsafe { Borrowed::from_ptr(py, *args.add(count + index)) };
                if keyword.eq(intern!(py, "name"))? {
                    if !value.is_none() {
                        arguments.name = Some(value.cast::<PyString>()?.to_owned());
                    }
                } else if keyword.eq(intern!(py, "interrupt"))? {
                    arguments.interrupt = value.is_truthy()?;
                } else {
                    let kwargs = arguments.kwargs.get_or_insert_with(|| PyDict::new(py));
                    kwargs.set_item(keyword, value)?;
                }
            }
        }
        Ok(arguments)
    }

    pub(crate) fn first(&self) -> Option<Borrowed<'a, 'py, PyAny>> {
        self.get(0)
    }

    /// The single argument after the first, if there is no other.
    pub(crate) fn only_other(&self) -> Option<Borrowed<'a, 'py, PyAny>> {
        if self.positional.len() == 2 { self.get(1) } else { None }
    }

    /// All arguments after the first.
    pub(crate) fn others(&self) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(
            self.py,
            (1..self.positional.len()).filter_map(|index| self.get(index)).collect::<Vec<_>>(),
        )
    }

    fn get(&self, index: usize) -> Option<Borrowed<'a, 'py, PyAny>> {
        let object = *self.positional.get(index)?;
        // SAFETY: attached; live for as long as the slice, which the caller holds.
        Some(unsafe { Borrowed::from_ptr(self.py, object) })
    }
}
