//! Work that needs no interpreter, and the threads on which it runs.

pub mod compute;
pub mod files;
