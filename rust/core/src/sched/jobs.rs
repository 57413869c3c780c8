//! The jobs that wait in a lane: a queue, and what goes ahead of it.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::sched::sync::{AtomicUsize, Mutex, MutexGuard, Queue};

/// After it was emptied, the stack keeps room for so many batches, and no more.
const ROOM: usize = 64;

/// Jobs for many pushers and many takers. Those in the queue are taken in the order of their
/// pushes, but not before those in the stack, of which the last batch comes first.
pub(crate) struct Jobs<J> {
    queue: Queue<J>,
    /// How many jobs are in `stack`. Written only under its lock, before that is released; read
    /// without it, so that a lane where nothing goes ahead pays for one load.
    stacked: AtomicUsize,
    /// No batch in it is empty.
    stack: Mutex<Vec<Batch<J>>>,
}

struct Batch<J> {
    tick: u64,
    jobs: VecDeque<J>,
}

impl<J> Jobs<J> {
    pub(crate) fn new() -> Self {
        Self { queue: Queue::new(), stacked: AtomicUsize::new(0), stack: Mutex::new(Vec::new()) }
    }

    /// Adds a job behind all others.
    pub(crate) fn push(&self, job: J) {
        self.queue.push(job);
    }

    /// Adds jobs ahead of all others; behind those of the last batch if that is of the same tick.
    pub(crate) fn push_ahead(&self, tick: u64, jobs: impl IntoIterator<Item = J>) {
        let mut jobs: VecDeque<J> = jobs.into_iter().collect();
        if jobs.is_empty() {
            return;
        }
        let mut stack = self.lock();
        // Relaxed: it changes under this lock only. Who looks for jobs without it does so after a
        // fence that pairs with one of the pusher's, as with the queue: see the lane.
        let stacked = self.stacked.load(Ordering::Relaxed) + jobs.len();
        match stack.last_mut() {
            Some(last) if last.tick == tick => last.jobs.append(&mut jobs),
            _ => stack.push(Batch { tick, jobs }),
        }
        self.stacked.store(stacked, Ordering::Relaxed);
    }

    /// Takes the job that is next.
    pub(crate) fn pop(&self) -> Option<J> {
        if self.has_stacked()
            && let Some(job) = self.pop_stacked()
        {
            return Some(job);
        }
        self.queue.pop()
    }

    fn pop_stacked(&self) -> Option<J> {
        let mut stack = self.lock();
        let last = stack.last_mut()?;
        let job = last.jobs.pop_front();
        if last.jobs.is_empty() {
            stack.pop();
            if stack.is_empty() {
                stack.shrink_to(ROOM);
            }
        }
        // Relaxed: as in `push_ahead`.
        let stacked = self.stacked.load(Ordering::Relaxed) - usize::from(job.is_some());
        self.stacked.store(stacked, Ordering::Relaxed);
        job
    }

    pub(crate) fn len(&self) -> usize {
        // Relaxed: a number to show.
        self.stacked.load(Ordering::Relaxed) + self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.has_stacked() && self.queue.is_empty()
    }

    fn has_stacked(&self) -> bool {
        // Relaxed: who must not miss a job has passed a fence after the job's pusher did; the jobs
        // themselves are read under the lock.
        self.stacked.load(Ordering::Relaxed) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Batch<J>>> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use super::*;

    fn taken(jobs: &Jobs<u32>) -> Vec<u32> {
        std::iter::from_fn(|| jobs.pop()).collect()
    }

    #[test]
    fn the_last_batch_comes_first_and_the_queue_last() {
        let jobs = Jobs::new();
        jobs.push(1);
        jobs.push(2);
        jobs.push_ahead(1, [3, 4]);
        jobs.push_ahead(2, [5, 6]);
        jobs.push(7);
        assert_eq!(jobs.len(), 7);
        assert_eq!(taken(&jobs), [5, 6, 3, 4, 1, 2, 7]);
        assert!(jobs.is_empty());
    }

    #[test]
    fn batches_of_one_tick_keep_their_order() {
        let jobs = Jobs::new();
        jobs.push_ahead(1, [1]);
        jobs.push_ahead(2, [2, 3]);
        assert_eq!(jobs.pop(), Some(2));
        jobs.push_ahead(2, [4]);
        assert_eq!(taken(&jobs), [3, 4, 1]);
    }

    #[test]
    fn a_tick_that_was_emptied_goes_ahead_again() {
        let jobs = Jobs::new();
        jobs.push_ahead(1, [1]);
        jobs.push_ahead(2, [2]);
        assert_eq!(jobs.pop(), Some(2));
        jobs.push_ahead(2, [3]);
        assert_eq!(taken(&jobs), [3, 1]);
    }

    #[test]
    fn an_empty_batch_is_none() {
        let jobs: Jobs<u32> = Jobs::new();
        jobs.push_ahead(1, []);
        assert!(jobs.is_empty());
        assert_eq!(jobs.pop(), None);
    }

    #[test]
    fn room_for_many_batches_is_given_back() {
        let jobs = Jobs::new();
        for tick in 0..10_000 {
            jobs.push_ahead(u64::from(tick), [tick]);
        }
        assert_eq!(taken(&jobs).len(), 10_000);
        assert!(jobs.lock().capacity() <= ROOM);
    }
}
