//! The thread that writes a trace.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use rtrb::Consumer;

use super::event::Encoder;
use super::file::TraceFile;
use super::{FLUSH_AT, Inner, OnError, PERIOD, Record, State, lock};

/// Who had asked, and whether anybody could still record, before the ring was emptied.
struct Seen {
    asked: u64,
    open: bool,
}

impl Inner {
    /// The life of the thread that writes.
    pub(super) fn write_all(
        &self,
        mut file: TraceFile,
        mut encoder: Encoder,
        mut ring: Consumer<Record>,
        on_error: &OnError,
    ) {
        let mut spare = Vec::new();
        let mut has_complained = false;
        loop {
            let (mut others, threads, dropped, ticket, open) = {
                let (mut state, seen) = self.wait_for_order(&mut ring, &mut spare);
                let others = std::mem::take(&mut state.records);
                let threads = std::mem::take(&mut state.threads);
                let dropped = std::mem::take(&mut state.dropped);
                (others, threads, dropped, seen.asked, seen.open)
            };
            let mut records = std::mem::take(&mut spare);
            records.append(&mut others);
            if !(records.is_empty() && threads.is_empty() && dropped == 0) {
                let count = records.len() as u64;
                encoder.begin(&lock(&self.names).list);
                for (thread, name) in &threads {
                    encoder.thread(*thread, name);
                }
                if dropped > 0 {
                    encoder.dropped(dropped);
                }
                records.sort_by_key(|record| record.started);
                // A note is left before its record, so those of these records are there by now.
                let have_notes = !lock(&self.notes).is_empty();
                for record in &records {
                    let note = have_notes.then(|| self.take_note(record)).flatten();
                    encoder.task(record, note.as_ref());
                }
                if let Err(error) = file.write(encoder.text()) {
                    lock(&self.state).dropped += count + dropped;
                    if !std::mem::replace(&mut has_complained, true) {
                        on_error(&error);
                    }
                }
            }
            records.clear();
            if records.capacity() > 2 * FLUSH_AT {
                records = Vec::new();
            }
            spare = records;
            lock(&self.state).answered = ticket;
            self.written.notify_all();
            if !open {
                return;
            }
        }
    }

    /// Waits until there is much to write, or something for long enough, or it is asked for.
    ///
    /// The ring is emptied while nothing is locked: this thread lets everybody else go first, and
    /// those who record may hold Python's interpreter when they come for the lock.
    fn wait_for_order(
        &self,
        ring: &mut Consumer<Record>,
        records: &mut Vec<Record>,
    ) -> (MutexGuard<'_, State>, Seen) {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        loop {
            let seen = Seen { asked: state.asked, open: state.open };
            drop(state);
            // After `asked` was read: what was recorded before a flush is in the ring by now.
            while let Ok(record) = ring.pop() {
                records.push(record);
            }
            state = lock(&self.state);
            let due = records.len() + state.records.len() >= FLUSH_AT;
            let left = PERIOD.saturating_sub(begun.elapsed());
            if due || left.is_zero() || !seen.open || state.answered < seen.asked {
                return (state, seen);
            }
            if state.asked != seen.asked || !state.open {
                continue; // signalled meanwhile, which nobody does twice
            }
            let waited = self.order.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Tells those who wait for the thread that it has gone, whatever the reason.
pub(super) struct Leaving<'a>(pub(super) &'a Inner);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).alive = false;
        self.0.written.notify_all();
    }
}

/// Lets everybody else go first. Where that is refused it goes without.
#[cfg(target_os = "linux")]
pub(super) fn lower_priority() {
    const NICENESS: i32 = 10;
    // Elsewhere this would be the priority of the whole process.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}

/// A thread alone has no priority that it could lower here.
#[cfg(not(target_os = "linux"))]
pub(super) fn lower_priority() {}
