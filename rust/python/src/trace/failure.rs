//! Why a task has failed, as its trace tells it.

use dftracer_core::redact::{head, tail};
use dftracer_core::trace::Failure;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;

use crate::trace::redact::hide;

/// How many frames of a traceback are told, the innermost ones.
const MAX_FRAMES: usize = 30;

/// How much of a text is looked through for secrets before it is cut.
const MAX_TEXT: usize = 64 << 10;

/// How much of what a failed program has written to its standard error is told: the end.
const MAX_STDERR: usize = 1_000;

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

/// The end of what a program has written, without secrets.
pub(crate) fn end_of(written: &[u8]) -> String {
    let end = &written[written.len().saturating_sub(MAX_TEXT)..];
    let text = hide(&String::from_utf8_lossy(end));
    tail(&text, MAX_STDERR).trim().to_owned()
}
