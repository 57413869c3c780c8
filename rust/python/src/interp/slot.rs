//! A worker: its lane, its thread, and what it is busy with, for others to see and to reach.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use dftracer_core::interrupt_slot::{IDLE, InterruptSlot};
use dftracer_core::sched::parker::Parker;

use super::fork::Process;

/// The lanes that run Python code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Python,
    Coroutine,
    Io,
    /// For the callbacks of tasks that have ended on threads which must not wait for them.
    Callback,
}

impl LaneKind {
    /// How many there are.
    pub(crate) const COUNT: usize = 4;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Coroutine => "coroutine",
            Self::Io => "io",
            Self::Callback => "callback",
        }
    }
}

/// What a worker is busy with.
pub(crate) struct Slot {
    /// Whose threads its own is one of.
    process: Process,
    pub(crate) lane: LaneKind,
    pub(crate) number: usize,
    /// The system's number of the thread.
    pub(crate) thread: u32,
    /// The thread's identity in Python, or 0 before it is known.
    pub(crate) ident: AtomicU64,
    /// The innermost body that runs here, for others to reach.
    pub(crate) running: InterruptSlot,
    /// The wait of ours in which the innermost body stands. No Python code runs while it is locked.
    waiting: Mutex<Option<Wait>>,
    /// Whether it drops what is left of its last task. Relaxed: of its own thread alone.
    pub(crate) owes_nothing: AtomicBool,
    /// How many of the bodies on its stack were given up. Relaxed: each returns in its own time.
    pub(crate) given_up: AtomicU32,
    pub(crate) id: ThreadId,
    /// Since when, as `nanos_now`. Relaxed: only shown.
    pub(crate) since: AtomicU64,
}

impl Slot {
    /// The slot of the calling thread.
    pub(crate) fn new(lane: LaneKind, number: usize) -> Self {
        Self {
            process: Process::current(),
            lane,
            number,
            thread: dftracer_core::thread::number(),
            ident: Default::default(),
            running: InterruptSlot::default(),
            waiting: Mutex::default(),
            owes_nothing: AtomicBool::new(false),
            given_up: AtomicU32::new(0),
            id: std::thread::current().id(),
            since: Default::default(),
        }
    }

    /// The wait of ours in which the innermost body stands. No Python code runs while this is held.
    pub(crate) fn wait(&self) -> MutexGuard<'_, Option<Wait>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait of ours that a body stands in.
pub(crate) struct Wait {
    pub(crate) task: i64,
    pub(crate) parker: Arc<Parker>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
    /// The task whose plain body has ended here last.
    static RAN_LAST: Cell<i64> = const { Cell::new(IDLE) };
    /// The system's number of this worker's thread; 0 if it is no worker, or one with an event loop.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

/// That of the worker that this thread is; `None` if it is none, or the copy of one in the child of
/// a `fork()` that its body made.
pub(crate) fn current() -> Option<Arc<Slot>> {
    CURRENT.with_borrow(|slot| slot.clone().filter(|slot| !slot.process.is_copy()))
}

/// Makes this thread a worker, or none any more.
pub(crate) fn set_current(slot: Option<Arc<Slot>>) {
    let plain = slot.as_ref().filter(|slot| slot.lane != LaneKind::Coroutine);
    THREAD.set(plain.map_or(0, |slot| slot.thread));
    CURRENT.set(slot);
}

/// The plain body of this task has ended here.
#[inline]
pub(crate) fn set_ran_last(task: i64) {
    RAN_LAST.set(task);
}

/// Where a task of a lane has run that has just ended.
pub(crate) enum Ran {
    /// On this thread, whose number this is, with nothing else between.
    Here(u32),
    /// In this thread's event loop.
    AmongOthers,
    Elsewhere,
}

/// Asked by the thread that ends a task.
pub(crate) fn ran(task: i64) -> Ran {
    match THREAD.get() {
        0 if current().is_some() => Ran::AmongOthers,
        0 => Ran::Elsewhere,
        thread if RAN_LAST.get() == task => Ran::Here(thread),
        _ => Ran::Elsewhere,
    }
}

/// A callback has forked, and has returned in the child: if it was one of our workers that called it,
/// that was all there is to do here.
pub(crate) fn leave_if_copied() {
    if let Some(process) = CURRENT.with_borrow(|slot| slot.as_ref().map(|slot| slot.process)) {
        process.leave_if_copied();
    }
}
