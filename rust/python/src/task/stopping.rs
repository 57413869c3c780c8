//! How a plain body is stopped, which nobody can do but itself.
//!
//! Its task has ended when somebody asks the body to stop, and the body goes on: it is *given up*. Its
//! thread keeps its place until the body returns, and its lane may start a spare worker meanwhile. A
//! body that waits in a call of ours is told there. Where the user has asked for it, an exception is
//! sent to the thread instead, which can lose locks that the body holds; see `docs/lifecycle.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dftracer_core::sched::parker::Unpark;
use pyo3::prelude::*;

use super::TaskHandle;
use super::given_up::{interruption, pass};
use crate::interp::call::call_for_life;
use crate::interp::exit;
use crate::interp::guard;
use crate::interp::objects::raise_in_thread;
use crate::interp::slot::{LaneKind, Slot};
use crate::owner::Shared;

/// Stops the plain body of a task that was asked to stop, as far as that can be done.
pub(crate) fn stop_body(handle: &TaskHandle, py: Python<'_>) {
    let Some(shared) = handle.shared() else { return };
    if !handle.may_interrupt() {
        give_up(shared, handle, py);
    } else if !end_wait(shared, handle.task_id) {
        interrupt(shared, handle.task_id, py);
    }
}

/// Lets another worker stand in for the one that runs the body, until that has returned.
fn give_up(shared: &Arc<Shared>, handle: &TaskHandle, py: Python<'_>) {
    let task = handle.task_id;
    if exit::is_exiting() {
        // What is queued is not to begin any more.
        end_wait(shared, task);
        return;
    }
    let mut ordered = None;
    let mut has_spare = true;
    for slot in plain_slots(shared) {
        let found = slot.running.reach(task, |marks| {
            if marks.given_up() {
                return marks;
            }
            // Takes two locks, under which nobody waits for anything.
            match shared.lane(slot.lane).enter_blocked() {
                Ok(order) => {
                    ordered = Some((slot.lane, order));
                    slot.given_up.fetch_add(1, Ordering::Relaxed);
                    shared.stopping.count(1);
                    marks.and_given_up()
                }
                Err(_) => {
                    has_spare = false;
                    marks
                }
            }
        });
        if found {
            break;
        }
    }
    if let Some((lane, order)) = ordered {
        // A spare that cannot be started is missed until the body returns.
        let _ = shared.obey(lane, order);
        if lane == LaneKind::Python
            && let Some(batch) = shared.batch_of(task)
            && let Err(error) = batch.pass_on(py)
        {
            error.write_unraisable(py, None);
        }
    }
    end_wait(shared, task);
    if ordered.is_some() || !has_spare {
        say_given_up(shared, handle, py);
    }
}

/// Sends an exception to the worker that runs a plain body, if that is its innermost one. It is
/// raised when the body next runs Python code, and never outside of it.
fn interrupt(shared: &Shared, task: i64, py: Python<'_>) {
    // Before anything is held: the first time it is imported, which lets go of the interpreter.
    let class = interruption(py);
    if pass(py).is_err() {
        return; // at the exit: it could not be dropped if it came too late
    }
    for slot in plain_slots(shared) {
        let ident = slot.ident.load(Ordering::Relaxed);
        slot.running.reach(task, |marks| {
            if marks.raised_in_wait() {
                return marks; // by a wait of its own, and what it does about that is not to be hit
            }
            // The worker cannot leave the body meanwhile.
            if raise_in_thread(ident, &class) { marks.and_interrupted() } else { marks }
        });
    }
}

fn plain_slots(shared: &Shared) -> impl Iterator<Item = Arc<Slot>> {
    shared.slots().into_iter().filter(|slot| slot.lane != LaneKind::Coroutine)
}

/// Wakes a body that waits in a call of ours; false if it does not.
fn end_wait(shared: &Shared, task: i64) -> bool {
    plain_slots(shared).any(|slot| match &*slot.wait() {
        Some(waiting) if waiting.task == task => {
            waiting.parker.unpark();
            true
        }
        _ => false,
    })
}

/// Logs, once, that a body runs on without its task. On a thread of its own, which may wait for
/// a handler's lock: the body that was given up may be the one that has it.
fn say_given_up(shared: &Shared, handle: &TaskHandle, py: Python<'_>) {
    if !shared.stopping.is_to_be_said() {
        return;
    }
    let name = handle.name_now(py).into_any().unbind();
    let log = py.import("dftracer.utils.from_native.logs").and_then(|m| m.getattr("log_given_up"));
    let Ok(log) = log.map(Bound::unbind) else { return };
    let say = move || {
        guard::attach(|py| {
            let said = call_for_life(log.bind(py), name.bind(py).clone());
            if let Err(error) = said {
                error.write_unraisable(py, None);
            }
            drop((log, name));
        });
    };
    // Refused a thread, it is not said.
    let _ = std::thread::Builder::new().name("dft-log".into()).spawn(say);
}
