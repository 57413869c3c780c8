//! Traces: the lives of tasks, written to a file that trace viewers and `dftracer-utils` read.
//!
//! Whoever ends a task leaves a small [`Record`] in a ring or, if that is full, in a buffer. A thread
//! of low priority takes them away once a second, or when there are many, and appends them to the
//! file as one complete gzip member of JSON lines: what was written stays readable, whatever happens
//! to the process later.
//! Nobody ever waits for that thread, but in [`Trace::flush`]. Should it fall behind by
//! [`MAX_WAITING`] records, or the file system refuse to take them, records are dropped, counted,
//! and the trace says how many.

mod event;
#[allow(unsafe_code, reason = "a ring without a lock of its own")]
mod exclusive;
mod file;
mod record;
mod writer;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event::Encoder;
use exclusive::ExclusiveRing;
use file::TraceFile;
pub use record::{End, Failure, Kind, Note, Record, Setup};
use rtrb::{Consumer, Producer, RingBuffer};
use writer::{Leaving, lower_priority};

/// Written when so many records wait, or after `PERIOD`.
const FLUSH_AT: usize = if cfg!(test) { 100 } else { 32_768 };
const PERIOD: Duration = Duration::from_secs(1);

/// How many records may wait for the thread that writes them: some 64 MB.
pub const MAX_WAITING: usize = 1_000_000;

/// How many different names are kept. The tasks with others bring theirs along.
const MAX_NAMES: usize = if cfg!(test) { 10 } else { 65_536 };

/// In place of a name's number: the task has brought its own, see [`Trace::note_name`].
pub const OWN_NAME: u32 = u32::MAX;

/// Called once, when the file cannot be written any more, with the reason.
pub type OnError = Box<dyn Fn(&io::Error) + Send>;

/// A trace that is being written. Dropping it closes the file, in the background.
pub struct Trace {
    inner: Arc<Inner>,
    ring: ExclusiveRing,
}

struct Inner {
    /// The process that has the thread; a copy of this after a `fork()` has none.
    process: u32,
    state: Mutex<State>,
    /// Signalled when there is something to do for the thread.
    order: Condvar,
    /// Signalled when the thread has written, and when it ends.
    written: Condvar,
    names: Mutex<Names>,
    notes: Mutex<Notes>,
}

struct State {
    records: Vec<Record>,
    threads: Vec<(u32, String)>,
    dropped: u64,
    sources: u16,
    /// How often writing was asked for, and up to which of these it was done.
    asked: u64,
    answered: u64,
    open: bool,
    /// Whether the thread is there.
    alive: bool,
}

#[derive(Default)]
struct Names {
    numbers: HashMap<Arc<str>, u32>,
    list: Vec<Arc<str>>,
}

type Notes = HashMap<(u16, i64), Note>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trace {
    /// Opens the file and writes its beginning. With `append` it goes on after what is there.
    ///
    /// # Errors
    ///
    /// If the file cannot be written; `WouldBlock` if another trace is being written to it.
    pub fn open(path: &Path, append: bool, setup: &Setup, on_error: OnError) -> io::Result<Self> {
        let mut file = TraceFile::open(path, append)?;
        let mut encoder = Encoder::new(setup);
        file.write(encoder.opening(file.is_empty()))?;
        let inner = Arc::new(Inner {
            process: std::process::id(),
            state: Mutex::new(State {
                records: Vec::new(),
                threads: Vec::new(),
                dropped: 0,
                sources: 0,
                asked: 0,
                answered: 0,
                open: true,
                alive: true,
            }),
            order: Condvar::new(),
            written: Condvar::new(),
            names: Mutex::default(),
            notes: Mutex::default(),
        });
        let (producer, ring) = touched_ring();
        let writer = inner.clone();
        std::thread::Builder::new().name("dft-trace".to_owned()).spawn(move || {
            let _leaving = Leaving(&writer);
            lower_priority();
            writer.write_all(file, encoder, ring, &on_error);
        })?;
        Ok(Self { inner, ring: ExclusiveRing::new(producer) })
    }

    /// A number for one more source of tasks, which count theirs by themselves.
    pub fn new_source(&self) -> u16 {
        let mut state = lock(&self.inner.state);
        state.sources = state.sources.wrapping_add(1);
        state.sources
    }

    /// The number of a name; `None` if too many are kept already, and the task must bring it along
    /// in its [`Note`].
    pub fn name(&self, text: &str) -> Option<u32> {
        let mut names = lock(&self.inner.names);
        if let Some(number) = names.numbers.get(text) {
            return Some(*number);
        }
        if names.list.len() >= MAX_NAMES {
            return None;
        }
        let (name, number) = (Arc::<str>::from(text), names.list.len() as u32);
        names.list.push(name.clone());
        names.numbers.insert(name, number);
        Some(number)
    }

    /// As [`name`](Self::name), leaving a note where that is needed.
    pub fn name_for(&self, source: u16, task: i64, text: &str) -> u32 {
        self.name(text).unwrap_or_else(|| {
            self.note_name(source, task, text);
            OWN_NAME
        })
    }

    /// Says the name of a task that has not ended, to appear with its end.
    pub fn note_name(&self, source: u16, task: i64, text: &str) {
        let mut notes = lock(&self.inner.notes);
        notes.entry((source, task)).or_default().name = Some(text.into());
    }

    /// Says more of a task that has not ended, to appear with its end.
    pub fn note(&self, source: u16, task: i64, created: u64, members: &str) {
        let mut notes = lock(&self.inner.notes);
        let note = notes.entry((source, task)).or_default();
        (note.created, note.members) = (created, members.into());
    }

    /// Names a thread.
    pub fn name_thread(&self, thread: u32, name: &str) {
        lock(&self.inner.state).threads.push((thread, name.to_owned()));
    }

    /// Takes the record of a task that has ended. Waits for nothing.
    pub fn record(&self, record: Record) {
        let mut state = lock(&self.inner.state);
        if state.records.len() >= MAX_WAITING {
            state.dropped += 1;
            drop(state);
            self.inner.take_note(&record);
            return;
        }
        state.records.push(record);
        let waiting = state.records.len();
        drop(state);
        if waiting == FLUSH_AT {
            self.inner.order.notify_one();
        }
    }

    /// The thread that writes it.
    pub fn writer(&self) -> Writer {
        Writer { inner: self.inner.clone() }
    }

    /// Waits until all that was recorded before is in the file, or cannot be brought there.
    pub fn flush(&self) {
        self.inner.flush(None);
    }

    /// The same, not beyond a time limit; false if that came first.
    pub fn flush_until(&self, deadline: Instant) -> bool {
        self.inner.flush(Some(deadline))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.inner.is_ours() {
            lock(&self.inner.state).open = false;
            self.inner.order.notify_one();
        }
    }
}

/// The thread that writes a trace, which outlives the trace until all is in the file.
#[derive(Clone)]
pub struct Writer {
    inner: Arc<Inner>,
}

impl Writer {
    /// Whether it is there: neither has it ended nor is it another process's.
    pub fn is_alive(&self) -> bool {
        self.inner.is_ours() && lock(&self.inner.state).alive
    }

    /// As [`Trace::flush`], not beyond a time limit.
    pub fn flush(&self, deadline: Instant) {
        let _ = self.inner.flush(Some(deadline));
    }

    /// If its trace was dropped, waits until the file is closed.
    pub fn finish(&self) {
        let mut state = lock(&self.inner.state);
        while state.alive && !state.open {
            state = self.inner.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Inner {
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// False if the deadline came first.
    fn flush(&self, deadline: Option<Instant>) -> bool {
        if !self.is_ours() {
            return true;
        }
        let mut state = lock(&self.state);
        state.asked += 1;
        let ticket = state.asked;
        self.order.notify_one();
        while state.alive && state.answered < ticket {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.written.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let waited = self.written.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    fn take_note(&self, record: &Record) -> Option<Note> {
        lock(&self.notes).remove(&(record.source, record.task))
    }
}

/// A ring whose memory the system has given already: workers shall not wait for that.
fn touched_ring() -> (Producer<Record>, Consumer<Record>) {
    let (mut producer, mut consumer) = RingBuffer::new(FLUSH_AT);
    while producer.push(NOTHING).is_ok() {}
    while consumer.pop().is_ok() {}
    (producer, consumer)
}

const NOTHING: Record = Record {
    task: 0,
    parent: -1,
    submitted: 0,
    started: 0,
    ended: 0,
    name: 0,
    thread: 0,
    failure: None,
    source: 0,
    kind: Kind::Python,
    end: End::Done,
};

#[cfg(test)]
#[allow(unsafe_code, reason = "tests of the way without a lock")]
mod tests;
