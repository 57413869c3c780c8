//! The list of what is alive: cheap to enter, cheap to leave, and readable as a whole.

use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;

/// Where an entry stands, to leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(usize);

/// Entries of a small, copyable kind: numbers or addresses of what is alive.
pub struct Ledger<T> {
    entries: Mutex<Slab<T>>,
}

/// A list that has once held more than this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 1_024;

impl<T: Copy> Ledger<T> {
    /// An empty list.
    pub fn new() -> Self {
        Self { entries: Mutex::new(Slab::new()) }
    }

    /// Adds an entry.
    pub fn enter(&self, item: T) -> Entry {
        Entry(self.lock().insert(item))
    }

    /// Removes an entry; after this no reader sees it.
    pub fn leave(&self, entry: Entry) -> T {
        let mut entries = self.lock();
        let item = entries.remove(entry.0);
        if entries.is_empty() && entries.capacity() > KEPT_CAPACITY {
            *entries = Slab::new();
        }
        item
    }

    /// Reads one entry. It does not leave while `read` runs, see [`for_each`](Self::for_each).
    pub fn with<R>(&self, entry: Entry, read: impl FnOnce(T) -> R) -> Option<R> {
        self.lock().get(entry.0).map(|item| read(*item))
    }

    /// Reads every entry. None of them leaves while `read` runs, so it must not call anything that
    /// could enter or leave.
    pub fn for_each(&self, read: impl FnMut(T)) {
        self.lock().iter().map(|(_, item)| *item).for_each(read);
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Slab<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Copy> Default for Ledger<T> {
    fn default() -> Self {
        Self::new()
    }
}
