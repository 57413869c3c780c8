//! The pure graph of `dftracer-core` for one event loop.

use std::sync::{Mutex, PoisonError};

use dftracer_core::graph::{Graph as CoreGraph, GraphError, NodeId, Outcome, Resolution};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The unfinished nodes of a workflow: who waits for whom. Pure bookkeeping.
///
/// A refused request changes nothing and raises :class:`ValueError`.
#[pyclass(frozen, module = "dftracer.utils._native")]
pub(crate) struct Graph {
    core: Mutex<CoreGraph>,
}

fn refused(error: GraphError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// A node, and the word for its resolution.
type Told = (NodeId, &'static str);

/// The words that Python knows a resolution by: the state a node goes to.
fn words(resolutions: Vec<(NodeId, Resolution)>) -> Vec<Told> {
    let word = |resolution| match resolution {
        Resolution::Ready => "ready",
        Resolution::DependencyFailed => "failed",
        Resolution::DependencyCancelled => "cancelled",
    };
    resolutions.into_iter().map(|(id, resolution)| (id, word(resolution))).collect()
}

impl Graph {
    fn with<T>(&self, act: impl FnOnce(&mut CoreGraph) -> Result<T, GraphError>) -> PyResult<T> {
        act(&mut self.core.lock().unwrap_or_else(PoisonError::into_inner)).map_err(refused)
    }
}

#[pymethods]
impl Graph {
    #[new]
    fn new() -> Self {
        Self { core: Mutex::new(CoreGraph::new()) }
    }

    /// Add a node; true if it waits for nothing. All ``dependencies`` must be unfinished.
    fn add(&self, id: NodeId, dependencies: Vec<NodeId>) -> PyResult<bool> {
        self.with(|graph| graph.add(id, &dependencies))
    }

    /// End a node that waits for nothing, well or with a failure.
    ///
    /// Returns
    /// -------
    /// list[tuple[int, str]]
    ///     Who else is decided by this: nodes that became ready, and nodes that have ended
    ///     because of a failed or cancelled dependency, each after those it waited for.
    fn finish(&self, id: NodeId, done: bool) -> PyResult<Vec<Told>> {
        let outcome = if done { Outcome::Done } else { Outcome::Failed };
        self.with(|graph| graph.finish(id, outcome)).map(words)
    }

    /// End nodes that wait for nothing, all of them well.
    ///
    /// If one is refused, those before it have ended.
    ///
    /// Returns
    /// -------
    /// tuple[list[int], list[tuple[int, str]]]
    ///     The nodes that became ready by this, and those that have ended, as of :meth:`finish`.
    fn finish_all(&self, ids: Vec<NodeId>) -> PyResult<(Vec<NodeId>, Vec<Told>)> {
        self.with(|graph| {
            let mut resolutions = Vec::new();
            for id in ids {
                graph.finish_into(id, Outcome::Done, &mut resolutions)?;
            }
            Ok(resolutions)
        })
        .map(|resolutions| {
            let (ready, others): (Vec<_>, Vec<_>) = resolutions
                .into_iter()
                .partition(|(_, resolution)| *resolution == Resolution::Ready);
            (ready.into_iter().map(|(id, _)| id).collect(), words(others))
        })
    }

    /// End a node as cancelled, whether it waits or not; return who else is decided by this.
    fn cancel(&self, id: NodeId) -> PyResult<Vec<Told>> {
        self.with(|graph| graph.cancel(id)).map(words)
    }

    fn __len__(&self) -> PyResult<usize> {
        self.with(|graph| Ok(graph.len()))
    }

    fn __contains__(&self, id: NodeId) -> PyResult<bool> {
        self.with(|graph| Ok(graph.contains(id)))
    }
}
