//! A program that runs, until it is reaped.

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::terminal::Terminal;
use crate::forks::Ours;

/// A program that was started, and our ends of its pipes. Dropped before it was reaped, it is
/// killed with its group.
#[derive(Debug)]
pub(crate) struct Spawned {
    pid: Pid,
    pub(crate) stdin: Option<Ours<OwnedFd>>,
    pub(crate) stdout: Option<Ours<OwnedFd>>,
    pub(crate) stderr: Option<Ours<OwnedFd>>,
    /// Readable from the end of the program; `None` where the system has none to give.
    pidfd: Option<Ours<OwnedFd>>,
    /// It has been reaped, by us or by somebody else: its number may belong to another.
    is_reaped: bool,
    /// Whose foreground it has.
    terminal: Option<Terminal>,
}

/// How long a program that was killed because nobody waits for it may take to end.
const REAP_GRACE: Duration = Duration::from_millis(100);

/// How often the end of a program is looked for where the system has no descriptor for it.
const LOOK: Duration = Duration::from_millis(10);

/// How often a program in the terminal is checked: one that is stopped there would wait for ever
/// for a signal to go on.
const LOOK_FOR_STOPS: Duration = Duration::from_millis(500);

impl Spawned {
    pub(super) fn new(
        pid: Pid,
        [stdin, stdout, stderr]: [Option<Ours<OwnedFd>>; 3],
        terminal: Option<Terminal>,
    ) -> Self {
        let (pidfd, is_reaped) = open_pidfd(pid);
        Self { pid, stdin, stdout, stderr, pidfd, is_reaped, terminal }
    }

    /// Kills the program and all that it has started and that is still in its group.
    pub(crate) fn kill(&self) {
        // ESRCH: the whole group has ended by itself.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Gets ready to wait for the end, on a thread that watches descriptors.
    pub(crate) fn exit(&mut self) -> io::Result<Exit> {
        let gone = self.is_reaped.then_some(None);
        let pidfd = self
            .pidfd
            .take()
            // SAFETY: it owns its descriptor, which stays the same and open until it is dropped.
            .map(|pidfd| unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) })
            .transpose()
            .map_err(io::Error::from)?;
        Ok(Exit { pid: self.pid, pidfd, status: gone })
    }

    /// The program has ended, and `Exit` has seen it.
    pub(crate) fn ended(mut self) {
        self.is_reaped = true;
    }

    /// Lets a program in the terminal go on whenever it is stopped.
    pub(crate) async fn keep_going(&self) {
        if self.terminal.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK_FOR_STOPS).await;
            let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
            if let Ok(Some(_)) = waitid(WaitId::Pid(self.pid), options) {
                let _ = kill_process_group(self.pid, Signal::CONT);
            }
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        self.kill();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let begun = std::time::Instant::now();
        while let Ok(None) = waitid(WaitId::Pid(self.pid), options) {
            if begun.elapsed() > REAP_GRACE {
                return; // in the kernel, out of reach
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The end of a program, to be waited for.
#[derive(Debug)]
pub(crate) struct Exit {
    pid: Pid,
    pidfd: Option<AsyncFd<Ours<OwnedFd>>>,
    /// How it has ended, once that is known; nothing if somebody else has reaped it.
    status: Option<Option<Status>>,
}

/// The exit code, or the signal that ended it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl Status {
    fn of(status: WaitIdStatus) -> Self {
        Self { exit_code: status.exit_status(), signal: status.terminating_signal() }
    }
}

impl Exit {
    /// Waits until the program has ended and reaps it. `None` if somebody else has: another thread
    /// of this process, or the system, where SIGCHLD is ignored.
    pub(crate) async fn wait(&mut self) -> Option<Status> {
        loop {
            if let Some(status) = self.status {
                return status;
            }
            if let Some(pidfd) = &self.pidfd {
                // An error means that nobody watches any more: the lane is being stopped.
                let Ok(_readable) = pidfd.readable().await else { return None };
            }
            match self.reap() {
                Ok(Some(status)) => self.status = Some(Some(status)),
                Ok(None) => tokio::time::sleep(LOOK).await,
                Err(Errno::INTR) => {}
                Err(_) => self.status = Some(None), // ECHILD
            }
        }
    }

    fn reap(&self) -> rustix::io::Result<Option<Status>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match &self.pidfd {
            #[cfg(target_os = "linux")]
            Some(pidfd) => waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options),
            _ => waitid(WaitId::Pid(self.pid), options),
        };
        status.map(|status| status.map(Status::of))
    }
}

impl AsRawFd for Ours<OwnedFd> {
    fn as_raw_fd(&self) -> RawFd {
        (**self).as_raw_fd()
    }
}

/// A descriptor that is readable at the end of a program, and whether it is gone already: where SIGCHLD is
/// ignored, or others reap, its number may even be another's by now.
#[cfg(target_os = "linux")]
fn open_pidfd(pid: Pid) -> (Option<Ours<OwnedFd>>, bool) {
    use rustix::process::{PidfdFlags, pidfd_open};
    match Ours::open(|| pidfd_open(pid, PidfdFlags::empty())) {
        Ok(pidfd) => {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let found = waitid(WaitId::PidFd(pidfd.as_fd()), options);
            let is_gone = found.is_err_and(|error| error == Errno::CHILD);
            (Some(pidfd).filter(|_| !is_gone), is_gone)
        }
        Err(error) => (None, error == Errno::SRCH),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_pidfd(_pid: Pid) -> (Option<Ours<OwnedFd>>, bool) {
    (None, false)
}
