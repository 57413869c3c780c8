//! How a worker runs the items of a batch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use dftracer_core::interrupt_slot::Outer;
use pyo3::prelude::*;

use super::{Batch, Next};
use crate::interp::call::{
    Contexts, call_one, in_context, panic_error, panic_text, runs_code_when_dropped,
};
use crate::interp::clock::nanos_now;
use crate::interp::objects::is_coroutine;
use crate::interp::signals::Turn;
use crate::interp::slot::Slot;
use crate::owner::items::Items;
use crate::owner::{Sleepers, wake};
use crate::task::run::{end_task, run_claimed};
use crate::task::wait::graph::Within;
use crate::task::{leave_body, swallow};

/// Runs item after item, until none is left that has not begun. Begins and ends with the time, if
/// nothing has happened since.
pub(crate) fn run(
    py: Python<'_>,
    batch: &Arc<Batch>,
    slot: &Slot,
    sleepers: &mut Sleepers,
    (now, turn): (u64, &mut Turn),
) -> Option<u64> {
    let mut last_end = Some(now);
    let _unless_done = PassOn { py, batch };
    let mut contexts = Contexts::of(batch.context.as_ref());
    loop {
        batch.shared.process.leave_if_copied();
        if !sleepers.is_empty() {
            wake(sleepers);
            last_end = None;
        }
        let now = turn.share(py, last_end.take().unwrap_or_else(nanos_now));
        let shared = &batch.shared;
        let with_handle = shared.tracing().is_some() || shared.deadlines.task_timeout().is_some();
        match batch.begin_next(slot, now, with_handle) {
            None => return Some(now),
            Some(Next::Call(index, argument, outer)) => {
                let item = (index, argument, outer);
                last_end = run_item(py, batch, slot, &mut contexts, item, sleepers);
            }
            Some(Next::Claim(index)) => match batch.handle(py, index) {
                Ok(Some(handle)) if handle.get().claim_at(now) => {
                    let end = run_claimed(py, &handle, sleepers);
                    last_end = end.filter(|end| end.unheard).map(|end| end.at);
                }
                Ok(_) => {}
                Err(error) => {
                    batch.end_without(index, error, sleepers);
                }
            },
        }
    }
}

/// Calls the function with one item; tells when that has ended, if nobody heard of it.
fn run_item(
    py: Python<'_>,
    batch: &Arc<Batch>,
    slot: &Slot,
    contexts: &mut Contexts<'_>,
    (index, argument, outer): (usize, Py<PyAny>, Outer),
    sleepers: &mut Sleepers,
) -> Option<u64> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let context = contexts.next(py)?;
        let value = in_context(&context, || call_one(py, &batch.function, &argument))?;
        Ok((value, context))
    }))
    .unwrap_or_else(|panic| Err(panic_error(&panic_text(panic.as_ref()))));
    if let Some(sent) = leave_body(&batch.shared, slot, outer) {
        swallow(py, slot, sent);
    }
    drop_argument(batch, batch.first_id() + index as i64, argument);
    let result = match result {
        Ok((value, context)) if !is_coroutine(&value) => {
            contexts.take_back(context);
            let at = nanos_now();
            match batch.end(index, value.unbind(), at, sleepers) {
                Ok(()) => return Some(at),
                Err(value) => Ok((value, py.None())),
            }
        }
        Ok((value, context)) => Ok((value.unbind(), context.unbind())),
        Err(error) => Err(error),
    };
    batch.was_called(index, nanos_now());
    match batch.handle(py, index) {
        Ok(Some(handle)) => {
            end_task(py, &handle, result, sleepers).filter(|end| end.unheard).map(|end| end.at)
        }
        Ok(None) => None,
        Err(error) => {
            batch.end_without(index, error, sleepers);
            None
        }
    }
}

/// Drops the argument of an item. If that can run Python code, what it waits for is known to wait for
/// this item.
fn drop_argument(batch: &Arc<Batch>, id: i64, argument: Py<PyAny>) {
    let _within = runs_code_when_dropped(&argument).then(|| Within::item(batch.clone(), id));
    drop(argument);
}

/// Sees to it that items are left to others if this worker dies.
struct PassOn<'a, 'py> {
    py: Python<'py>,
    batch: &'a Arc<Batch>,
}

impl Drop for PassOn<'_, '_> {
    fn drop(&mut self) {
        // Nothing is left unless this is a panic.
        if let Err(error) = self.batch.clone().pass_on(self.py) {
            self.batch.fail(self.py, &error);
        }
    }
}
