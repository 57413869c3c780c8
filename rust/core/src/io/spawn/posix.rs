//! What `posix_spawn` is given.

use std::ffi::{CStr, c_char, c_int, c_short};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use rustix::io::Errno;

use super::terminal;
use crate::io::process::ProcessSpec;

/// The signals that a thread blocks.
#[derive(Clone, Copy)]
pub struct SignalMask(pub(super) libc::sigset_t);

impl SignalMask {
    /// Those that the calling thread blocks.
    pub fn current() -> Self {
        let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: only reads the mask, into a set of the right size; zeroes are a set too.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
            Self(mask.assume_init())
        }
    }

    pub(super) fn of(signals: &[c_int]) -> Self {
        let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: a set of the right size, which the first call initialises; known signals.
        unsafe {
            libc::sigemptyset(mask.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(mask.as_mut_ptr(), *signal);
            }
            Self(mask.assume_init())
        }
    }
}

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalMask")
    }
}

/// How a process begins.
pub(super) struct Attributes(pub(super) libc::posix_spawnattr_t);

fn check(errno: c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

#[cfg(target_vendor = "apple")]
const SETSID: c_short = 0x0400;
#[cfg(not(target_vendor = "apple"))]
const SETSID: c_short = libc::POSIX_SPAWN_SETSID as c_short;

impl Attributes {
    pub(super) fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises them, if it succeeds.
        unsafe {
            check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Ok(Self(attributes.assume_init()))
        }
    }

    /// A group of its own, so that all that it starts can be killed with it. Where this process has
    /// a terminal that it does not get, a session of its own: it would be stopped for asking there.
    /// Elsewhere none, for the kernel shares the processors out among sessions, and programs by the
    /// hundred would leave little to what starts them. Signals as `subprocess` gives them: those that Python
    /// ignores for itself do what they do by default, others stay ignored, and the mask is that of
    /// the thread that asked for the program.
    pub(super) fn set(&mut self, spec: &ProcessSpec, in_terminal: bool) -> io::Result<()> {
        let defaults = SignalMask::of(&[libc::SIGPIPE, libc::SIGXFSZ]);
        let mask = spec.mask.unwrap_or_else(|| SignalMask::of(&[]));
        let is_in_session = in_terminal || !terminal::is_there();
        let group = if is_in_session { libc::POSIX_SPAWN_SETPGROUP as c_short } else { SETSID };
        let flags = group
            | libc::POSIX_SPAWN_SETSIGDEF as c_short
            | libc::POSIX_SPAWN_SETSIGMASK as c_short;
        // SAFETY: initialised attributes, sets that live.
        unsafe {
            check(libc::posix_spawnattr_setsigdefault(&mut self.0, &defaults.0))?;
            check(libc::posix_spawnattr_setsigmask(&mut self.0, &mask.0))?;
            if is_in_session {
                check(libc::posix_spawnattr_setpgroup(&mut self.0, 0))?;
            }
            check(libc::posix_spawnattr_setflags(&mut self.0, flags))
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised, and used no more.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// What a process does before it becomes the program.
pub(super) struct Actions(pub(super) libc::posix_spawn_file_actions_t);

pub(super) type AddChdir =
    unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, *const c_char) -> c_int;

/// Not in every C library.
pub(super) fn add_chdir() -> Option<AddChdir> {
    // SAFETY: looks for a symbol by its name; if there is one, it is this function.
    unsafe {
        let name = c"posix_spawn_file_actions_addchdir_np";
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (!symbol.is_null()).then(|| std::mem::transmute::<*mut libc::c_void, AddChdir>(symbol))
    }
}

impl Actions {
    /// Makes the group of the new process the foreground of a terminal, where the C library can.
    pub(super) fn foreground(&mut self, terminal: RawFd) -> io::Result<()> {
        type AddForeground =
            unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, c_int) -> c_int;
        // SAFETY: looks for a symbol by its name; if there is one, it is this function.
        let add = unsafe {
            let name = c"posix_spawn_file_actions_addtcsetpgrp_np";
            let symbol = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
            (!symbol.is_null())
                .then(|| std::mem::transmute::<*mut libc::c_void, AddForeground>(symbol))
        };
        match add {
            // SAFETY: initialised actions; the terminal is open until the process has been started.
            Some(add) => check(unsafe { add(&mut self.0, terminal) }),
            None => Ok(()), // done a moment later, see `Terminal::give_to`
        }
    }

    pub(super) fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises them, if it succeeds.
        unsafe {
            check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Self(actions.assume_init()))
        }
    }

    pub(super) fn open(&mut self, fd: RawFd, path: &CStr, flags: c_int) -> io::Result<()> {
        // SAFETY: initialised actions; the path is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut self.0, fd, path.as_ptr(), flags, 0)
        })
    }

    pub(super) fn dup(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: initialised actions; `from` is open until the process has been started.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from, to) })
    }

    pub(super) fn chdir(&mut self, path: &CStr) -> io::Result<()> {
        let add = add_chdir().ok_or(Errno::NOSYS)?;
        // SAFETY: initialised actions; the path is copied.
        check(unsafe { add(&mut self.0, path.as_ptr()) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised, and used no more.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}
