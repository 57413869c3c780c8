//! Objects that are made when they are first asked for, and then kept: names, classes, functions.
//!
//! Nobody waits here for another thread. What pyo3 has for this lets go of the interpreter while it
//! holds a lock: if the process forks at that moment, the lock is held in the child for ever by a
//! thread that the child does not have. Here, several threads may make the object at a time, and one
//! of them is kept.

use std::sync::OnceLock;

use pyo3::PyTypeCheck;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyType};

/// A place for such an object.
pub(crate) struct Lazy<T>(OnceLock<T>);

impl<T> Lazy<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The object, if it has been made.
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// The object. `make` may be called more than once, and may run Python code.
    pub(crate) fn get_or_init(&self, _py: Python<'_>, make: impl FnOnce() -> T) -> &T {
        match self.0.get() {
            Some(made) => made,
            None => self.keep(make()),
        }
    }

    /// As `get_or_init`; nothing is kept if `make` fails.
    pub(crate) fn get_or_try_init<E>(
        &self,
        _py: Python<'_>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&T, E> {
        match self.0.get() {
            Some(made) => Ok(made),
            None => make().map(|made| self.keep(made)),
        }
    }

    /// Locks for the time of a move, in which an attached thread keeps the interpreter.
    #[cold]
    fn keep(&self, made: T) -> &T {
        self.0.get_or_init(|| made)
    }
}

impl<T: PyTypeCheck> Lazy<Py<T>> {
    /// An attribute of a module.
    pub(crate) fn import<'py>(
        &self,
        py: Python<'py>,
        module: &str,
        attribute: &str,
    ) -> PyResult<&Bound<'py, T>> {
        let import = || Ok(py.import(module)?.getattr(attribute)?.cast_into()?.unbind());
        self.get_or_try_init(py, import).map(|made| made.bind(py))
    }
}

impl Lazy<Py<PyString>> {
    /// The interned string of this text.
    pub(crate) fn interned<'py>(&self, py: Python<'py>, text: &str) -> &Bound<'py, PyString> {
        self.get_or_init(py, || PyString::intern(py, text).unbind()).bind(py)
    }
}

/// The interned string of a literal, made once.
macro_rules! intern {
    ($py:expr, $text:literal) => {{
        static NAME: $crate::interp::once::Lazy<pyo3::Py<pyo3::types::PyString>> =
            $crate::interp::once::Lazy::new();
        NAME.interned($py, $text)
    }};
}
pub(crate) use intern;

/// Has pyo3 make what it makes at first use under such a lock of its own, and we use. Called while
/// this module is imported, when nothing of it is used by another thread.
pub(crate) fn make_early(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    class.name()?;
    class.qualname()?;
    class.module()?;
    class.fully_qualified_name()?;
    PyBool::new(py, true).extract::<bool>()?;
    py.eval(c"None", None, None).map(drop)
}
