//! What a trace says of a task that has ended.

use dftracer_core::task_state::state;
use dftracer_core::trace::{End, Failure, Kind, OWN_NAME};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Content, TaskHandle};
use crate::interp::names::derive_name;
use crate::interp::origin::UNLABELLED;
use crate::interp::slot::{self, LaneKind, Ran};
use crate::trace::failure::describe;
use crate::trace::{Ended, Tracing};

impl TaskHandle {
    /// Takes down that it has ended, however that was, with its name if it has one of its own, and
    /// what was left of what it needed.
    pub(super) fn trace_end(
        &self,
        tracing: &Tracing,
        name: Option<Py<PyString>>,
        left_over: &Content,
        parent: i64,
        py: Option<Python<'_>>,
    ) {
        let (kind, thread) = match (self.lane, left_over) {
            (None, Content::Native(job)) => (job.kind(), 0),
            (None, _) => (Kind::Files, 0),
            (Some(LaneKind::Coroutine), _) | (_, Content::Suspended { .. }) => (Kind::Coroutine, 0),
            (Some(lane), _) => match slot::ran(self.task_id) {
                Ran::Here(thread) => (kind_of(lane), thread),
                Ran::AmongOthers => (Kind::Coroutine, 0),
                Ran::Elsewhere => (kind_of(lane), self.thread_that_runs_it()),
            },
        };
        let name = match py {
            Some(py) if self.lane.is_some() => self.label(tracing, py, name, left_over),
            _ => OWN_NAME,
        };
        let end = self.state();
        let failure = match end {
            state::FAILED => self.why_failed(py),
            state::DONE if kind == Kind::Process => self.why_failed(py),
            _ => None,
        };
        let ended = Ended {
            task: self.task_id,
            parent,
            times: self.times.all(),
            name,
            thread,
            failure,
            kind,
            end: match end {
                state::DONE => End::Done,
                state::FAILED => End::Failed,
                _ => End::Cancelled,
            },
        };
        tracing.ended(ended, py);
    }

    /// Why it has failed; of a program, also that its exit code says so.
    fn why_failed(&self, py: Option<Python<'_>>) -> Option<Failure> {
        if let Some(native) = self.native_outcome() {
            return native.failure();
        }
        let py = py?; // only attached threads end a task with an exception
        let (error, traceback) = self.error_now(py)?;
        Some(describe(error.bind(py), traceback.map(|traceback| traceback.into_bound(py))))
    }

    /// The number of its name.
    fn label(
        &self,
        tracing: &Tracing,
        py: Python<'_>,
        name: Option<Py<PyString>>,
        left_over: &Content,
    ) -> u32 {
        let number = |text: &Bound<'_, PyString>| tracing.number(self.task_id, text);
        if let Some(name) = name {
            let name = name.into_bound(py);
            return tracing.number_of_given(&name).unwrap_or_else(|| number(&name));
        }
        if let Some(origin) = &self.origin {
            let origin = origin.get();
            if origin.label() != UNLABELLED {
                return origin.label();
            }
            if let Some(name) = origin.name(py) {
                origin.set_label(number(&name));
                return origin.label();
            }
        }
        match left_over {
            Content::Call(call) => number(&derive_name(call.callable().bind(py))),
            _ => number(&PyString::new(py, "task")),
        }
    }

    /// The thread that is in the middle of a task that somebody else has ended; 0 if none is.
    fn thread_that_runs_it(&self) -> u32 {
        let slots = self.shared().map(|shared| shared.slots()).unwrap_or_default();
        let runs = slots.iter().find(|slot| slot.running.peek() == self.task_id);
        runs.map_or(0, |slot| slot.thread)
    }
}

fn kind_of(lane: LaneKind) -> Kind {
    match lane {
        LaneKind::Python => Kind::Python,
        LaneKind::Coroutine => Kind::Coroutine,
        LaneKind::Io | LaneKind::Callback => Kind::Io,
    }
}
