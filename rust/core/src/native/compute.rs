//! The compute lane: native work on as many threads as the process may use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// A pool of `dft-compute-N` threads.
pub struct ComputeLane {
    pool: ThreadPool,
    threads: usize,
    jobs: Arc<Mutex<Jobs>>,
}

/// What is shown of the lane.
struct Jobs {
    waiting: usize,
    running: usize,
    /// When a job last began.
    last_begin: Instant,
}

impl ComputeLane {
    /// Starts the threads.
    pub fn start(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("dft-compute-{number}"))
            .build()?;
        let jobs = Jobs { waiting: 0, running: 0, last_begin: Instant::now() };
        Ok(Self { pool, threads, jobs: Arc::new(Mutex::new(jobs)) })
    }

    /// Runs a job, which may use all of the pool's threads through rayon. It delivers its outcome
    /// itself, and must not panic.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.clone();
        lock(&jobs).waiting += 1;
        self.pool.spawn(move || {
            let mut begun = lock(&jobs);
            begun.waiting -= 1;
            begun.running += 1;
            begun.last_begin = Instant::now();
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

    /// How long all threads have been busy with the same jobs while others wait; zero if none waits
    /// or a thread is free for it.
    pub fn waits_for(&self) -> Duration {
        let jobs = lock(&self.jobs);
        if jobs.waiting == 0 || jobs.running < self.threads {
            Duration::ZERO
        } else {
            jobs.last_begin.elapsed()
        }
    }
}

fn lock(jobs: &Mutex<Jobs>) -> MutexGuard<'_, Jobs> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner)
}
