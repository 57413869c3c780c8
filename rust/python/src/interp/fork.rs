//! `fork()`, as the interpreter tells of it. What it must not interrupt, and what the child closes,
//! is in [`forks`].
//!
//! Attached threads cannot be in the middle of anything: the one that forks has the interpreter. This
//! holds as long as nobody keeps a lock while Python code runs or the interpreter is let go of, and so
//! objects that are made once are kept as [`crate::interp::once`] does. Threads without the interpreter could
//! be, where they end a task, or are about to attach for the first time: that is what is waited for
//! here.

use dftracer_core::forks;
pub(crate) use dftracer_core::forks::apart as apart_from_forks;
use pyo3::prelude::*;

use crate::runtime::exit;
use crate::runtime::shared;
use crate::task::waits;

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
    shared::forked();
    exit::forked();
    waits::forked();
}
