//! How many threads a runtime gets when the caller does not say.

use std::thread::available_parallelism;

/// The most Python workers that a runtime starts by default.
const MAX_DEFAULT_PYTHON_THREADS: usize = 32;

/// The sizes of a runtime's pools, all at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Compute threads.
    pub threads: usize,
    /// I/O threads.
    pub io_threads: usize,
    /// The most workers of the Python lane (and, apart, of the coroutine lane).
    pub python_threads: usize,
}

impl Sizes {
    /// Fills in every size that is 0 from what this process may use.
    pub fn resolve(threads: usize, io_threads: usize, python_threads: usize) -> Self {
        let or_default = |size: usize, default: usize| if size == 0 { default } else { size };
        let threads = or_default(threads, available_cpus());
        Self {
            threads,
            io_threads: or_default(io_threads, available_cpus()),
            python_threads: or_default(python_threads, threads.min(MAX_DEFAULT_PYTHON_THREADS)),
        }
    }
}

/// The CPUs this process may use: its affinity mask and its cgroup's quota, not the whole box.
pub fn available_cpus() -> usize {
    available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_sizes_are_kept() {
        let sizes = Sizes::resolve(3, 5, 7);
        assert_eq!(sizes, Sizes { threads: 3, io_threads: 5, python_threads: 7 });
    }

    #[test]
    fn python_threads_follow_threads_up_to_a_bound() {
        assert_eq!(Sizes::resolve(2, 1, 0).python_threads, 2);
        assert_eq!(Sizes::resolve(500, 1, 0).python_threads, MAX_DEFAULT_PYTHON_THREADS);
    }

    #[test]
    fn unset_sizes_follow_the_process() {
        let sizes = Sizes::resolve(0, 0, 0);
        assert_eq!(sizes.threads, available_cpus());
        assert_eq!(sizes.io_threads, available_cpus());
    }
}
