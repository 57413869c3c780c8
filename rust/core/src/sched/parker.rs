//! Putting one thread to sleep until another wakes it.

use std::time::Duration;

/// Something whose sleep any thread can end.
///
/// `unpark` may be called from any thread, more than once, before or after the sleeper sleeps; it
/// never blocks and never calls Python.
pub trait Unpark: Send + Sync {
    /// Ends the current sleep, or the next one if nobody sleeps now.
    fn unpark(&self);
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// [`Unpark::unpark`] was called.
    Notified,
    /// A signal arrived, or may have: the caller checks for it and sleeps again.
    Interrupted,
    /// The time was up.
    TimedOut,
}

pub use imp::Parker;

#[cfg(all(target_os = "linux", not(dft_portable)))]
mod imp {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::super::sync::{Futex, FutexWait};
    use super::{Unpark, Wakeup};

    const EMPTY: u32 = 0;
    const PARKED: u32 = 1;
    const NOTIFIED: u32 = 2;

    /// A one-thread sleep on a futex, so that a signal ends the system call (a condition variable
    /// would go back to sleep and Ctrl-C would wait with it).
    ///
    /// `tests/loom_parker.rs` tries every interleaving.
    ///
    /// ```
    /// use dftracer_core::sched::parker::{Parker, Unpark, Wakeup};
    ///
    /// let parker = Parker::default();
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| parker.unpark());
    ///     while parker.park(None) != Wakeup::Notified {} // a signal may come first
    /// });
    /// ```
    #[derive(Default)]
    pub struct Parker {
        /// `EMPTY` → `PARKED` by the sleeper; anything → `NOTIFIED` by a waker; `NOTIFIED` →
        /// `EMPTY` by the sleeper, who thereby consumes the wake-up.
        state: Futex,
    }

    impl Parker {
        /// Sleeps until notified, a signal, or the end of `timeout`.
        pub fn park(&self, timeout: Option<Duration>) -> Wakeup {
            let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
            loop {
                // Acquire on success: what the waker wrote before `unpark` is visible here.
                if self.take_notification() {
                    return Wakeup::Notified;
                }
                // Relaxed: nothing is published, and what a waker has published is acquired by who
                // takes its notification.
                let word = self.state.word();
                let parked =
                    word.compare_exchange(EMPTY, PARKED, Ordering::Relaxed, Ordering::Relaxed);
                if parked.is_err() {
                    continue; // notified in between
                }
                let remaining = deadline.map(|d| d.saturating_duration_since(Instant::now()));
                if remaining.is_some_and(|r| r.is_zero()) {
                    return self.stop_parking(Wakeup::TimedOut);
                }
                match self.state.wait(PARKED, remaining) {
                    FutexWait::Woken => {
                        // Woken, or spuriously: `stop_parking` finds out which.
                        if self.stop_parking(Wakeup::Interrupted) == Wakeup::Notified {
                            return Wakeup::Notified;
                        }
                    }
                    FutexWait::TimedOut => return self.stop_parking(Wakeup::TimedOut),
                    FutexWait::Interrupted => return self.stop_parking(Wakeup::Interrupted),
                }
            }
        }

        /// Consumes a notification if there is one. Cheap enough to be called in a loop.
        pub(crate) fn take_notification(&self) -> bool {
            // Relaxed: only to leave the cache line to the notifier until there is something.
            let word = self.state.word();
            if word.load(Ordering::Relaxed) != NOTIFIED {
                return false;
            }
            // Acquire: as in `park`.
            word.compare_exchange(NOTIFIED, EMPTY, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }

        /// Leaves `PARKED`. A notification that came first wins over `otherwise`.
        fn stop_parking(&self, otherwise: Wakeup) -> Wakeup {
            // Acquire: as in `park`.
            match self.state.word().swap(EMPTY, Ordering::Acquire) {
                NOTIFIED => Wakeup::Notified,
                _ => otherwise,
            }
        }
    }

    impl Unpark for Parker {
        fn unpark(&self) {
            // Release: the sleeper sees all that happened before this call.
            if self.state.word().swap(NOTIFIED, Ordering::Release) == PARKED {
                self.state.wake_one();
            }
        }
    }
}

#[cfg(any(not(target_os = "linux"), dft_portable))]
mod imp {
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    use super::{Unpark, Wakeup};

    /// A one-thread sleep on a condition variable. No signal ends it: who has to look for signals
    /// sleeps for a short time only.
    #[derive(Default)]
    pub struct Parker {
        notified: Mutex<bool>,
        condvar: Condvar,
    }

    impl Parker {
        /// Consumes a notification if there is one.
        pub(crate) fn take_notification(&self) -> bool {
            std::mem::take(&mut *self.lock())
        }

        /// Sleeps until notified or the end of `timeout`.
        pub fn park(&self, timeout: Option<Duration>) -> Wakeup {
            let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            let mut notified = self.lock();
            while !*notified {
                let left =
                    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                notified = match left {
                    None => self.condvar.wait(notified).unwrap_or_else(PoisonError::into_inner),
                    Some(Duration::ZERO) => return Wakeup::TimedOut,
                    Some(left) => {
                        let waited = self.condvar.wait_timeout(notified, left);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                };
            }
            *notified = false;
            Wakeup::Notified
        }

        fn lock(&self) -> MutexGuard<'_, bool> {
            self.notified.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl Unpark for Parker {
        fn unpark(&self) {
            *self.lock() = true;
            self.condvar.notify_one();
        }
    }
}

impl Parker {
    /// Sleeps until notified, whatever signals arrive.
    pub fn park_until_notified(&self) {
        while self.park(None) != Wakeup::Notified {}
    }

    /// Sleeps for at most `timeout`; true if notified.
    pub fn park_for(&self, timeout: Duration) -> bool {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.park(Some(left)) {
                Wakeup::Notified => return true,
                Wakeup::TimedOut => return false,
                Wakeup::Interrupted => {}
            }
        }
    }
}

#[cfg(all(test, not(dft_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_notification_before_the_sleep_is_not_lost() {
        let parker = Parker::default();
        parker.unpark();
        assert_eq!(parker.park(None), Wakeup::Notified);
    }

    #[test]
    fn many_notifications_end_one_sleep() {
        let parker = Parker::default();
        parker.unpark();
        parker.unpark();
        assert!(parker.park_for(Duration::from_secs(60)));
        assert!(!parker.park_for(Duration::from_millis(1)));
    }

    #[test]
    fn a_sleeper_is_woken_by_another_thread_every_time() {
        let (ping, pong) = (Arc::new(Parker::default()), Arc::new(Parker::default()));
        let echo = {
            let (ping, pong) = (ping.clone(), pong.clone());
            std::thread::spawn(move || {
                for _ in 0..2_000 {
                    ping.park_until_notified();
                    pong.unpark();
                }
            })
        };
        for _ in 0..2_000 {
            ping.unpark();
            pong.park_until_notified();
        }
        echo.join().expect("echo thread");
    }
}
