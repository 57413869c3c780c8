//! Whether a thread spins for a moment before it sleeps.
//!
//! To fall asleep and be woken takes a thread some 10 to 50 µs; two threads that hand small tasks to
//! each other would do nothing else. But a thread that spins in vain keeps a CPU from others. So it
//! spins only where its sleeps have been short lately, for a moment, and yields to others meanwhile.
//! Having spun in vain it tries again after one short sleep, then after two, four, and so on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::parker::{Parker, Wakeup};
use crate::sizes::available_cpus;

/// How long it spins at a time.
const LIMIT: Duration = Duration::from_micros(20);

/// The same for a thread with an event loop, which takes longer to fall asleep and to answer.
const LIMIT_OF_LOOP: Duration = Duration::from_micros(50);

/// A sleep below this would not have been one, or would have been much shorter, had both sides
/// spun.
const SHORT: Duration = Duration::from_micros(100);

/// How often in a row it spins in vain before it stops doing so, where it spun with success before,
/// and where it tries again: twice, because both sides must spin at the same time.
const SPINS: u8 = 8;
const SPINS_OF_A_TRY: u8 = 2;

/// The most short sleeps between two tries.
const MAX_INTERVAL: u8 = 16;

/// What one thread has learned about its sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Spinner {
    /// How often it may spin in vain before it stops doing so.
    left: u8,
    /// Short sleeps from here to the next try; counts when `left` is 0.
    until_try: u8,
    /// Short sleeps between the last try and the next.
    interval: u8,
}

impl Spinner {
    /// That of a thread that has not slept yet: it does not spin.
    pub const NEW: Self = Self { left: 0, until_try: 1, interval: 1 };

    /// Spins until there is a notification, if that is worth it; true if there was one.
    pub fn spin(&mut self, parker: &Parker) -> bool {
        self.spin_for(LIMIT, || parker.take_notification())
    }

    /// The same for a thread that sleeps elsewhere, so that nobody knows for how long: it tries
    /// again as if all sleeps were short ones.
    pub fn spin_before_return(&mut self, is_ready: impl FnMut() -> bool) -> bool {
        if self.left == 0 {
            self.count_short_sleep();
            return false;
        }
        self.spin_for(LIMIT_OF_LOOP, is_ready)
    }

    fn spin_for(&mut self, limit: Duration, is_ready: impl FnMut() -> bool) -> bool {
        if self.left == 0 || !can_others_run() {
            return false;
        }
        if spin_until(limit, is_ready) {
            *self = Self { left: SPINS, ..Self::NEW };
            return true;
        }
        self.left -= 1;
        if self.left == 0 {
            self.until_try = self.interval;
            self.interval = (self.interval * 2).min(MAX_INTERVAL);
        }
        false
    }

    /// Sleeps as [`Parker::park`] does, and learns from it.
    pub fn park(&mut self, parker: &Parker, timeout: Option<Duration>) -> Wakeup {
        let begin = Instant::now();
        let wakeup = parker.park(timeout);
        if self.left == 0 && wakeup == Wakeup::Notified && begin.elapsed() < SHORT {
            self.count_short_sleep();
        }
        wakeup
    }

    fn count_short_sleep(&mut self) {
        self.until_try -= 1;
        if self.until_try == 0 {
            self.left = SPINS_OF_A_TRY;
        }
    }
}

/// Spins until `is_ready`, for at most `limit`; whether it was.
pub fn spin_until(limit: Duration, mut is_ready: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        for _ in 0..48 {
            if is_ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() >= limit {
            return false;
        }
        // Whoever is to notify may be waiting for this very CPU.
        std::thread::yield_now();
    }
}

/// Whether somebody else can run while this thread spins.
fn can_others_run() -> bool {
    // No `OnceLock`: a process that forks while this thread is inside of it would copy it locked.
    // Relaxed: whoever comes first, all find the same number.
    static CPUS: AtomicUsize = AtomicUsize::new(0);
    let mut cpus = CPUS.load(Ordering::Relaxed);
    if cpus == 0 {
        cpus = available_cpus();
        CPUS.store(cpus, Ordering::Relaxed);
    }
    cpus > 1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sched::parker::Unpark;

    fn wait(spinner: &mut Spinner, parker: &Parker) {
        while !spinner.spin(parker) && spinner.park(parker, None) != Wakeup::Notified {}
    }

    #[test]
    fn every_notification_ends_one_wait_when_spins_and_sleeps_alternate() {
        let (ping, pong) = (Arc::new(Parker::default()), Arc::new(Parker::default()));
        let echo = {
            let (ping, pong) = (ping.clone(), pong.clone());
            std::thread::spawn(move || {
                let mut spinner = Spinner::NEW;
                for round in 0..20_000 {
                    wait(&mut spinner, &ping);
                    if round % 1_000 == 0 {
                        std::thread::sleep(Duration::from_micros(200)); // past every spin
                    }
                    pong.unpark();
                }
            })
        };
        let mut spinner = Spinner::NEW;
        for _ in 0..20_000 {
            ping.unpark();
            wait(&mut spinner, &pong);
        }
        echo.join().expect("echo thread");
        assert!(!spinner.spin(&pong), "a notification was counted twice");
    }

    #[test]
    fn tries_ever_more_seldom_when_it_spins_in_vain() {
        let parker = Parker::default();
        let mut spinner = Spinner::NEW;
        let mut intervals = Vec::new();
        let mut sleeps = 0;
        for _ in 0..100 {
            // In vain: the notification comes only after the spin.
            let tries = spinner.left == SPINS_OF_A_TRY;
            assert!(!spinner.spin(&parker));
            if tries {
                intervals.push(sleeps);
                sleeps = 0;
            }
            sleeps += 1;
            parker.unpark();
            assert_eq!(spinner.park(&parker, None), Wakeup::Notified);
        }
        if can_others_run() {
            // More where the system has made a sleep longer.
            let least = [1, 2, 3, 5, 9];
            assert!(intervals.iter().zip(least).all(|(sleeps, least)| *sleeps >= least));
            assert!((5..=9).contains(&intervals.len()), "{intervals:?}");
        }
    }

    #[test]
    fn learns_nothing_from_a_sleep_that_nobody_ended() {
        let parker = Parker::default();
        let mut spinner = Spinner::NEW;
        assert_eq!(spinner.park(&parker, Some(Duration::ZERO)), Wakeup::TimedOut);
        assert_eq!(spinner.left, 0);
    }
}
