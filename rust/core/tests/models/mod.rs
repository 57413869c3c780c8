//! What several models are made of. Not all of them use all of it.
#![allow(dead_code)]

use dftracer_core::sched::parker::Unpark;
use loom::sync::{Condvar, Mutex};

/// A sleep whose every interleaving can be tried.
#[derive(Default)]
pub(crate) struct Parker {
    notified: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    /// Sleeps until notified.
    pub(crate) fn park(&self) {
        let mut notified = self.notified.lock().expect("never poisoned");
        while !*notified {
            notified = self.changed.wait(notified).expect("never poisoned");
        }
        *notified = false;
    }
}

impl Unpark for Parker {
    fn unpark(&self) {
        *self.notified.lock().expect("never poisoned") = true;
        self.changed.notify_one();
    }
}

/// Tries every interleaving with so many preemptions: the more threads, the fewer can be tried in an
/// acceptable time.
pub(crate) fn check_with(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
