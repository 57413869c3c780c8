//! The end of a runtime.

use std::sync::Arc;
use std::time::Instant;

use dftracer_core::sched::parker::Parker;
use pyo3::prelude::*;

use crate::owner::Shared;
use crate::task::current;
use crate::task::wait::all::wait_idle;

pub(crate) fn shutdown(shared: &Shared, py: Python<'_>, wait: bool) -> PyResult<()> {
    if shared.process.is_copy() {
        return Ok(());
    }
    let first = shared.outstanding.close();
    let wait = wait && !current::is_worker_of(shared);
    if wait {
        wait_idle(shared, py, None)?;
    }
    shared.close();
    if first {
        log::debug!(target: "dftracer.utils", "A runtime was shut down.");
    }
    if wait {
        let has_left = shared.stopping.wait_for_bodies(py);
        let threads = shared.take_threads();
        let left = if has_left { Vec::new() } else { shared.threads_left() };
        if !left.is_empty() {
            log::warn!(
                target: "dftracer.utils",
                "{} thread(s) of a runtime that is shut down are left behind, because the \
                 bodies that run there go on although they were cancelled or have run out of \
                 time (DFTRACER_EXIT_PATIENCE_S)",
                left.len()
            );
        }
        py.detach(|| {
            for thread in threads.into_iter().filter(|t| !left.contains(&t.thread().id())) {
                // An error means that the thread panicked, and its lane has been told.
                let _ = thread.join();
            }
            if let Some(tracing) = shared.tracing() {
                tracing.flush();
            }
        });
    }
    Ok(())
}

/// Closes, then waits until no thread of ours can touch the interpreter, or the deadline.
pub(crate) fn leave(shared: &Shared, py: Python<'_>, deadline: Instant) {
    let parker = Arc::new(Parker::default());
    shared.watch_departures(parker.clone());
    shared.close();
    py.detach(|| {
        while !shared.slots().is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !parker.park_for(left) {
                return;
            }
        }
        for thread in shared.take_threads() {
            // Those that have no slot any more are past their last Python code.
            let _ = thread.join();
        }
    });
}
