//! The secrets that this process knows, for all texts that leave it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dftracer_core::redact::Secrets;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Locked by attached threads, and by others only apart from forks; no Python runs meanwhile.
static SECRETS: Mutex<Option<Secrets>> = Mutex::new(None);

fn secrets() -> MutexGuard<'static, Option<Secrets>> {
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hide a secret in these forms from now on: in traces, and in texts for :func:`hide_secrets`.
///
/// Of very many secrets, those that were not given lately are forgotten.
#[pyfunction]
pub(crate) fn keep_secret(forms: Vec<String>) {
    secrets().get_or_insert_default().add(forms.iter().map(String::as_str));
}

/// Return ``text`` with ``***`` for each known secret, each piece of one, and logins in URLs.
#[pyfunction]
pub(crate) fn hide_secrets<'py>(text: &Bound<'py, PyString>) -> Bound<'py, PyString> {
    let lossy = text.to_string_lossy();
    match hide(&lossy) {
        hidden if hidden == lossy => text.clone(),
        hidden => PyString::new(text.py(), &hidden),
    }
}

/// The text without secrets.
pub(crate) fn hide(text: &str) -> String {
    secrets().get_or_insert_default().hide(text).into_owned()
}
