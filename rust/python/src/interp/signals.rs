//! Waiting in a way that lets Ctrl-C through.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dftracer_core::sched::parker::{Parker, Wakeup};
use dftracer_core::sched::spin::{Spinner, spin_until};
use pyo3::prelude::*;

use super::clock::nanos_now;
use super::once::Lazy;

/// How long the main thread sleeps at a time. A signal ends a sleep that has begun; but one that
/// arrives in the moment before is only marked, and nothing ends the sleep that follows.
const SIGNAL_SLICE: Duration = Duration::from_millis(100);

/// How often a thread has let go of the interpreter to wait. Relaxed: only a hint that it is free.
static LET_GO: AtomicU32 = AtomicU32::new(0);

/// How long a worker that was found looking waits for the one who woke it to let go of the
/// interpreter. To ask for it sooner would put the worker to sleep: the interpreter's own lock does
/// not look. Long enough for `submit(...)` to return and `get()` to be called, or for an event loop
/// that has launched a task to look for its end.
const HAND_OVER: Duration = Duration::from_micros(10);

thread_local! {
    static PATIENCE: Cell<Spinner> = const { Cell::new(Spinner::NEW) };
}

/// Lets go of the interpreter and sleeps until notified, for at most `left`. Where it answers
/// `Interrupted`, the caller checks for signals and sleeps again.
pub(crate) fn park(py: Python<'_>, parker: &Parker, left: Option<Duration>) -> Wakeup {
    py.detach(|| {
        LET_GO.fetch_add(1, Ordering::Relaxed);
        let mut patience = PATIENCE.get();
        let wakeup = if left.is_none_or(|left| left >= SIGNAL_SLICE) && patience.spin(parker) {
            Wakeup::Notified
        } else {
            sleep(&mut patience, parker, left)
        };
        PATIENCE.set(patience);
        wakeup
    })
}

fn sleep(patience: &mut Spinner, parker: &Parker, left: Option<Duration>) -> Wakeup {
    if !is_main_thread() {
        return patience.park(parker, left); // Python handles signals in the main thread
    }
    let slice = left.map_or(SIGNAL_SLICE, |left| left.min(SIGNAL_SLICE));
    match patience.park(parker, Some(slice)) {
        Wakeup::TimedOut if left.is_none_or(|left| left > slice) => Wakeup::Interrupted,
        wakeup => wakeup,
    }
}

/// Lets go of the interpreter to look for what may come at any moment.
pub(crate) fn look<T: Send>(py: Python<'_>, look: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        LET_GO.fetch_add(1, Ordering::Relaxed);
        look()
    })
}

/// Between two slices of long work: lets other threads have the interpreter, and signals be heard.
pub(crate) fn share(py: Python<'_>) -> PyResult<()> {
    // Who waits for the interpreter has asked for it; then this gives it away before it comes back.
    py.detach(|| ());
    py.check_signals()
}

/// Sleeps, as a worker without the interpreter, until notified.
pub(crate) fn park_worker(parker: &Parker, patience: &mut Spinner) {
    if !look_as_worker(|| patience.spin(parker)) {
        while patience.park(parker, None) != Wakeup::Notified {}
    }
}

/// Looks, as a worker without the interpreter, whether it is called; what it needs then is the
/// interpreter.
pub(crate) fn look_as_worker(look: impl FnOnce() -> bool) -> bool {
    let before = LET_GO.load(Ordering::Relaxed);
    let was_called = look();
    if was_called {
        spin_until(HAND_OVER, || LET_GO.load(Ordering::Relaxed) != before);
    }
    was_called
}

#[cfg(all(target_os = "linux", not(dft_portable)))]
fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

/// Not known here, so it might be.
#[cfg(any(not(target_os = "linux"), dft_portable))]
fn is_main_thread() -> bool {
    true
}

/// How often a worker asks whether others wait for the interpreter.
const TURN_NS: u64 = 1_000_000;

/// Since when a worker has not asked whether others wait for the interpreter; 0 if it has not yet.
#[derive(Default)]
pub(crate) struct Turn(u64);

impl Turn {
    /// Lets others have the interpreter between two bodies if it is their turn; gives the time.
    ///
    /// Only Python code is asked for it, and bodies may be functions written in C. To let go of it
    /// without being asked would not do: who waits would be woken, come too late, and wait anew.
    #[inline]
    pub(crate) fn share(&mut self, py: Python<'_>, now: u64) -> u64 {
        if now.saturating_sub(self.0) > TURN_NS { self.let_others(py) } else { now }
    }

    #[cold]
    fn let_others(&mut self, py: Python<'_>) -> u64 {
        static NOTHING: Lazy<Py<PyAny>> = Lazy::new();
        let nothing =
            NOTHING.get_or_try_init(py, || py.eval(c"lambda: None", None, None).map(Bound::unbind));
        if let Err(error) = nothing.and_then(|nothing| nothing.call0(py)) {
            error.write_unraisable(py, None);
        }
        self.0 = nanos_now();
        self.0
    }
}
