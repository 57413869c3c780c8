//! What a runtime tells about its tasks and workers.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::ThreadId;

use dftracer_core::interrupt_slot::{IDLE, InterruptSlot};
use dftracer_core::task_state::state;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyType};
use rustix::time::{ClockId, clock_gettime};

use crate::batch::Shown;
use crate::interp::once::{Lazy, intern};
use crate::runtime::shared::{LaneKind, Shared};
use crate::task::origin::Origin;
use crate::task::{Look, TaskHandle};
use crate::worker::stopping::Waiting;

/// Nanoseconds on a clock that never goes back, and at least 1. Read twice for each task, so not
/// through `Instant`, which adds a third to what the clock itself takes.
pub(crate) fn nanos_now() -> u64 {
    if cfg!(dft_no_records) {
        return 1;
    }
    let now = clock_gettime(ClockId::Monotonic);
    // 2^64 ns are 584 years.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64 + 1
}

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
}

/// The address of a handle that has entered the ledger and not left it: its drop has not begun, or
/// waits for the ledger's lock.
#[derive(Clone, Copy)]
pub(crate) struct HandleAddress(NonNull<ffi::PyObject>);

// SAFETY: the address is used only by attached threads, under the ledger's lock; a `TaskHandle` is
// Send and Sync.
unsafe impl Send for HandleAddress {}

impl HandleAddress {
    pub(crate) fn of(handle: &Bound<'_, TaskHandle>) -> Self {
        // SAFETY: an object's address is not null.
        let address = unsafe { NonNull::new_unchecked(handle.as_ptr()) };
        #[cfg(Py_GIL_DISABLED)]
        // SAFETY: attached, a live object.
        unsafe {
            ffi::PyUnstable_EnableTryIncRef(handle.as_ptr());
        }
        Self(address)
    }

    /// Looks at the handle without holding it.
    ///
    /// # Safety
    ///
    /// The ledger that holds this address is locked for all of `'a`.
    pub(crate) unsafe fn handle<'a, 'py>(self, py: Python<'py>) -> Borrowed<'a, 'py, TaskHandle> {
        // SAFETY: alive, by the caller's promise, and of this type, see `of`.
        unsafe { Borrowed::from_ptr(py, self.0.as_ptr()).cast_unchecked() }
    }

    /// Holds the handle, unless its last reference has gone already.
    ///
    /// # Safety
    ///
    /// The ledger that holds this address is locked.
    pub(crate) unsafe fn hold(self, py: Python<'_>) -> Option<Py<TaskHandle>> {
        let address = self.0.as_ptr();
        #[cfg(Py_GIL_DISABLED)]
        // SAFETY: attached, the memory of an object that may be losing its last reference.
        unsafe {
            (ffi::PyUnstable_TryIncRef(address) == 1)
                .then(|| Bound::from_owned_ptr(py, address).cast_into_unchecked().unbind())
        }
        #[cfg(not(Py_GIL_DISABLED))]
        // SAFETY: attached, and the count cannot change meanwhile: that takes the interpreter too.
        unsafe {
            (ffi::Py_REFCNT(address) > 0)
                .then(|| Bound::from_borrowed_ptr(py, address).cast_into_unchecked().unbind())
        }
    }
}

/// The name of a task that was given none: that of its callable, with the module before it unless
/// that is `__main__`.
pub(crate) fn derive_name<'py>(callable: &Bound<'py, PyAny>) -> Bound<'py, PyString> {
    let py = callable.py();
    let text =
        |attribute: &str| -> Option<String> { callable.getattr(attribute).ok()?.extract().ok() };
    let Some(base) = text("__qualname__").or_else(|| text("__name__")) else {
        // functools.partial wears the name of what it calls; one around another is made into one.
        return match partial_function(callable) {
            Some(inner) if partial_function(&inner).is_none() => derive_name(&inner),
            _ => callable.get_type().qualname().unwrap_or_else(|_| PyString::new(py, "callable")),
        };
    };
    qualified_name(py, text("__module__"), &base)
}

/// `module.base`, or only `base` in the main module.
pub(crate) fn qualified_name<'py>(
    py: Python<'py>,
    module: Option<String>,
    base: &str,
) -> Bound<'py, PyString> {
    match module {
        Some(module) if module != "__main__" => PyString::new(py, &format!("{module}.{base}")),
        _ => PyString::new(py, base),
    }
}

/// What a `functools.partial` calls.
fn partial_function<'py>(callable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    static PARTIAL: Lazy<Py<PyType>> = Lazy::new();
    let partial = PARTIAL.import(callable.py(), "functools", "partial").ok()?;
    // Not `isinstance`: an object that pretends to have every attribute pretends to be one, too.
    if !callable.get_type().is_subclass(partial).unwrap_or(false) {
        return None;
    }
    callable.getattr("func").ok()
}

/// `file.py:12`, where a code object is defined; empty if it does not say.
fn location(code: Option<&Bound<'_, PyAny>>) -> String {
    let find = || -> PyResult<String> {
        let Some(code) = code else { return Ok(String::new()) };
        let file: String = code.getattr("co_filename")?.extract()?;
        let line: usize = code.getattr("co_firstlineno")?.extract()?;
        let base = std::path::Path::new(&file).file_name().unwrap_or_default().to_string_lossy();
        Ok(format!("{base}:{line}"))
    };
    find().unwrap_or_default()
}

/// What a worker is busy with.
pub(crate) struct Slot {
    pub(crate) lane: LaneKind,
    pub(crate) number: usize,
    /// The system's number of the thread.
    pub(crate) thread: u32,
    /// The thread's identity in Python, or 0 before it is known.
    pub(crate) ident: std::sync::atomic::AtomicU64,
    /// The innermost body that runs here, for others to reach.
    pub(crate) running: InterruptSlot,
    /// The wait of ours in which the innermost body stands. No Python code runs while it is locked.
    pub(crate) waiting: Mutex<Option<Waiting>>,
    /// Whether it drops what is left of its last task. Relaxed: of its own thread alone.
    pub(crate) owes_nothing: AtomicBool,
    /// How many of the bodies on its stack were given up. Relaxed: each returns in its own time.
    pub(crate) given_up: AtomicU32,
    pub(crate) id: ThreadId,
    /// Since when, as `nanos_now`. Relaxed: only shown.
    pub(crate) since: std::sync::atomic::AtomicU64,
}

impl Slot {
    /// The slot of the calling thread.
    pub(crate) fn new(lane: LaneKind, number: usize) -> Self {
        Self {
            lane,
            number,
            thread: dftracer_core::thread::number(),
            ident: Default::default(),
            running: InterruptSlot::default(),
            waiting: Mutex::default(),
            owes_nothing: AtomicBool::new(false),
            given_up: AtomicU32::new(0),
            id: std::thread::current().id(),
            since: Default::default(),
        }
    }
}

/// One task, as it was at one moment.
struct Row {
    id: i64,
    look: Look,
    origin: Option<Py<Origin>>,
    state: u8,
    state_name: &'static str,
    queued_ns: u64,
    running_ns: u64,
    parent: Option<i64>,
    children: (u32, u32),
}

impl Row {
    fn of(py: Python<'_>, handle: &TaskHandle, now: u64) -> Self {
        let look = handle.look(py);
        let load = |time: &std::sync::atomic::AtomicU64| time.load(Ordering::Relaxed);
        let (submitted, started, ended) =
            (load(&handle.times.submitted), load(&handle.times.started), load(&handle.times.ended));
        let end = if ended == 0 { now } else { ended };
        let start = if started == 0 { end } else { started };
        let (parent, family) = handle.relations();
        let children = family.map_or((0, 0), |family| {
            (family.total.load(Ordering::Relaxed), family.completed.load(Ordering::Relaxed))
        });
        let state = look.state;
        Self {
            id: handle.task_id,
            look,
            origin: handle.origin.as_ref().map(|origin| origin.clone_ref(py)),
            state,
            state_name: state::name(state),
            queued_ns: start.saturating_sub(submitted),
            running_ns: end.saturating_sub(start),
            parent: parent.map(|family| family.parent),
            children,
        }
    }

    fn of_item(item: Shown, now: u64) -> Self {
        let state = item.look.state;
        let end = if item.ended == 0 { now } else { item.ended };
        let start = if item.started == 0 { end } else { item.started };
        Self {
            id: item.id,
            look: item.look,
            origin: item.origin,
            state,
            state_name: state::name(state),
            queued_ns: start.saturating_sub(item.submitted),
            running_ns: end.saturating_sub(start),
            parent: item.parent,
            children: (0, 0),
        }
    }

    /// Lets go of what it holds.
    fn empty(&mut self) {
        (self.look.name, self.look.callable, self.origin) = (None, None, None);
    }

    fn name<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        self.look.name(py, self.origin.as_ref())
    }

    fn to_dict<'py>(
        &self,
        py: Python<'py>,
        locations: &mut Locations<'py>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let (total, completed) = self.children;
        let percent = match (self.state >= state::DONE, total) {
            (true, _) => 100.0,
            (false, 0) => 0.0,
            (false, total) => 100.0 * f64::from(completed) / f64::from(total),
        };
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "task_id"), self.id)?;
        dict.set_item(intern!(py, "name"), self.name(py))?;
        dict.set_item(intern!(py, "state"), self.state_name)?;
        dict.set_item(intern!(py, "queued_duration_ms"), millis(self.queued_ns))?;
        dict.set_item(intern!(py, "execution_duration_ms"), millis(self.running_ns))?;
        dict.set_item(intern!(py, "total_subtasks"), total)?;
        dict.set_item(intern!(py, "completed_subtasks"), completed)?;
        dict.set_item(intern!(py, "progress_pct"), percent)?;
        dict.set_item(intern!(py, "location"), locations.of(py, self.origin.as_ref()))?;
        dict.set_item(intern!(py, "children"), PyList::empty(py))?;
        Ok(dict)
    }
}

/// The locations of the functions that tasks call: few, many times.
#[derive(Default)]
struct Locations<'py>(HashMap<usize, Bound<'py, PyString>>);

impl<'py> Locations<'py> {
    fn of(&mut self, py: Python<'py>, origin: Option<&Py<Origin>>) -> Bound<'py, PyString> {
        // The rows hold the origins, so no other comes to have one's address.
        let key = origin.map_or(0, |origin| origin.as_ptr() as usize);
        let make = || PyString::new(py, &location(origin.map(|origin| origin.get().code.bind(py))));
        self.0.entry(key).or_insert_with(make).clone()
    }
}

/// After how many tasks others may have the interpreter: some milliseconds, as Python's own threads
/// have it at a time.
const SLICE: usize = 1_000;

/// Between two slices of long work: lets other threads have the interpreter, and signals be heard.
pub(crate) fn share(py: Python<'_>) -> PyResult<()> {
    // Who waits for the interpreter has asked for it; then this gives it away before it comes back.
    py.detach(|| ());
    py.check_signals()
}

/// The whole of `get_progress()`.
pub(crate) fn report<'py>(py: Python<'py>, shared: &Shared) -> PyResult<Bound<'py, PyDict>> {
    // A copy of all is made while nothing ends: attached threads do not run meanwhile, and the
    // others wait with the end of a task for those who read the ledger. What is made of the copy
    // takes many times as long, and lets others run.
    let mut rows = Vec::new();
    let now = nanos_now();
    for batch in shared.batches() {
        batch.tell(py, |item| rows.push(Row::of_item(item, now)));
    }
    let counts = shared.ledger.read_all(
        || shared.counts(),
        |address| {
            // SAFETY: called under the ledger's lock.
            let handle = unsafe { address.handle(py) };
            rows.push(Row::of(py, handle.get(), now));
        },
    );
    share(py)?;
    let mut rows = py.detach(move || {
        rows.sort_by_key(|row| row.id);
        rows
    });
    // An item that was given a handle between the two looks.
    rows.dedup_by_key(|row| row.id);

    let of_state = |wanted: u8| rows.iter().filter(|row| row.state == wanted).count();
    let (running, queued) = (of_state(state::RUNNING), of_state(state::QUEUED));
    let progress = PyDict::new(py);
    progress.set_item("total", counts.ended() + (running + queued) as u64)?;
    progress.set_item("completed", counts.completed)?;
    progress.set_item("running", running)?;
    progress.set_item("queued", queued)?;
    progress.set_item("failed", counts.failed)?;
    progress.set_item("cancelled", counts.cancelled)?;
    progress.set_item("workers", workers(py, shared, &rows)?)?;
    progress.set_item("tasks", tree(py, &rows)?)?;
    progress.set_item("errors", errors(py, shared)?)?;
    for slice in rows.chunks_mut(SLICE) {
        slice.iter_mut().for_each(Row::empty);
        share(py)?;
    }
    Ok(progress)
}

/// Tasks without a living parent; each with its children.
fn tree<'py>(py: Python<'py>, rows: &[Row]) -> PyResult<Bound<'py, PyList>> {
    let mut locations = Locations::default();
    let mut dicts: Vec<Bound<'py, PyDict>> = Vec::with_capacity(rows.len());
    for slice in rows.chunks(SLICE) {
        for row in slice {
            dicts.push(row.to_dict(py, &mut locations)?);
        }
        share(py)?;
    }
    let index_of = |id: i64| rows.binary_search_by_key(&id, |row| row.id).ok();
    let top = PyList::empty(py);
    for (index, row) in rows.iter().enumerate() {
        let siblings = match row.parent.and_then(index_of) {
            Some(parent) => {
                dicts[parent].as_any().get_item(intern!(py, "children"))?.cast_into::<PyList>()?
            }
            None => top.clone(),
        };
        siblings.append(&dicts[index])?;
        if index % SLICE == SLICE - 1 {
            share(py)?;
        }
    }
    Ok(top)
}

fn workers<'py>(py: Python<'py>, shared: &Shared, rows: &[Row]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let add =
        |lane: &str, id: usize, task: Option<Bound<'py, PyString>>, idle: bool, depth: usize| {
            let dict = PyDict::new(py);
            dict.set_item("id", id)?;
            dict.set_item("lane", lane)?;
            dict.set_item("idle", idle)?;
            dict.set_item("task", task.unwrap_or_else(|| PyString::new(py, "")))?;
            dict.set_item("queue_depth", depth)?;
            list.append(dict)
        };
    let compute = shared.unfinished_compute_jobs();
    for number in 0..shared.sizes.threads {
        add("compute", number, None, number >= compute, compute.saturating_sub(number + 1))?;
    }
    for slot in shared.slots() {
        let id = slot.running.peek();
        // A task whose handle is gone has ended in this very moment.
        let row = rows.binary_search_by_key(&id, |row| row.id).ok().map(|index| &rows[index]);
        let task = row.map(|row| row.name(py));
        let depth = shared.queued(slot.lane);
        add(slot.lane.name(), slot.number, task, id == IDLE, depth)?;
    }
    Ok(list)
}

fn errors<'py>(py: Python<'py>, shared: &Shared) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (index, failure) in shared.failed(py).0.into_iter().enumerate() {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "task_id"), failure.id)?;
        dict.set_item(intern!(py, "name"), &failure.name)?;
        dict.set_item(intern!(py, "error"), failure.text(py, shared)?)?;
        list.append(dict)?;
        if index % SLICE == SLICE - 1 {
            share(py)?;
        }
    }
    Ok(list)
}

/// `ValueError: text`, even if `str()` of the exception raises.
pub(crate) fn describe(error: &Bound<'_, PyAny>) -> String {
    let kind = error.get_type().qualname().map_or_else(|_| "error".into(), |name| name.to_string());
    let text = error.str().map_or_else(|_| "(no text)".into(), |text| text.to_string());
    if text.is_empty() { kind } else { format!("{kind}: {text}") }
}

/// How long all workers of a lane may be busy with the same tasks, while others wait, before the
/// runtime counts as stuck.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Whether every lane that has tasks waiting has taken one in the last seconds, or could.
pub(crate) fn is_responsive(shared: &Shared) -> bool {
    let now = nanos_now();
    let slots = shared.slots();
    [LaneKind::Python, LaneKind::Coroutine, LaneKind::Io].into_iter().all(|kind| {
        let mut workers = slots.iter().filter(|slot| slot.lane == kind).peekable();
        let stuck = |slot: &std::sync::Arc<Slot>| {
            slot.running.peek() != IDLE
                && now.saturating_sub(slot.since.load(Ordering::Relaxed)) > PATIENCE_NS
        };
        shared.queued(kind) == 0 || workers.peek().is_none() || !workers.all(stuck)
    }) && shared.compute_waits_for().as_nanos() <= u128::from(PATIENCE_NS)
}
