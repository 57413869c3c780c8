//! Waiting in a way that lets Ctrl-C through.

use std::time::Duration;

use dftracer_core::park::{Parker, Wakeup};
use pyo3::prelude::*;

/// How long the main thread sleeps at a time. A signal ends a sleep that has begun; but one that
/// arrives in the moment before is only marked, and nothing ends the sleep that follows.
const SIGNAL_SLICE: Duration = Duration::from_millis(100);

/// Lets go of the interpreter and sleeps until notified, for at most `left`. Where it answers
/// `Interrupted`, the caller checks for signals and sleeps again.
pub(crate) fn park(py: Python<'_>, parker: &Parker, left: Option<Duration>) -> Wakeup {
    if !is_main_thread() {
        return py.detach(|| parker.park(left)); // Python handles signals in the main thread
    }
    let slice = left.map_or(SIGNAL_SLICE, |left| left.min(SIGNAL_SLICE));
    match py.detach(|| parker.park(Some(slice))) {
        Wakeup::TimedOut if left.is_none_or(|left| left > slice) => Wakeup::Interrupted,
        wakeup => wakeup,
    }
}

#[cfg(target_os = "linux")]
fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

/// Not known here, so it might be.
#[cfg(not(target_os = "linux"))]
fn is_main_thread() -> bool {
    true
}
