//! A file descriptor that an event loop can watch and any thread can make readable.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, read, write};

use crate::sched::parker::Unpark;

/// Wakes an event loop without touching its interpreter: one `write` from any thread.
///
/// On Linux both ends are one eventfd; elsewhere they are the ends of a non-blocking pipe.
pub struct Notifier {
    reader: OwnedFd,
    #[cfg(any(not(target_os = "linux"), dft_portable))]
    writer: OwnedFd,
}

impl Notifier {
    /// Opens the descriptor; fails when the process has none left.
    #[cfg(all(target_os = "linux", not(dft_portable)))]
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let reader = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { reader })
    }

    /// Opens the descriptors; fails when the process has none left.
    #[cfg(any(not(target_os = "linux"), dft_portable))]
    pub fn new() -> io::Result<Self> {
        use rustix::fs::{OFlags, fcntl_setfl};
        use rustix::io::{FdFlags, fcntl_setfd};
        let (reader, writer) = rustix::pipe::pipe()?;
        for fd in [&reader, &writer] {
            fcntl_setfl(fd, OFlags::NONBLOCK)?;
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
        Ok(Self { reader, writer })
    }

    /// The descriptor to watch for reading. It stays open as long as `self`.
    pub fn fileno(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub fn notify(&self) {
        #[cfg(all(target_os = "linux", not(dft_portable)))]
        let writer = &self.reader;
        #[cfg(any(not(target_os = "linux"), dft_portable))]
        let writer = &self.writer;
        // EAGAIN means that it is readable already, which is all that is wanted.
        while let Err(Errno::INTR) = write(writer, &1_u64.to_ne_bytes()) {}
    }

    /// Makes the descriptor unreadable until the next [`notify`](Self::notify).
    pub fn acknowledge(&self) {
        let mut buffer = [0_u8; 64];
        loop {
            match read(&self.reader, &mut buffer) {
                Err(Errno::INTR) => {}
                // A pipe may hold more than one buffer; an eventfd is empty after one read.
                Ok(n) if n == buffer.len() => {}
                _ => return,
            }
        }
    }
}

impl Unpark for Notifier {
    fn unpark(&self) {
        self.notify();
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
