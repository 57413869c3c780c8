//! The clock that all times of tasks are read from, and times that users give.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on a clock that never goes back, and at least 1. Read twice for each task, so not
/// through `Instant`, which adds a third to what the clock itself takes.
#[inline]
pub(crate) fn nanos_now() -> u64 {
    if cfg!(dft_no_records) {
        return 1;
    }
    let now = clock_gettime(ClockId::Monotonic);
    // 2^64 ns are 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 1
}

/// A number of seconds as a duration; `None` waits for ever.
pub(crate) fn seconds(timeout: Option<f64>, what: &str) -> PyResult<Option<Duration>> {
    match timeout {
        None => Ok(None),
        Some(s) if s.is_nan() => {
            Err(PyValueError::new_err(format!("{what} must be a number of seconds, not nan")))
        }
        // A time too long for the clock is as good as no limit.
        Some(s) => Ok(Duration::try_from_secs_f64(s.max(0.0)).ok()),
    }
}
