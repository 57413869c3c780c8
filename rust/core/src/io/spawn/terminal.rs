//! Programs that ask in the terminal of this process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, getpgrp, kill_process_group};
use rustix::termios::{
    OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp,
};

use super::{SignalMask, SpawnError};

/// The terminal of this process, whose foreground a program is given. Dropped, it is as before.
#[derive(Debug)]
pub(crate) struct Terminal {
    terminal: OwnedFd,
    /// A program that was killed may have left it without echo.
    modes: Option<Termios>,
}

/// `_POSIX_VDISABLE`
const DISABLED: u8 = if cfg!(target_os = "linux") { 0 } else { 0xff };

const TERMINAL: &str = "/dev/tty";

/// Whether this process has a terminal, in whose background a program can be stopped.
pub(super) fn is_there() -> bool {
    open(TERMINAL, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

impl Terminal {
    pub(super) fn open() -> Result<Self, SpawnError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = open(TERMINAL, flags, Mode::empty())
            .and_then(|terminal| tcgetpgrp(&terminal).map(|foreground| (terminal, foreground)));
        let about = |error| (TERMINAL.into(), error);
        let (terminal, foreground) = opened.map_err(|error| about(error.into()))?;
        if foreground != getpgrp() {
            return Err(about(io::Error::other(
                "a program with tty=True needs the terminal, and this process is in its background",
            )));
        }
        let modes = tcgetattr(&terminal).ok();
        if let Some(mut without_stops) = modes.clone() {
            // Nobody could tell a program to go on that Ctrl-Z has stopped, or a part of it.
            without_stops.special_codes[SpecialCodeIndex::VSUSP] = DISABLED;
            let _ = tcsetattr(&terminal, OptionalActions::Now, &without_stops);
        }
        Ok(Self { terminal, modes })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.terminal.as_raw_fd()
    }

    /// The program may have the foreground already, or may have asked for it before.
    pub(super) fn give_to(&self, pid: Pid) {
        // An error means that it has ended already.
        if set_foreground(&self.terminal, pid).is_ok() {
            let _ = kill_process_group(pid, Signal::CONT);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = set_foreground(&self.terminal, getpgrp());
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, modes);
        }
    }
}

/// Only the foreground may choose another one: others are stopped, unless they block the signal.
fn set_foreground(terminal: &OwnedFd, group: Pid) -> rustix::io::Result<()> {
    let (blocked, before) = (SignalMask::of(&[libc::SIGTTOU]), SignalMask::current());
    // SAFETY: sets that live; the second call undoes what the first does to this thread.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &blocked.0, std::ptr::null_mut()) };
    let result = tcsetpgrp(terminal, group);
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before.0, std::ptr::null_mut()) };
    result
}
