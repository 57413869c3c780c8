//! What threads share is built of this: the real things, or, with `--cfg dft_loom`, those whose
//! every interleaving the model checker tries (`tests/loom_*.rs`).

#[cfg(not(dft_loom))]
pub(crate) use self::real::*;

#[cfg(dft_loom)]
pub(crate) use self::modelled::*;

/// Why a thread that slept on a [`Futex`] runs again.
#[cfg(all(target_os = "linux", not(dft_portable)))]
pub(crate) enum FutexWait {
    /// It was woken, or the word was another one, or for no reason.
    Woken,
    TimedOut,
    /// By a signal.
    #[cfg_attr(dft_loom, expect(dead_code, reason = "no signals in a model"))]
    Interrupted,
}

#[cfg(all(target_os = "linux", not(dft_portable), not(dft_loom)))]
mod futex {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::thread::futex::{Flags, Timespec, wait, wake};

    use super::FutexWait;

    /// A word on which the kernel lets a thread sleep.
    #[derive(Default)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        #[inline]
        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps while the word is `expected`, for at most `timeout`.
        pub(crate) fn wait(&self, expected: u32, timeout: Option<Duration>) -> FutexWait {
            let timespec = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            match wait(&self.0, Flags::PRIVATE, expected, timespec.as_ref()) {
                Ok(()) | Err(Errno::AGAIN) => FutexWait::Woken,
                Err(Errno::TIMEDOUT) => FutexWait::TimedOut,
                Err(_) => FutexWait::Interrupted,
            }
        }

        /// Wakes one who sleeps.
        pub(crate) fn wake_one(&self) {
            // An error here would mean a bad address, which a reference cannot be.
            let _ = wake(&self.0, Flags::PRIVATE, 1);
        }
    }
}

#[cfg(not(dft_loom))]
mod real {
    pub(crate) use std::hint::spin_loop as spin;
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicI64, AtomicIsize, AtomicU8, AtomicU64, AtomicUsize, fence,
    };
    pub(crate) use std::sync::{Mutex, MutexGuard};

    use crossbeam_deque::{Injector, Steal};

    pub(crate) use crate::sched::notifier::Notifier;
    pub(crate) use crate::sched::spin::Spinner;

    #[cfg(all(target_os = "linux", not(dft_portable)))]
    pub(crate) use super::futex::Futex;

    /// After a sequentially consistent operation: nothing, as that takes part in their total order.
    #[inline]
    pub(crate) fn in_total_order() {}

    /// A queue for many pushers and many takers.
    pub(crate) struct Queue<J>(Injector<J>);

    impl<J> Queue<J> {
        pub(crate) fn new() -> Self {
            Self(Injector::new())
        }

        pub(crate) fn push(&self, job: J) {
            self.0.push(job);
        }

        pub(crate) fn pop(&self) -> Option<J> {
            loop {
                match self.0.steal() {
                    Steal::Success(job) => return Some(job),
                    Steal::Empty => return None,
                    Steal::Retry => std::hint::spin_loop(),
                }
            }
        }

        pub(crate) fn len(&self) -> usize {
            self.0.len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }
}

#[cfg(dft_loom)]
mod modelled {
    use std::collections::VecDeque;
    use std::io;
    use std::sync::atomic::Ordering;
    #[cfg(all(target_os = "linux", not(dft_portable)))]
    use std::time::Duration;

    use loom::sync::Condvar;
    #[cfg(all(target_os = "linux", not(dft_portable)))]
    use loom::sync::atomic::AtomicU32;
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicIsize, AtomicU8, AtomicU64, AtomicUsize, fence,
    };
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now as spin;

    #[cfg(all(target_os = "linux", not(dft_portable)))]
    use super::FutexWait;

    /// The model takes sequentially consistent operations for weaker ones, but knows the fence.
    pub(crate) fn in_total_order() {
        fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// The queue itself is not what is checked: a simple one will do. But it must order no more than
    /// the real one: who asks whether it is empty takes no lock, so only the lane's fences count.
    pub(crate) struct Queue<J> {
        /// Written under the lock, read without it. Relaxed.
        length: AtomicUsize,
        jobs: Mutex<VecDeque<J>>,
    }

    impl<J> Queue<J> {
        pub(crate) fn new() -> Self {
            Self { length: AtomicUsize::new(0), jobs: Mutex::new(VecDeque::new()) }
        }

        pub(crate) fn push(&self, job: J) {
            let mut jobs = self.lock();
            jobs.push_back(job);
            self.length.store(jobs.len(), Ordering::Relaxed);
        }

        pub(crate) fn pop(&self) -> Option<J> {
            if self.is_empty() {
                return None;
            }
            let mut jobs = self.lock();
            let job = jobs.pop_front();
            self.length.store(jobs.len(), Ordering::Relaxed);
            job
        }

        pub(crate) fn len(&self) -> usize {
            self.length.load(Ordering::Relaxed)
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        fn lock(&self) -> MutexGuard<'_, VecDeque<J>> {
            self.jobs.lock().expect("never poisoned in a model")
        }
    }

    /// The kernel compares the word and puts the thread to sleep in one step, and no wake-up comes
    /// between: here under a lock. Nobody runs out of time.
    #[cfg(all(target_os = "linux", not(dft_portable)))]
    #[derive(Default)]
    pub(crate) struct Futex {
        word: AtomicU32,
        kernel: Mutex<()>,
        woken: Condvar,
    }

    #[cfg(all(target_os = "linux", not(dft_portable)))]
    impl Futex {
        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.word
        }

        pub(crate) fn wait(&self, expected: u32, timeout: Option<Duration>) -> FutexWait {
            if timeout.is_some() {
                return FutexWait::TimedOut;
            }
            let kernel = self.kernel.lock().expect("never poisoned in a model");
            // Relaxed: as the kernel, this orders nothing for who sleeps.
            if self.word.load(std::sync::atomic::Ordering::Relaxed) == expected {
                drop(self.woken.wait(kernel).expect("never poisoned in a model"));
            }
            FutexWait::Woken
        }

        pub(crate) fn wake_one(&self) {
            let _kernel = self.kernel.lock().expect("never poisoned in a model");
            self.woken.notify_one();
        }
    }

    /// A descriptor, as far as who watches it can tell: readable or not.
    pub(crate) struct Notifier {
        readable: Mutex<bool>,
        changed: Condvar,
    }

    impl Notifier {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self { readable: Mutex::new(false), changed: Condvar::new() })
        }

        pub(crate) fn notify(&self) {
            *self.lock() = true;
            self.changed.notify_one();
        }

        pub(crate) fn acknowledge(&self) {
            *self.lock() = false;
        }

        /// Sleeps until it is readable, and leaves it so.
        pub(crate) fn wait(&self) {
            let mut readable = self.lock();
            while !*readable {
                readable = self.changed.wait(readable).expect("never poisoned in a model");
            }
        }

        fn lock(&self) -> MutexGuard<'_, bool> {
            self.readable.lock().expect("never poisoned in a model")
        }
    }

    /// One that spins once, every time: how long it spins is not what is checked.
    pub(crate) struct Spinner;

    impl Spinner {
        pub(crate) const NEW: Self = Self;

        pub(crate) fn spin_before_return(&mut self, mut is_ready: impl FnMut() -> bool) -> bool {
            is_ready()
        }
    }
}
