//! How many child processes may run at a time: one budget of descriptors for the whole process,
//! however many runtimes there are.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::forks;

/// What a child process takes here: two pipes and the descriptor that is readable at its end.
const DESCRIPTORS_EACH: u64 = 3;

/// The budget of this process. A forked child has one of its own: the places that are taken in a
/// copy would never be given back.
static CURRENT: Mutex<Option<(u64, Arc<Budget>)>> = Mutex::new(None);

/// The places for child processes.
#[derive(Debug)]
pub struct Budget {
    places: Arc<Semaphore>,
    /// How many there are, taken or not.
    total: Mutex<usize>,
    freed: Notify,
    /// The one terminal that this process may have, for the program that asks there.
    pub(crate) terminal: Arc<Semaphore>,
}

/// A place for a child process, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    budget: Arc<Budget>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// That of this process.
    pub fn current() -> Arc<Self> {
        forks::apart(|| {
            let mut current = lock(&CURRENT);
            let generation = forks::generation();
            match &*current {
                Some((made_in, budget)) if *made_in == generation => budget.clone(),
                _ => {
                    let budget = Arc::new(Self {
                        places: Arc::new(Semaphore::new(0)),
                        total: Mutex::new(0),
                        freed: Notify::new(),
                        terminal: Arc::new(Semaphore::new(1)),
                    });
                    // A copy's locks may be held for ever: it is not dropped.
                    std::mem::forget(current.replace((generation, budget.clone())));
                    budget
                }
            }
        })
    }

    /// Waits for a place. The limit is asked for each time: a program may change it.
    pub async fn place(self: Arc<Self>) -> Place {
        self.resize();
        // An error would mean a closed semaphore; this one is never closed.
        let permit = self.places.clone().acquire_owned().await.ok();
        Place { budget: self, permit }
    }

    fn resize(&self) {
        let wanted = limit();
        let mut total = lock(&self.total);
        if wanted > *total {
            self.places.add_permits(wanted - *total);
            *total = wanted;
        } else if wanted < *total {
            // Places that are taken go when the next who asks comes after their end.
            *total -= self.places.forget_permits(*total - wanted);
        }
    }

    fn taken(&self) -> usize {
        let total = *lock(&self.total);
        total.saturating_sub(self.places.available_permits())
    }
}

impl Place {
    /// Whether no other child process has a place.
    pub fn is_the_only_one(&self) -> bool {
        self.budget.taken() <= 1
    }

    /// Waits until another place is given back. May also miss that.
    pub async fn another_is_free(&self) {
        self.budget.freed.notified().await;
    }

    /// Waits for the terminal.
    pub(crate) async fn terminal(&self) -> Option<OwnedSemaphorePermit> {
        self.budget.terminal.clone().acquire_owned().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.permit = None;
        self.budget.freed.notify_waiters();
    }
}

/// Whether an error says that the system has too little of something just now: descriptors,
/// threads, memory.
pub fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM];
    error.raw_os_error().is_some_and(|raw| shortages.iter().any(|e| e.raw_os_error() == raw))
}

/// A quarter of the descriptors that the process may have is left to others.
fn limit() -> usize {
    let soft_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // No limit at all is as good as the largest that a semaphore can count.
    let descriptors = soft_limit.map_or(u64::MAX, |limit| limit - limit / 4);
    let places = usize::try_from(descriptors / DESCRIPTORS_EACH).unwrap_or(usize::MAX);
    places.clamp(1, Semaphore::MAX_PERMITS)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
