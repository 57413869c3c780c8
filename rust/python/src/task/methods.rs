//! What Python sees of a task.

use std::sync::atomic::Ordering;

use dftracer_core::task_state::state;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyBaseException, PyTimeoutError, PyTypeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::settle::EndedBy;
use super::stopping::stop_body;
use super::{Content, Outcome, TaskHandle};
use crate::interp::clock::{nanos_now, seconds};
use crate::interp::names::exact;
use crate::interp::once::{Lazy, intern};
use crate::interp::slot::LaneKind;
use crate::owner::job::NativeJob;

/// How a cancellation went; `dftracer.utils.Cancellation` gives these numbers their names.
const TOO_LATE: u8 = 0;
const REQUESTED: u8 = 1;
const DEQUEUED: u8 = 2;

#[pymethods]
impl TaskHandle {
    /// A handle that follows nothing yet. `__init__` looks at the arguments, so that a subclass may
    /// have one with others; only the number is looked for here, as it never changes.
    #[new]
    #[pyo3(
        signature = (*args, **kwargs),
        text_signature = "(native=None, future=None, name=None, task_id=-1)"
    )]
    fn py_new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        let argument = |index: usize, name: &str| {
            let by_name = kwargs.and_then(|kwargs| kwargs.get_item(name).ok().flatten());
            by_name.or_else(|| args.get_item(index).ok())
        };
        let given = argument(3, "task_id").and_then(|id| id.extract::<i64>().ok());
        let of_native = || {
            let native = argument(0, "native")?;
            native.cast::<Self>().ok().map(|native| native.get().task_id)
        };
        let task_id = given.filter(|id| *id != -1).or_else(of_native).unwrap_or(-1);
        Self::foreign(PyString::new(args.py(), "").unbind(), task_id, None)
    }

    #[pyo3(signature = (native=None, future=None, name=None, task_id=-1))]
    fn __init__(
        self_: &Bound<'_, Self>,
        native: Option<&Bound<'_, Self>>,
        future: Option<&Bound<'_, PyAny>>,
        name: Option<Bound<'_, PyString>>,
        task_id: i64,
    ) -> PyResult<()> {
        let py = self_.py();
        let _ = task_id; // taken by `__new__`, which has made the handle
        self_.get().check_foreign()?;
        let name = name.or_else(|| native.map(|native| native.get().name_now(py)));
        if let Some(name) = name {
            let name = exact(py, name.unbind());
            let before = self_.get().lock().name.replace(name);
            drop(before);
        }
        let source = match (native, future) {
            (Some(_), Some(_)) => {
                return Err(PyTypeError::new_err("give a native handle or a future, not both"));
            }
            (Some(native), None) => native.as_any(),
            (None, Some(future)) => {
                static FUTURE: Lazy<Py<PyType>> = Lazy::new();
                if !future.is_instance(FUTURE.import(py, "concurrent.futures", "Future")?)? {
                    return Err(PyTypeError::new_err(format!(
                        "future must be a concurrent.futures.Future, not {}",
                        future.get_type().qualname()?
                    )));
                }
                future
            }
            (None, None) => {
                Self::settle(self_.as_unbound(), Outcome::Value(py.None()), py);
                return Ok(());
            }
        };
        let cancel = source.getattr("cancel")?.unbind();
        self_.get().become_(Content::Foreign { cancel });
        let adopt = py.import("dftracer.utils.from_native.adoption")?.getattr("settle_with")?;
        adopt.call1((self_, source)).map(drop)
    }

    /// End a handle that was made around a task of somebody else.
    fn _adopt(self_: &Bound<'_, Self>, state: &str, value: Option<Py<PyAny>>) -> PyResult<()> {
        let py = self_.py();
        let value = value.unwrap_or_else(|| py.None());
        let outcome = match state {
            "done" => Outcome::Value(value),
            "failed" => Outcome::Error(PyErr::from_value(value.into_bound(py))),
            _ => Outcome::Cancelled,
        };
        self_.get().check_foreign()?;
        Self::settle(self_.as_unbound(), outcome, py);
        Ok(())
    }

    /// Wait for the end of the task and return its result.
    ///
    /// Parameters
    /// ----------
    /// timeout:
    ///     Seconds to wait; ``None`` waits for ever.
    ///
    /// Raises
    /// ------
    /// TimeoutError
    ///     If the task has not ended in time. It goes on.
    /// concurrent.futures.CancelledError
    ///     If the task was cancelled.
    /// BaseException
    ///     Whatever the body raised, with its traceback, each time anew.
    /// WaitRefusedError
    ///     If waiting here could block for ever: the task waits for the one that calls this, or too
    ///     many tasks of the runtime wait already (:class:`~dftracer.utils.TooManyBlockedError`).
    /// ForkedRuntimeError
    ///     If the runtime was made before a ``fork()``.
    #[pyo3(signature = (timeout=None))]
    pub(crate) fn get(self_: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        // Of a task that has ended, too, so that the answer does not depend on how fast it was.
        seconds(timeout, "timeout")?;
        if let Some(value) = self_.get().value_if_done(self_.py()) {
            return Ok(value);
        }
        Self::wait_for_end(self_, timeout)?;
        self_.get().outcome(self_.py())
    }

    /// Wait for the end of the task, and raise its error, as :meth:`get` does.
    ///
    /// To wait without that, use :meth:`Runtime.wait_all` or :func:`as_completed`.
    ///
    /// Parameters
    /// ----------
    /// timeout:
    ///     Seconds to wait; ``None`` waits for ever.
    ///
    /// Raises
    /// ------
    /// TimeoutError
    ///     If the task has not ended in time. It goes on.
    /// concurrent.futures.CancelledError
    ///     If the task was cancelled.
    /// BaseException
    ///     Whatever the body raised, with its traceback, each time anew.
    /// WaitRefusedError
    ///     If waiting here could block for ever, as for :meth:`get`.
    /// ForkedRuntimeError
    ///     If the runtime was made before a ``fork()``.
    #[pyo3(signature = (timeout=None))]
    fn wait(self_: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        Self::wait_for_end(self_, timeout)?;
        // Without a look at the value: that of a native task is made when somebody asks for it.
        match self_.get().state() {
            state::DONE => Ok(()),
            _ => self_.get().outcome(self_.py()).map(drop),
        }
    }

    /// Return whether the task has ended: done, failed or cancelled.
    fn done(&self) -> bool {
        self.is_settled()
    }

    /// The name given at submission, or that of the callable.
    ///
    /// The latter is ``Class.method``, ``function`` or ``<lambda>``, with its module before it
    /// unless that is ``__main__``.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        self.name_now(py)
    }

    /// The exception of a failed task; ``None`` before its end and if it did not fail.
    #[getter]
    fn exception(&self, py: Python<'_>) -> Option<Py<PyBaseException>> {
        if !self.is_settled() {
            return None;
        }
        self.decode(py);
        match &self.lock().content {
            Content::Error { exception, .. } => Some(exception.clone_ref(py)),
            _ => None,
        }
    }

    /// How far the task is; the last three do not change any more.
    #[getter(state)]
    fn py_state(&self) -> &'static str {
        self.state_name()
    }

    /// Whether somebody, or a deadline, wants the task to stop.
    #[getter]
    fn cancel_requested(&self) -> bool {
        self.is_cancel_requested()
    }

    /// Return how a task has ended, and its value or exception.
    fn _report(&self, py: Python<'_>) -> (&'static str, Option<Py<PyAny>>) {
        let (state, value) = self.report(py);
        (state::name(state), value)
    }

    /// Call ``callback(handle)`` once, when the task has ended, or at once if it has.
    ///
    /// It is called on the thread that ends the task; for programs and file work, and at
    /// deadlines, on a thread for callbacks. It may wait, fork and shut down. What it raises is
    /// logged; but where it is called within this method, or within :meth:`cancel`, what is no
    /// ``Exception`` is raised there, Ctrl-C above all.
    fn add_done_callback(self_: &Bound<'_, Self>, callback: Py<PyAny>) -> PyResult<()> {
        if !callback.bind(self_.py()).is_callable() {
            return Err(PyTypeError::new_err("add_done_callback() takes a callable"));
        }
        Self::call_at_end(self_, callback)
    }

    /// Post the end of the task to ``mailbox`` under ``token``.
    fn _deliver_to(
        self_: &Bound<'_, Self>,
        mailbox: &crate::task::mailbox::Mailbox,
        token: Py<PyAny>,
    ) {
        Self::deliver_to(self_, &mailbox.core, token);
    }

    /// Do not post ``token`` when the task ends; false if that was not to be, or has been.
    fn _withdraw(&self, token: Py<PyAny>) -> bool {
        self.withdraw(&token)
    }

    fn __await__<'py>(self_: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static WAIT: Lazy<Py<PyAny>> = Lazy::new();
        WAIT.import(self_.py(), "dftracer.utils.from_native.awaiting", "iterate")?.call1((self_,))
    }

    /// Stop the task if that can be done, and return what was done.
    ///
    /// A task that has not begun never will: ``DEQUEUED``. One that runs is asked to stop:
    /// ``REQUESTED``. A coroutine gets :class:`asyncio.CancelledError` where it waits; a child
    /// process is killed with its process group. The task of a plain body ends at once, and the
    /// body goes on: it gets the same error in the waits of this package, and can check
    /// :attr:`cancel_requested`. A file that is being staged does not appear any more, and its
    /// task ends at once, as one that hashes does. A task that has ended: ``TOO_LATE``.
    fn cancel(self_: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        static CLASS: Lazy<Py<PyType>> = Lazy::new();
        let py = self_.py();
        let class = CLASS.import(py, "dftracer.utils.handle", "Cancellation")?;
        let code = Self::cancel_or_stop(self_)?;
        class.call1((code,)).map(Bound::unbind)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if self.shared.as_ref().is_some_and(|shared| shared.process.is_copy()) {
            return Ok(()); // its lock may be held for ever by a thread that was not copied
        }
        visit.call(&self.origin)?;
        // Waited for, not tried: what is shown once must be shown twice, see `cell`.
        let cell = self.lock();
        match &cell.content {
            Content::Value(value) => visit.call(value)?,
            Content::Error { exception, traceback } => {
                visit.call(exception)?;
                visit.call(traceback)?;
            }
            Content::Foreign { cancel } => visit.call(cancel)?,
            // What a task needs in order to run is let go when it ends, cycle or not.
            _ => {}
        }
        // Our own tasks end, and let go of who waits for them; those of others may never. Only
        // attached threads end these.
        match (&self.shared, &cell.extras) {
            (None, Some(extras)) => extras.waiters.traverse(&visit),
            _ => Ok(()),
        }
    }

    fn __clear__(&self) {
        if self.shared.as_ref().is_some_and(|shared| shared.process.is_copy()) {
            return;
        }
        let mut cell = self.lock();
        let content = match &cell.content {
            Content::Value(_) | Content::Error { .. } | Content::Foreign { .. } => {
                std::mem::replace(&mut cell.content, Content::Cancelled)
            }
            _ => Content::Cancelled,
        };
        let extras = if self.shared.is_none() { cell.extras.take() } else { None };
        drop(cell);
        drop((content, extras));
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<TaskHandle {} '{}' {}>", self.task_id, self.name_now(py), self.state_name())
    }
}

/// How a running task can be told to stop.
pub(crate) enum Stopper {
    /// An asyncio task, on the loop that owns it.
    Suspended {
        task: Py<PyAny>,
        event_loop: Py<PyAny>,
    },
    /// A function that says whether it could.
    Foreign(Py<PyAny>),
    Native(NativeJob),
    /// A plain body, see `stopping.rs`.
    Body,
    /// Nothing but `cancel_requested`, which is looked at when the coroutine suspends.
    Coroutine,
}

impl TaskHandle {
    /// Refuses a runtime's own task, where only the end of another's can be reported.
    fn check_foreign(&self) -> PyResult<()> {
        match self.shared() {
            Some(_) => Err(PyTypeError::new_err("a runtime's own task ends by itself")),
            None => Ok(()),
        }
    }

    /// Waits for the end of the task, whatever that is; an error if it does not come in time.
    fn wait_for_end(self_: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<()> {
        if Self::wait_settled(self_, seconds(timeout, "timeout")?)? {
            return Ok(());
        }
        let this = self_.get();
        Err(PyTimeoutError::new_err(format!(
            "task {} '{}' is still {} after {} s",
            this.task_id,
            this.name_now(self_.py()),
            this.state_name(),
            timeout.unwrap_or_default(),
        )))
    }

    /// Cancels a task that has not begun, and asks one that runs to stop.
    pub(crate) fn cancel_or_stop(self_: &Bound<'_, Self>) -> PyResult<u8> {
        let this = self_.get();
        if this.claim() {
            // Its place in the queue is skipped later.
            this.request_cancel();
            this.times.started.store(nanos_now(), Ordering::Relaxed);
            Self::settle_for_caller(self_, EndedBy::Itself, || ())?;
            return Ok(DEQUEUED);
        }
        if this.is_settled() {
            return Ok(TOO_LATE);
        }
        let py = self_.py();
        let stopper = this.stopper(py);
        // The task ends for everybody, whatever a plain body does, or a file that does not answer.
        let ends_now = match stopper {
            Stopper::Body => !this.may_interrupt(),
            Stopper::Native(ref job) => job.is_left_behind(),
            _ => false,
        };
        let mut told = Ok(false);
        let stop = || told = this.stop(py, stopper);
        if ends_now {
            Self::settle_for_caller(self_, EndedBy::Other, stop)?;
        } else {
            this.request_cancel();
            stop();
        }
        Ok(if told? { REQUESTED } else { TOO_LATE })
    }

    pub(crate) fn request_cancel(&self) {
        self.state.request_stop();
    }

    /// How the running task can be stopped, as it is now: to be asked before the task is settled.
    pub(crate) fn stopper(&self, py: Python<'_>) -> Stopper {
        match &self.lock().content {
            Content::Suspended { task, event_loop } => Stopper::Suspended {
                task: task.clone_ref(py),
                event_loop: event_loop.clone_ref(py),
            },
            Content::Foreign { cancel } => Stopper::Foreign(cancel.clone_ref(py)),
            Content::Native(job) => Stopper::Native(job.clone()),
            Content::Coroutine { .. } => Stopper::Coroutine,
            _ if self.lane == Some(LaneKind::Coroutine) => Stopper::Coroutine,
            _ => Stopper::Body,
        }
    }

    /// Tells the task to stop; false if it cannot be told.
    pub(crate) fn stop(&self, py: Python<'_>, stopper: Stopper) -> PyResult<bool> {
        match stopper {
            Stopper::Suspended { task, event_loop } => {
                let cancel = task.getattr(py, intern!(py, "cancel"))?;
                let call_soon = intern!(py, "call_soon_threadsafe");
                event_loop.call_method1(py, call_soon, (cancel,))?;
                Ok(true)
            }
            Stopper::Foreign(cancel) => cancel.call0(py)?.is_truthy(py),
            Stopper::Native(job) => {
                job.stop();
                Ok(true)
            }
            Stopper::Body => {
                // In any case the body can look at `cancel_requested`.
                stop_body(self, py);
                Ok(true)
            }
            Stopper::Coroutine => Ok(true),
        }
    }
}
