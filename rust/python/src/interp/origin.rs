//! What is known of a callable before it is called. Of a function it is kept for its next
//! submission: a campaign submits few functions, many times.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::PyTraverseError;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::names::{derive_name, qualified_name};
use super::once::{Lazy, intern};

/// `inspect.CO_COROUTINE`.
const CO_COROUTINE: u32 = 0x80;

/// Shared by all tasks that call the same function.
#[pyclass(frozen, module = "dftracer.utils._native")]
pub(crate) struct Origin {
    /// The code object, which tells where the callable is defined; a built-in function itself.
    pub(crate) code: Py<PyAny>,
    /// Whether calling it gives a coroutine, as far as can be told without calling it.
    pub(crate) is_coroutine: bool,
    /// Of a plain function.
    names: Option<Names>,
    name: Lazy<Py<PyString>>,
    /// The number of the name in the trace of its runtime. Relaxed: all write the same.
    label: AtomicU32,
}

/// In place of a label that is not known yet.
pub(crate) const UNLABELLED: u32 = u32::MAX;

/// `__qualname__` and `__module__`.
struct Names {
    qualname: Py<PyAny>,
    module: Option<Py<PyAny>>,
}

/// The parts of a plain function that an [`Origin`] is made of.
struct Parts<P> {
    code: P,
    qualname: P,
    module: Option<P>,
}

#[cfg(not(Py_GIL_DISABLED))]
type Part<'a, 'py> = Borrowed<'a, 'py, PyAny>;
/// Without a lock around the interpreter, another thread can change the function meanwhile.
#[cfg(Py_GIL_DISABLED)]
type Part<'a, 'py> = Bound<'py, PyAny>;

#[pymethods]
impl Origin {
    /// Shows what it holds, which never changes but for a name that it gets. What it is part of is
    /// broken up elsewhere: it is itself held by tasks and runtimes, which can be cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.code)?;
        if let Some(names) = &self.names {
            visit.call(&names.qualname)?;
            visit.call(&names.module)?;
        }
        Ok(())
    }
}

impl Origin {
    /// The name of a task that calls this; `None` if the callable itself must be asked.
    pub(crate) fn name<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyString>> {
        if let Some(name) = self.name.get() {
            return Some(name.bind(py).clone());
        }
        let names = self.names.as_ref()?;
        let name = self.name.get_or_init(py, || {
            let text = |object: &Py<PyAny>| object.bind(py).extract::<String>().ok();
            let qualname = text(&names.qualname).unwrap_or_default();
            qualified_name(py, names.module.as_ref().and_then(text), &qualname).unbind()
        });
        Some(name.bind(py).clone())
    }

    pub(crate) fn label(&self) -> u32 {
        self.label.load(Ordering::Relaxed)
    }

    pub(crate) fn set_label(&self, label: u32) {
        self.label.store(label, Ordering::Relaxed);
    }

    pub(crate) fn has_name(&self) -> bool {
        self.names.is_some() || self.name.get().is_some()
    }

    fn is_of(&self, code: &Bound<'_, PyAny>, parts: Option<&Parts<Part<'_, '_>>>) -> bool {
        let same_names = match (&self.names, parts) {
            (Some(names), Some(parts)) => {
                let module = parts.module.as_ref().map(|module| module.as_ptr());
                names.qualname.as_ptr() == parts.qualname.as_ptr()
                    && names.module.as_ref().map(Py::as_ptr) == module
            }
            (None, None) => true,
            _ => false,
        };
        same_names && self.code.is(code)
    }

    fn new(code: Bound<'_, PyAny>, names: Option<Names>) -> PyResult<Py<Self>> {
        let py = code.py();
        let is_coroutine = code
            .getattr(intern!(py, "co_flags"))
            .and_then(|flags| flags.extract::<u32>())
            .is_ok_and(|flags| flags & CO_COROUTINE != 0);
        let label = AtomicU32::new(UNLABELLED);
        Py::new(py, Self { code: code.unbind(), is_coroutine, names, name: Lazy::new(), label })
    }
}

const KEPT: usize = 16;

/// The functions that were submitted lately, each in the place that its code's address gives it.
#[derive(Default)]
pub(crate) struct Origins([Mutex<Option<Py<Origin>>>; KEPT]);

impl Origins {
    /// Shows the garbage collector what is kept. Locked by attached threads only, and never while a
    /// Python object is made or dropped.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for place in &self.0 {
            visit.call(&*place.lock().unwrap_or_else(PoisonError::into_inner))?;
        }
        Ok(())
    }

    /// Forgets them all.
    pub(crate) fn clear(&self) {
        for place in &self.0 {
            let kept = place.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(kept);
        }
    }

    /// What is known of `callable`; `None` if it has no code object.
    pub(crate) fn of(&self, callable: &Bound<'_, PyAny>) -> Option<Py<Origin>> {
        let py = callable.py();
        let parts = parts_of_function(callable);
        let code: &Bound<'_, PyAny> = match &parts {
            Some(parts) => &parts.code,
            None if is_builtin(callable) => callable,
            None => {
                let code = callable.getattr(intern!(py, "__code__")).ok()?;
                return Origin::new(code, None).ok();
            }
        };
        let place = &self.0[(code.as_ptr() as usize >> 4) % KEPT];
        let kept = place.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(origin) if origin.get().is_of(code, parts.as_ref()) => {
                return Some(origin.clone_ref(py));
            }
            _ => drop(kept),
        }
        let names = parts.as_ref().map(|parts| Names {
            qualname: held(&parts.qualname),
            module: parts.module.as_ref().map(|module| held(module)),
        });
        let origin = Origin::new(code.clone(), names).ok()?;
        if parts.is_none() {
            origin.get().name.get_or_init(py, || derive_name(callable).unbind());
        }
        let newest = Some(origin.clone_ref(py));
        let unneeded =
            std::mem::replace(&mut *place.lock().unwrap_or_else(PoisonError::into_inner), newest);
        drop(unneeded);
        Some(origin)
    }
}

/// Whether it is a function of an extension module; not a method, of which each look makes another.
fn is_builtin(callable: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, live objects; the second call is made only for what the first accepts.
    unsafe {
        ffi::PyCFunction_CheckExact(callable.as_ptr()) != 0 && {
            let owner = ffi::PyCFunction_GetSelf(callable.as_ptr());
            owner.is_null() || ffi::PyModule_Check(owner) != 0
        }
    }
}

unsafe extern "C" {
    static mut PyMethod_Type: ffi::PyTypeObject;
    /// A borrowed reference.
    fn PyMethod_Function(method: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

/// The parts of a plain function, and of the one that a bound method calls.
fn parts_of_function<'a, 'py>(callable: &'a Bound<'py, PyAny>) -> Option<Parts<Part<'a, 'py>>> {
    // SAFETY: attached, live objects, each looked at as what its type says. A method holds the same
    // function all its life.
    let function = unsafe {
        let mut function = callable.as_ptr();
        if ffi::Py_IS_TYPE(function, &raw mut PyMethod_Type) != 0 {
            function = PyMethod_Function(function);
        }
        if ffi::PyFunction_Check(function) == 0 {
            return None;
        }
        Borrowed::from_ptr(callable.py(), function)
    };
    parts_of(function)
}

fn held(part: &Bound<'_, PyAny>) -> Py<PyAny> {
    part.clone().unbind()
}

#[cfg(not(Py_GIL_DISABLED))]
fn parts_of<'a, 'py>(function: Borrowed<'a, 'py, PyAny>) -> Option<Parts<Part<'a, 'py>>> {
    let py = function.py();
    // SAFETY: attached, a live function. Nobody can change it meanwhile, since no Python code runs
    // here, and it holds what is borrowed from it.
    unsafe {
        let function = function.as_ptr();
        // There is no function that gives this one without a call.
        let qualname = (*function.cast::<ffi::PyFunctionObject>()).func_qualname;
        Some(Parts {
            code: Borrowed::from_ptr_or_opt(py, ffi::PyFunction_GetCode(function))?,
            qualname: Borrowed::from_ptr_or_opt(py, qualname)?,
            module: Borrowed::from_ptr_or_opt(py, ffi::PyFunction_GetModule(function)),
        })
    }
}

#[cfg(Py_GIL_DISABLED)]
fn parts_of<'a, 'py>(function: Borrowed<'a, 'py, PyAny>) -> Option<Parts<Part<'a, 'py>>> {
    let py = function.py();
    Some(Parts {
        code: function.getattr(pyo3::intern!(py, "__code__")).ok()?,
        qualname: function.getattr(pyo3::intern!(py, "__qualname__")).ok()?,
        module: function.getattr(pyo3::intern!(py, "__module__")).ok(),
    })
}
