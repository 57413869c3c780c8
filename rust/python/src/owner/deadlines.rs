//! Timeouts: how long a task may run, and how long all of them together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dftracer_core::registry::Entry;
use dftracer_core::sched::timer::{Timer, TimerKey};
use pyo3::prelude::*;

use crate::interp::errors::refused;

/// What the timer keeps for a deadline.
pub(crate) enum Due {
    /// Of one task: where its handle stands, and the id to tell it from a later one there.
    /// And what its error says, if it has a limit of its own.
    Task { entry: Entry, task_id: i64, text: Option<String> },
    /// Of all tasks, and which of the deadlines for all that were set.
    All { generation: u64 },
}

/// What is called with those that are due, on the timer's thread.
type Expire = Arc<dyn Fn(&[Due]) + Send + Sync>;

/// The deadlines of one runtime. The thread that keeps them is started with the first.
pub(crate) struct Deadlines {
    /// In milliseconds; 0 is none. Relaxed: applies to tasks that begin after it is seen.
    task_timeout_ms: AtomicU64,
    expire: Expire,
    keeper: Mutex<Keeper>,
}

#[derive(Default)]
struct Keeper {
    timer: Option<Timer<Due>>,
    for_all: Option<TimerKey>,
    /// Of the deadline for all that counts. One that has been replaced or taken back may be about
    /// to expire.
    generation: u64,
}

impl Keeper {
    fn timer(&mut self, expire: &Expire) -> PyResult<&Timer<Due>> {
        if self.timer.is_none() {
            let expire = expire.clone();
            let started = Timer::start(move |due: Vec<Due>| expire(&due));
            self.timer =
                Some(started.map_err(|error| refused("the thread that keeps timeouts", error))?);
        }
        Ok(self.timer.as_ref().expect("started above"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.stop_in_background();
        }
    }
}

impl Deadlines {
    /// None. `expire` will be called without the interpreter.
    pub(crate) fn new(expire: impl Fn(&[Due]) + Send + Sync + 'static) -> Self {
        Self {
            task_timeout_ms: AtomicU64::new(0),
            expire: Arc::new(expire),
            keeper: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn task_timeout(&self) -> Option<Duration> {
        match self.task_timeout_ms.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// The shorter of a job's own timeout and the default one.
    pub(crate) fn shorter_timeout(&self, own: Option<Duration>) -> Option<Duration> {
        own.into_iter().chain(self.task_timeout()).min()
    }

    /// Limits tasks that begin from now on; 0 takes the limit away. If they `may_come`, the thread that
    /// keeps deadlines is started now: a task that began without it could run for ever.
    pub(crate) fn set_task_timeout(&self, millis: u64, may_come: bool) -> PyResult<()> {
        if millis > 0 && may_come {
            self.start()?;
        }
        self.task_timeout_ms.store(millis, Ordering::Relaxed);
        Ok(())
    }

    /// Starts the thread that keeps deadlines, for tasks with limits of their own that are about to be
    /// submitted.
    pub(crate) fn start(&self) -> PyResult<()> {
        self.lock().timer(&self.expire).map(drop)
    }

    /// Lets every task that is unfinished `millis` from now run out of time; 0 takes that back.
    pub(crate) fn set_timeout_for_all(&self, millis: u64) -> PyResult<()> {
        let mut keeper = self.lock();
        if let (Some(timer), Some(key)) = (&keeper.timer, keeper.for_all) {
            timer.cancel(key);
        }
        keeper.for_all = None;
        keeper.generation += 1;
        let generation = keeper.generation;
        let at = Instant::now().checked_add(Duration::from_millis(millis));
        if let Some(at) = at.filter(|_| millis > 0) {
            let key = keeper.timer(&self.expire)?.insert(at, Due::All { generation });
            keeper.for_all = Some(key);
        }
        Ok(())
    }

    /// Whether that is the deadline for all that counts.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.lock().generation == generation
    }

    pub(crate) fn insert(&self, at: Instant, due: Due) -> PyResult<TimerKey> {
        Ok(self.lock().timer(&self.expire)?.insert(at, due))
    }

    pub(crate) fn cancel(&self, key: TimerKey) {
        if let Some(timer) = &self.lock().timer {
            timer.cancel(key);
        }
    }

    /// No deadline matters any more. Does not wait for the thread that keeps them.
    pub(crate) fn retire(&self) {
        let timer = self.lock().timer.take();
        if let Some(timer) = timer {
            timer.stop_in_background();
        }
    }

    /// In the copy of a runtime, whose lock may be held for ever: leaks the timer.
    pub(crate) fn abandon(&mut self) {
        std::mem::forget(std::mem::take(&mut self.keeper));
    }
}
