//! What a runtime and an engine write into a trace.

pub(crate) mod failure;
pub(crate) mod redact;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dftracer_core::trace::{self, End, Kind, Record, Setup, Writer};
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTraceback};

use crate::interp::clock::nanos_now;
use crate::interp::errors::os_error;
use crate::interp::slot::Slot;
use crate::trace::failure::describe;

/// How long traces may take to reach their files where somebody waits for that.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// How many names are known by their addresses.
const MAX_LABELS: usize = 1_024;

/// A trace file that is being written, by a thread of its own; dropping it closes the file.
///
/// :func:`dftracer.utils.tracing.open_trace` makes one, and knows which file to write.
///
/// Parameters
/// ----------
/// path:
///     The file; compressed if it ends in ``.gz``.
/// append:
///     Go on after what is there instead of emptying it.
/// process, host:
///     The names of this process and of the machine.
///
/// Raises
/// ------
/// BlockingIOError
///     If another trace is being written to the file.
/// OSError
///     If the file cannot be written.
#[pyclass(frozen, weakref, module = "dftracer.utils._native")]
pub(crate) struct Trace {
    core: Arc<trace::Trace>,
    /// The file.
    #[pyo3(get)]
    path: PathBuf,
    /// Of the components that an engine records itself.
    source: u16,
}

/// When a task was created, and members of a JSON object: what only its engine knows of it.
pub(crate) type Note = (u64, String);

/// Opens a trace, or finds the one that this process writes to that path already.
pub(crate) fn open(path: &Bound<'_, PyAny>) -> PyResult<Py<Trace>> {
    let module = path.py().import("dftracer.utils.tracing")?;
    Ok(module.call_method1("open_trace", (path,))?.extract()?)
}

/// Those that write the traces of this process. Locked by attached threads only, which cannot be in
/// the middle of it when another one forks.
struct Writers(Mutex<Vec<Writer>>);

static WRITERS: Writers = Writers(Mutex::new(Vec::new()));

impl Writers {
    fn add(&self, writer: Writer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(writer);
    }

    fn alive(&self) -> Vec<Writer> {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writers.retain(Writer::is_alive);
        writers.clone()
    }
}

#[pymethods]
impl Trace {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        append: bool,
        process: String,
        host: String,
    ) -> PyResult<Self> {
        let setup = Setup { now: nanos_now(), process, host };
        let told = path.clone();
        let on_error = Box::new(move |error: &std::io::Error| {
            log::warn!(
                target: "dftracer.utils",
                "the trace {} cannot be written, tasks go on: {error}",
                told.display()
            );
        });
        let writers = WRITERS.alive();
        let opened = py.detach(|| {
            // The file of a trace that was dropped may be wanted again.
            writers.iter().for_each(Writer::finish);
            trace::Trace::open(&path, append, &setup, on_error)
        });
        let core = opened.map_err(|error| os_error(py, &error, path.as_os_str()))?;
        let source = core.new_source();
        WRITERS.add(core.writer());
        Ok(Self { core: Arc::new(core), path, source })
    }

    /// The time now in nanoseconds, for the times of :meth:`component`.
    #[staticmethod]
    fn clock() -> u64 {
        nanos_now()
    }

    /// Write the life of a component that none of our runtimes has run.
    ///
    /// Parameters
    /// ----------
    /// kind:
    ///     ``"block"``, or anything else.
    /// times:
    ///     When it was created, submitted, begun (0: never) and ended, by :meth:`clock`.
    /// state:
    ///     ``"DONE"``, ``"FAILED"`` or ``"CANCELED"``.
    /// members:
    ///     Members of a JSON object, without its braces.
    #[pyo3(signature = (kind, name, times, state, members, failure=None))]
    fn component(
        &self,
        kind: &str,
        name: &Bound<'_, PyString>,
        times: (u64, u64, u64, u64),
        state: &str,
        members: &str,
        failure: Option<Bound<'_, PyBaseException>>,
    ) {
        /// Numbers for their notes. Relaxed: only the numbers must differ.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let task = -(NEXT.fetch_add(1, Ordering::Relaxed) as i64);
        let (created, submitted, started, ended) = times;
        self.core.note(self.source, task, created, members);
        self.core.record(Record {
            task,
            parent: -1,
            submitted,
            started,
            ended,
            name: self.core.name_for(self.source, task, &name.to_string_lossy()),
            thread: 0,
            failure: failure.map(|error| {
                let traceback = error.as_any().getattr("__traceback__").ok();
                let traceback = traceback.and_then(|t| t.cast_into::<PyTraceback>().ok());
                Box::new(describe(error.as_any(), traceback))
            }),
            source: self.source,
            kind: if kind == "block" { Kind::Block } else { Kind::Component },
            end: match state {
                "DONE" => End::Done,
                "FAILED" => End::Failed,
                _ => End::Cancelled,
            },
        });
    }

    /// Wait until all that has ended before is in the file, or cannot be written.
    ///
    /// For at most 10 seconds: the file system may not answer, which is logged then.
    fn flush(&self, py: Python<'_>) {
        py.detach(|| flush(&self.core));
    }
}

/// Waits until all is in the file, but not for ever: its file system may not answer.
fn flush(core: &trace::Trace) {
    if !core.flush_until(Instant::now() + GRACE) {
        log::warn!(
            target: "dftracer.utils",
            "a trace has not been written for {} s, and nobody waits for it any more: does its file \
             system answer?",
            GRACE.as_secs()
        );
    }
}

/// A task that has ended.
pub(crate) struct Ended {
    pub(crate) task: i64,
    pub(crate) parent: i64,
    /// When it was submitted, when it was started and when it ended.
    pub(crate) times: (u64, u64, u64),
    /// The number of its name.
    pub(crate) name: u32,
    pub(crate) thread: u32,
    pub(crate) failure: Option<trace::Failure>,
    pub(crate) kind: Kind,
    pub(crate) end: End,
}

/// The trace that a runtime writes to.
pub(crate) struct Tracing {
    core: Arc<trace::Trace>,
    /// Held, so that whoever else asks for this trace finds it.
    _trace: Py<Trace>,
    source: u16,
    /// Tells this one from all that there were.
    number: u64,
    /// The numbers of names, by the addresses of the strings. Those are held, so that no other
    /// strings come to have these addresses.
    labels: Mutex<HashMap<usize, (u32, Py<PyString>)>>,
}

thread_local! {
    /// Which name this thread has looked up last: whose, the address, and the number.
    static LAST: Cell<(u64, usize, u32)> = const { Cell::new((0, 0, 0)) };
}

impl Tracing {
    pub(crate) fn new(trace: Py<Trace>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let core = trace.get().core.clone();
        Self {
            source: core.new_source(),
            core,
            _trace: trace,
            // Relaxed: only the numbers must differ.
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            labels: Mutex::default(),
        }
    }

    pub(crate) fn is_to(&self, trace: &Trace) -> bool {
        Arc::ptr_eq(&self.core, &trace.core)
    }

    /// Names a worker's thread.
    pub(crate) fn introduce(&self, slot: &Slot) {
        let name = format!("dft-{}-{}", slot.lane.name(), slot.number);
        self.core.name_thread(slot.thread, &name);
    }

    /// Says more of a task that was accepted and is not queued yet.
    pub(crate) fn note(&self, task: i64, (created, members): &Note) {
        self.core.note(self.source, task, *created, members);
    }

    /// Called without the interpreter, which others may need meanwhile.
    pub(crate) fn flush(&self) {
        flush(&self.core);
    }

    /// Says the name of a native task, which may end without the interpreter.
    pub(crate) fn name_native(&self, task_id: i64, name: &Bound<'_, PyString>) {
        self.core.note_name(self.source, task_id, &name.to_string_lossy());
    }

    /// The number of a task's name.
    pub(crate) fn number(&self, task: i64, text: &Bound<'_, PyString>) -> u32 {
        self.core.name_for(self.source, task, &text.to_string_lossy())
    }

    /// That of a name that was given, perhaps to many tasks; `None` if there are too many.
    pub(crate) fn number_of_given(&self, name: &Bound<'_, PyString>) -> Option<u32> {
        let key = name.as_ptr() as usize;
        let (owner, last, number) = LAST.get();
        if owner == self.number && last == key {
            return Some(number);
        }
        let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, _)) = labels.get(&key) {
            LAST.set((self.number, key, *number));
            return Some(*number);
        }
        drop(labels);
        let number = self.core.name(&name.to_string_lossy())?;
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < MAX_LABELS {
            let spare = labels.insert(key, (number, name.clone().unbind()));
            drop(labels);
            drop(spare);
        }
        Some(number)
    }

    /// Takes down that a task has ended.
    pub(crate) fn ended(&self, ended: Ended, py: Option<Python<'_>>) {
        let (submitted, started, end_time) = ended.times;
        let record = Record {
            task: ended.task,
            parent: ended.parent,
            submitted,
            started,
            ended: end_time,
            name: ended.name,
            thread: ended.thread,
            failure: ended.failure.map(Box::new),
            source: self.source,
            kind: ended.kind,
            end: ended.end,
        };
        #[allow(
            unsafe_code,
            reason = "the way without a lock, of those who hold the interpreter's"
        )]
        match py {
            // SAFETY: attached threads hold the interpreter's lock in turn, and nothing in there
            // lets go of it.
            #[cfg(not(Py_GIL_DISABLED))]
            Some(_) => unsafe { self.core.record_alone(record) },
            _ => self.core.record(record),
        }
    }
}

/// At interpreter exit: waits until all traces are in their files, or the deadline.
pub(crate) fn flush_all(py: Python<'_>, deadline: Instant) {
    let writers = WRITERS.alive();
    py.detach(|| writers.iter().for_each(|writer| writer.flush(deadline)));
}
