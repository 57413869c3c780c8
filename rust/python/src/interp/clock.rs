//! The clock that all times of tasks are read from.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on a clock that never goes back, and at least 1. Read twice for each task, so not
/// through `Instant`, which adds a third to what the clock itself takes.
pub(crate) fn nanos_now() -> u64 {
    if cfg!(dft_no_records) {
        return 1;
    }
    let now = clock_gettime(ClockId::Monotonic);
    // 2^64 ns are 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 1
}
