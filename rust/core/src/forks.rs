//! What must not be in progress, or be left open, when this process forks.
//!
//! The child of a `fork()` has the memory and the descriptors of all threads and only one of the
//! threads. A lock that another thread held at that moment is held there for ever, and the end of
//! a pipe that was open stays open for as long as the child lives: whoever reads from the other end
//! never sees it closed.
//!
//! 1. Threads without the interpreter do what a fork must not interrupt inside of a section
//!    ([`apart`]). Forks wait for sections in progress, and sections for forks.
//! 2. A descriptor that a child must not keep is [`Ours`] from the section in which it is opened to
//!    the one in which it is closed. The child closes all of these first.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Threads that are inside a section. SeqCst on both: each side announces itself, then looks for
/// the other.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Forks that are about to happen: several threads may fork at a time.
static FORKING: AtomicUsize = AtomicUsize::new(0);
/// Rises in the child of each fork. Relaxed: it changes while there is one thread.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// The descriptors that a child closes. Locked only inside of sections, so never in a child.
static OURS: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs `section`, not while the process forks. Called on threads without the interpreter. It must
/// be short, and wait for nothing. One section may be part of another.
pub fn apart<T>(section: impl FnOnce() -> T) -> T {
    if DEPTH.get() == 0 {
        loop {
            INSIDE.fetch_add(1, Ordering::SeqCst);
            if FORKING.load(Ordering::SeqCst) == 0 {
                break;
            }
            INSIDE.fetch_sub(1, Ordering::SeqCst);
            std::thread::yield_now();
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    let _left_at_the_end = Inside;
    section()
}

struct Inside;

impl Drop for Inside {
    /// Also if the section panics: otherwise no fork would ever happen again.
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        if DEPTH.get() == 0 {
            INSIDE.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A value that is dropped inside of a section, whoever drops it.
#[derive(Debug)]
pub struct DroppedApart<T>(Option<T>);

impl<T> DroppedApart<T> {
    /// Keeps the value.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Gives the value to one who sees to that himself.
    pub fn take(mut self) -> T {
        self.0.take().expect("a value until it is dropped")
    }
}

impl<T> Deref for DroppedApart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a value until it is dropped")
    }
}

impl<T> std::ops::DerefMut for DroppedApart<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("a value until it is dropped")
    }
}

impl<T> Drop for DroppedApart<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        apart(move || drop(value));
    }
}

/// Announces a fork. No section begins from now on; the fork waits until none
/// [is in progress](sections_in_progress).
pub fn begin() {
    FORKING.fetch_add(1, Ordering::SeqCst);
}

/// Whether a fork that was announced must wait.
pub fn sections_in_progress() -> bool {
    INSIDE.load(Ordering::SeqCst) > 0
}

/// The fork is over, in the process that has forked.
pub fn end_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

/// The fork is over, in the child: closes what it must not keep open.
pub fn end_in_child() {
    // Whoever else was about to fork is not there any more. The section of a task that has forked
    // cannot be: a fork waits for all of them.
    INSIDE.store(0, Ordering::SeqCst);
    FORKING.store(0, Ordering::SeqCst);
    GENERATION.fetch_add(1, Ordering::Relaxed);
    for fd in std::mem::take(&mut *ours()) {
        // SAFETY: it was open in the parent, so it is open here. What owns it belongs to threads
        // that the child does not have, and is never dropped here.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// How many forks lie between this process and the one that began.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

fn ours() -> MutexGuard<'static, BTreeSet<RawFd>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something with a descriptor that the child of a fork closes. Made, changed and dropped on
/// threads without the interpreter.
#[derive(Debug)]
pub struct Ours<T: AsRawFd>(Option<T>);

impl<T: AsRawFd> Ours<T> {
    /// Opens it. `open` is part of a section: it must not block.
    pub fn open<E>(open: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        apart(|| open().map(Self::of))
    }

    /// To be called in the section in which it was opened.
    pub(crate) fn of(value: T) -> Self {
        ours().insert(value.as_raw_fd());
        Self(Some(value))
    }

    /// Makes something else of the same descriptor, or closes it.
    pub fn try_map<U: AsRawFd>(
        mut self,
        make: impl FnOnce(T) -> io::Result<U>,
    ) -> io::Result<Ours<U>> {
        apart(move || {
            let value = self.0.take().expect("a value until it is dropped");
            ours().remove(&value.as_raw_fd());
            make(value).map(Ours::of)
        })
    }
}

impl<T: AsRawFd> Deref for Ours<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a value until it is dropped")
    }
}

impl<T: AsRawFd> std::ops::DerefMut for Ours<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("a value until it is dropped")
    }
}

impl<T: AsRawFd> Drop for Ours<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            apart(move || {
                // First: once it is closed, its number may be another's.
                ours().remove(&value.as_raw_fd());
                drop(value);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// The tests share the process, and so its forks.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[test]
    fn sections_wait_until_the_last_of_two_forks_is_over() {
        let _alone = alone();
        begin();
        begin();
        let entered = Arc::new(AtomicBool::new(false));
        let enters = entered.clone();
        let section = std::thread::spawn(move || {
            apart(|| enters.store(true, Ordering::SeqCst));
        });
        end_in_parent();
        for _ in 0..1_000 {
            assert!(!entered.load(Ordering::SeqCst), "one fork is still about to happen");
            std::thread::yield_now();
        }
        end_in_parent();
        section.join().expect("section");
        assert!(entered.load(Ordering::SeqCst));
    }

    #[test]
    fn a_section_within_a_section_does_not_wait_for_a_fork() {
        let _alone = alone();
        apart(|| {
            begin();
            apart(|| assert!(sections_in_progress()));
            drop(DroppedApart::new(()));
            assert!(sections_in_progress(), "the outer one is still in progress");
            end_in_parent();
        });
    }

    #[test]
    fn a_section_that_panics_is_over() {
        let _alone = alone();
        let section = std::thread::spawn(|| apart(|| panic!("on purpose")));
        section.join().expect_err("a panic");
        begin();
        while sections_in_progress() {
            std::thread::yield_now(); // of other tests
        }
        end_in_parent();
    }

    #[test]
    fn a_descriptor_is_known_exactly_while_it_is_open() {
        let open = || std::fs::File::open("/dev/null");
        let file = Ours::open(open).expect("descriptor");
        let fd = file.as_raw_fd();
        assert!(apart(|| ours().contains(&fd)));
        let file = file.try_map(|file| Ok(OwnedFd::from(file))).expect("the same");
        assert_eq!(file.as_raw_fd(), fd);
        assert!(apart(|| ours().contains(&fd)));
        let closed = file.try_map(|file| {
            drop(file);
            Err::<OwnedFd, _>(io::ErrorKind::Other.into())
        });
        assert!(closed.is_err());
    }
}
