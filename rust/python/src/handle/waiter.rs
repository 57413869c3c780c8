//! Who is told when a task ends, and how they are woken.

use std::sync::Arc;

use dftracer_core::mailbox::Mailbox as CoreMailbox;
use dftracer_core::park::{Parker, Unpark};
use pyo3::prelude::*;

use super::TaskHandle;
use crate::callbacks;
use crate::mailbox::Delivery;

/// Threads and event loops that are to be woken.
pub(crate) type Sleepers = Vec<Arc<dyn Unpark>>;

/// Wakes them all.
pub(crate) fn wake(sleepers: &mut Sleepers) {
    for sleeper in sleepers.drain(..) {
        sleeper.unpark();
    }
}

/// Who wants to know.
pub(crate) enum Waiter {
    Thread(Arc<Parker>),
    /// The delivery is complete from the start (it holds the task itself until then), so that a
    /// thread without the interpreter can post it.
    Mailbox {
        mailbox: Arc<CoreMailbox<Delivery>>,
        delivery: Delivery,
    },
    /// A function that is called with the handle.
    Callback(Py<PyAny>),
}

/// The waiters of a task; nearly always none or one.
#[derive(Default)]
pub(crate) enum Waiters {
    #[default]
    None,
    One(Waiter),
    Many(Vec<Waiter>),
}

impl Waiters {
    pub(crate) fn add(&mut self, waiter: Waiter) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(waiter),
            Self::One(first) => Self::Many(vec![first, waiter]),
            Self::Many(mut waiters) => {
                waiters.push(waiter);
                Self::Many(waiters)
            }
        };
    }

    pub(crate) fn remove_thread(&mut self, parker: &Arc<Parker>) {
        let is_it = |w: &Waiter| matches!(w, Waiter::Thread(other) if Arc::ptr_eq(other, parker));
        match self {
            Self::One(waiter) if is_it(waiter) => *self = Self::None,
            Self::Many(waiters) => waiters.retain(|waiter| !is_it(waiter)),
            Self::None | Self::One(_) => {}
        }
    }

    /// Hands each what it waits for, in the order in which they came, and adds those who must be
    /// woken to `sleepers`.
    pub(crate) fn deliver(self, handle: &Py<TaskHandle>, sleepers: &mut Sleepers) {
        match self {
            Self::None => {}
            Self::One(waiter) => sleepers.extend(waiter.deliver(handle)),
            Self::Many(waiters) => {
                sleepers.extend(waiters.into_iter().filter_map(|waiter| waiter.deliver(handle)));
            }
        }
    }
}

impl Waiter {
    /// Hands over what it waits for, and leaves it to the caller to wake it.
    pub(crate) fn deliver(self, handle: &Py<TaskHandle>) -> Option<Arc<dyn Unpark>> {
        match self {
            Self::Thread(parker) => Some(parker),
            Self::Mailbox { mailbox, delivery } => {
                mailbox.post_quietly(delivery).then_some(mailbox as Arc<dyn Unpark>)
            }
            Self::Callback(callback) => {
                // `None`: the interpreter is gone, and with it whoever would be called.
                Python::try_attach(|py| {
                    callbacks::call(py, &callback, (handle.clone_ref(py),));
                    drop(callback);
                });
                None
            }
        }
    }
}
