//! `fork()`: the child has the memory of all threads and only one of them, so a lock that another
//! thread held at that moment is held for ever.
//!
//! Attached threads cannot be in the middle of anything: the one that forks has the interpreter.
//! Threads without it could be, where they end a task: that is what is waited for here.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::prelude::*;

use crate::{exit, shared, waits};

/// Native threads that are inside a section. SeqCst on both: each side announces itself, then looks
/// for the other.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicBool = AtomicBool::new(false);

/// Runs `section` on a thread without the interpreter, not while the process forks. It must be
/// short, wait for nothing, and never ask for the interpreter: no callback, no log record.
pub(crate) fn apart_from_forks<T>(section: impl FnOnce() -> T) -> T {
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        if !FORKING.load(Ordering::SeqCst) {
            break;
        }
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        std::thread::yield_now();
    }
    let result = section();
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    result
}

#[pyfunction]
pub(crate) fn before_fork(py: Python<'_>) {
    FORKING.store(true, Ordering::SeqCst);
    while INSIDE.load(Ordering::SeqCst) > 0 {
        // What a section waits for may be held by a thread that waits for the interpreter.
        py.detach(std::thread::yield_now);
    }
}

#[pyfunction]
pub(crate) fn after_fork_in_parent() {
    FORKING.store(false, Ordering::SeqCst);
}

#[pyfunction]
pub(crate) fn after_fork_in_child() {
    INSIDE.store(0, Ordering::SeqCst);
    FORKING.store(false, Ordering::SeqCst);
    shared::forked();
    exit::forked();
    waits::forked();
}
