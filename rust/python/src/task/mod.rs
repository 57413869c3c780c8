//! A task: what it is to run, how far it is, who waits for it, and how it ended.

pub(crate) mod address;
pub(crate) mod completion;
mod content;
pub(crate) mod family;
mod handle;
pub(crate) mod job;
pub(crate) mod kept;
pub(crate) mod mailbox;
mod methods;
mod settle;
mod traced;
mod waiter;
pub(crate) mod waits;

pub(crate) use content::{Content, Outcome, cancelled_error, restore_traceback};
pub(crate) use handle::{Birth, End, Limit, Look, TaskHandle};
pub(crate) use methods::seconds;
pub(crate) use settle::NativeRun;
pub(crate) use waiter::{Sleepers, wake};
