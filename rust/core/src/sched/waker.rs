//! How a thread that sleeps in an event loop is woken, without a system call while it spins.
//!
//! # Why no wake-up is lost (and `tests/loom_waker.rs` tries every interleaving)
//!
//! Who wakes stores `WOKEN` in `state`, and writes to the descriptor unless it has replaced `SPINNING`,
//! which is there only while the sleeper spins. A sleeper that has spun in vain replaces `SPINNING` by
//! `AWAY` before it sleeps: if it cannot, it was woken. And one that acknowledges a wake-up looks for
//! work after that; who wakes has put the work there before.

use std::io;
#[cfg(not(dft_loom))]
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::parker::Unpark;
use super::sync::{AtomicU8, Notifier, Spinner};

/// The sleeper runs, or sleeps on the descriptor.
const AWAY: u8 = 0;
/// The sleeper spins: it reads `state` again and again.
const SPINNING: u8 = 1;
/// Somebody has woken it, and it has not acknowledged that.
const WOKEN: u8 = 2;

/// Wakes one event loop, which watches a descriptor and may spin for a moment before it sleeps.
///
/// ```
/// use dftracer_core::sched::parker::Unpark;
/// use dftracer_core::sched::waker::LoopWaker;
///
/// let waker = LoopWaker::new()?;
/// waker.unpark();
/// // The descriptor is readable now, so that the event loop calls what it has for it:
/// waker.acknowledge();
/// assert!(!waker.spin());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct LoopWaker {
    notifier: Notifier,
    /// `AWAY` → `SPINNING` → `AWAY` by the sleeper, anything → `WOKEN` by who wakes, who need not
    /// write to the descriptor where the sleeper was spinning.
    state: AtomicU8,
    spinner: Mutex<Spinner>,
}

impl LoopWaker {
    /// Opens the descriptor; fails when the process has none left.
    pub fn new() -> io::Result<Self> {
        let (state, spinner) = (AtomicU8::new(AWAY), Mutex::new(Spinner::NEW));
        Ok(Self { notifier: Notifier::new()?, state, spinner })
    }

    /// Sleeps as an event loop does that watches the descriptor.
    #[cfg(dft_loom)]
    pub fn wait_readable(&self) {
        self.notifier.wait();
    }

    /// The descriptor that is readable from a wake-up to the next
    /// [`acknowledge`](Self::acknowledge).
    #[cfg(not(dft_loom))]
    pub fn fileno(&self) -> RawFd {
        self.notifier.fileno()
    }

    /// Makes the descriptor unreadable until the next wake-up. The caller looks for work after this.
    pub fn acknowledge(&self) {
        // Relaxed: who wakes from here on writes to the descriptor, whatever is overwritten here.
        self.state.store(AWAY, Ordering::Relaxed);
        self.notifier.acknowledge();
    }

    /// Spins for a moment until it is woken, if spinning has paid lately. If it is, that is
    /// acknowledged; if not, the descriptor will be readable at the next wake-up.
    pub fn spin(&self) -> bool {
        if !self.replace(AWAY, SPINNING) {
            self.acknowledge(); // woken already, and maybe through the descriptor
            return true;
        }
        // Acquire: what was done before the wake-up is visible after it.
        let is_woken = || self.state.load(Ordering::Acquire) == WOKEN;
        // Never locked, but in the child of a process that has forked while it spun.
        let was_woken =
            self.spinner.try_lock().is_ok_and(|mut spinner| spinner.spin_before_return(is_woken));
        if !was_woken && self.replace(SPINNING, AWAY) {
            return false;
        }
        // Relaxed: as in `acknowledge`.
        self.state.store(AWAY, Ordering::Relaxed);
        true
    }

    /// Changes the state of the sleeper; false if it was woken.
    fn replace(&self, from: u8, to: u8) -> bool {
        // Acquire, also on failure: what was done before the wake-up is visible after it.
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Unpark for LoopWaker {
    fn unpark(&self) {
        // AcqRel: a sleeper that sees this sees the work that it is woken for.
        if self.state.swap(WOKEN, Ordering::AcqRel) != SPINNING {
            self.notifier.notify();
        }
    }
}

#[cfg(not(dft_loom))]
impl AsFd for LoopWaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}
