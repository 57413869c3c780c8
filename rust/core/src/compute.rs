//! The compute lane: native work on as many threads as the process may use.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// A pool of `dft-compute-N` threads.
pub struct ComputeLane {
    pool: ThreadPool,
    /// Jobs that were given and have not ended. Relaxed: only shown.
    unfinished: std::sync::Arc<AtomicUsize>,
}

impl ComputeLane {
    /// Starts the threads.
    pub fn start(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("dft-compute-{number}"))
            .build()?;
        Ok(Self { pool, unfinished: std::sync::Arc::default() })
    }

    /// Runs a job, which may use all of the pool's threads through rayon. It delivers its outcome
    /// itself, and must not panic.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let unfinished = self.unfinished.clone();
        unfinished.fetch_add(1, Ordering::Relaxed);
        self.pool.spawn(move || {
            job();
            unfinished.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// The jobs that were given and have not ended.
    pub fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }
}
