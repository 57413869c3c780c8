//! The list of handles that are alive. It holds none of them.

use std::ptr::NonNull;

use dftracer_core::registry::{Entry, Pause, Registry};
use pyo3::ffi;
use pyo3::prelude::*;

/// The address of a handle that has entered the registry and not left it: its drop has not begun, or
/// waits for the registry's lock.
#[derive(Clone, Copy)]
pub(crate) struct HandleAddress(NonNull<ffi::PyObject>);

// SAFETY: the address is used only by attached threads, under the registry's lock; a `TaskHandle` is
// Send and Sync.
unsafe impl Send for HandleAddress {}

impl HandleAddress {
    fn of(handle: &Bound<'_, PyAny>) -> Self {
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
    /// The registry that holds this address is locked for all of `'a`.
    unsafe fn handle<'a, 'py>(self, py: Python<'py>) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: alive, by the caller's promise.
        unsafe { Borrowed::from_ptr(py, self.0.as_ptr()) }
    }

    /// Holds the handle, unless its last reference has gone already.
    ///
    /// # Safety
    ///
    /// The registry that holds this address is locked.
    unsafe fn hold(self, py: Python<'_>) -> Option<Py<PyAny>> {
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

/// All handles of a runtime that are alive.
pub(crate) struct Living(Registry<HandleAddress>);

impl Living {
    pub(crate) fn new() -> Self {
        Self(Registry::new())
    }

    /// Adds handles, which leave by themselves when they are dropped, and tells where each of them
    /// stands.
    pub(crate) fn insert_all<'a, 'py: 'a>(
        &self,
        handles: impl Iterator<Item = &'a Bound<'py, PyAny>>,
        tell: impl FnMut(usize, Entry),
    ) {
        self.0.insert_all(handles.map(HandleAddress::of), tell);
    }

    pub(crate) fn remove(&self, entry: Entry) {
        self.0.remove(entry);
    }

    /// Lets nobody read the list for as long as the answer lives.
    pub(crate) fn pause(&self) -> Pause<'_, HandleAddress> {
        self.0.pause()
    }

    /// Holds the handle at that place.
    pub(crate) fn hold(&self, py: Python<'_>, entry: Entry) -> Option<Py<PyAny>> {
        // SAFETY: called under the registry's lock.
        self.0.with(entry, |address| unsafe { address.hold(py) }).flatten()
    }

    /// Holds them all.
    pub(crate) fn hold_all(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let mut handles = Vec::new();
        // SAFETY: called under the registry's lock.
        self.0.for_each(|address| handles.extend(unsafe { address.hold(py) }));
        handles
    }

    /// Looks at them all without holding them, and before that does `first`. Neither may call anything
    /// that adds handles or drops them.
    pub(crate) fn read_all<R>(
        &self,
        py: Python<'_>,
        first: impl FnOnce() -> R,
        mut read: impl FnMut(Borrowed<'_, '_, PyAny>),
    ) -> R {
        // SAFETY: called under the registry's lock.
        self.0.read_all(first, |address| read(unsafe { address.handle(py) }))
    }
}
