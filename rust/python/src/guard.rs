//! The one way for threads of ours into Python.
//!
//! Until CPython 3.13, a thread that wants the interpreter while that shuts down is ended on the
//! spot. With glibc that is a forced unwind through all frames of the thread, and the first Rust
//! frame that was not made for it aborts the process. Which call it hits cannot be known: an import,
//! a callback, the `__del__` of an argument, a log record. So a thread of ours that goes into Python
//! leaves word with the C library before: instead of unwinding, it stands still until the process
//! has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;

/// Does `work` with the interpreter, on a thread of ours. `None` if the interpreter is gone, or if
/// `work` panicked, of which the panic hook has told.
pub(crate) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    stand_still_instead_of_unwinding();
    Python::try_attach(|py| catch_unwind(AssertUnwindSafe(|| work(py))).ok()).flatten()
}

#[cfg(not(target_os = "linux"))]
fn stand_still_instead_of_unwinding() {} // elsewhere the end of a thread unwinds nothing

#[cfg(target_os = "linux")]
use linux::stand_still_instead_of_unwinding;

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::RefCell;
    use std::ffi::{c_char, c_int, c_void};

    /// As the C library declares it in `pthread.h`. It is a link of the thread's list of what is to
    /// be called when the thread is ended.
    #[repr(C)]
    struct CleanupBuffer {
        routine: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
        cancel_type: c_int,
        previous: *mut CleanupBuffer,
    }

    type Routine = unsafe extern "C" fn(*mut c_void);
    type Push = unsafe extern "C" fn(*mut CleanupBuffer, Routine, *mut c_void);

    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    thread_local! {
        /// This thread's link, once it is in the list; freed after the thread's last frame. On the
        /// heap: it counts as older than every frame whose address is below its own, or above and
        /// outside of the stack, and so is called before the first of them is unwound.
        static LINK: RefCell<Option<Box<CleanupBuffer>>> = const { RefCell::new(None) };
    }

    pub(super) fn stand_still_instead_of_unwinding() {
        LINK.with_borrow_mut(|link| {
            if link.is_some() {
                return;
            }
            // Looked up by name: a program that was linked against it would want a newer C library.
            // SAFETY: the null handle means all that is loaded; the name ends in a null.
            let push = unsafe { dlsym(std::ptr::null_mut(), c"_pthread_cleanup_push".as_ptr()) };
            if push.is_null() {
                return;
            }
            let null = std::ptr::null_mut();
            let buffer = CleanupBuffer {
                routine: None,
                argument: null,
                cancel_type: 0,
                previous: null.cast(),
            };
            let buffer = link.insert(Box::new(buffer));
            // SAFETY: the function of that name has this type; the buffer lives until the thread's
            // own data are freed, when the list is not looked at any more.
            unsafe {
                let push = std::mem::transmute::<*mut c_void, Push>(push);
                push(&raw mut **buffer, stand_still, null);
            }
        });
    }

    /// Never returns. The process ends without this thread.
    unsafe extern "C" fn stand_still(_: *mut c_void) {
        loop {
            std::thread::park();
        }
    }
}
