//! What threads share is built of this: the real things, or, with `--cfg dft_loom`, those whose
//! every interleaving the model checker tries (`tests/loom_*.rs`).

#[cfg(not(dft_loom))]
pub(crate) use self::real::*;

#[cfg(dft_loom)]
pub(crate) use self::modelled::*;

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

    use loom::sync::Condvar;
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicIsize, AtomicU8, AtomicU64, AtomicUsize, fence,
    };
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now as spin;

    /// The model takes sequentially consistent operations for weaker ones, but knows the fence.
    pub(crate) fn in_total_order() {
        fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// The queue itself is not what is checked: a simple one will do.
    pub(crate) struct Queue<J>(Mutex<VecDeque<J>>);

    impl<J> Queue<J> {
        pub(crate) fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        pub(crate) fn push(&self, job: J) {
            self.lock().push_back(job);
        }

        pub(crate) fn pop(&self) -> Option<J> {
            self.lock().pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            self.lock().len()
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        fn lock(&self) -> MutexGuard<'_, VecDeque<J>> {
            self.0.lock().expect("never poisoned in a model")
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
