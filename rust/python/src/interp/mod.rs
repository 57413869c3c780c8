//! The interpreter: ways into Python, what its collector and a `fork()` may rely on, and waits that
//! signals end. The bottom floor: nothing here knows tasks.

pub(crate) mod call;
pub(crate) mod callbacks;
pub(crate) mod clock;
pub(crate) mod errors;
pub(crate) mod exit;
pub(crate) mod fork;
pub(crate) mod frames;
pub(crate) mod gc;
pub(crate) mod guard;
pub(crate) mod names;
pub(crate) mod objects;
pub(crate) mod once;
pub(crate) mod origin;
pub(crate) mod signals;
pub(crate) mod slot;
