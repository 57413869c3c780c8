//! Which task has submitted which.

use std::sync::atomic::{AtomicU32, Ordering};

/// A task and the count of those that it has submitted. Relaxed throughout: only shown.
pub(crate) struct Family {
    pub(crate) parent: i64,
    total: AtomicU32,
    completed: AtomicU32,
}

impl Family {
    pub(crate) fn new(parent: i64) -> Self {
        Self { parent, total: AtomicU32::new(0), completed: AtomicU32::new(0) }
    }

    pub(crate) fn begun(&self, count: usize) {
        self.total.fetch_add(count as u32, Ordering::Relaxed);
    }

    pub(crate) fn ended(&self, count: usize) {
        self.completed.fetch_add(count as u32, Ordering::Relaxed);
    }

    /// How many it has submitted, and how many of these have ended.
    pub(crate) fn children(&self) -> (u32, u32) {
        (self.total.load(Ordering::Relaxed), self.completed.load(Ordering::Relaxed))
    }
}
