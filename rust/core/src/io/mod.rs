//! Child processes and work on files that may block, without a thread for each.
//!
//! A program waits for a place in the [`budget`], is started by a thread of a [`pool`], and is then
//! fed, read and reaped by the [`reactor`], as [`process`] says.

pub mod budget;
pub mod pool;
pub mod process;
pub mod reactor;
#[allow(unsafe_code, reason = "programs are started by functions of the C library")]
mod spawn;
