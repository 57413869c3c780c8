//! Waiting for tasks, and who waits for whom.

pub(crate) mod all;
pub(crate) mod body;
pub(crate) mod graph;
mod one;
