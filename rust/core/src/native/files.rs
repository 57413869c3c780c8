//! Work on files: content hashes, and staging from one place to another.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// What is read from a file at a time, in bytes.
const BLOCK: usize = 256 << 10;

/// An error, and the file that it is about.
pub type FileError = (PathBuf, io::Error);

/// How often work that waits for a pipe or a device checks whether it was cancelled.
const CHECK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The SHA-256 of each file's content, in hexadecimal, in the order of `paths`. Parallel over the
/// files when called on a thread of a rayon pool. If `cancelled` is set meanwhile, fails soon with
/// `ECANCELED`, also where a pipe or a device has no end or gives nothing.
pub fn hash(paths: &[PathBuf], cancelled: &AtomicBool) -> Result<Vec<String>, FileError> {
    let hash = |path: &PathBuf| hash_one(path, cancelled).map_err(|error| (path.clone(), error));
    paths.par_iter().map(hash).collect()
}

fn hash_one(path: &Path, cancelled: &AtomicBool) -> io::Result<String> {
    // Such a pipe or device is opened and read without waiting: nothing could end that.
    let may_wait = fs::metadata(path)?.file_type();
    let may_wait = may_wait.is_fifo() || may_wait.is_char_device();
    let flags = if may_wait { OFlags::NONBLOCK.bits() as i32 } else { 0 };
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        // Relaxed: it is set at any moment, for all that is known here.
        if cancelled.load(Ordering::Relaxed) {
            return Err(Errno::CANCELED.into());
        }
        // A pipe that nobody writes to yet has nothing to read, and no end either.
        if may_wait
            && poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&CHECK_INTERVAL)) == Ok(0)
        {
            continue;
        }
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(count) => hasher.update(&block[..count]),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => return Err(error),
            },
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How a file gets to its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// A copy of its content and permissions.
    Copy,
    /// Another name for the same file.
    HardLink,
    /// A link that names the source by its absolute path.
    SymbolicLink,
}

/// Puts a file at `target`, which must not exist. The file appears there complete or not at all; if
/// `cancelled` is set before, not at all. Directories on the way are made.
pub fn stage(
    source: &Path,
    target: &Path,
    how: Staging,
    cancelled: &AtomicBool,
) -> Result<PathBuf, FileError> {
    let about = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(about(parent))?;
    }
    check(target, cancelled)?;
    match how {
        Staging::Copy => copy(source, target, cancelled),
        Staging::HardLink => fs::hard_link(source, target).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => (target.to_owned(), error),
            _ => (source.to_owned(), error),
        }),
        Staging::SymbolicLink => {
            // A link to nothing can be made, and would be found out only by who opens it.
            let metadata = fs::metadata(source).and_then(|_| std::path::absolute(source));
            let source = metadata.map_err(about(source))?;
            std::os::unix::fs::symlink(source, target).map_err(about(target))
        }
    }?;
    Ok(target.to_owned())
}

fn check(target: &Path, cancelled: &AtomicBool) -> Result<(), FileError> {
    // Relaxed: it is set at any moment, for all that is known here.
    if cancelled.load(Ordering::Relaxed) {
        return Err((target.to_owned(), Errno::CANCELED.into()));
    }
    Ok(())
}

/// Copies under another name first. A hard link, unlike a rename, refuses to replace what is there.
fn copy(source: &Path, target: &Path, cancelled: &AtomicBool) -> Result<(), FileError> {
    if !fs::metadata(source).map_err(|error| (source.to_owned(), error))?.is_file() {
        return Err((source.to_owned(), Errno::INVAL.into())); // a directory, a pipe, a device
    }
    if target.symlink_metadata().is_ok() {
        return Err((target.to_owned(), Errno::EXIST.into()));
    }
    let partial = partial_name(target);
    let copied = fs::copy(source, &partial).map_err(|error| (source.to_owned(), error));
    let placed = copied
        .and_then(|_| check(target, cancelled))
        .and_then(|_| fs::hard_link(&partial, target).map_err(|error| (target.to_owned(), error)));
    // Whatever happened: under this name nobody wants it.
    let _ = fs::remove_file(&partial);
    placed
}

/// A name beside `target` that no other copy uses.
fn partial_name(target: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}-{number}.partial", std::process::id()));
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    /// A directory of its own for one test, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dft-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("scratch directory");
            Self(path)
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).expect("write");
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn hashes_come_in_the_order_of_the_files() {
        let scratch = Scratch::new("hash");
        let paths = [scratch.file("empty", b""), scratch.file("abc", b"abc")];
        // The two digests that FIPS 180-4 gives as examples.
        assert_eq!(
            hash(&paths, &AtomicBool::new(false)).expect("digests"),
            [
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ]
        );
        let missing = scratch.0.join("missing");
        let (path, error) = hash(std::slice::from_ref(&missing), &AtomicBool::new(false))
            .expect_err("no such file");
        assert_eq!((path, error.kind()), (missing, io::ErrorKind::NotFound));
    }

    #[test]
    fn a_pipe_is_hashed_to_its_end_when_who_writes_comes_late() {
        let scratch = Scratch::new("pipe");
        let pipe = scratch.0.join("pipe");
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).expect("pipe");
        let hashing = {
            let pipes = vec![pipe.clone()];
            std::thread::spawn(move || hash(&pipes, &AtomicBool::new(false)))
        };
        // Opens when the reader has.
        fs::write(&pipe, b"abc").expect("written");
        assert_eq!(
            hashing.join().expect("no panic").expect("digest"),
            ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
        );
    }

    #[test]
    fn hashing_ends_when_it_is_unwanted_and_the_file_does_not() {
        let scratch = Scratch::new("endless");
        let silent = scratch.0.join("silent");
        mkfifoat(CWD, &silent, Mode::RUSR | Mode::WUSR).expect("pipe");
        for path in [silent, PathBuf::from("/dev/zero")] {
            let cancelled = std::sync::Arc::new(AtomicBool::new(false));
            let flag = cancelled.clone();
            let paths = vec![path.clone()];
            let hashing = std::thread::spawn(move || hash(&paths, &flag));
            cancelled.store(true, Ordering::Relaxed);
            let (about, error) = hashing.join().expect("no panic").expect_err("cancelled");
            assert_eq!((about, error.raw_os_error()), (path, Some(Errno::CANCELED.raw_os_error())));
        }
    }

    #[test]
    fn staging_never_replaces_a_file() {
        let scratch = Scratch::new("stage");
        let source = scratch.file("source", b"new");
        for (name, how) in [
            ("copied", Staging::Copy),
            ("hard", Staging::HardLink),
            ("soft", Staging::SymbolicLink),
        ] {
            let target = scratch.0.join("deep/er").join(name);
            stage(&source, &target, how, &AtomicBool::new(false)).expect("staged");
            assert_eq!(fs::read(&target).expect("read"), b"new");
            let (path, error) =
                stage(&source, &target, how, &AtomicBool::new(false)).expect_err("exists");
            assert_eq!((path, error.kind()), (target, io::ErrorKind::AlreadyExists), "{how:?}");
        }
        let left = fs::read_dir(scratch.0.join("deep/er")).expect("directory").count();
        assert_eq!(left, 3, "a partial copy was left behind");
    }

    #[test]
    fn a_missing_source_is_named() {
        let scratch = Scratch::new("missing");
        let (source, target) = (scratch.0.join("nothing"), scratch.0.join("target"));
        for how in [Staging::Copy, Staging::HardLink, Staging::SymbolicLink] {
            let (path, error) =
                stage(&source, &target, how, &AtomicBool::new(false)).expect_err("no source");
            assert_eq!((&path, error.kind()), (&source, io::ErrorKind::NotFound), "{how:?}");
            assert!(target.symlink_metadata().is_err(), "{how:?} left something behind");
        }
    }
}
