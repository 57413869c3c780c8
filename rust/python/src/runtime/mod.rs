//! `Runtime`: what a caller submits to, what all its parts share, its deadlines and its end.

pub(crate) mod api;
pub(crate) mod deadlines;
pub(crate) mod exit;
pub(crate) mod progress;
pub(crate) mod shared;
pub(crate) mod submit;
