//! Starting a program, with `posix_spawn`: no copy of this process's memory is made, and nothing of
//! its start depends on who forks meanwhile.
//!
//! It blocks: on the files that it opens, on the program's file, on a file system that does not
//! answer. A FIFO is opened by a shell in the new process, which can be killed there.

mod child;
mod posix;
mod terminal;

use std::ffi::{CString, OsStr, OsString, c_char, c_int};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::forks::{Ours, apart};
use crate::io::process::{ProcessSpec, Sink, Source};
pub(crate) use child::{Exit, Spawned};
pub use posix::SignalMask;
use posix::{Actions, Attributes, add_chdir};
use terminal::Terminal;

/// An error, and the program or file that it is about.
pub(crate) type SpawnError = (OsString, io::Error);

/// Starts a program; an error names the file that it is about.
pub(crate) fn spawn(spec: &ProcessSpec) -> Result<Spawned, SpawnError> {
    let program = spec.argv.first().ok_or_else(|| {
        (OsString::new(), io::Error::new(io::ErrorKind::InvalidInput, "no program was named"))
    })?;
    if let Some(cwd) = &spec.cwd {
        // The system says "no such file" of the program too: distinguish them before.
        if !cwd.is_dir() {
            let errno = if cwd.exists() { Errno::NOTDIR } else { Errno::NOENT };
            return Err((cwd.into(), errno.into()));
        }
    }
    let files = Files::of(spec)?;
    let mut start = Start { spec, argv: spec.argv.clone(), cwd: spec.cwd.as_deref() };
    if files.need_shell() || (start.cwd.is_some() && add_chdir().is_none()) {
        start.through_shell(&files)?;
    }
    let terminal = if spec.tty { Some(Terminal::open()?) } else { None };
    match start.run(&files, terminal.as_ref()) {
        // A script that does not say by what it wants to be run: the shell's, as for `execvp`.
        Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            start.argv.insert(0, "/bin/sh".into());
            start.run(&files, terminal.as_ref())
        }
        other => other,
    }
    .map_err(|error| (program.clone(), error))
    .map(|pid| files.hand_over(pid, terminal))
}

/// One of the three standard files of a program.
enum Standard {
    /// `/dev/null`, or another that the system opens in the new process.
    Path(CString, c_int),
    /// Open here: the program's end, and ours of a pipe.
    Open(Ours<OwnedFd>, Option<Ours<OwnedFd>>),
    /// A FIFO: its other end may not be open, and then to open it blocks.
    Fifo(PathBuf),
}

struct Files {
    stdin: Standard,
    stdout: Standard,
    stderr: Standard,
}

impl Files {
    fn of(spec: &ProcessSpec) -> Result<Self, SpawnError> {
        let stdin = match &spec.stdin {
            Source::Empty if spec.tty => Standard::Path(c"/dev/tty".into(), libc::O_RDONLY),
            Source::Empty => Standard::Path(c"/dev/null".into(), libc::O_RDONLY),
            Source::Bytes(_) => Standard::pipe(|(read, write)| (read, write))?,
            Source::File(path) => Standard::file(path, Access::READ_OK, |path| File::open(path))?,
        };
        let sink = |sink: &Sink| match sink {
            Sink::Captured => Standard::pipe(|(read, write)| (write, read)),
            Sink::Discarded => Ok(Standard::Path(c"/dev/null".into(), libc::O_WRONLY)),
            Sink::File(path) => Standard::file(path, Access::WRITE_OK, |path| File::create(path)),
        };
        Ok(Self { stdin, stdout: sink(&spec.stdout)?, stderr: sink(&spec.stderr)? })
    }

    fn all(&self) -> [&Standard; 3] {
        [&self.stdin, &self.stdout, &self.stderr]
    }

    fn need_shell(&self) -> bool {
        self.all().iter().any(|file| matches!(file, Standard::Fifo(_)))
    }

    /// Closes the program's ends and keeps ours.
    fn hand_over(self, pid: Pid, terminal: Option<Terminal>) -> Spawned {
        let [stdin, stdout, stderr] =
            [self.stdin, self.stdout, self.stderr].map(|file| match file {
                Standard::Open(_theirs, ours) => ours,
                _ => None,
            });
        if let Some(terminal) = &terminal {
            terminal.give_to(pid);
        }
        Spawned::new(pid, [stdin, stdout, stderr], terminal)
    }
}

impl Standard {
    /// A pipe; `sides` puts the program's end first or second.
    fn pipe(
        sides: impl FnOnce((OwnedFd, OwnedFd)) -> (OwnedFd, OwnedFd),
    ) -> Result<Self, SpawnError> {
        apart(|| {
            let (read, write) = pipe()?;
            let (theirs, ours) = sides((above_standard(read)?, above_standard(write)?));
            Ok(Self::Open(Ours::of(theirs), Some(Ours::of(ours))))
        })
        .map_err(|error: io::Error| ("a pipe".into(), error))
    }

    fn file(
        path: &Path,
        how: Access,
        open: impl FnOnce(&Path) -> io::Result<File>,
    ) -> Result<Self, SpawnError> {
        let is_fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
        let file = if is_fifo {
            access(path, how)
                .map_err(io::Error::from)
                .and_then(|()| std::path::absolute(path))
                .map(Self::Fifo)
        } else {
            open(path)
                .and_then(|file| above_standard(file.into()))
                .map(|file| Self::Open(apart(|| Ours::of(file)), None))
        };
        file.map_err(|error| (path.into(), error))
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    #[cfg(target_os = "linux")]
    return Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?);
    #[cfg(not(target_os = "linux"))]
    {
        let (read, write) = rustix::pipe::pipe()?;
        for fd in [&read, &write] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok((read, write))
    }
}

/// The descriptor, or another for the same if it is one of the three that a program begins with:
/// those are about to be replaced.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, 3)?)
}

/// What is about to be started.
struct Start<'a> {
    spec: &'a ProcessSpec,
    argv: Vec<OsString>,
    /// Where the new process goes before it becomes the program.
    cwd: Option<&'a Path>,
}

/// Goes to a directory if one is given, opens what is given and becomes the program.
const OPENER: &str = "\
__dft_cwd=$1 __dft_in=$2 __dft_out=$3 __dft_err=$4; shift 4
if [ -n \"$__dft_cwd\" ]; then cd -- \"$__dft_cwd\" || exit 127; fi
if [ -n \"$__dft_in\" ]; then exec <\"$__dft_in\"; fi
if [ -n \"$__dft_out\" ]; then exec >\"$__dft_out\"; fi
if [ -n \"$__dft_err\" ]; then exec 2>\"$__dft_err\"; fi
unset __dft_cwd __dft_in __dft_out __dft_err
exec \"$@\"";

impl<'a> Start<'a> {
    /// Has a shell do in the new process what would block here, or cannot be asked of the system.
    fn through_shell(&mut self, files: &Files) -> Result<(), SpawnError> {
        // Found now: that there is none is to be an error, not a message of the shell.
        let program =
            find(self.spec, &self.argv[0]).map_err(|error| (self.argv[0].clone(), error))?;
        let cwd = self.cwd.take().map_or(Ok(PathBuf::new()), std::path::absolute);
        let cwd = cwd.map_err(|error| (self.argv[0].clone(), error))?;
        let mut argv: Vec<OsString> =
            ["/bin/sh", "-c", OPENER, "sh"].into_iter().map(OsString::from).collect();
        argv.push(cwd.into());
        for file in files.all() {
            argv.push(match file {
                Standard::Fifo(path) => path.into(),
                _ => OsString::new(),
            });
        }
        argv.push(program.into());
        argv.extend(self.argv.drain(1..));
        self.argv = argv;
        Ok(())
    }

    fn run(&self, files: &Files, terminal: Option<&Terminal>) -> io::Result<Pid> {
        let program = &self.argv[0];
        let has_slash = program.as_bytes().contains(&b'/');
        match self.spec.path() {
            // `PATH` is the program's, not ours.
            Some(path) if !has_slash => {
                let found = search(self.spec, path, program)?;
                self.spawn(found.as_os_str(), false, files, terminal)
            }
            _ => self.spawn(program, !has_slash, files, terminal),
        }
    }

    fn spawn(
        &self,
        program: &OsStr,
        search: bool,
        files: &Files,
        terminal: Option<&Terminal>,
    ) -> io::Result<Pid> {
        let program = CString::new(program.as_bytes())?;
        let argv = self
            .argv
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let variable = |(name, value): (&OsStr, &OsStr)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let env = match &self.spec.env {
            Some(env) => env
                .iter()
                .map(|(name, value)| variable((name.as_os_str(), value.as_os_str())))
                .collect::<Result<Vec<_>, _>>(),
            None => std::env::vars_os()
                .map(|(name, value)| variable((name.as_os_str(), value.as_os_str())))
                .collect(),
        }?;
        let pointers = |texts: &[CString]| -> Vec<*mut c_char> {
            let texts = texts.iter().map(|text| text.as_ptr().cast_mut());
            texts.chain([std::ptr::null_mut()]).collect()
        };
        let (argv_pointers, env_pointers) = (pointers(&argv), pointers(&env));

        let mut attributes = Attributes::new()?;
        attributes.set(self.spec, terminal.is_some())?;
        let mut actions = Actions::new()?;
        if let Some(terminal) = terminal {
            actions.foreground(terminal.as_raw_fd())?;
        }
        for (file, fd) in files.all().into_iter().zip(0..) {
            match file {
                Standard::Path(path, flags) => actions.open(fd, path, *flags)?,
                Standard::Open(theirs, _) => actions.dup(theirs.as_raw_fd(), fd)?,
                // The shell opens it.
                Standard::Fifo(_) => actions.open(fd, c"/dev/null", libc::O_RDWR)?,
            }
        }
        if let Some(cwd) = self.cwd {
            actions.chdir(&CString::new(cwd.as_os_str().as_bytes())?)?;
        }
        let spawn = if search { libc::posix_spawnp } else { libc::posix_spawn };
        let mut pid = 0;
        // SAFETY: both lists end with null, and their texts outlive the call, as do the attributes
        // and actions, which are initialised.
        let errno = unsafe {
            spawn(
                &mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                argv_pointers.as_ptr(),
                env_pointers.as_ptr(),
            )
        };
        match Pid::from_raw(pid) {
            Some(pid) if errno == 0 => Ok(pid),
            _ => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Where a program is, as the new process would find it.
fn find(spec: &ProcessSpec, program: &OsStr) -> io::Result<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        let path = std::path::absolute(in_cwd(spec, Path::new(program)))?;
        access(&path, Access::EXEC_OK)?;
        return Ok(path);
    }
    match spec.path() {
        Some(path) => search(spec, path, program),
        None => search(spec, &std::env::var_os("PATH").unwrap_or_default(), program),
    }
    .and_then(std::path::absolute)
}

fn in_cwd(spec: &ProcessSpec, path: &Path) -> PathBuf {
    spec.cwd.as_deref().map_or_else(|| path.to_owned(), |cwd| cwd.join(path))
}

/// As the system searches: one that may not be run is an error only if there is no other.
fn search(spec: &ProcessSpec, path: &OsStr, program: &OsStr) -> io::Result<PathBuf> {
    let mut missing = Errno::NOENT;
    for directory in std::env::split_paths(path) {
        // An empty one is the current directory.
        let found = Path::new(".").join(directory).join(program);
        let seen_from_here = in_cwd(spec, &found);
        if !std::fs::metadata(&seen_from_here).is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        match access(&seen_from_here, Access::EXEC_OK) {
            Ok(()) => return Ok(found),
            Err(error) => missing = error,
        }
    }
    Err(missing.into())
}
