//! The part of the runtime that knows no Python.
//!
//! Everything here is a mechanism: who runs next and who is woken ([`sched`]), how far a task is
//! ([`task_state`]) and how a running one is interrupted ([`interrupt_slot`]), how many tasks there are
//! ([`outstanding`]), what became ready ([`graph`]), how child processes run without a thread each
//! ([`io`]), and what needs no interpreter ([`native`]). Policy lives in Python. `README.md` beside
//! this crate shows why no wake-up is lost, and in which order all of it ends.

#![deny(missing_docs, unsafe_code)]

#[allow(unsafe_code, reason = "the child of a fork closes descriptors by their numbers")]
pub mod forks;
pub mod graph;
pub mod interrupt_slot;
pub mod io;
pub mod native;
pub mod outstanding;
pub mod redact;
pub mod registry;
pub mod sched;
pub mod sizes;
pub mod task_state;
pub mod thread;
pub mod trace;
