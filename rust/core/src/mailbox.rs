//! A queue that wakes its one reader once per burst, not once per item.
//!
//! The first item of a burst arms the queue, and whoever has armed it wakes the reader. The reader
//! disarms it under the same lock under which it takes the last item, so an item that comes later arms
//! it again. `tests/loom_completion.rs` tries every interleaving.

use std::collections::VecDeque;
use std::io;
#[cfg(not(dft_loom))]
use std::os::fd::RawFd;
use std::sync::PoisonError;

use crate::bell::Bell;
use crate::park::Unpark;
use crate::sync::{Mutex, MutexGuard};

/// Where finished tasks wait for an event loop.
pub struct Mailbox<T> {
    inbox: Mutex<Inbox<T>>,
    bell: Bell,
}

struct Inbox<T> {
    items: VecDeque<T>,
    /// True from the first item of a burst until the reader has emptied the queue. While it is
    /// true the bell has rung, or is about to, or the reader is about to take items.
    armed: bool,
}

impl<T: Send> Mailbox<T> {
    /// An empty mailbox with a descriptor of its own.
    pub fn new() -> io::Result<Self> {
        let inbox = Mutex::new(Inbox { items: VecDeque::new(), armed: false });
        Ok(Self { inbox, bell: Bell::new()? })
    }

    /// Sleeps as an event loop does that watches the descriptor.
    #[cfg(dft_loom)]
    pub fn wait_readable(&self) {
        self.bell.wait_readable();
    }

    /// The descriptor that is readable while items wait.
    #[cfg(not(dft_loom))]
    pub fn fileno(&self) -> RawFd {
        self.bell.fileno()
    }

    /// Adds an item. Any thread; never blocks on the reader.
    pub fn post(&self, item: T) {
        if self.post_quietly(item) {
            self.unpark();
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
        self.bell.acknowledge();
        self.take(limit)
    }

    /// Looks for a moment whether items come, if that was worth it lately, and takes them.
    pub fn look(&self, limit: usize) -> Vec<T> {
        if self.bell.look() { self.take(limit) } else { Vec::new() }
    }

    /// Shows each item that waits, the oldest first. None is taken or added meanwhile, so `look`
    /// must be short and wait for nothing.
    pub fn for_each(&self, look: impl FnMut(&T)) {
        self.lock().items.iter().for_each(look);
    }

    /// Takes all that waits, for a reader that will not come back.
    pub fn empty(&self) -> Vec<T> {
        let mut inbox = self.lock();
        inbox.armed = false;
        std::mem::take(&mut inbox.items).into()
    }

    fn take(&self, limit: usize) -> Vec<T> {
        let mut inbox = self.lock();
        let count = inbox.items.len().min(limit);
        let items = inbox.items.drain(..count).collect();
        let more = !inbox.items.is_empty();
        inbox.armed = more;
        drop(inbox);
        if more {
            self.unpark();
        }
        items
    }

    fn lock(&self) -> MutexGuard<'_, Inbox<T>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Unpark for Mailbox<T> {
    fn unpark(&self) {
        self.bell.unpark();
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable<T: Send>(mailbox: &Mailbox<T>) -> bool {
        let mut fds = [PollFd::new(&mailbox.bell, PollFlags::IN)];
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
    fn shows_what_waits_and_is_quiet_when_it_was_emptied() {
        let mailbox = Mailbox::new().expect("descriptor");
        mailbox.post(1);
        mailbox.post(2);
        let mut seen = Vec::new();
        mailbox.for_each(|item| seen.push(*item));
        assert_eq!(seen, [1, 2]);
        assert_eq!(mailbox.empty(), [1, 2]);
        assert!(mailbox.drain(2).is_empty());
        mailbox.post(3);
        assert!(readable(&mailbox), "the next item wakes a reader again");
        assert_eq!(mailbox.drain(2), [3]);
    }

    #[test]
    fn loses_and_doubles_nothing_when_many_threads_post() {
        take_all_of_many_threads(|mailbox| mailbox.drain(1_000));
    }

    #[test]
    fn loses_and_doubles_nothing_when_the_reader_looks_for_more() {
        let mut looked = 0;
        take_all_of_many_threads(|mailbox| {
            let mut items = mailbox.drain(1_000);
            loop {
                let more = mailbox.look(1_000);
                if more.is_empty() {
                    return items;
                }
                looked += 1;
                items.extend(more);
            }
        });
        assert!(looked > 0, "no look has found anything");
    }

    fn take_all_of_many_threads(mut take: impl FnMut(&Mailbox<usize>) -> Vec<usize>) {
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
            let mut fds = [PollFd::new(&mailbox.bell, PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).expect("poll"), 1, "a wake-up was lost");
            seen.extend(take(&mailbox));
        }
        for poster in posters {
            poster.join().expect("poster");
        }
        assert!(mailbox.drain(1).is_empty());
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..4 * EACH));
    }
}
