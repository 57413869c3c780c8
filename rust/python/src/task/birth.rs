//! How tasks begin their lives.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Birth, Content, TaskHandle, current};
use crate::interp::clock::nanos_now;
use crate::interp::origin::Origin;
use crate::interp::slot::LaneKind;
use crate::owner::Shared;

impl Birth {
    /// Of so many tasks, which the parent counts as begun.
    pub(crate) fn now(py: Python<'_>, shared: &Arc<Shared>, count: usize) -> Self {
        let parent = current::family(py, shared);
        if let Some(parent) = &parent {
            parent.begun(count);
        }
        Self { first_id: shared.next_task_ids(count), at: nanos_now(), parent }
    }
}

impl TaskHandle {
    pub(crate) fn new(
        py: Python<'_>,
        shared: Arc<Shared>,
        name: Option<Py<PyString>>,
        content: Content,
        lane: Option<LaneKind>,
        origin: Option<Py<Origin>>,
        tracked: bool,
    ) -> Self {
        let birth = Birth::now(py, &shared, 1);
        Self::of_birth(py, &birth, 0, shared, name, content, lane, origin, tracked)
    }
}
