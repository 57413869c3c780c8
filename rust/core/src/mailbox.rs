//! A queue that wakes its one reader once per burst, not once per item.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::notify::Notifier;
use crate::park::Unpark;

/// Where finished tasks wait for an event loop.
pub struct Mailbox<T> {
    inbox: Mutex<Inbox<T>>,
    notifier: Notifier,
}

struct Inbox<T> {
    items: VecDeque<T>,
    /// True from the first item of a burst until the reader has emptied the queue. While it is
    /// true the descriptor is readable, or the reader is about to look.
    armed: bool,
}

impl<T> Mailbox<T> {
    /// An empty mailbox with a descriptor of its own.
    pub fn new() -> io::Result<Self> {
        let inbox = Mutex::new(Inbox { items: VecDeque::new(), armed: false });
        Ok(Self { inbox, notifier: Notifier::new()? })
    }

    /// The descriptor that is readable while items wait.
    pub fn fileno(&self) -> RawFd {
        self.notifier.fileno()
    }

    /// Adds an item. Any thread; never blocks on the reader.
    pub fn post(&self, item: T) {
        if self.post_quietly(item) {
            self.notifier.notify();
        }
    }

    /// Adds an item; true if the caller must wake the reader, soon, with [`Unpark::unpark`].
    #[must_use = "if true, the reader must be woken"]
    pub fn post_quietly(&self, item: T) -> bool {
        let mut inbox = self.lock();
        inbox.items.push_back(item);
        !std::mem::replace(&mut inbox.armed, true)
    }

    /// Takes the oldest items, at most `limit`. What remains keeps the descriptor readable.
    pub fn drain(&self, limit: usize) -> Vec<T> {
        // Before looking: an item posted after the look arms and notifies again.
        self.notifier.acknowledge();
        let mut inbox = self.lock();
        let count = inbox.items.len().min(limit);
        let items = inbox.items.drain(..count).collect();
        let more = !inbox.items.is_empty();
        inbox.armed = more;
        drop(inbox);
        if more {
            self.notifier.notify();
        }
        items
    }

    fn lock(&self) -> MutexGuard<'_, Inbox<T>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Unpark for Mailbox<T> {
    fn unpark(&self) {
        self.notifier.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable<T>(mailbox: &Mailbox<T>) -> bool {
        let mut fds = [PollFd::new(&mailbox.notifier, PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&zero)).expect("poll") == 1
    }

    #[test]
    fn is_readable_exactly_while_items_wait() {
        let mailbox = Mailbox::new().expect("descriptor");
        assert!(!readable(&mailbox));
        mailbox.post(1);
        mailbox.post(2);
        mailbox.post(3);
        assert!(readable(&mailbox));
        assert_eq!(mailbox.drain(2), [1, 2]);
        assert!(readable(&mailbox));
        assert_eq!(mailbox.drain(2), [3]);
        assert!(!readable(&mailbox));
        assert!(mailbox.drain(2).is_empty());
    }

    #[test]
    fn loses_and_doubles_nothing_when_many_threads_post() {
        const EACH: usize = 5_000;
        let mailbox = Arc::new(Mailbox::new().expect("descriptor"));
        let posters: Vec<_> = (0..4)
            .map(|poster| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    for i in 0..EACH {
                        mailbox.post(poster * EACH + i);
                    }
                })
            })
            .collect();
        let mut seen = Vec::new();
        while seen.len() < 4 * EACH {
            let mut fds = [PollFd::new(&mailbox.notifier, PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).expect("poll"), 1, "a wake-up was lost");
            seen.extend(mailbox.drain(1_000));
        }
        for poster in posters {
            poster.join().expect("poster");
        }
        assert!(mailbox.drain(1).is_empty());
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..4 * EACH));
    }
}
