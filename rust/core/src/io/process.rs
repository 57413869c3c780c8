//! Child processes: started, fed, read and reaped without a thread each.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, oneshot};

use super::budget::{Place, is_shortage};
use super::pool::Pool;
pub use super::spawn::SignalMask;
use super::spawn::{Exit, SpawnError, Spawned, spawn};
use crate::forks::Ours;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// The program, found through `PATH` unless it has a slash, and its arguments.
    pub argv: Vec<OsString>,
    /// The working directory; the parent's if `None`.
    pub cwd: Option<PathBuf>,
    /// The whole environment; the parent's, as it is at the start, if `None`.
    pub env: Option<Environment>,
    /// What the child reads.
    pub stdin: Source,
    /// Where its standard output goes.
    pub stdout: Sink,
    /// Where its standard error goes.
    pub stderr: Sink,
    /// The child and its process group are killed after this time.
    pub timeout: Option<Duration>,
    /// The signals that it begins with blocked; none if `None`.
    pub mask: Option<SignalMask>,
    /// Whether it is to ask in the terminal of this process, whose foreground it has meanwhile. If
    /// not, it has a session of its own, without a terminal.
    pub tty: bool,
}

/// Names and values, which many programs may share.
pub type Environment = Arc<Vec<(OsString, OsString)>>;

impl ProcessSpec {
    /// Where the program is looked for, if its environment says that.
    pub(crate) fn path(&self) -> Option<&OsStr> {
        let path = self.env.as_ref()?.iter().rev().find(|(name, _)| name == "PATH");
        path.map(|(_, value)| value.as_os_str())
    }
}

/// What a child reads.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// Nothing: `/dev/null`.
    #[default]
    Empty,
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file's content.
    File(PathBuf),
}

/// Where a child writes.
#[derive(Clone, Debug, Default)]
pub enum Sink {
    /// Into the outcome.
    #[default]
    Captured,
    /// Into a file, which is made, or emptied if it exists.
    File(PathBuf),
    /// Nowhere: `/dev/null`.
    Discarded,
}

/// How a process ended.
#[derive(Debug)]
pub enum ProcessOutcome {
    /// It ran, whatever its exit status.
    Exited(ProcessOutput),
    /// It could not be started, or not be followed to its end.
    NotStarted {
        /// The name under which it was looked for.
        program: OsString,
        /// What the system said.
        error: io::Error,
    },
    /// It ran longer than its timeout and was killed; this is what it had written.
    TimedOut(ProcessOutput),
    /// It was killed by [`Kill`]; this is what it had written.
    Killed(ProcessOutput),
}

/// What is left of a process.
#[derive(Debug, Default)]
pub struct ProcessOutput {
    /// The exit code, or `None` if a signal ended it. Neither is known if somebody else
    /// has reaped it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Everything it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to its standard error.
    pub stderr: Vec<u8>,
}

/// Ends a running process from outside. Cloned handles reach the same process.
#[derive(Clone, Debug, Default)]
pub struct Kill(Arc<Notify>);

impl Kill {
    /// Kills the process group, now or as soon as it has started.
    pub fn kill(&self) {
        self.0.notify_one();
    }

    /// Waits for that; once for each kill.
    pub(crate) async fn killed(&self) {
        self.0.notified().await;
    }
}

/// How long the pipes of a killed process are still read: a grandchild that left the process group
/// may keep them open for ever.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// How much room there is for the output of a program that writes something.
const FIRST_READ: usize = 512;

/// How long a killed process is waited for. One that is in the kernel, for example in a file system
/// that does not answer, cannot end.
const DEATH_GRACE: Duration = Duration::from_secs(2);

/// How long a start may take before another may begin in its place.
const START_LIMIT: Duration = Duration::from_millis(50);

/// How long a program that cannot be started for want of descriptors, threads or memory is tried
/// again if no other runs whose end would give some back.
const SHORTAGE_LIMIT: Duration = Duration::from_secs(4);

/// How often it is tried.
const SHORTAGE_RETRY: Duration = Duration::from_millis(50);

/// What becomes of a process that was stopped.
type Stopped = fn(ProcessOutput) -> ProcessOutcome;

/// Runs one process to its end. What blocks is done in `starters`.
pub async fn run(
    spec: ProcessSpec,
    kill: Kill,
    place: &Place,
    starters: &Arc<Pool>,
) -> ProcessOutcome {
    let spec = Arc::new(spec);
    let stopped = async {
        let deadline = async {
            match spec.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = kill.killed() => ProcessOutcome::Killed as Stopped,
            () = deadline => ProcessOutcome::TimedOut,
        }
    };
    tokio::pin!(stopped);
    let started = async {
        let terminal = if spec.tty { place.terminal().await } else { None };
        (start(&spec, place, starters).await, terminal)
    };
    let (started, _terminal) = tokio::select! {
        biased;
        stopped = &mut stopped => return stopped(ProcessOutput::default()),
        started = started => started,
    };
    let (spawned, pipes, mut exit) = match started.and_then(watch) {
        Ok(watched) => watched,
        Err((program, error)) => return ProcessOutcome::NotStarted { program, error },
    };
    let mut output = ProcessOutput::default();
    let finished = {
        let ended = async {
            pipes.exchange(&spec.stdin, &mut output).await?;
            exit.wait().await;
            Ok(())
        };
        tokio::pin!(ended);
        tokio::select! {
            biased;
            result = &mut ended => {
                if result.is_err() {
                    spawned.kill();
                }
                result.map(|()| ProcessOutcome::Exited as Stopped)
            }
            stopped = &mut stopped => {
                spawned.kill();
                let _ = tokio::time::timeout(DRAIN_GRACE, &mut ended).await;
                Ok(stopped)
            }
            () = spawned.keep_going() => unreachable!("it goes on as long as the program"),
        }
    };
    match tokio::time::timeout(DEATH_GRACE, exit.wait()).await {
        Ok(status) => {
            // Unknown if somebody else has reaped it.
            output.exit_code = status.and_then(|status| status.exit_code);
            output.signal = status.and_then(|status| status.signal);
            spawned.ended();
        }
        Err(_) => {
            tokio::spawn(async move {
                exit.wait().await;
                spawned.ended();
            });
        }
    }
    match finished {
        Ok(finished) => finished(output),
        Err(error) => ProcessOutcome::NotStarted { program: spec.argv[0].clone(), error },
    }
}

/// Starts the child, again and again if the system has too little of something for a moment.
async fn start(
    spec: &Arc<ProcessSpec>,
    place: &Place,
    starters: &Arc<Pool>,
) -> Result<Spawned, SpawnError> {
    let mut alone_since = None;
    loop {
        let (program, error) = match start_once(spec, starters).await {
            Err((program, error)) if is_shortage(&error) => (program, error),
            other => return other,
        };
        if !place.is_the_only_one() {
            alone_since = None;
        } else if alone_since.get_or_insert_with(Instant::now).elapsed() > SHORTAGE_LIMIT {
            return Err((program, error));
        }
        let _ = tokio::time::timeout(SHORTAGE_RETRY, place.another_is_free()).await;
    }
}

/// Starts the child on a thread that may block. If this is dropped meanwhile, the child is killed
/// as soon as it has started.
async fn start_once(spec: &Arc<ProcessSpec>, starters: &Arc<Pool>) -> Result<Spawned, SpawnError> {
    let (answer, mut started) = oneshot::channel();
    let (wanted, spec_there) = (Arc::new(()), spec.clone());
    let is_wanted = Arc::downgrade(&wanted);
    let job = starters.run(move || {
        if is_wanted.strong_count() > 0 {
            // If nobody takes it, it is dropped, which kills it.
            let _ = answer.send(spawn(&spec_there));
        }
    });
    let about = |error| (spec.argv.first().cloned().unwrap_or_default(), error);
    let job = job.map_err(about)?;
    let mut limit = START_LIMIT;
    loop {
        match tokio::time::timeout(limit, &mut started).await {
            Ok(Ok(spawned)) => return spawned,
            Ok(Err(_)) => return Err(about(io::Error::other("the start has panicked"))),
            // Its turn may have come late: others were started before it.
            Err(_) => match START_LIMIT.checked_sub(starters.has_run_for(job)) {
                Some(left) if !left.is_zero() => limit = left,
                _ => {
                    starters.replace(job);
                    limit = START_LIMIT;
                }
            },
        }
    }
}

/// Our ends of the pipes of a process, watched by the thread that this runs on.
struct Pipes {
    stdin: Option<Ours<pipe::Sender>>,
    stdout: Option<Ours<pipe::Receiver>>,
    stderr: Option<Ours<pipe::Receiver>>,
}

fn watch(mut spawned: Spawned) -> Result<(Spawned, Pipes, Exit), SpawnError> {
    let mut watch = || {
        let sender = |fd: Ours<OwnedFd>| fd.try_map(pipe::Sender::from_owned_fd);
        let receiver = |fd: Ours<OwnedFd>| fd.try_map(pipe::Receiver::from_owned_fd);
        let pipes = Pipes {
            stdin: spawned.stdin.take().map(sender).transpose()?,
            stdout: spawned.stdout.take().map(receiver).transpose()?,
            stderr: spawned.stderr.take().map(receiver).transpose()?,
        };
        Ok((pipes, spawned.exit()?))
    };
    let watched = watch().map_err(|error| (OsString::from("its pipes"), error));
    watched.map(|(pipes, exit)| (spawned, pipes, exit))
}

impl Pipes {
    /// Feeds and reads the pipes until all who write into them have closed them.
    async fn exchange(self, stdin: &Source, output: &mut ProcessOutput) -> io::Result<()> {
        let feed = async {
            if let (Some(mut pipe), Source::Bytes(bytes)) = (self.stdin, stdin) {
                // A child may close its input early (`head -1`): that is no failure.
                let _ = pipe.write_all(bytes).await;
            }
        };
        let (mut stdout, mut stderr) = (self.stdout, self.stderr);
        let (read_out, read_err) =
            (read(&mut stdout, &mut output.stdout), read(&mut stderr, &mut output.stderr));
        let fed = async {
            feed.await;
            Ok(())
        };
        // If one of them fails, the program is killed: nobody would read what it writes.
        tokio::try_join!(fed, read_out, read_err).map(drop)
    }
}

/// Reads to the end, or to where there is no memory for more.
async fn read(pipe: &mut Option<Ours<pipe::Receiver>>, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    loop {
        if into.len() == into.capacity() && into.try_reserve(into.len().max(FIRST_READ)).is_err() {
            let read = into.len();
            *into = Vec::new();
            let text = format!("there is no memory for more of its output than {read} bytes");
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
        }
        if pipe.read_buf(into).await? == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::reactor::IoLane;

    fn spec(argv: &[&str]) -> ProcessSpec {
        ProcessSpec { argv: argv.iter().map(OsString::from).collect(), ..ProcessSpec::default() }
    }

    fn outcome_of(spec: ProcessSpec, kill: Kill) -> ProcessOutcome {
        let lane = IoLane::start(2).expect("threads");
        let (sender, receiver) = std::sync::mpsc::channel();
        lane.spawn_process(
            spec,
            kill,
            || true,
            move |outcome| sender.send(outcome).expect("receiver"),
        );
        receiver.recv_timeout(Duration::from_secs(30)).expect("an outcome")
    }

    #[test]
    fn output_and_exit_code_are_collected() {
        let outcome =
            outcome_of(spec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]), Kill::default());
        let ProcessOutcome::Exited(output) = outcome else { panic!("{outcome:?}") };
        assert_eq!(output.exit_code, Some(3));
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
    }

    #[test]
    fn input_larger_than_a_pipe_is_fed_while_output_is_read() {
        let input = vec![b'x'; 1 << 20];
        let outcome = outcome_of(
            ProcessSpec { stdin: Source::Bytes(input.clone()), ..spec(&["cat"]) },
            Kill::default(),
        );
        let ProcessOutcome::Exited(output) = outcome else { panic!("{outcome:?}") };
        assert_eq!(output.stdout, input);
    }

    #[test]
    fn a_signal_is_told_apart_from_an_exit_code() {
        let outcome = outcome_of(spec(&["/bin/sh", "-c", "kill -TERM $$"]), Kill::default());
        let ProcessOutcome::Exited(output) = outcome else { panic!("{outcome:?}") };
        assert_eq!((output.exit_code, output.signal), (None, Some(15)));
    }

    #[test]
    fn a_missing_program_is_an_error_and_not_an_exit_code() {
        let outcome = outcome_of(spec(&["dft-no-such-program"]), Kill::default());
        let ProcessOutcome::NotStarted { error, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_timeout_kills_grandchildren_too() {
        // The grandchild holds the pipe: without the kill of the group, reading would never end.
        let slow = spec(&["/bin/sh", "-c", "echo begun; sleep 600 & sleep 600"]);
        let timeout = Some(Duration::from_millis(300));
        let outcome = outcome_of(ProcessSpec { timeout, ..slow }, Kill::default());
        let ProcessOutcome::TimedOut(output) = outcome else { panic!("{outcome:?}") };
        assert_eq!((output.signal, output.stdout.as_slice()), (Some(9), &b"begun\n"[..]));
    }

    #[test]
    fn a_kill_that_comes_before_the_start_is_not_lost() {
        let kill = Kill::default();
        kill.kill();
        let outcome = outcome_of(spec(&["sleep", "600"]), kill);
        assert!(matches!(outcome, ProcessOutcome::Killed(_)), "{outcome:?}");
    }
}
