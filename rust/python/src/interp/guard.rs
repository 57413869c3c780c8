//! The one way for threads of ours into Python.
//!
//! Until CPython 3.13, a thread that wants the interpreter while that shuts down is ended on the
//! spot. With glibc that is a forced unwind through all frames of the thread, and the first Rust
//! frame that was not made for it aborts the process. Which call it hits cannot be known: an import,
//! a callback, the `__del__` of an argument, a log record. So a thread of ours that goes into Python
//! leaves word with the C library before: instead of unwinding, it stands still until the process
//! has ended.
//!
//! The same happens to a thread of the user's, a daemon, that is in Python code called by a function
//! of ours: a callback, an iterator. It leaves word for the time of that call.
//!
//! In the child of a `fork()`, CPython 3.10 and 3.11 take the lock of the list of threads before they
//! make it anew. A thread that was just entering itself into the list at the moment of the fork holds
//! it there for ever. Threads that Python starts are entered by their creator, who has the interpreter
//! as the one that forks; ours enter themselves where a fork waits for them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;

/// Does `work` with the interpreter, on a thread of ours. `None` if the interpreter is gone, or if
/// `work` panicked, of which the panic hook has told.
pub(crate) fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    stand_still_instead_of_unwinding();
    let entered = enter_list_of_threads();
    #[expect(clippy::disallowed_methods, reason = "this is the way that all others go")]
    Python::try_attach(|py| {
        leave_list_at_the_end(py, entered);
        catch_unwind(AssertUnwindSafe(|| work(py))).ok()
    })
    .flatten()
}

/// Does `work`, which is or may run the user's Python code, on a thread that is perhaps none of ours.
pub(crate) fn within_call<T>(_py: Python<'_>, work: impl FnOnce() -> T) -> T {
    let _standing = stand_still_meanwhile();
    work()
}

#[cfg(Py_3_12)]
fn enter_list_of_threads() -> bool {
    false // to attach does it, at any time
}

#[cfg(Py_3_12)]
fn leave_list_at_the_end(_py: Python<'_>, _entered: bool) {}

/// Whether this thread had to be entered, and has been.
#[cfg(not(Py_3_12))]
fn enter_list_of_threads() -> bool {
    use crate::interp::fork::apart_from_forks;
    use pyo3::ffi;

    // SAFETY: can be called on any thread; the state is not looked at.
    let is_needed =
        unsafe { ffi::Py_IsInitialized() != 0 && ffi::PyGILState_GetThisThreadState().is_null() };
    if !is_needed {
        return false;
    }
    // SAFETY: needs no interpreter to be attached; it has begun. That it may end meanwhile is so for
    // whoever attaches, and does this in the same way. The new state becomes that of this thread.
    let state =
        apart_from_forks(|| unsafe { ffi::PyThreadState_New(ffi::PyInterpreterState_Main()) });
    !state.is_null()
}

/// Who makes a thread's state counts as one who is attached by it; whoever detaches last frees it.
/// From here on, that is who attaches now.
#[cfg(not(Py_3_12))]
fn leave_list_at_the_end(_py: Python<'_>, entered: bool) {
    use pyo3::ffi;
    if entered {
        // SAFETY: attached, which counts as another one: neither detaches nor frees anything.
        unsafe { ffi::PyGILState_Release(ffi::PyGILState_STATE::PyGILState_LOCKED) };
    }
}

#[cfg(not(target_os = "linux"))]
fn stand_still_instead_of_unwinding() {} // elsewhere the end of a thread unwinds nothing

#[cfg(not(target_os = "linux"))]
fn stand_still_meanwhile() {}

#[cfg(target_os = "linux")]
use linux::{stand_still_instead_of_unwinding, stand_still_meanwhile};

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::RefCell;
    use std::ffi::{c_char, c_int, c_void};
    use std::sync::OnceLock;

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
    type Pop = unsafe extern "C" fn(*mut CleanupBuffer, c_int);

    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    thread_local! {
        /// This thread's link, once it is in the list; freed after the thread's last frame. On the
        /// heap: it counts as older than every frame whose address is below its own, or above and
        /// outside of the stack, and so is called before the first of them is unwound.
        static LINK: RefCell<Option<Box<CleanupBuffer>>> = const { RefCell::new(None) };
    }

    /// What enters a link into the list of this thread, and what takes it out.
    fn functions() -> Option<(Push, Pop)> {
        static FOUND: OnceLock<Option<(Push, Pop)>> = OnceLock::new();
        // Looked up by name: a program that was linked against them would want a newer C library.
        *FOUND.get_or_init(|| {
            let null = std::ptr::null_mut();
            // SAFETY: the null handle means all that is loaded; the names end in a null.
            let [push, pop] = [c"_pthread_cleanup_push", c"_pthread_cleanup_pop"]
                .map(|name| unsafe { dlsym(null, name.as_ptr()) });
            if push.is_null() || pop.is_null() {
                return None;
            }
            // SAFETY: the functions of these names have these types.
            Some(unsafe {
                (
                    std::mem::transmute::<*mut c_void, Push>(push),
                    std::mem::transmute::<*mut c_void, Pop>(pop),
                )
            })
        })
    }

    /// Enters a link into the list of this thread.
    fn enter() -> Option<Box<CleanupBuffer>> {
        let (push, _) = functions()?;
        let null = std::ptr::null_mut();
        let mut link = Box::new(CleanupBuffer {
            routine: None,
            argument: null,
            cancel_type: 0,
            previous: null.cast(),
        });
        // SAFETY: whoever is given the link keeps it where it is until it is taken out, or until
        // the list is not looked at any more.
        unsafe { push(&raw mut *link, stand_still, null) };
        Some(link)
    }

    pub(super) fn stand_still_instead_of_unwinding() {
        LINK.with_borrow_mut(|link| {
            if link.is_none() {
                // It lives until the thread's own data are freed, which is after its last frame.
                *link = enter();
            }
        });
    }

    /// For as long as the answer lives, which must be dropped before what was made earlier.
    pub(super) fn stand_still_meanwhile() -> Meanwhile {
        let is_entered = LINK.with_borrow(Option::is_some);
        Meanwhile(if is_entered { None } else { enter() })
    }

    pub(super) struct Meanwhile(Option<Box<CleanupBuffer>>);

    impl Drop for Meanwhile {
        fn drop(&mut self) {
            if let (Some(link), Some((_, pop))) = (&mut self.0, functions()) {
                // SAFETY: the last that this thread has entered; nothing is to be called.
                unsafe { pop(&raw mut **link, 0) };
            }
        }
    }

    /// Never returns. The process ends without this thread.
    unsafe extern "C" fn stand_still(_: *mut c_void) {
        loop {
            std::thread::park();
        }
    }
}
