//! `fork()`, as the interpreter tells of it. What it must not interrupt, and what the child closes,
//! is in [`forks`].
//!
//! Attached threads cannot be in the middle of anything: the one that forks has the interpreter. This
//! holds as long as nobody keeps a lock while Python code runs or the interpreter is let go of, and so
//! objects that are made once are kept as [`crate::interp::once`] does. Threads without the interpreter could
//! be, where they end a task, or are about to attach for the first time: that is what is waited for
//! here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dftracer_core::forks;
pub(crate) use dftracer_core::forks::apart as apart_from_forks;
use pyo3::prelude::*;

use super::errors::ForkedRuntimeError;
use super::exit;

/// One higher in the child of each `fork()` than in its parent. Relaxed: a child has one thread when
/// it changes.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Called in the child of a `fork()`. Locked by attached threads only, which cannot be in the middle
/// of it when another one forks.
static IN_CHILD: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// The process in which something was made. In the child of a `fork()` it has no threads, and its
/// locks may be held for ever by threads that were not copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// This one.
    pub(crate) fn current() -> Self {
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is the child of a `fork()` of that process.
    #[inline]
    pub(crate) fn is_copy(self) -> bool {
        self != Self::current()
    }

    /// Refuses the copy of a runtime that a `fork()` left without its threads.
    pub(crate) fn check(self) -> PyResult<()> {
        if self.is_copy() {
            return Err(ForkedRuntimeError::new_err(
                "this Runtime was made before fork() and has no threads in the child process: \
                 make a new Runtime here, or use get_default_runtime()",
            ));
        }
        Ok(())
    }

    /// Ends the copy of a worker of that process, whose body or callback has forked and returned in
    /// the child: that was all there is to do here.
    #[inline]
    pub(crate) fn leave_if_copied(self) {
        if self.is_copy() {
            std::process::exit(0);
        }
    }
}

/// Has `forget` called in the child of each `fork()`.
pub(crate) fn in_child(forget: fn()) {
    IN_CHILD.lock().unwrap_or_else(PoisonError::into_inner).push(forget);
}

/// Wait until no native thread holds a lock, or opens or closes a pipe.
///
/// In the child of the fork a held lock would stay held for ever; the child closes open pipes.
#[pyfunction]
pub(crate) fn before_fork(py: Python<'_>) {
    forks::begin();
    while forks::sections_in_progress() {
        // What a section waits for may be held by a thread that waits for the interpreter.
        py.detach(std::thread::yield_now);
    }
}

/// Let the native threads go on.
#[pyfunction]
pub(crate) fn after_fork_in_parent() {
    forks::end_in_parent();
}

/// Mark every runtime made so far as a copy without threads. Run in the child of a fork.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    forks::end_in_child();
    GENERATION.fetch_add(1, Ordering::Relaxed);
    exit::forked();
    for forget in IN_CHILD.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        forget();
    }
}
