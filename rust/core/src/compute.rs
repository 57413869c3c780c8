//! The compute lane: native work on as many threads as the process may use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// A pool of `dft-compute-N` threads.
pub struct ComputeLane {
    pool: ThreadPool,
    jobs: Arc<Mutex<Jobs>>,
}

/// What is shown of the lane.
struct Jobs {
    waiting: usize,
    running: usize,
    /// When a job last began, or came to an idle lane.
    last_change: Instant,
}

impl ComputeLane {
    /// Starts the threads.
    pub fn start(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("dft-compute-{number}"))
            .build()?;
        let jobs = Jobs { waiting: 0, running: 0, last_change: Instant::now() };
        Ok(Self { pool, jobs: Arc::new(Mutex::new(jobs)) })
    }

    /// Runs a job, which may use all of the pool's threads through rayon. It delivers its outcome
    /// itself, and must not panic.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.clone();
        let mut came = lock(&jobs);
        if came.waiting == 0 {
            came.last_change = Instant::now();
        }
        came.waiting += 1;
        drop(came);
        self.pool.spawn(move || {
            let mut begun = lock(&jobs);
            begun.waiting -= 1;
            begun.running += 1;
            begun.last_change = Instant::now();
            drop(begun);
            job();
            lock(&jobs).running -= 1;
        });
    }

    /// The jobs that were given and have not ended.
    pub fn unfinished(&self) -> usize {
        let jobs = lock(&self.jobs);
        jobs.waiting + jobs.running
    }

    /// How long jobs have waited without one of them having begun; zero if none waits.
    pub fn waits_for(&self) -> Duration {
        let jobs = lock(&self.jobs);
        if jobs.waiting == 0 { Duration::ZERO } else { jobs.last_change.elapsed() }
    }
}

fn lock(jobs: &Mutex<Jobs>) -> MutexGuard<'_, Jobs> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}
