//! Handles that are alive, as the list of them knows them.

use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;

/// The address of a handle that has entered the ledger and not left it: its drop has not begun, or
/// waits for the ledger's lock.
#[derive(Clone, Copy)]
pub(crate) struct HandleAddress(NonNull<ffi::PyObject>);

// SAFETY: the address is used only by attached threads, under the ledger's lock; a `TaskHandle` is
// Send and Sync.
unsafe impl Send for HandleAddress {}

impl HandleAddress {
    pub(crate) fn of(handle: &Bound<'_, PyAny>) -> Self {
        // SAFETY: an object's address is not null.
        let address = unsafe { NonNull::new_unchecked(handle.as_ptr()) };
        #[cfg(Py_GIL_DISABLED)]
        // SAFETY: attached, a live object.
        unsafe {
            ffi::PyUnstable_EnableTryIncRef(handle.as_ptr());
        }
        Self(address)
    }

    /// Looks at the handle without holding it.
    ///
    /// # Safety
    ///
    /// The ledger that holds this address is locked for all of `'a`.
    pub(crate) unsafe fn handle<'a, 'py>(self, py: Python<'py>) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: alive, by the caller's promise.
        unsafe { Borrowed::from_ptr(py, self.0.as_ptr()) }
    }

    /// Holds the handle, unless its last reference has gone already.
    ///
    /// # Safety
    ///
    /// The ledger that holds this address is locked.
    pub(crate) unsafe fn hold(self, py: Python<'_>) -> Option<Py<PyAny>> {
        let address = self.0.as_ptr();
        #[cfg(Py_GIL_DISABLED)]
        // SAFETY: attached, the memory of an object that may be losing its last reference.
        unsafe {
            (ffi::PyUnstable_TryIncRef(address) == 1)
                .then(|| Bound::from_owned_ptr(py, address).unbind())
        }
        #[cfg(not(Py_GIL_DISABLED))]
        // SAFETY: attached, and the count cannot change meanwhile: that takes the interpreter too.
        unsafe {
            (ffi::Py_REFCNT(address) > 0).then(|| Bound::from_borrowed_ptr(py, address).unbind())
        }
    }
}
