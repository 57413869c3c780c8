//! Every interleaving of those who post ended tasks and of the event loop that reads them: nothing is
//! lost or doubled, and the loop never sleeps on what is there.
//!
//! Built and run with `RUSTFLAGS="--cfg dft_loom"`; without it this file is empty. A lost wake-up
//! shows as a deadlock, which the model checker reports.
#![cfg(dft_loom)]

mod models;

use std::sync::Arc;

use dftracer_core::mailbox::Mailbox;
use dftracer_core::park::Unpark;
use loom::thread;

fn check(model: impl Fn() + Send + Sync + 'static) {
    models::check_with(3, model);
}

fn mailbox() -> Arc<Mailbox<usize>> {
    Arc::new(Mailbox::new().expect("a model"))
}

fn post(mailbox: &Arc<Mailbox<usize>>, items: &'static [usize]) -> thread::JoinHandle<()> {
    let mailbox = mailbox.clone();
    thread::spawn(move || items.iter().for_each(|item| mailbox.post(*item)))
}

fn join(posters: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    posters.into_iter().for_each(|poster| poster.join().expect("poster"));
}

fn sorted(mut items: Vec<usize>) -> Vec<usize> {
    items.sort_unstable();
    items
}

#[test]
fn a_reader_that_sleeps_gets_all_items_when_two_post() {
    check(|| {
        let mailbox = mailbox();
        let posters = [post(&mailbox, &[1, 2]), post(&mailbox, &[3])];
        let mut seen = Vec::new();
        while seen.len() < 3 {
            mailbox.wait_readable();
            seen.extend(mailbox.drain(10));
        }
        join(posters);
        assert!(mailbox.drain(10).is_empty());
        assert_eq!(sorted(seen), [1, 2, 3]);
    });
}

#[test]
fn a_reader_that_looks_before_it_sleeps_gets_all_items() {
    check(|| {
        let mailbox = mailbox();
        let posters = [post(&mailbox, &[1]), post(&mailbox, &[2])];
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let more = mailbox.look(10);
            if more.is_empty() {
                mailbox.wait_readable();
                seen.extend(mailbox.drain(10));
            }
            seen.extend(more);
        }
        join(posters);
        assert!(mailbox.drain(10).is_empty());
        assert_eq!(sorted(seen), [1, 2]);
    });
}

#[test]
fn what_a_reader_leaves_wakes_it_again() {
    check(|| {
        let mailbox = mailbox();
        let poster = post(&mailbox, &[1, 2, 3]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            mailbox.wait_readable();
            let taken = mailbox.drain(1);
            assert!(taken.len() <= 1);
            seen.extend(taken);
        }
        join([poster]);
        assert_eq!(seen, [1, 2, 3], "in the order in which they came");
    });
}

#[test]
fn a_reader_gets_what_was_posted_quietly_once_it_is_woken() {
    check(|| {
        let mailbox = mailbox();
        let quiet = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                // As a worker does that lets go of the interpreter first.
                let must_wake = [1, 2].map(|item| mailbox.post_quietly(item));
                if must_wake.contains(&true) {
                    mailbox.unpark();
                }
            })
        };
        let poster = post(&mailbox, &[3]);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            if !mailbox.look(0).is_empty() {
                unreachable!("nothing is taken");
            }
            mailbox.wait_readable();
            seen.extend(mailbox.drain(2));
        }
        join([quiet, poster]);
        assert_eq!(sorted(seen), [1, 2, 3]);
    });
}

#[test]
fn a_mailbox_that_was_emptied_wakes_its_reader_again() {
    check(|| {
        let mailbox = mailbox();
        let poster = post(&mailbox, &[1, 2]);
        let mut seen = mailbox.empty();
        while seen.len() < 2 {
            mailbox.wait_readable();
            seen.extend(mailbox.drain(10));
        }
        join([poster]);
        assert_eq!(seen, [1, 2]);
    });
}
