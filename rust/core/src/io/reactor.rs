//! The I/O lane: one thread that waits for many things at once, and threads for what may block.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::budget::{Budget, is_shortage};
use super::pool::Pool;
use super::process::{self, Kill, ProcessOutcome, ProcessSpec};

/// A `dft-reactor` thread that drives native I/O, and `dft-starter-N` and `dft-stager-N` threads
/// for what blocks; a child process holds none of them. Dropped, it drops what still runs: children
/// are killed with their process groups.
pub struct IoLane {
    jobs: mpsc::UnboundedSender<Job>,
    starters: Arc<Pool>,
    stagers: Arc<Pool>,
}

/// What the reactor is to drive.
struct Job {
    drive: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ends it where there is no reactor.
    refuse: Box<dyn FnOnce(io::Error) + Send>,
}

/// How long the reactor tries to begin if the system has too little of something for it.
const SHORTAGE_LIMIT: Duration = Duration::from_secs(4);

/// How often it tries.
const SHORTAGE_RETRY: Duration = Duration::from_millis(20);

impl IoLane {
    /// Starts the reactor, which the system may refuse. At most so many programs are being started
    /// at a time, and so many files staged.
    pub fn start(threads: usize) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("dft-reactor".to_owned()).spawn(move || react(inbox))?;
        Ok(Self {
            jobs,
            starters: Arc::new(Pool::new("dft-starter", threads)),
            stagers: Arc::new(Pool::new("dft-stager", threads)),
        })
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
        let starters = self.starters.clone();
        let program = spec.argv.first().cloned().unwrap_or_default();
        let once = Arc::new(Once::new((begin, deliver)));
        let refused = once.clone();
        let drive = async move {
            let place = Budget::current().place().await;
            let Some((begin, deliver)) = once.take() else { return };
            if !begin() {
                return drop(deliver);
            }
            let outcome = process::run(spec, kill, &place, &starters).await;
            drop(place);
            deliver(outcome);
        };
        let refuse = move |error| {
            if let Some((begin, deliver)) = refused.take()
                && begin()
            {
                deliver(ProcessOutcome::NotStarted { program, error });
            }
        };
        self.push(Job { drive: Box::pin(drive), refuse: Box::new(refuse) });
    }

    /// Runs a job that blocks, on a thread of its own kind, and hands its end to `deliver`: nothing
    /// if it was stopped by `kill`, after which it goes on without anybody, and another may begin
    /// in its place. The flag that `job` gets is set then.
    pub fn spawn_staging<T: Send + 'static>(
        &self,
        job: impl FnOnce(&AtomicBool) -> Option<T> + Send + 'static,
        kill: Kill,
        deliver: impl FnOnce(io::Result<Option<T>>) + Send + 'static,
    ) {
        let stagers = self.stagers.clone();
        let deliver = Arc::new(Once::new(deliver));
        let refused = deliver.clone();
        let drive = async move {
            let (answer, ended) = oneshot::channel();
            let cancelled = Arc::new(AtomicBool::new(false));
            let flag = cancelled.clone();
            let staged = match stagers.run(move || drop(answer.send(job(&flag)))) {
                Err(error) => Err(error),
                Ok(id) => tokio::select! {
                    biased;
                    // An error means that the job has panicked.
                    ended = ended => Ok(ended.unwrap_or(None)),
                    () = kill.killed() => {
                        // Relaxed: a hint; the file is not placed if it comes in time.
                        cancelled.store(true, Ordering::Relaxed);
                        stagers.replace(id);
                        Ok(None)
                    }
                },
            };
            if let Some(deliver) = deliver.take() {
                deliver(staged);
            }
        };
        let refuse = move |error| {
            if let Some(deliver) = refused.take() {
                deliver(Err(error));
            }
        };
        self.push(Job { drive: Box::pin(drive), refuse: Box::new(refuse) });
    }

    fn push(&self, job: Job) {
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(job) {
            (job.refuse)(io::Error::other("the thread for I/O has ended"));
        }
    }
}

/// What is taken by whoever comes first.
struct Once<T>(std::sync::Mutex<Option<T>>);

impl<T> Once<T> {
    fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(Some(value)))
    }

    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// The life of the reactor: until the lane is gone.
fn react(mut inbox: mpsc::UnboundedReceiver<Job>) {
    while let Some(first) = inbox.blocking_recv() {
        match reactor() {
            Ok(reactor) => return reactor.block_on(drive(first, inbox)),
            Err(error) => {
                // Those that come later may find more.
                let refused = |job: Job| {
                    let error = error.raw_os_error().map_or_else(
                        || io::Error::other(error.to_string()),
                        io::Error::from_raw_os_error,
                    );
                    (job.refuse)(error);
                };
                refused(first);
                while let Ok(job) = inbox.try_recv() {
                    refused(job);
                }
            }
        }
    }
}

fn reactor() -> io::Result<Runtime> {
    let begun = Instant::now();
    loop {
        match Builder::new_current_thread().enable_io().enable_time().build() {
            Err(error) if is_shortage(&error) && begun.elapsed() < SHORTAGE_LIMIT => {
                std::thread::sleep(SHORTAGE_RETRY);
            }
            built => return built,
        }
    }
}

async fn drive(first: Job, mut inbox: mpsc::UnboundedReceiver<Job>) {
    tokio::spawn(first.drive);
    while let Some(job) = inbox.recv().await {
        tokio::spawn(job.drive);
    }
    // What still runs is dropped with the reactor.
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const GUARD: Duration = Duration::from_secs(30);

    #[test]
    fn a_kill_ends_staging_that_is_stuck_and_the_next_begins() {
        let lane = IoLane::start(1).expect("a thread");
        let (go_on, stuck) = channel::<()>();
        let (sender, receiver) = channel();
        let (begun, ended) = (sender.clone(), sender.clone());
        let kill = Kill::default();
        let job = move |cancelled: &AtomicBool| {
            begun.send("begun").expect("receiver");
            let _ = stuck.recv();
            begun.send(if cancelled.load(Ordering::Relaxed) { "cancelled" } else { "wanted" }).ok();
            Some(())
        };
        lane.spawn_staging(job, kill.clone(), move |staged| {
            assert!(matches!(staged, Ok(None)));
            ended.send("ended").expect("receiver");
        });
        assert_eq!(receiver.recv_timeout(GUARD), Ok("begun"));
        let next = sender.clone();
        lane.spawn_staging(
            |_| Some(()),
            Kill::default(),
            move |staged| {
                assert!(matches!(staged, Ok(Some(()))));
                next.send("next").expect("receiver");
            },
        );
        kill.kill();
        assert_eq!(receiver.recv_timeout(GUARD), Ok("ended"));
        assert_eq!(receiver.recv_timeout(GUARD), Ok("next"));
        drop(go_on);
        assert_eq!(receiver.recv_timeout(GUARD), Ok("cancelled"));
    }

    #[test]
    fn a_lane_that_is_dropped_kills_what_it_runs() {
        let lane = IoLane::start(1).expect("a thread");
        let (sender, receiver) = channel();
        let argv = ["/bin/sh", "-c", "echo begun >&2; sleep 600 & sleep 600"];
        let spec = ProcessSpec { argv: argv.map(Into::into).to_vec(), ..ProcessSpec::default() };
        // Dropped with the job, without having been called.
        let deliver = move |_| sender.send(()).expect("receiver");
        lane.spawn_process(spec, Kill::default(), || true, deliver);
        drop(lane);
        assert!(receiver.recv_timeout(GUARD).is_err());
    }
}
