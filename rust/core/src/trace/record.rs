//! What a trace records of a task.

/// What has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A plain call on a worker of the Python lane.
    Python,
    /// A coroutine.
    Coroutine,
    /// A plain call on the I/O lane.
    Io,
    /// A child process.
    Process,
    /// Native work on files.
    Files,
    /// A block of a workflow.
    Block,
    /// A component of a workflow that was not run by one of our runtimes, or not at all.
    Component,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// With a result.
    Done,
    /// With an error.
    Failed,
    /// Cancelled.
    Cancelled,
}

/// The life of one task. Times are nanoseconds on the clock that [`Setup::now`] is of.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number within its source.
    pub task: i64,
    /// The task that submitted it, of the same source; negative if none did.
    pub parent: i64,
    /// When it was handed over.
    pub submitted: u64,
    /// When it began; 0 if it never did.
    pub started: u64,
    /// When it ended.
    pub ended: u64,
    /// As [`Trace::name`](super::Trace::name) has answered.
    pub name: u32,
    /// The system's number of the thread that it had to itself; 0 if it had none.
    pub thread: u32,
    /// What is known of an end that was not good.
    pub failure: Option<Box<Failure>>,
    /// As [`Trace::new_source`](super::Trace::new_source) has answered.
    pub source: u16,
    /// What it was.
    pub kind: Kind,
    /// How it ended.
    pub end: End,
}

/// Why a task failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// The type of the error.
    pub error: String,
    /// Its text.
    pub message: String,
    /// Where it was raised, a line for each frame, innermost last.
    pub traceback: String,
    /// Of a program.
    pub exit_code: Option<i32>,
}

/// What is known of a task beyond its record, said when it is submitted.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Its name, if that is not one of those that are kept.
    pub name: Option<Box<str>>,
    /// When it was asked for, before it was submitted; 0 if that is the same.
    pub created: u64,
    /// Members of a JSON object, without its braces.
    pub members: Box<str>,
}

/// What a trace says of the process it is of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The time now, on the clock that records use.
    pub now: u64,
    /// The name of the process.
    pub process: String,
    /// The name of the machine.
    pub host: String,
}
