//! How a thread that sleeps in an event loop is woken, and spared both if it looks up by itself.
//!
//! # Why no call is lost (and `tests/loom_waker.rs` tries every interleaving)
//!
//! Who rings leaves `CALLED` in `listener`, and uses the descriptor unless it has just taken
//! `LOOKING` away, which only happens while the listener looks. A listener that has looked in vain
//! takes `LOOKING` away itself before it sleeps: if it cannot, it was called. And one that
//! acknowledges a call looks at what it was called for after that; who rings has put it there before.

use std::io;
#[cfg(not(dft_loom))]
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use crate::park::Unpark;
use crate::sync::{AtomicU8, Notifier, Patience};

/// What the listener does, and whether it was called.
const AWAY: u8 = 0;
const LOOKING: u8 = 1;
const CALLED: u8 = 2;

/// A descriptor for the event loop of one listener, who may also look for a moment before it
/// sleeps.
pub struct Bell {
    notifier: Notifier,
    /// `AWAY` → `LOOKING` → `AWAY` by the listener, anything → `CALLED` by who rings, who need not
    /// use the descriptor where the listener was looking.
    listener: AtomicU8,
    patience: Mutex<Patience>,
}

impl Bell {
    /// Opens the descriptor; fails when the process has none left.
    pub fn new() -> io::Result<Self> {
        let (listener, patience) = (AtomicU8::new(AWAY), Mutex::new(Patience::NONE));
        Ok(Self { notifier: Notifier::new()?, listener, patience })
    }

    /// Sleeps as an event loop does that watches the descriptor.
    #[cfg(dft_loom)]
    pub fn wait_readable(&self) {
        self.notifier.wait();
    }

    /// The descriptor that is readable from a ring to the next [`acknowledge`](Self::acknowledge).
    #[cfg(not(dft_loom))]
    pub fn fileno(&self) -> RawFd {
        self.notifier.fileno()
    }

    /// Makes the descriptor unreadable until the next ring. What is rung for is looked at after.
    pub fn acknowledge(&self) {
        self.listener.store(AWAY, Ordering::Release);
        self.notifier.acknowledge();
    }

    /// Looks for a moment whether it rings, if that was worth it lately. If so, that is
    /// acknowledged; if not, the descriptor will tell.
    pub fn look(&self) -> bool {
        if !self.listener_goes(AWAY, LOOKING) {
            self.acknowledge(); // it has rung already, and maybe through the descriptor
            return true;
        }
        let rings = || self.listener.load(Ordering::Acquire) == CALLED;
        // Never locked, but in the child of a process that has forked in the middle of a look.
        let has_rung =
            self.patience.try_lock().is_ok_and(|mut patience| patience.look_before_return(rings));
        if !has_rung && self.listener_goes(LOOKING, AWAY) {
            return false;
        }
        self.listener.store(AWAY, Ordering::Release);
        true
    }

    /// Changes what the listener does; false if it was called.
    fn listener_goes(&self, from: u8, to: u8) -> bool {
        self.listener.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Unpark for Bell {
    fn unpark(&self) {
        // AcqRel: what it rings for is seen by a listener that sees this.
        if self.listener.swap(CALLED, Ordering::AcqRel) != LOOKING {
            self.notifier.notify();
        }
    }
}

#[cfg(not(dft_loom))]
impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}
