//! Threads and event loops that are to be woken when that is best for all.

use std::sync::Arc;

use dftracer_core::sched::parker::Unpark;

/// Threads and event loops that are to be woken.
pub(crate) type Sleepers = Vec<Arc<dyn Unpark>>;

/// Wakes them all.
#[inline]
pub(crate) fn wake(sleepers: &mut Sleepers) {
    for sleeper in sleepers.drain(..) {
        sleeper.unpark();
    }
}
