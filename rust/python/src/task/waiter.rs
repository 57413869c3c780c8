//! Who is told when a task ends, and how they are woken.

use std::sync::Arc;

use dftracer_core::sched::completion::CompletionQueue as CoreMailbox;
use dftracer_core::sched::parker::{Parker, Unpark};
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::completion::Completion;
use crate::interp::gc;
use crate::owner::Sleepers;

/// Who wants to know.
pub(crate) enum Waiter {
    Thread(Arc<Parker>),
    /// The completion is complete from the start (it holds the task itself until then), so that a
    /// thread without the interpreter can post it.
    Mailbox {
        mailbox: Arc<CoreMailbox<Completion>>,
        completion: Completion,
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

    /// Takes out the mailbox that was to be posted `token`, if there is one.
    pub(crate) fn take_mailbox(&mut self, token: &Py<PyAny>) -> Option<Waiter> {
        let is_it = |waiter: &Waiter| {
            matches!(waiter, Waiter::Mailbox { completion, .. }
                if completion.token.as_ptr() == token.as_ptr())
        };
        match self {
            Self::One(waiter) if is_it(waiter) => match std::mem::take(self) {
                Self::One(waiter) => Some(waiter),
                _ => None,
            },
            Self::Many(waiters) => {
                let place = waiters.iter().position(is_it)?;
                Some(waiters.remove(place))
            }
            Self::None | Self::One(_) => None,
        }
    }

    /// The mailbox that is to be posted the end of the task, and under which token.
    pub(crate) fn mailbox(&self) -> Option<(&Arc<CoreMailbox<Completion>>, &Py<PyAny>)> {
        let waiters = match self {
            Self::None => &[],
            Self::One(waiter) => std::slice::from_ref(waiter),
            Self::Many(waiters) => waiters.as_slice(),
        };
        waiters.iter().find_map(|waiter| match waiter {
            Waiter::Mailbox { mailbox, completion } => Some((mailbox, &completion.token)),
            _ => None,
        })
    }

    /// Whether there is none.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Takes out the functions, in the order in which they came.
    pub(crate) fn take_callbacks(&mut self) -> Self {
        let is_callback = |waiter: &Waiter| matches!(waiter, Waiter::Callback(_));
        match std::mem::replace(self, Self::None) {
            Self::One(waiter) if is_callback(&waiter) => Self::One(waiter),
            Self::Many(waiters) => {
                let (callbacks, others): (Vec<_>, Vec<_>) =
                    waiters.into_iter().partition(is_callback);
                *self = if others.is_empty() { Self::None } else { Self::Many(others) };
                if callbacks.is_empty() { Self::None } else { Self::Many(callbacks) }
            }
            others => {
                *self = others;
                Self::None
            }
        }
    }

    /// Shows the garbage collector who waits for a task that may never end.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let waiters = match self {
            Self::None => &[],
            Self::One(waiter) => std::slice::from_ref(waiter),
            Self::Many(waiters) => waiters.as_slice(),
        };
        waiters.iter().try_for_each(|waiter| match waiter {
            Waiter::Thread(_) => Ok(()),
            Waiter::Mailbox { completion, .. } => completion.traverse(visit),
            Waiter::Callback(callback) => visit.call(callback),
        })
    }

    /// Hands each what it waits for, in the order in which they came, and adds those who must be
    /// woken to `sleepers`. Gives back the functions, which are to be called.
    pub(crate) fn deliver(self, sleepers: &mut Sleepers, py: Option<Python<'_>>) -> Vec<Py<PyAny>> {
        let mut callbacks = Vec::new();
        let mut deliver = |waiter: Waiter| match waiter.deliver(py) {
            Ok(sleeper) => sleepers.extend(sleeper),
            Err(callback) => callbacks.push(callback),
        };
        match self {
            Self::None => {}
            Self::One(waiter) => deliver(waiter),
            Self::Many(waiters) => waiters.into_iter().for_each(deliver),
        }
        callbacks
    }
}

impl Waiter {
    /// Hands over what it waits for, and leaves it to the caller to wake it, or to call it.
    pub(crate) fn deliver(
        self,
        py: Option<Python<'_>>,
    ) -> Result<Option<Arc<dyn Unpark>>, Py<PyAny>> {
        match self {
            Self::Thread(parker) => Ok(Some(parker)),
            Self::Mailbox { mailbox, completion } => {
                // The task does not hold it any more, and the collector looks through mailboxes.
                // What ends without the interpreter has tokens that were never off the list.
                if let Some(py) = py {
                    gc::track(completion.token.bind(py));
                }
                Ok(mailbox.push_without_wake(completion).then_some(mailbox as Arc<dyn Unpark>))
            }
            Self::Callback(callback) => Err(callback),
        }
    }
}
