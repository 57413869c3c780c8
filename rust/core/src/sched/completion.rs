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

use crate::sched::parker::Unpark;
use crate::sched::sync::{Mutex, MutexGuard};
use crate::sched::waker::LoopWaker;

/// Where finished tasks wait for an event loop.
///
/// ```
/// use dftracer_core::sched::completion::CompletionQueue;
///
/// let queue = CompletionQueue::new()?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| queue.push("an outcome"));
/// });
/// // The descriptor is readable now. The event loop that watches it takes a burst at once:
/// assert_eq!(queue.drain(100), ["an outcome"]);
/// assert!(queue.drain(100).is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct CompletionQueue<T> {
    queue: Mutex<Queue<T>>,
    waker: LoopWaker,
}

struct Queue<T> {
    items: VecDeque<T>,
    /// True from the first item of a burst until the reader has emptied the queue. While it is
    /// true the reader was woken, or is about to be, or is about to take items.
    armed: bool,
}

impl<T: Send> CompletionQueue<T> {
    /// An empty queue with a descriptor of its own.
    pub fn new() -> io::Result<Self> {
        let queue = Mutex::new(Queue { items: VecDeque::new(), armed: false });
        Ok(Self { queue, waker: LoopWaker::new()? })
    }

    /// Sleeps as an event loop does that watches the descriptor.
    #[cfg(dft_loom)]
    pub fn wait_readable(&self) {
        self.waker.wait_readable();
    }

    /// The descriptor that is readable while items wait.
    #[cfg(not(dft_loom))]
    pub fn fileno(&self) -> RawFd {
        self.waker.fileno()
    }

    /// Adds an item. Any thread; never blocks on the reader.
    pub fn push(&self, item: T) {
        if self.push_without_wake(item) {
            self.unpark();
        }
    }

    /// Adds an item; true if the caller must wake the reader, soon, with [`Unpark::unpark`].
    #[must_use = "if true, the reader must be woken"]
    pub fn push_without_wake(&self, item: T) -> bool {
        let mut queue = self.lock();
        queue.items.push_back(item);
        !std::mem::replace(&mut queue.armed, true)
    }

    /// Takes the oldest items, at most `limit`. What remains keeps the descriptor readable.
    pub fn drain(&self, limit: usize) -> Vec<T> {
        // Before items are taken: one that comes after that arms the queue and wakes again.
        self.waker.acknowledge();
        self.take(limit)
    }

    /// Spins for a moment until items come, if spinning has paid lately. If they do, the reader is to
    /// [`take`](Self::take) them, which it may do later: until then nobody wakes it.
    #[must_use = "if true, items are to be taken"]
    pub fn spin(&self) -> bool {
        self.waker.spin()
    }

    /// Shows each item that waits, the oldest first. None is taken or added meanwhile, so `show`
    /// must be short and wait for nothing.
    pub fn for_each(&self, show: impl FnMut(&T)) {
        self.lock().items.iter().for_each(show);
    }

    /// Takes all that waits, for a reader that will not come back.
    pub fn take_all(&self) -> Vec<T> {
        let mut queue = self.lock();
        queue.armed = false;
        std::mem::take(&mut queue.items).into()
    }

    /// Takes the oldest items, at most `limit`, when [`spin`](Self::spin) has found some. What remains
    /// makes the descriptor readable.
    pub fn take(&self, limit: usize) -> Vec<T> {
        let mut queue = self.lock();
        let count = queue.items.len().min(limit);
        let items = queue.items.drain(..count).collect();
        let more = !queue.items.is_empty();
        queue.armed = more;
        drop(queue);
        if more {
            self.unpark();
        }
        items
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Unpark for CompletionQueue<T> {
    fn unpark(&self) {
        self.waker.unpark();
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable<T: Send>(queue: &CompletionQueue<T>) -> bool {
        let mut fds = [PollFd::new(&queue.waker, PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&zero)).expect("poll") == 1
    }

    #[test]
    fn is_readable_exactly_while_items_wait() {
        let queue = CompletionQueue::new().expect("descriptor");
        assert!(!readable(&queue));
        queue.push(1);
        queue.push(2);
        queue.push(3);
        assert!(readable(&queue));
        assert_eq!(queue.drain(2), [1, 2]);
        assert!(readable(&queue));
        assert_eq!(queue.drain(2), [3]);
        assert!(!readable(&queue));
        assert!(queue.drain(2).is_empty());
    }

    #[test]
    fn shows_what_waits_and_is_quiet_when_it_was_emptied() {
        let queue = CompletionQueue::new().expect("descriptor");
        queue.push(1);
        queue.push(2);
        let mut seen = Vec::new();
        queue.for_each(|item| seen.push(*item));
        assert_eq!(seen, [1, 2]);
        assert_eq!(queue.take_all(), [1, 2]);
        assert!(queue.drain(2).is_empty());
        queue.push(3);
        assert!(readable(&queue), "the next item wakes a reader again");
        assert_eq!(queue.drain(2), [3]);
    }

    #[test]
    fn loses_and_doubles_nothing_when_many_threads_push() {
        take_all_of_many_threads(|queue| queue.drain(1_000));
    }

    #[test]
    fn loses_and_doubles_nothing_when_the_reader_spins() {
        let mut found = 0;
        take_all_of_many_threads(|queue| {
            let mut items = queue.drain(1_000);
            loop {
                if !queue.spin() {
                    return items;
                }
                let more = queue.take(1_000);
                found += 1;
                items.extend(more);
            }
        });
        assert!(found > 0, "no spin has found anything");
    }

    fn take_all_of_many_threads(mut take: impl FnMut(&CompletionQueue<usize>) -> Vec<usize>) {
        const EACH: usize = 5_000;
        let queue = Arc::new(CompletionQueue::new().expect("descriptor"));
        let pushers: Vec<_> = (0..4)
            .map(|pusher| {
                let queue = queue.clone();
                std::thread::spawn(move || {
                    for i in 0..EACH {
                        queue.push(pusher * EACH + i);
                    }
                })
            })
            .collect();
        let mut seen = Vec::new();
        while seen.len() < 4 * EACH {
            let mut fds = [PollFd::new(&queue.waker, PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
            assert_eq!(poll(&mut fds, Some(&limit)).expect("poll"), 1, "a wake-up was lost");
            seen.extend(take(&queue));
        }
        for pusher in pushers {
            pusher.join().expect("pusher");
        }
        assert!(queue.drain(1).is_empty());
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..4 * EACH));
    }
}
