//! What the interpreter's garbage collector looks through.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Takes an object off the collector's list, which is walked again and again while many are made.
///
/// For what certainly lives on until it is put back: meanwhile nothing that it is part of is found
/// to be garbage.
#[pyfunction]
#[pyo3(signature = (object, /))]
pub(crate) fn untrack(object: &Bound<'_, PyAny>) {
    let object = object.as_ptr();
    // SAFETY: attached; a live object, which has the collector's header if `PyObject_IS_GC` says so.
    unsafe {
        if ffi::PyObject_IS_GC(object) != 0 {
            ffi::PyObject_GC_UnTrack(object.cast());
        }
    }
}

/// Puts an object back on the collector's list, if it is not there.
pub(crate) fn track(object: &Bound<'_, PyAny>) {
    let object = object.as_ptr();
    // SAFETY: as above; and only what is not on the list is put there.
    unsafe {
        if ffi::PyObject_IS_GC(object) != 0 && ffi::PyObject_GC_IsTracked(object) == 0 {
            ffi::PyObject_GC_Track(object.cast());
        }
    }
}

/// Puts objects back on the collector's list, those that are not there.
#[pyfunction]
#[pyo3(signature = (objects, /))]
pub(crate) fn track_all(objects: &Bound<'_, PyList>) {
    for object in objects {
        track(&object);
    }
}
