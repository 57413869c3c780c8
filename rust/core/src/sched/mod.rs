//! Who runs next, and how a thread sleeps until there is something for it to do.
//!
//! A [`lane`] chooses the worker that runs the next job. Threads sleep on a [`parker`] or, with an
//! event loop, on a [`waker`], and [spin](spin) for a moment before that where it pays. Ended tasks
//! go back through a [`completion`] queue, and a [`timer`] keeps deadlines. The README of the crate
//! shows why no wake-up is lost.

pub mod completion;
mod jobs;
pub mod lane;
pub mod notifier;
pub mod parker;
pub mod spin;
pub(crate) mod sync;
pub mod timer;
pub mod waker;
