//! What a runtime tells about its tasks and workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dftracer_core::interrupt_slot::IDLE;
use dftracer_core::task_state::state;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::interp::clock::nanos_now;
use crate::interp::once::intern;
use crate::interp::origin::Origin;
use crate::interp::signals::share;
use crate::interp::slot::{LaneKind, Slot};
use crate::owner::Shared;
use crate::owner::look::{Look, Shown};
use crate::task::TaskHandle;
use crate::task::failed::text_of;

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

/// What a report calls a state: one that a task ends well in has a name of its own there.
fn name_of(state: u8) -> &'static str {
    if state == state::DONE { "completed" } else { state::name(state) }
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
        let load = |time: &AtomicU64| time.load(Ordering::Relaxed);
        let (submitted, started, ended) =
            (load(&handle.times.submitted), load(&handle.times.started), load(&handle.times.ended));
        let end = if ended == 0 { now } else { ended };
        let start = if started == 0 { end } else { started };
        let (parent, family) = handle.relations();
        let children = family.map_or((0, 0), |family| family.children());
        let state = look.state;
        Self {
            id: handle.task_id,
            look,
            origin: handle.origin.as_ref().map(|origin| origin.clone_ref(py)),
            state,
            state_name: name_of(state),
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
            state_name: name_of(state),
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

/// The whole of `get_progress()`.
pub(crate) fn report<'py>(py: Python<'py>, shared: &Shared) -> PyResult<Bound<'py, PyDict>> {
    // A copy of all is made while nothing ends: attached threads do not run meanwhile, and the
    // others wait with the end of a task for those who read the ledger. What is made of the copy
    // takes many times as long, and lets others run.
    let mut rows = Vec::new();
    let now = nanos_now();
    for batch in shared.batches() {
        batch.tell(py, &mut |item| rows.push(Row::of_item(item, now)));
    }
    let counts = shared.living.read_all(
        py,
        || shared.counts(),
        |handle| {
            if let Ok(handle) = handle.cast::<TaskHandle>() {
                rows.push(Row::of(py, handle.get(), now));
            }
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
        // Behind those of the compute lane, each lane with numbers of its own.
        let number = shared.sizes.threads + slot.number * LaneKind::COUNT + slot.lane as usize;
        add(slot.lane.name(), number, task, id == IDLE, depth)?;
    }
    Ok(list)
}

fn errors<'py>(py: Python<'py>, shared: &Shared) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for (index, failure) in shared.failed(py).0.into_iter().enumerate() {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "task_id"), failure.id)?;
        dict.set_item(intern!(py, "name"), &failure.name)?;
        let text = PyString::new(py, &text_of(py, shared, &failure)?);
        dict.set_item(intern!(py, "error"), &text)?;
        dict.set_item(intern!(py, "message"), text)?;
        list.append(dict)?;
        if index % SLICE == SLICE - 1 {
            share(py)?;
        }
    }
    Ok(list)
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
        let stuck = |slot: &Arc<Slot>| {
            slot.running.peek() != IDLE
                && now.saturating_sub(slot.since.load(Ordering::Relaxed)) > PATIENCE_NS
        };
        shared.queued(kind) == 0 || workers.peek().is_none() || !workers.all(stuck)
    }) && shared.compute_waits_for().as_nanos() <= u128::from(PATIENCE_NS)
}
