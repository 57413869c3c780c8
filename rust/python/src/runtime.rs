//! `Runtime`: what a caller submits to.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use dftracer_core::process::{Sink, Source};
use dftracer_core::sizes::Sizes;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyContext, PyDict, PyString, PyTuple};

use crate::batch::Batch;
use crate::call::Call;
use crate::files;
use crate::handle::{Birth, Content, Outcome, TaskHandle};
use crate::mailbox::Mailbox;
use crate::origin::Origin;
use crate::process::{self, Request};
use crate::progress;
use crate::shared::{LaneKind, Shared};
use crate::submit::Arguments;
use crate::trace::{self, Note, Trace};

#[pyclass(frozen, subclass, weakref, module = "dftracer.utils._native")]
pub(crate) struct Runtime {
    shared: Arc<Shared>,
}

/// More threads than any system grants to one process for each of its pools.
const MAX_SIZE: usize = 32_767;

fn size(value: isize, name: &str) -> PyResult<usize> {
    usize::try_from(value).ok().filter(|size| *size <= MAX_SIZE).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{name} must be 0 (as many as this process may use) or up to {MAX_SIZE}, not {value}"
        ))
    })
}

/// What `submit_to` takes for each call: token, function, arguments, keywords, name, context.
type MailboxCall<'py> = (
    Py<PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyDict>>,
    Bound<'py, PyString>,
    Option<Bound<'py, PyContext>>,
);

/// The same, looked at.
struct Parsed<'py> {
    token: Py<PyAny>,
    call: Call,
    name: Bound<'py, PyString>,
    lane: LaneKind,
    origin: Option<Py<Origin>>,
}

/// A call that is to become a task.
struct Submission<'py> {
    call: Call,
    name: Option<Bound<'py, PyString>>,
    /// Where it goes if it is no coroutine function.
    lane: LaneKind,
}

/// What became of the calls of one function.
pub(crate) enum Submitted {
    Together(Arc<Batch>),
    OneByOne(Vec<Py<TaskHandle>>),
}

impl Runtime {
    /// What is known of a callable, and where it goes: to the coroutine lane, or to `lane`.
    fn look_at(
        &self,
        callable: &Bound<'_, PyAny>,
        lane: LaneKind,
    ) -> PyResult<(LaneKind, Option<Py<Origin>>)> {
        if !callable.is_callable() {
            let kind = callable.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!(
                "submit() takes a callable, a coroutine function or a TaskHandle, not {kind}: \
                 pass the function itself, without calling it"
            )));
        }
        let origin = self.shared.origins.of(callable);
        let is_coroutine = origin.as_ref().is_some_and(|origin| origin.get().is_coroutine);
        Ok((if is_coroutine { LaneKind::Coroutine } else { lane }, origin))
    }

    /// Reads the calls that are to be delivered to a mailbox.
    fn parse<'py>(&self, calls: &Bound<'py, PyAny>) -> PyResult<Vec<Parsed<'py>>> {
        let mut parsed = Vec::new();
        let mut last: Option<(Bound<'py, PyAny>, LaneKind, Option<Py<Origin>>)> = None;
        for item in calls.try_iter()? {
            let (token, callable, args, kwargs, name, context): MailboxCall<'py> =
                item?.extract()?;
            // Mostly the same function again and again.
            let (lane, origin) = match &last {
                Some((before, lane, origin)) if before.is(&callable) => {
                    (*lane, origin.as_ref().map(|origin| origin.clone_ref(callable.py())))
                }
                _ => {
                    let (lane, origin) = self.look_at(&callable, LaneKind::Python)?;
                    let kept = origin.as_ref().map(|origin| origin.clone_ref(callable.py()));
                    last = Some((callable.clone(), lane, kept));
                    (lane, origin)
                }
            };
            let call = Call::new(callable, args, kwargs, context.map(Bound::into_any))?;
            parsed.push(Parsed { token, call, name, lane, origin });
        }
        Ok(parsed)
    }

    /// Makes a task of a call, accepted but not queued, and says for which lane.
    fn accept<'py>(
        &self,
        py: Python<'py>,
        submission: Submission<'py>,
    ) -> PyResult<(LaneKind, Bound<'py, TaskHandle>)> {
        let Submission { call, name, lane } = submission;
        let (lane, origin) = self.look_at(call.callable().bind(py), lane)?;
        self.shared.task_begins()?;
        let task = TaskHandle::new(
            py,
            self.shared.clone(),
            name.map(Bound::unbind),
            Content::Call(call),
            Some(lane),
            origin,
            true,
        );
        let handle = Bound::new(py, task).inspect_err(|_| self.shared.task_refused())?;
        TaskHandle::untrack(&handle);
        TaskHandle::enter_ledger(&self.shared, std::slice::from_ref(&handle));
        Ok((lane, handle))
    }

    /// Queues `function(item)`, or `function(*item)` to `spread`, for each of the items.
    pub(crate) fn submit_each<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        spread: bool,
        items: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Submitted> {
        let py = function.py();
        let count = items.len();
        let (lane, origin) = self.look_at(function, LaneKind::Python)?;
        if lane == LaneKind::Python && count > 1 && !spread {
            let batch = Batch::submit(function, &self.shared, origin, items)?;
            return Ok(Submitted::Together(batch));
        }
        let calls = Call::each(function, spread, items)?;
        self.shared.tasks_begin(count)?;
        let birth = Birth::now(py, &self.shared, count);
        let mut handles: Vec<Bound<'py, TaskHandle>> = Vec::with_capacity(count);
        for (number, call) in calls.into_iter().enumerate() {
            let task = TaskHandle::of_birth(
                py,
                &birth,
                number,
                self.shared.clone(),
                None,
                Content::Call(call),
                Some(lane),
                origin.as_ref().map(|origin| origin.clone_ref(py)),
                true,
            );
            let handle = Bound::new(py, task).inspect_err(|_| {
                // Those before it are run, although nobody will have their handles.
                self.shared.push_each(lane, &handles);
                self.shared.tasks_refused(count - number);
            })?;
            TaskHandle::untrack(&handle);
            handles.push(handle);
        }
        TaskHandle::enter_ledger(&self.shared, &handles);
        self.shared.push_each(lane, &handles);
        Ok(Submitted::OneByOne(handles.into_iter().map(Bound::unbind).collect()))
    }

    /// Queues a call, or gives back a handle that is submitted again.
    pub(crate) fn submit<'py>(
        &self,
        py: Python<'py>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let Some(task_or_fn) = arguments.first() else {
            return Err(PyTypeError::new_err("submit() takes a callable or a TaskHandle to run"));
        };
        if let Ok(handle) = task_or_fn.cast_exact::<TaskHandle>() {
            return Ok(handle.to_owned());
        }
        let callable = task_or_fn.to_owned();
        let call = match (arguments.only_other(), arguments.kwargs.as_ref()) {
            (Some(argument), None) => Call::with_one(callable, argument),
            (_, kwargs) => Call::new(callable, arguments.others()?, kwargs.cloned(), None),
        };
        let (lane, handle) = self
            .accept(py, Submission { call: call?, name: arguments.name, lane: LaneKind::Python })?;
        if arguments.interrupt {
            handle.get().allow_interrupt();
        }
        self.shared.push(lane, &handle);
        Ok(handle)
    }
}

#[pymethods]
impl Runtime {
    #[new]
    #[pyo3(signature = (threads=0, io_threads=0, python_threads=0, trace=None, keep_frames=false, interrupt=false))]
    fn new(
        threads: isize,
        io_threads: isize,
        python_threads: isize,
        trace: Option<Bound<'_, PyAny>>,
        keep_frames: bool,
        interrupt: bool,
    ) -> PyResult<Self> {
        let sizes = Sizes::resolve(
            size(threads, "threads")?,
            size(io_threads, "io_threads")?,
            size(python_threads, "python_threads")?,
        );
        let trace = trace.map(|path| trace::open(&path)).transpose()?;
        let shared = Shared::new(sizes, keep_frames);
        if interrupt {
            shared.interrupt_bodies();
        }
        if let Some(trace) = trace {
            shared.start_trace(trace);
        }
        log::debug!("runtime started: {sizes:?}");
        Ok(Self { shared })
    }

    #[pyo3(signature = (function, /, *args, name=None, interrupt=false, **kwargs))]
    fn submit_io<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        name: Option<Bound<'py, PyString>>,
        interrupt: bool,
        kwargs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let call = Call::new(function.clone(), args, kwargs, None)?;
        let (lane, handle) = self.accept(py, Submission { call, name, lane: LaneKind::Io })?;
        if interrupt {
            handle.get().allow_interrupt();
        }
        self.shared.push(lane, &handle);
        Ok(handle)
    }

    /// Writes the tasks that are submitted from now on to a trace, unless they are already.
    fn start_trace(&self, trace: Py<Trace>) -> PyResult<()> {
        self.shared.check_process()?;
        self.shared.start_trace(trace);
        Ok(())
    }

    /// Whether tasks are written to that trace.
    fn traces_to(&self, trace: &Trace) -> bool {
        self.shared.tracing().is_some_and(|tracing| tracing.is_to(trace))
    }

    /// As `submit` for many calls and one reader: each outcome is posted to `mailbox` under the
    /// call's token, and failures are its business, not that of `wait_all`. `notes` tell the trace
    /// of each call when it was created, and more; `interrupts` which of the bodies may be
    /// interrupted.
    #[pyo3(signature = (mailbox, calls, notes=None, interrupts=None))]
    fn submit_to<'py>(
        &self,
        py: Python<'py>,
        mailbox: &Mailbox,
        calls: &Bound<'py, PyAny>,
        notes: Option<Vec<Note>>,
        interrupts: Option<Vec<bool>>,
    ) -> PyResult<Vec<Bound<'py, TaskHandle>>> {
        let calls = self.parse(calls)?;
        let count = calls.len();
        self.shared.tasks_begin(count)?;
        let birth = Birth::now(py, &self.shared, count);
        let mut notes = notes.into_iter().flatten();
        let mut handles: Vec<Bound<'py, TaskHandle>> = Vec::with_capacity(count);
        let (mut plain, mut coroutines) = (Vec::new(), Vec::new());
        for Parsed { token, call, name, lane, origin } in calls {
            let number = handles.len();
            let shared = self.shared.clone();
            let (name, content) = (Some(name.unbind()), Content::Call(call));
            let task = TaskHandle::of_birth(
                py,
                &birth,
                number,
                shared,
                name,
                content,
                Some(lane),
                origin,
                false,
            );
            let handle = Bound::new(py, task).inspect_err(|_| {
                // All or nothing: none of them is queued yet, and nobody else has seen the handles.
                for handle in &handles {
                    handle.get().forget_waiters();
                    TaskHandle::settle(handle.as_unbound(), Outcome::Cancelled, py);
                }
                self.shared.tasks_refused(count - handles.len());
            })?;
            TaskHandle::untrack(&handle);
            if let (Some(tracing), Some(note)) = (self.shared.tracing(), notes.next()) {
                tracing.note(handle.get(), &note);
            }
            if interrupts.as_ref().is_some_and(|each| each.get(number) == Some(&true)) {
                handle.get().allow_interrupt();
            }
            TaskHandle::deliver_to(&handle, &mailbox.core, token);
            match lane {
                LaneKind::Coroutine => coroutines.push(handle.clone()),
                _ => plain.push(handle.clone()),
            }
            handles.push(handle);
        }
        TaskHandle::enter_ledger(&self.shared, &handles);
        for (lane, batch) in [(LaneKind::Python, plain), (LaneKind::Coroutine, coroutines)] {
            if !batch.is_empty() {
                self.shared.push_all(py, lane, &batch);
            }
        }
        Ok(handles)
    }

    /// `stdin` is bytes, the path of a file, or `None`; `stdout` and `stderr` are the path of a
    /// file, `False` to discard, or `None` to capture.
    #[pyo3(signature = (argv, *, cwd=None, env=None, stdin=None, stdout=None, stderr=None, timeout=None, name=None, mailbox=None, token=None, tell_begin=false, note=None, tty=false))]
    #[allow(clippy::too_many_arguments)] // keywords of one Python call
    fn start_process<'py>(
        &self,
        py: Python<'py>,
        argv: Vec<OsString>,
        cwd: Option<PathBuf>,
        env: Option<Vec<(OsString, OsString)>>,
        stdin: Option<Bound<'py, PyAny>>,
        stdout: Option<Bound<'py, PyAny>>,
        stderr: Option<Bound<'py, PyAny>>,
        timeout: Option<f64>,
        name: Option<Bound<'py, PyString>>,
        mailbox: Option<&Mailbox>,
        token: Option<Py<PyAny>>,
        tell_begin: bool,
        note: Option<Note>,
        tty: bool,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let token = token.unwrap_or_else(|| py.None());
        let begun = mailbox.filter(|_| tell_begin);
        let request = Request {
            argv,
            cwd,
            env,
            stdin: source(stdin)?,
            stdout: sink(stdout)?,
            stderr: sink(stderr)?,
            timeout,
            tty,
            name: name.map(Bound::unbind),
            tracked: mailbox.is_none(),
            begun: begun.map(|mailbox| (mailbox.core.clone(), token.clone_ref(py))),
        };
        process::submit(py, &self.shared, request, |handle| {
            if let (Some(tracing), Some(note)) = (self.shared.tracing(), note) {
                tracing.note(handle.get(), &note);
            }
            if let Some(mailbox) = mailbox {
                TaskHandle::deliver_to(handle, &mailbox.core, token);
            }
        })
    }

    #[pyo3(signature = (paths, *, name=None))]
    fn hash_files<'py>(
        &self,
        py: Python<'py>,
        paths: Vec<PathBuf>,
        name: Option<Bound<'py, PyString>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        files::hash(py, &self.shared, paths, name)
    }

    #[pyo3(signature = (source, target, *, how="copy", name=None))]
    fn stage_file<'py>(
        &self,
        py: Python<'py>,
        source: PathBuf,
        target: PathBuf,
        how: &str,
        name: Option<Bound<'py, PyString>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        files::stage(py, &self.shared, source, target, how, name)
    }

    #[pyo3(signature = (raise_on_error=false))]
    fn wait_all(&self, py: Python<'_>, raise_on_error: bool) -> PyResult<()> {
        self.shared.wait_idle(py, None)?;
        let (failed, more) = self.shared.take_unreported();
        let count = failed.len() as u64 + more;
        if !raise_on_error || count == 0 {
            return Ok(());
        }
        let mut message = format!("{count} task(s) failed:");
        for failure in failed {
            let text = failure.text(py, &self.shared)?;
            message.push_str(&format!("\n{}: {text}", failure.name.bind(py)));
        }
        if more > 0 {
            message.push_str(&format!("\n... and {more} more"));
        }
        Err(PyRuntimeError::new_err(message))
    }

    fn get_progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.shared.check_process()?;
        progress::report(py, &self.shared)
    }

    fn is_responsive(&self) -> bool {
        !self.shared.is_copy() && progress::is_responsive(&self.shared)
    }

    fn set_error_callback(&self, callback: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        if callback.as_ref().is_some_and(|callback| !callback.is_callable()) {
            return Err(PyTypeError::new_err("set_error_callback() takes a callable or None"));
        }
        self.shared.set_error_callback(callback.map(Bound::unbind));
        Ok(())
    }

    fn set_timeout_ms(&self, millis: u64) -> PyResult<()> {
        self.shared.check_process()?;
        self.shared.set_timeout_for_all(millis)
    }

    fn set_default_task_timeout_ms(&self, millis: u64) -> PyResult<()> {
        self.shared.check_process()?;
        self.shared.set_task_timeout(millis)
    }

    fn get_failed<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, TaskHandle>>> {
        let (failed, _) = self.shared.failed(py);
        failed.into_iter().map(|failure| failure.handle(py, &self.shared)).collect()
    }

    /// How many have failed since the last `clear_failed` that are not among `get_failed`.
    #[getter]
    fn failed_not_kept(&self, py: Python<'_>) -> u64 {
        self.shared.failed(py).1
    }

    fn clear_failed(&self) {
        self.shared.clear_failed();
    }

    /// Waits, for some time, for bodies whose tasks have ended without them; false if some run on.
    fn wait_for_bodies(&self, py: Python<'_>) -> bool {
        self.shared.is_copy() || self.shared.wait_for_bodies(py)
    }

    #[pyo3(signature = (wait=true))]
    fn shutdown(&self, py: Python<'_>, wait: bool) -> PyResult<()> {
        self.shared.shutdown(py, wait)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.shared.traverse(&visit)
    }

    /// As the end of a runtime that was dropped: nobody can ask it for anything any more.
    fn __clear__(&self) {
        self.shared.forget_failures();
    }

    /// The sizes of the pools, started or not.
    #[getter]
    fn sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sizes = PyDict::new(py);
        sizes.set_item("threads", self.shared.sizes.threads)?;
        sizes.set_item("io_threads", self.shared.sizes.io_threads)?;
        sizes.set_item("python_threads", self.shared.sizes.python_threads)?;
        Ok(sizes)
    }

    #[getter]
    fn threads(&self) -> usize {
        self.shared.sizes.threads
    }

    #[getter]
    fn io_threads(&self) -> usize {
        self.shared.sizes.io_threads
    }

    #[getter]
    fn python_threads(&self) -> usize {
        match self.shared.python_workers() {
            0 => 0,
            _ => self.shared.sizes.python_threads,
        }
    }
}

impl Drop for Runtime {
    /// Without `shutdown`: what is queued still runs, then the threads leave.
    fn drop(&mut self) {
        self.shared.close();
        self.shared.forget_failures();
    }
}

fn source(value: Option<Bound<'_, PyAny>>) -> PyResult<Source> {
    let Some(value) = value else { return Ok(Source::Empty) };
    match value.cast::<PyBytes>() {
        Ok(bytes) => Ok(Source::Bytes(bytes.as_bytes().to_vec())),
        Err(_) => value.extract().map(Source::File),
    }
}

fn sink(value: Option<Bound<'_, PyAny>>) -> PyResult<Sink> {
    match value {
        None => Ok(Sink::Captured),
        Some(value) if value.is(false.into_pyobject(value.py())?) => Ok(Sink::Discarded),
        Some(value) => value.extract().map(Sink::File),
    }
}
