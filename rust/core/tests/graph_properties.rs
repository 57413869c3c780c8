//! The graph against a model that keeps everything and recomputes every resolution from scratch.

use std::collections::{BTreeMap, BTreeSet};

use dftracer_core::graph::{Graph, GraphError, NodeId, Outcome, Resolution};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Event {
    /// Add a node that waits for some of those that are unfinished, picked by these numbers.
    Add(Vec<usize>),
    /// Finish one of the nodes that run, picked by the number.
    Finish(usize, Outcome),
    /// Cancel one of the unfinished nodes, picked by the number.
    Cancel(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Failed),
        1 => Just(Outcome::Cancelled),
    ];
    let event = prop_oneof![
        4 => prop::collection::vec(any::<usize>(), 0..4).prop_map(Event::Add),
        3 => (any::<usize>(), outcome).prop_map(|(pick, outcome)| Event::Finish(pick, outcome)),
        1 => any::<usize>().prop_map(Event::Cancel),
    ];
    prop::collection::vec(event, 0..80)
}

#[derive(Default)]
struct Model {
    dependencies: BTreeMap<NodeId, Vec<NodeId>>,
    ended: BTreeMap<NodeId, Outcome>,
}

impl Model {
    fn unfinished(&self) -> Vec<NodeId> {
        self.dependencies.keys().filter(|id| !self.ended.contains_key(id)).copied().collect()
    }

    fn waits(&self, id: NodeId) -> bool {
        self.dependencies[&id].iter().any(|dependency| !self.ended.contains_key(dependency))
    }

    fn running(&self) -> Vec<NodeId> {
        self.unfinished().into_iter().filter(|&id| !self.waits(id)).collect()
    }

    /// Ends a node and whatever cannot run because of it; returns every resolution.
    fn end(&mut self, id: NodeId, outcome: Outcome) -> BTreeMap<NodeId, Resolution> {
        let running_before: BTreeSet<_> = self.running().into_iter().collect();
        self.ended.insert(id, outcome);
        let mut resolutions = BTreeMap::new();
        loop {
            let doomed = self.unfinished().into_iter().find_map(|id| {
                let ends: Option<Vec<Outcome>> =
                    self.dependencies[&id].iter().map(|d| self.ended.get(d).copied()).collect();
                let ends = ends?;
                if ends.contains(&Outcome::Cancelled) {
                    Some((id, Outcome::Cancelled, Resolution::DependencyCancelled))
                } else if ends.contains(&Outcome::Failed) {
                    Some((id, Outcome::Failed, Resolution::DependencyFailed))
                } else {
                    None
                }
            });
            let Some((id, outcome, resolution)) = doomed else { break };
            self.ended.insert(id, outcome);
            resolutions.insert(id, resolution);
        }
        for id in self.running() {
            if !running_before.contains(&id) {
                resolutions.insert(id, Resolution::Ready);
            }
        }
        resolutions
    }
}

fn check(model: &mut Model, id: NodeId, outcome: Outcome, answer: &[(NodeId, Resolution)]) {
    let positions: BTreeMap<_, _> =
        answer.iter().enumerate().map(|(position, (id, _))| (*id, position)).collect();
    assert_eq!(positions.len(), answer.len(), "a node was decided about twice: {answer:?}");
    for (id, position) in &positions {
        for dependency in &model.dependencies[id] {
            if let Some(earlier) = positions.get(dependency) {
                assert!(earlier < position, "{id} was decided about before {dependency}");
            }
        }
    }
    let expected = model.end(id, outcome);
    assert_eq!(answer.iter().copied().collect::<BTreeMap<_, _>>(), expected);
}

proptest! {
    #[test]
    fn every_resolution_is_what_the_model_says(events in events()) {
        let (mut graph, mut model) = (Graph::new(), Model::default());
        let mut next: NodeId = 0;
        for event in events {
            match event {
                Event::Add(picks) => {
                    let candidates = model.unfinished();
                    let dependencies: Vec<NodeId> = match candidates.len() {
                        0 => vec![],
                        count => picks.iter().map(|pick| candidates[pick % count]).collect(),
                    };
                    let ready = graph.add(next, &dependencies).expect("a new node");
                    prop_assert_eq!(ready, dependencies.is_empty());
                    model.dependencies.insert(next, dependencies);
                    next += 1;
                }
                Event::Finish(pick, outcome) => {
                    let running = model.running();
                    if running.is_empty() { continue }
                    let id = running[pick % running.len()];
                    let answer = graph.finish(id, outcome).expect("it runs");
                    check(&mut model, id, outcome, &answer);
                    prop_assert_eq!(graph.finish(id, outcome), Err(GraphError::Unknown(id)));
                }
                Event::Cancel(pick) => {
                    let unfinished = model.unfinished();
                    if unfinished.is_empty() { continue }
                    let id = unfinished[pick % unfinished.len()];
                    let answer = graph.cancel(id).expect("it is unfinished");
                    check(&mut model, id, Outcome::Cancelled, &answer);
                }
            }
            prop_assert_eq!(graph.len(), model.unfinished().len());
            for id in model.unfinished() {
                if model.waits(id) {
                    prop_assert_eq!(
                        graph.finish(id, Outcome::Done),
                        Err(GraphError::StillWaiting(id))
                    );
                }
            }
        }
    }
}
