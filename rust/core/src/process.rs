//! Child processes: started, fed, read and reaped without a thread each.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpec {
    /// The program, found through `PATH` unless it has a slash, and its arguments.
    pub argv: Vec<OsString>,
    /// The working directory; the parent's if `None`.
    pub cwd: Option<PathBuf>,
    /// The whole environment; the parent's if `None`.
    pub env: Option<Vec<(OsString, OsString)>>,
    /// What the child reads.
    pub stdin: Source,
    /// Where its standard output goes.
    pub stdout: Sink,
    /// Where its standard error goes.
    pub stderr: Sink,
    /// The child and its process group are killed after this time.
    pub timeout: Option<Duration>,
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
    /// The exit code, or `None` if a signal ended it.
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
}

/// How long the pipes of a killed process are still read: a grandchild that left the process group
/// may keep them open for ever.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// Runs one process to its end.
pub async fn run(spec: ProcessSpec, kill: Kill) -> ProcessOutcome {
    let program = spec.argv.first().cloned().unwrap_or_default();
    let mut child = match start(&spec) {
        Ok(child) => child,
        Err((program, error)) => return ProcessOutcome::NotStarted { program, error },
    };
    let group = GroupGuard::new(&child);
    let mut output = ProcessOutput::default();
    let finished = {
        let ended = communicate(&mut child, spec.stdin, &mut output);
        tokio::pin!(ended);
        let deadline = async {
            match spec.timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = &mut ended => Finished::ByItself(result),
            () = kill.0.notified() => {
                group.kill();
                let _ = tokio::time::timeout(DRAIN_GRACE, &mut ended).await;
                Finished::Killed
            }
            () = deadline => {
                group.kill();
                let _ = tokio::time::timeout(DRAIN_GRACE, &mut ended).await;
                Finished::TimedOut
            }
        }
    };
    // Reaps the child whichever way it ended; after a SIGKILL this does not wait long.
    match child.wait().await {
        Ok(status) => {
            output.exit_code = status.code();
            output.signal = status.signal();
        }
        Err(error) => return ProcessOutcome::NotStarted { program, error },
    }
    group.disarm();
    match finished {
        Finished::ByItself(Ok(())) => ProcessOutcome::Exited(output),
        Finished::ByItself(Err(error)) => ProcessOutcome::NotStarted { program, error },
        Finished::Killed => ProcessOutcome::Killed(output),
        Finished::TimedOut => ProcessOutcome::TimedOut(output),
    }
}

enum Finished {
    ByItself(io::Result<()>),
    Killed,
    TimedOut,
}

/// Starts the child; an error names the file that it is about.
fn start(spec: &ProcessSpec) -> Result<Child, (OsString, io::Error)> {
    let (program, arguments) = spec.argv.split_first().ok_or_else(|| {
        (OsString::new(), io::Error::new(io::ErrorKind::InvalidInput, "no program was named"))
    })?;
    match spawn(spec, program, arguments) {
        // A script that does not say by what it wants to be run: the shell's, as for `execvp`.
        Err((_, error)) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            spawn(spec, OsStr::new("/bin/sh"), &spec.argv)
        }
        other => other,
    }
}

fn spawn(
    spec: &ProcessSpec,
    program: &OsStr,
    arguments: &[OsString],
) -> Result<Child, (OsString, io::Error)> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(spec.stdin.open()?)
        .stdout(spec.stdout.open()?)
        .stderr(spec.stderr.open()?)
        // A group of its own, so that all that it starts can be killed with it.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(cwd) = &spec.cwd {
        // The system says "no such file" of the program too: tell them apart before.
        if !cwd.is_dir() {
            let errno = if cwd.exists() { Errno::NOTDIR } else { Errno::NOENT };
            return Err((cwd.into(), errno.into()));
        }
        command.current_dir(cwd);
    }
    if let Some(env) = &spec.env {
        command.env_clear().envs(env.iter().map(|(key, value)| (key, value)));
    }
    command.spawn().map_err(|error| (program.to_owned(), error))
}

impl Source {
    fn open(&self) -> Result<Stdio, (OsString, io::Error)> {
        match self {
            Self::Empty => Ok(Stdio::null()),
            Self::Bytes(_) => Ok(Stdio::piped()),
            Self::File(path) => match File::open(path) {
                Ok(file) => Ok(file.into()),
                Err(error) => Err((path.into(), error)),
            },
        }
    }
}

impl Sink {
    fn open(&self) -> Result<Stdio, (OsString, io::Error)> {
        match self {
            Self::Captured => Ok(Stdio::piped()),
            Self::Discarded => Ok(Stdio::null()),
            Self::File(path) => match File::create(path) {
                Ok(file) => Ok(file.into()),
                Err(error) => Err((path.into(), error)),
            },
        }
    }
}

/// Feeds and reads the pipes until the child has closed them and ended.
async fn communicate(
    child: &mut Child,
    stdin: Source,
    output: &mut ProcessOutput,
) -> io::Result<()> {
    let (pipe_in, pipe_out, pipe_err) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let (Some(mut pipe), Source::Bytes(bytes)) = (pipe_in, stdin) {
            // A child may close its input early (`head -1`): that is no failure.
            let _ = pipe.write_all(&bytes).await;
        }
    };
    let read_out = async {
        match pipe_out {
            Some(mut pipe) => pipe.read_to_end(&mut output.stdout).await.map(drop),
            None => Ok(()),
        }
    };
    let read_err = async {
        match pipe_err {
            Some(mut pipe) => pipe.read_to_end(&mut output.stderr).await.map(drop),
            None => Ok(()),
        }
    };
    let ((), out, err) = tokio::join!(feed, read_out, read_err);
    out.and(err)?;
    child.wait().await.map(drop)
}

/// Kills the child's process group when dropped, unless the child has been reaped: after that its
/// number may belong to somebody else.
struct GroupGuard {
    group: std::cell::Cell<Option<Pid>>,
}

impl GroupGuard {
    fn new(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { group: std::cell::Cell::new(pid) }
    }

    fn kill(&self) {
        if let Some(group) = self.group.get() {
            // ESRCH: the whole group has ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn disarm(&self) {
        self.group.set(None);
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoLane;

    fn spec(argv: &[&str]) -> ProcessSpec {
        ProcessSpec { argv: argv.iter().map(OsString::from).collect(), ..ProcessSpec::default() }
    }

    fn outcome_of(spec: ProcessSpec, kill: Kill) -> ProcessOutcome {
        let lane = IoLane::start(2).expect("threads");
        let (sender, receiver) = std::sync::mpsc::channel();
        lane.spawn(async move {
            sender.send(run(spec, kill).await).expect("receiver");
        });
        let outcome = receiver.recv_timeout(Duration::from_secs(30)).expect("an outcome");
        lane.stop(Duration::from_secs(5));
        outcome
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
