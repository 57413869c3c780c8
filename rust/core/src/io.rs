//! The I/O lane: threads that wait for many things at once.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// A pool of `dft-io-N` threads that drive native I/O; a child process holds none of them.
pub struct IoLane {
    runtime: Runtime,
}

impl IoLane {
    /// Starts the threads. They block no signals, so neither do the processes they start.
    pub fn start(threads: usize) -> io::Result<Self> {
        let next = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            // Relaxed: only the numbers must differ.
            .thread_name_fn(move || format!("dft-io-{}", next.fetch_add(1, Ordering::Relaxed)))
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Self { runtime })
    }

    /// Starts a job. What it returns is dropped: a job delivers its outcome itself.
    pub fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(job);
    }

    /// A handle that outlives nothing: it refuses new jobs once the lane is stopped.
    pub fn handle(&self) -> Handle {
        self.runtime.handle().clone()
    }

    /// Drops what still runs (children are killed with their process groups) and waits at most
    /// `grace` for the threads.
    pub fn stop(self, grace: Duration) {
        self.runtime.shutdown_timeout(grace);
    }
}
