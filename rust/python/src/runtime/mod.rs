//! `Runtime`: what a caller submits to, how it reports, and how it ends.

pub(crate) mod api;
#[allow(unsafe_code, reason = "a method in the interpreter's own calling convention")]
mod arguments;
mod closing;
pub(crate) mod exit;
mod expiry;
pub(crate) mod progress;
pub(crate) mod results;
#[allow(unsafe_code, reason = "as above")]
pub(crate) mod submit;
