//! The part of the runtime that knows no Python.
//!
//! Everything here is a mechanism: who runs next ([`lane`]), what became ready ([`graph`]), how a
//! finished task reaches its waiter ([`park`], [`mailbox`]) and how child processes are run without
//! a thread each ([`io`], [`process`]). Policy lives in Python. `README.md` beside this crate tells
//! the thread states, the wake-up rules and the order of a shutdown.

pub mod bell;
pub mod budget;
pub mod compute;
pub mod files;
pub mod forks;
pub mod graph;
pub mod io;
mod jobs;
pub mod lane;
pub mod ledger;
pub mod mailbox;
pub mod notify;
pub mod outstanding;
pub mod park;
pub mod patience;
pub mod pool;
pub mod process;
pub mod redact;
pub mod running;
pub mod sizes;
mod spawn;
mod sync;
pub mod task_state;
pub mod thread;
pub mod trace;
pub mod watchdog;
