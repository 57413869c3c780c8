//! Whether the interpreter is about to go.

use std::sync::atomic::{AtomicBool, Ordering};

/// SeqCst: who accepts a task counts it, then looks here; who ends the interpreter sets this, then
/// looks at the counts. One of the two sees the other.
static EXITING: AtomicBool = AtomicBool::new(false);

/// From here on no task is taken. False if that was so already.
pub(crate) fn begin() -> bool {
    !EXITING.swap(true, Ordering::SeqCst)
}

/// Whether it is.
pub(crate) fn is_exiting() -> bool {
    EXITING.load(Ordering::SeqCst)
}

/// In the child of a `fork()`, which is not at its exit, even if its parent is.
pub(super) fn forked() {
    EXITING.store(false, Ordering::SeqCst);
}
