//! A task: what it is to run, how far it is, who waits for it, and how it ended.

mod birth;
pub(crate) mod completion;
mod content;
pub(crate) mod current;
pub(crate) mod failed;
pub(crate) mod family;
mod given_up;
mod handle;
pub(crate) mod limits;
pub(crate) mod mailbox;
mod methods;
pub(crate) mod queue;
pub(crate) mod run;
mod settle;
pub(crate) mod stopping;
mod traced;
pub(crate) mod wait;
mod waiter;

pub(crate) use content::{Content, Outcome, cancelled_error};
pub(crate) use given_up::{leave_body, swallow};
pub(crate) use handle::{Birth, End, Limit, TaskHandle};
pub(crate) use settle::NativeRun;
