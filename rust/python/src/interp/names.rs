//! Names of callables, and texts about objects.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use super::once::Lazy;

/// The name of a task that was given none: that of its callable, with the module before it unless
/// that is `__main__`.
pub(crate) fn derive_name<'py>(callable: &Bound<'py, PyAny>) -> Bound<'py, PyString> {
    let py = callable.py();
    let text =
        |attribute: &str| -> Option<String> { callable.getattr(attribute).ok()?.extract().ok() };
    let Some(base) = text("__qualname__").or_else(|| text("__name__")) else {
        // functools.partial wears the name of what it calls; one around another is made into one.
        return match partial_function(callable) {
            Some(inner) if partial_function(&inner).is_none() => derive_name(&inner),
            _ => callable.get_type().qualname().unwrap_or_else(|_| PyString::new(py, "callable")),
        };
    };
    qualified_name(py, text("__module__"), &base)
}

/// `module.base`, or only `base` in the main module.
pub(crate) fn qualified_name<'py>(
    py: Python<'py>,
    module: Option<String>,
    base: &str,
) -> Bound<'py, PyString> {
    match module {
        Some(module) if module != "__main__" => PyString::new(py, &format!("{module}.{base}")),
        _ => PyString::new(py, base),
    }
}

/// What a `functools.partial` calls.
fn partial_function<'py>(callable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    static PARTIAL: Lazy<Py<PyType>> = Lazy::new();
    let partial = PARTIAL.import(callable.py(), "functools", "partial").ok()?;
    // Not `isinstance`: an object that pretends to have every attribute pretends to be one, too.
    if !callable.get_type().is_subclass(partial).unwrap_or(false) {
        return None;
    }
    callable.getattr("func").ok()
}

/// `ValueError: text`, even if `str()` of the exception raises.
pub(crate) fn describe(error: &Bound<'_, PyAny>) -> String {
    let kind = error.get_type().qualname().map_or_else(|_| "error".into(), |name| name.to_string());
    let text = error.str().map_or_else(|_| "(no text)".into(), |text| text.to_string());
    if text.is_empty() { kind } else { format!("{kind}: {text}") }
}

/// The text as a string of the built-in class, which refers to nothing.
pub(crate) fn exact(py: Python<'_>, text: Py<PyString>) -> Py<PyString> {
    let bound = text.bind(py);
    if bound.is_exact_instance_of::<PyString>() {
        return text;
    }
    // SAFETY: attached, an instance of a class derived from `str`; a new reference, or null with an
    // exception set.
    let copy = unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyUnicode_FromObject(bound.as_ptr()))
            .map(|copy| copy.cast_into_unchecked::<PyString>())
    };
    // Only if there is no memory for it.
    copy.unwrap_or_else(|_| PyString::new(py, "task")).unbind()
}
