//! Why a task has failed, as its trace tells it.

use dftracer_core::io::process::ProcessOutcome;
use dftracer_core::redact::{head, tail};
use dftracer_core::trace::Failure;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;

use crate::native::outcome::NativeOutcome;
use crate::task::TaskHandle;
use crate::trace::redact::hide;

/// How many frames of a traceback are told, the innermost ones.
const MAX_FRAMES: usize = 30;

/// How much of a text is looked through for secrets before it is cut.
const MAX_TEXT: usize = 64 << 10;

/// How much of what a failed program has written to its standard error is told: the end.
const MAX_STDERR: usize = 1_000;

/// Why a task that has ended has failed; of a program, also that its exit code says so.
pub(crate) fn failure_of(handle: &TaskHandle, py: Option<Python<'_>>) -> Option<Failure> {
    if let Some(native) = handle.native_outcome() {
        return native_failure(&native);
    }
    let describe = |py: Python<'_>| {
        let (error, traceback) = handle.error_now(py)?;
        Some(describe(error.bind(py), traceback.map(|traceback| traceback.into_bound(py))))
    };
    match py {
        Some(py) => describe(py),
        None => None, // only attached threads end a task with an exception
    }
}

/// Why an error was raised: its type, its text and where.
pub(crate) fn describe(
    error: &Bound<'_, PyAny>,
    traceback: Option<Bound<'_, PyTraceback>>,
) -> Failure {
    let kind = error.get_type().qualname().map_or_else(|_| "error".into(), |kind| kind.to_string());
    let message = match error.str() {
        Ok(text) => {
            let text = text.to_string_lossy();
            hide(head(&text, MAX_TEXT))
        }
        Err(_) => "(no text)".to_owned(),
    };
    let mut frames = Vec::new();
    let mut next = traceback.map(Bound::into_any);
    while let Some(entry) = next {
        if let Ok(line) = line_of(&entry) {
            frames.push(line);
        }
        next = entry.getattr("tb_next").ok().filter(|next| !next.is_none());
    }
    let traceback = frames[frames.len().saturating_sub(MAX_FRAMES)..].join("\n");
    Failure { error: kind, message, traceback, exit_code: None }
}

/// `file.py:12 in function`.
fn line_of(entry: &Bound<'_, PyAny>) -> PyResult<String> {
    let code = entry.getattr("tb_frame")?.getattr("f_code")?;
    let (file, name) = (code.getattr("co_filename")?, code.getattr("co_name")?);
    let line: u32 = entry.getattr("tb_lineno")?.extract()?;
    Ok(format!("{}:{line} in {}", file.str()?.to_string_lossy(), name.str()?.to_string_lossy()))
}

/// As [`describe`], of a job that has ended without the interpreter.
fn native_failure(outcome: &NativeOutcome) -> Option<Failure> {
    let of = |error: &str, message: String| Failure {
        error: error.to_owned(),
        message,
        ..Failure::default()
    };
    match outcome {
        NativeOutcome::Process(ProcessOutcome::Exited(output)) => {
            if output.exit_code == Some(0) {
                return None;
            }
            let message = match output.signal {
                Some(signal) => format!("killed by signal {signal}"),
                None => end_of(&output.stderr),
            };
            let exit_code = output.exit_code.or(output.signal.map(|signal| -signal));
            Some(Failure { exit_code, ..of("exit code", message) })
        }
        NativeOutcome::Process(ProcessOutcome::NotStarted { program, error }) => {
            Some(of("OSError", format!("{}: {error}", program.to_string_lossy())))
        }
        NativeOutcome::Process(ProcessOutcome::TimedOut(_)) => {
            Some(of("TaskTimeoutError", "its process group was killed".to_owned()))
        }
        NativeOutcome::Digests(Err((path, error))) | NativeOutcome::Staged(Err((path, error))) => {
            Some(of("OSError", format!("{}: {error}", path.display())))
        }
        NativeOutcome::Panicked(text) => Some(of("panic", text.clone())),
        NativeOutcome::OutOfTime(what) => Some(of("TaskTimeoutError", (*what).to_owned())),
        _ => None,
    }
}

/// The end of what a program has written, without secrets.
fn end_of(written: &[u8]) -> String {
    let end = &written[written.len().saturating_sub(MAX_TEXT)..];
    let text = hide(&String::from_utf8_lossy(end));
    tail(&text, MAX_STDERR).trim().to_owned()
}
