//! The I/O lane: threads that wait for many things at once.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::process::{self, Kill, ProcessOutcome, ProcessSpec};

/// A pool of `dft-reactor-N` threads that drive native I/O; a child process holds none of them.
pub struct IoLane {
    runtime: Runtime,
    /// A place for each child process that may run at a time.
    processes: Arc<Semaphore>,
}

impl IoLane {
    /// Starts the threads. They block no signals, so neither do the processes they start.
    pub fn start(threads: usize) -> io::Result<Self> {
        let next = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(threads)
            // Relaxed: only the numbers must differ.
            .thread_name_fn(move || format!("dft-reactor-{}", next.fetch_add(1, Ordering::Relaxed)))
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Self { runtime, processes: Arc::new(Semaphore::new(process_limit())) })
    }

    /// Runs a job that blocks, on one of as many further threads as the lane has.
    pub fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.runtime.spawn_blocking(job);
    }

    /// Runs a child process as soon as there is a place for it, then hands its end to `deliver`.
    /// Nothing is run or delivered if `begin`, called just before, answers false.
    pub fn spawn_process(
        &self,
        spec: ProcessSpec,
        kill: Kill,
        begin: impl FnOnce() -> bool + Send + 'static,
        deliver: impl FnOnce(ProcessOutcome) + Send + 'static,
    ) {
        let places = self.processes.clone();
        self.spawn(async move {
            // An error would mean a closed semaphore; this one is never closed.
            let place = places.acquire_owned().await;
            if !begin() {
                return;
            }
            let outcome = process::run(spec, kill).await;
            drop(place);
            deliver(outcome);
        });
    }

    /// Starts a job. What it returns is dropped: a job delivers its outcome itself.
    pub fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(job);
    }

    /// Drops what still runs (children are killed with their process groups) and waits at most
    /// `grace` for the threads.
    pub fn stop(self, grace: Duration) {
        self.runtime.shutdown_timeout(grace);
    }

    /// As [`stop`](Self::stop), without waiting: allowed on the lane's own threads too.
    pub fn stop_in_background(self) {
        self.runtime.shutdown_background();
    }
}

/// How many children may run at a time. Each takes three descriptors here (two pipes and the one
/// that tells its end); a quarter of all that the process may have is left to others.
fn process_limit() -> usize {
    const DESCRIPTORS_EACH: u64 = 3;
    let soft_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // No limit at all is as good as the largest that a semaphore can count.
    let descriptors = soft_limit.map_or(u64::MAX, |limit| limit - limit / 4);
    let places = usize::try_from(descriptors / DESCRIPTORS_EACH).unwrap_or(usize::MAX);
    places.clamp(1, Semaphore::MAX_PERMITS)
}
