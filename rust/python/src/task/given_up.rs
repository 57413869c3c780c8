//! How a worker leaves a body that others may have given up or interrupted.

use std::sync::atomic::Ordering;

use dftracer_core::interrupt_slot::Outer;
use pyo3::prelude::*;

use crate::interp::objects::take_back_raise;
use crate::interp::slot::Slot;
use crate::owner::Shared;

/// The worker of a body has left it.
#[inline]
pub(crate) fn leave_body(py: Python<'_>, shared: &Shared, slot: &Slot, outer: Outer) {
    let marks = slot.running.leave(outer);
    if marks.interrupted() {
        let ident = slot.ident.load(Ordering::Relaxed);
        take_back_raise(py, ident);
    }
    if marks.given_up() {
        shared.lane(slot.lane).leave_blocked();
        slot.given_up.fetch_sub(1, Ordering::Relaxed);
        shared.stopping.count(-1);
    }
}
