//! Bodies that go on although their tasks have ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

/// Whether bodies of a runtime are interrupted, and whether it was said that one was given up.
#[derive(Default)]
pub(crate) struct Stopping {
    /// Relaxed: set before the first task.
    interrupts: AtomicBool,
    /// Relaxed: only to say it once.
    was_said: AtomicBool,
    /// How many bodies were given up and have not returned.
    given_up: Mutex<isize>,
    /// For those who wait until that is none.
    has_returned: Condvar,
}

impl Stopping {
    pub(crate) fn count(&self, change: isize) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) += change;
        self.has_returned.notify_all();
    }

    /// Waits until every body that was given up has returned; false if `patience` is over before.
    /// Called without the interpreter, which they need.
    fn wait_returned(&self, patience: Duration) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, _) = self
            .has_returned
            .wait_timeout_while(given_up, patience, |left| *left > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *left <= 0
    }

    /// Lets every plain body of the runtime be interrupted.
    pub(crate) fn interrupt_bodies(&self) {
        self.interrupts.store(true, Ordering::Relaxed);
    }

    pub(crate) fn interrupts(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Waits for bodies that were given up, for some time; false if some have not returned.
    pub(crate) fn wait_for_bodies(&self, py: Python<'_>) -> bool {
        !self.is_any_left() || py.detach(|| self.wait_returned(patience()))
    }

    /// Whether it is to be said now that a body was given up: once.
    pub(crate) fn is_to_be_said(&self) -> bool {
        !self.was_said.swap(true, Ordering::Relaxed)
    }

    fn is_any_left(&self) -> bool {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }
}

/// How long a shutdown waits for bodies that were given up. As at interpreter exit.
fn patience() -> Duration {
    let seconds = std::env::var("DFTRACER_EXIT_PATIENCE_S").ok().and_then(|s| s.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(3.0)).unwrap_or(Duration::from_secs(3))
}
