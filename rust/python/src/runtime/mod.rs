//! `Runtime`: what a caller submits to, how it reports, and how it ends.

pub(crate) mod api;
mod arguments;
mod closing;
pub(crate) mod exit;
mod expiry;
pub(crate) mod progress;
pub(crate) mod results;
pub(crate) mod submit;
