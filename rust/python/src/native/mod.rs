//! Work that needs no interpreter: programs, and work on files.

pub(crate) mod files;
pub(crate) mod outcome;
pub(crate) mod process;
