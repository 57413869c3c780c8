//! A runtime, as its tasks know it: the queues and their threads, counts, failures, deadlines.

pub(crate) mod deadlines;
pub(crate) mod failures;
pub(crate) mod items;
pub(crate) mod job;
#[allow(unsafe_code, reason = "addresses of handles that are looked at without holding them")]
pub(crate) mod living;
pub(crate) mod look;
mod shared;
mod sleepers;
pub(crate) mod stopping;

pub(crate) use shared::{Loops, STANDING_STILL, Shared, alive, wake_idle_waiters};
pub(crate) use sleepers::{Sleepers, wake};
