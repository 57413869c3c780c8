//! Which thread this is.

/// A number that no other living thread of this process has: the system's own number on Linux.
#[cfg(target_os = "linux")]
pub fn number() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// A number that no other thread of this process has.
#[cfg(not(target_os = "linux"))]
pub fn number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        // Relaxed: only the numbers must differ.
        static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}
