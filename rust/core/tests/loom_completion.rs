//! Every interleaving of those who push ended tasks and of the event loop that reads them: nothing is
//! lost or doubled, and the loop never sleeps on what is there.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::sched::completion::CompletionQueue;
use dftracer_core::sched::parker::Unpark;
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    models::check_with(3, model);
}

fn queue() -> Arc<CompletionQueue<usize>> {
    Arc::new(CompletionQueue::new().expect("a model"))
}

fn push(queue: &Arc<CompletionQueue<usize>>, items: &'static [usize]) -> thread::JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || items.iter().for_each(|item| queue.push(*item)))
}

fn join(pushers: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    pushers.into_iter().for_each(|pusher| pusher.join().expect("pusher"));
}

fn sorted(mut items: Vec<usize>) -> Vec<usize> {
    items.sort_unstable();
    items
}

#[test]
fn a_reader_that_sleeps_gets_all_items_when_two_push() {
    check(|| {
        let queue = queue();
        let pushers = [push(&queue, &[1, 2]), push(&queue, &[3])];
        let mut seen = Vec::new();
        while seen.len() < 3 {
            queue.wait_readable();
            seen.extend(queue.drain(10));
        }
        join(pushers);
        assert!(queue.drain(10).is_empty());
        assert_eq!(sorted(seen), [1, 2, 3]);
    });
}

#[test]
fn a_reader_that_spins_before_it_sleeps_gets_all_items() {
    check(|| {
        let queue = queue();
        let pushers = [push(&queue, &[1]), push(&queue, &[2])];
        let mut seen = Vec::new();
        while seen.len() < 2 {
            if queue.spin() {
                seen.extend(queue.take(10));
            } else {
                queue.wait_readable();
                seen.extend(queue.drain(10));
            }
        }
        join(pushers);
        assert!(queue.drain(10).is_empty());
        assert_eq!(sorted(seen), [1, 2]);
    });
}

#[test]
fn what_a_reader_leaves_wakes_it_again() {
    check(|| {
        let queue = queue();
        let pusher = push(&queue, &[1, 2, 3]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            queue.wait_readable();
            let taken = queue.drain(1);
            assert!(taken.len() <= 1);
            seen.extend(taken);
        }
        join([pusher]);
        assert_eq!(seen, [1, 2, 3], "in the order in which they came");
    });
}

#[test]
fn a_reader_gets_what_was_pushed_without_wake_once_it_is_woken() {
    check(|| {
        let queue = queue();
        let quiet = {
            let queue = queue.clone();
            thread::spawn(move || {
                // As a worker does that releases the interpreter before it wakes anybody.
                let must_wake = [1, 2].map(|item| queue.push_without_wake(item));
                if must_wake.contains(&true) {
                    queue.unpark();
                }
            })
        };
        let pusher = push(&queue, &[3]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            if queue.spin() && !queue.take(0).is_empty() {
                unreachable!("nothing is taken");
            }
            queue.wait_readable();
            seen.extend(queue.drain(2));
        }
        join([quiet, pusher]);
        assert_eq!(sorted(seen), [1, 2, 3]);
    });
}

#[test]
fn a_queue_that_was_emptied_wakes_its_reader_again() {
    check(|| {
        let queue = queue();
        let pusher = push(&queue, &[1, 2]);
        let mut seen = queue.take_all();
        while seen.len() < 2 {
            queue.wait_readable();
            seen.extend(queue.drain(10));
        }
        join([pusher]);
        assert_eq!(seen, [1, 2]);
    });
}
