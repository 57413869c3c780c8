//! Records as events: lines of JSON, as DFTracer writes them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{End, Failure, Kind, Note, OWN_NAME, Record, Setup};
use crate::redact::head;

/// The rows of tasks that have no thread to themselves are numbered from here on, each kind from
/// another multiple: above all numbers that the system gives to threads.
const FIRST_ROW: u64 = 10_000_000;

/// Longer messages and tracebacks are cut.
pub(super) const MAX_TEXT: usize = 4_096;

impl Kind {
    fn category(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Coroutine => "coroutine",
            Self::Io => "io",
            Self::Process => "process",
            Self::Files => "files",
            Self::Block => "block",
            Self::Component => "task",
        }
    }
}

/// Makes the text of events. What it has made since `begin` is in `text`.
pub(super) struct Encoder {
    text: Vec<u8>,
    pid: u32,
    process: String,
    host: String,
    /// Of the machine's name, as DFTracer refers to it.
    host_hash: String,
    /// What is added to a time of the records' clock to get nanoseconds since 1970: enough bits
    /// until the year 2262.
    offset: i64,
    next_id: u64,
    names: Vec<Arc<str>>,
    rows: HashMap<Kind, Rows>,
}

/// Rows side by side, in each of which tasks follow one another.
#[derive(Default)]
pub(super) struct Rows {
    /// Until when each is taken, in microseconds, and its number.
    taken: BTreeSet<(u64, u64)>,
}

impl Rows {
    /// A row that is free from `start` on: of these the one that was busy last. True if it is new.
    pub(super) fn take(&mut self, start: u64, end: u64) -> (u64, bool) {
        let free = self.taken.range(..=(start, u64::MAX)).next_back().copied();
        let row = match free {
            Some(place) => {
                self.taken.remove(&place);
                place.1
            }
            None => self.taken.len() as u64,
        };
        self.taken.insert((end, row));
        (row, free.is_none())
    }
}

impl Encoder {
    pub(super) fn new(setup: &Setup) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            text: Vec::new(),
            pid: std::process::id(),
            process: setup.process.clone(),
            host: setup.host.clone(),
            host_hash: format!("{:016x}", hash(setup.host.as_bytes())),
            offset: wall.as_nanos() as i64 - setup.now as i64,
            next_id: 0,
            names: Vec::new(),
            rows: HashMap::new(),
        }
    }

    /// The first lines of a file, or of one more part of it.
    pub(super) fn opening(&mut self, is_first: bool) -> &[u8] {
        self.text.clear();
        if is_first {
            self.text.extend_from_slice(b"[\n");
        }
        let (host, hash) = (self.host.clone(), self.host_hash.clone());
        self.metadata("HH", self.pid.into(), &host, Some(&hash));
        let process = format!("{} {}:{}", self.process, self.host, self.pid);
        self.metadata("process_name", self.pid.into(), &process, None);
        &self.text
    }

    /// Begins a part; `names` are all that are known by now.
    pub(super) fn begin(&mut self, names: &[Arc<str>]) {
        self.text.clear();
        self.names.extend_from_slice(&names[self.names.len()..]);
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn thread(&mut self, thread: u32, name: &str) {
        self.metadata("thread_name", thread.into(), name, None);
    }

    /// Says that so many records are missing.
    pub(super) fn dropped(&mut self, count: u64) {
        self.metadata("dropped", self.pid.into(), "records lost", Some(&count.to_string()));
    }

    pub(super) fn task(&mut self, record: &Record, note: Option<&Note>) {
        let begun = if record.started == 0 { record.ended } else { record.started };
        let (start, end) = (self.micros(begun), self.micros(record.ended.max(begun)));
        let tid = match record.thread {
            0 => self.row(record.kind, start, end),
            thread => thread.into(),
        };
        match record.name {
            OWN_NAME => {
                let name = note.and_then(|note| note.name.as_deref()).unwrap_or("task");
                self.head(name, record.kind.category(), tid);
            }
            number => {
                let name = self.names[number as usize].clone();
                self.head(&name, record.kind.category(), tid);
            }
        }
        self.number(",\"ts\":", start);
        self.number(",\"dur\":", end - start);
        self.put(",\"ph\":\"X\"");
        self.args();
        let members = note.map_or("", |note| &note.members);
        let failed_program = record.failure.as_ref().is_some_and(|f| f.exit_code.is_some());
        self.put(match record.end {
            // To a workflow, a program that answers with an error has failed.
            End::Done if failed_program && !members.is_empty() => ",\"state\":\"failed\"",
            End::Done => ",\"state\":\"done\"",
            End::Failed => ",\"state\":\"failed\"",
            End::Cancelled => ",\"state\":\"cancelled\"",
        });
        self.number(",\"queued_us\":", begun.saturating_sub(record.submitted) / 1_000);
        if let Ok(task) = u64::try_from(record.task) {
            self.number(",\"runtime\":", record.source.into());
            self.number(",\"task\":", task);
        }
        if let Ok(parent) = u64::try_from(record.parent) {
            self.number(",\"parent\":", parent);
        }
        if record.started == 0 {
            self.put(",\"begun\":false");
        }
        if let Some(note) = note {
            if note.created > 0 {
                let wait = record.submitted.saturating_sub(note.created) / 1_000;
                self.number(",\"wait_us\":", wait);
            }
            if !members.is_empty() {
                self.put(",");
                self.put(members);
            }
        }
        if let Some(failure) = &record.failure {
            self.failure(failure);
        }
        self.put("}}\n");
    }

    fn failure(&mut self, failure: &Failure) {
        for (key, text) in [
            (",\"error\":", &failure.error),
            (",\"message\":", &failure.message),
            (",\"traceback\":", &failure.traceback),
        ] {
            if !text.is_empty() {
                self.put(key);
                quote(&mut self.text, head(text, MAX_TEXT));
            }
        }
        if let Some(code) = failure.exit_code {
            self.put(&format!(",\"exit_code\":{code}"));
        }
    }

    /// The row of a task that has no thread to itself, named when it is used first.
    fn row(&mut self, kind: Kind, start: u64, end: u64) -> u64 {
        let (row, is_new) = self.rows.entry(kind).or_default().take(start, end);
        let tid = FIRST_ROW * (kind as u64 + 1) + row;
        if is_new {
            self.metadata("thread_name", tid, &format!("{} {row}", kind.category()), None);
        }
        tid
    }

    fn metadata(&mut self, what: &str, tid: u64, name: &str, value: Option<&str>) {
        self.head(what, "dftracer", tid);
        self.put(",\"ph\":\"M\"");
        self.args();
        self.put(",\"name\":");
        quote(&mut self.text, name);
        self.put(",\"value\":");
        quote(&mut self.text, value.unwrap_or(what));
        self.put("}}\n");
    }

    fn head(&mut self, name: &str, category: &str, tid: u64) {
        self.number("{\"id\":", self.next_id);
        self.next_id += 1;
        self.put(",\"name\":");
        quote(&mut self.text, name);
        self.put(",\"cat\":\"");
        self.put(category);
        self.number("\",\"pid\":", self.pid.into());
        self.number(",\"tid\":", tid);
    }

    fn args(&mut self) {
        self.put(",\"args\":{\"hhash\":\"");
        self.text.extend_from_slice(self.host_hash.as_bytes());
        self.put("\"");
    }

    fn put(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, before: &str, number: u64) {
        self.put(before);
        self.text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Microseconds since 1970.
    fn micros(&self, time: u64) -> u64 {
        time.saturating_add_signed(self.offset) / 1_000
    }
}

/// A string as JSON has it.
pub(super) fn quote(text: &mut Vec<u8>, string: &str) {
    text.push(b'"');
    let is_plain = |byte: u8| byte >= b' ' && !matches!(byte, b'"' | b'\\' | 0x7f);
    if string.bytes().all(is_plain) {
        text.extend_from_slice(string.as_bytes());
    } else {
        for byte in string.bytes() {
            match byte {
                b'\n' => text.extend_from_slice(b"\\n"),
                b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
                byte if is_plain(byte) => text.push(byte),
                byte => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            }
        }
    }
    text.push(b'"');
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}
