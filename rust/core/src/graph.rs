//! The bookkeeping of a workflow: who waits for whom, and what an outcome means for the rest.
//!
//! A pure state machine. It knows no clock, no thread, no event loop and no Python; it never
//! retries and never decides what to run. A node exists from [`Graph::add`] until it is finished;
//! then it is forgotten, so a graph holds only what is unfinished.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use rustc_hash::FxBuildHasher;

/// Names a node. The caller chooses them and never uses one twice.
pub type NodeId = u64;

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a value.
    Done,
    /// With an error.
    Failed,
    /// By a cancellation.
    Cancelled,
}

/// What became of a node that waited, once all it waited for has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Every dependency is done: run it.
    Ready,
    /// A dependency failed and none was cancelled: it has failed too, and is forgotten.
    DependencyFailed,
    /// A dependency was cancelled: it is cancelled too, and is forgotten.
    DependencyCancelled,
}

/// A request that the state machine refuses; the graph is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraphError {
    /// `add` of an id that is in the graph.
    Duplicate(NodeId),
    /// The id is not in the graph: never added, or finished.
    Unknown(NodeId),
    /// `finish` of a node that still waits for others.
    StillWaiting(NodeId),
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(id) => write!(f, "node {id} is in the graph already"),
            Self::Unknown(id) => {
                write!(f, "node {id} is not in the graph: finished or never added")
            }
            Self::StillWaiting(id) => write!(f, "node {id} still waits for its dependencies"),
        }
    }
}

impl std::error::Error for GraphError {}

#[derive(Default)]
struct Node {
    /// Dependencies that have not ended. The node is ready when this is 0.
    unresolved: usize,
    /// The worst outcome among the dependencies that have ended.
    worst: Worst,
    /// Who waits for this node, each as often as it named it.
    dependents: Vec<NodeId>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Worst {
    #[default]
    Done,
    Failed,
    Cancelled,
}

/// All unfinished nodes and their edges.
///
/// ```
/// use dftracer_core::graph::{Graph, Outcome, Resolution};
///
/// let mut graph = Graph::default();
/// assert!(graph.add(1, &[])?, "it waits for nobody");
/// assert!(!graph.add(2, &[1])?);
/// assert_eq!(graph.finish(1, Outcome::Done)?, [(2, Resolution::Ready)]);
/// # Ok::<(), dftracer_core::graph::GraphError>(())
/// ```
#[derive(Default)]
pub struct Graph {
    // Not by the hash of the standard library: its strength is for keys that strangers choose.
    nodes: HashMap<NodeId, Node, FxBuildHasher>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node that waits for `dependencies`, each of which must be in the graph; true if it
    /// waits for none and may run at once.
    pub fn add(&mut self, id: NodeId, dependencies: &[NodeId]) -> Result<bool, GraphError> {
        if self.nodes.contains_key(&id) {
            return Err(GraphError::Duplicate(id));
        }
        if let Some(&unknown) = dependencies.iter().find(|d| !self.nodes.contains_key(d)) {
            return Err(GraphError::Unknown(unknown));
        }
        for dependency in dependencies {
            if let Some(node) = self.nodes.get_mut(dependency) {
                node.dependents.push(id);
            }
        }
        self.nodes.insert(id, Node { unresolved: dependencies.len(), ..Node::default() });
        Ok(dependencies.is_empty())
    }

    /// Ends a node that waits for nothing. Returns what this decides about others, in an order in
    /// which every node comes after those it waited for.
    pub fn finish(
        &mut self,
        id: NodeId,
        outcome: Outcome,
    ) -> Result<Vec<(NodeId, Resolution)>, GraphError> {
        let mut resolutions = Vec::new();
        self.finish_into(id, outcome, &mut resolutions).map(|()| resolutions)
    }

    /// As [`finish`](Self::finish), adding to the resolutions of others.
    pub fn finish_into(
        &mut self,
        id: NodeId,
        outcome: Outcome,
        resolutions: &mut Vec<(NodeId, Resolution)>,
    ) -> Result<(), GraphError> {
        match self.nodes.get(&id) {
            None => Err(GraphError::Unknown(id)),
            Some(node) if node.unresolved > 0 => Err(GraphError::StillWaiting(id)),
            Some(_) => {
                self.settle(id, outcome, resolutions);
                Ok(())
            }
        }
    }

    /// Cancels a node, whether it waits or not. Returns what this decides about others, as
    /// [`finish`](Self::finish) does.
    pub fn cancel(&mut self, id: NodeId) -> Result<Vec<(NodeId, Resolution)>, GraphError> {
        if !self.nodes.contains_key(&id) {
            return Err(GraphError::Unknown(id));
        }
        let mut resolutions = Vec::new();
        self.settle(id, Outcome::Cancelled, &mut resolutions);
        Ok(resolutions)
    }

    /// The number of unfinished nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether every node is finished.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the node is unfinished.
    pub fn contains(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// Removes `first` and everything that its outcome ends, and resolves every dependent. Iterative:
    /// a chain of a million failures needs no stack.
    fn settle(
        &mut self,
        first: NodeId,
        outcome: Outcome,
        resolutions: &mut Vec<(NodeId, Resolution)>,
    ) {
        let mut ended = VecDeque::new();
        let mut first = Some((first, outcome));
        while let Some((id, outcome)) = first.take().or_else(|| ended.pop_front()) {
            let Some(node) = self.nodes.remove(&id) else { continue };
            let worst = match outcome {
                Outcome::Done => Worst::Done,
                Outcome::Failed => Worst::Failed,
                Outcome::Cancelled => Worst::Cancelled,
            };
            for dependent_id in node.dependents {
                // A dependent that was cancelled while it waited is gone already.
                let Some(dependent) = self.nodes.get_mut(&dependent_id) else { continue };
                dependent.worst = dependent.worst.max(worst);
                dependent.unresolved -= 1;
                if dependent.unresolved > 0 {
                    continue;
                }
                match dependent.worst {
                    Worst::Done => resolutions.push((dependent_id, Resolution::Ready)),
                    Worst::Failed => {
                        resolutions.push((dependent_id, Resolution::DependencyFailed));
                        ended.push_back((dependent_id, Outcome::Failed));
                    }
                    Worst::Cancelled => {
                        resolutions.push((dependent_id, Resolution::DependencyCancelled));
                        ended.push_back((dependent_id, Outcome::Cancelled));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_after_its_last_dependency() {
        let mut graph = Graph::new();
        assert_eq!(graph.add(1, &[]), Ok(true));
        assert_eq!(graph.add(2, &[]), Ok(true));
        assert_eq!(graph.add(3, &[1, 2, 1]), Ok(false));
        assert_eq!(graph.finish(1, Outcome::Done), Ok(vec![]));
        assert_eq!(graph.finish(2, Outcome::Done), Ok(vec![(3, Resolution::Ready)]));
        assert_eq!(graph.finish(3, Outcome::Done), Ok(vec![]));
        assert!(graph.is_empty());
    }

    #[test]
    fn a_failure_reaches_all_that_follow_in_order() {
        let mut graph = Graph::new();
        graph.add(1, &[]).expect("add");
        graph.add(2, &[1]).expect("add");
        graph.add(3, &[2]).expect("add");
        graph.add(4, &[]).expect("add");
        graph.add(5, &[3, 4]).expect("add");
        assert_eq!(
            graph.finish(1, Outcome::Failed),
            Ok(vec![(2, Resolution::DependencyFailed), (3, Resolution::DependencyFailed)])
        );
        assert_eq!(graph.finish(4, Outcome::Done), Ok(vec![(5, Resolution::DependencyFailed)]));
        assert!(graph.is_empty());
    }

    #[test]
    fn a_cancellation_outweighs_a_failure() {
        let mut graph = Graph::new();
        graph.add(1, &[]).expect("add");
        graph.add(2, &[]).expect("add");
        graph.add(3, &[1, 2]).expect("add");
        assert_eq!(graph.cancel(1), Ok(vec![]));
        assert_eq!(
            graph.finish(2, Outcome::Failed),
            Ok(vec![(3, Resolution::DependencyCancelled)])
        );
    }

    #[test]
    fn a_waiting_node_can_be_cancelled_but_not_finished() {
        let mut graph = Graph::new();
        graph.add(1, &[]).expect("add");
        graph.add(2, &[1]).expect("add");
        graph.add(3, &[2]).expect("add");
        assert_eq!(graph.finish(2, Outcome::Done), Err(GraphError::StillWaiting(2)));
        assert_eq!(graph.cancel(2), Ok(vec![(3, Resolution::DependencyCancelled)]));
        assert_eq!(graph.finish(1, Outcome::Done), Ok(vec![]));
    }

    #[test]
    fn bad_requests_change_nothing() {
        let mut graph = Graph::new();
        graph.add(1, &[]).expect("add");
        assert_eq!(graph.add(1, &[]), Err(GraphError::Duplicate(1)));
        assert_eq!(graph.add(2, &[1, 9]), Err(GraphError::Unknown(9)));
        assert!(!graph.contains(2));
        assert_eq!(graph.cancel(9), Err(GraphError::Unknown(9)));
        assert_eq!(graph.finish(1, Outcome::Done), Ok(vec![]));
        assert_eq!(graph.finish(1, Outcome::Done), Err(GraphError::Unknown(1)));
    }

    #[test]
    fn a_long_chain_of_failures_needs_no_stack() {
        const LENGTH: u64 = 200_000;
        let mut graph = Graph::new();
        graph.add(0, &[]).expect("add");
        for id in 1..LENGTH {
            graph.add(id, &[id - 1]).expect("add");
        }
        let resolutions = graph.finish(0, Outcome::Failed).expect("finish");
        assert_eq!(resolutions.len() as u64, LENGTH - 1);
        assert!(graph.is_empty());
    }
}
