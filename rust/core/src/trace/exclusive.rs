//! The way of records that takes no lock, for those who hold one already.

use std::cell::UnsafeCell;

use rtrb::{Producer, PushError};

use super::{FLUSH_AT, Record, Trace};

/// After how many records in the ring the thread that writes is woken to empty it.
const WAKE_EVERY: usize = FLUSH_AT / 4 * 3;

/// A ring that one thread at a time pushes into.
pub(super) struct ExclusiveRing(UnsafeCell<Ring>);

struct Ring {
    records: Producer<Record>,
    /// After how many more records the thread that writes is woken.
    until_wake: usize,
}

// SAFETY: the cell is reached through `push` alone, whose callers promise that no two threads are in
// there at a time, and that each sees what the one before has done; a `Producer` is `Send`, so any
// thread may use it then.
unsafe impl Sync for ExclusiveRing {}

impl ExclusiveRing {
    pub(super) fn new(records: Producer<Record>) -> Self {
        Self(UnsafeCell::new(Ring { records, until_wake: WAKE_EVERY }))
    }

    /// Adds a record; true if the thread that writes is to be woken, and the record if there is no
    /// room for it.
    ///
    /// # Safety
    ///
    /// No two threads are in here at the same time, and each sees what the one before has done.
    unsafe fn push(&self, record: Record) -> Result<bool, Record> {
        // SAFETY: the caller promises that nobody else is in here, and nothing else refers to what is
        // in the cell: so this is the only reference.
        let ring = unsafe { &mut *self.0.get() };
        if let Err(PushError::Full(record)) = ring.records.push(record) {
            return Err(record);
        }
        ring.until_wake -= 1;
        let is_due = ring.until_wake == 0;
        if is_due {
            ring.until_wake = WAKE_EVERY;
        }
        Ok(is_due)
    }
}

impl Trace {
    /// As [`record`](Self::record), for half the price.
    ///
    /// # Safety
    ///
    /// No two threads are in here at the same time, and each sees what the one before has done:
    /// they hold a lock that all of them take.
    pub unsafe fn record_alone(&self, record: Record) {
        // SAFETY: the caller's promise is that of `push`.
        match unsafe { self.ring.push(record) } {
            Ok(true) => self.inner.order.notify_one(),
            Ok(false) => {}
            Err(record) => self.record(record),
        }
    }
}
