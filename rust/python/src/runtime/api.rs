//! `Runtime`: what a caller submits to.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dftracer_core::io::process::{Sink, Source};
use dftracer_core::sizes::Sizes;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyContext, PyDict, PyFunction, PyString, PyTuple};

use super::arguments::Arguments;
use super::{closing, expiry, progress};
use crate::batch::Batch;
use crate::interp::call::Call;
use crate::interp::once::intern;
use crate::interp::origin::Origin;
use crate::interp::slot::LaneKind;
use crate::native::files;
use crate::native::process::{self, Request};
use crate::owner::{Loops, Shared};
use crate::task::mailbox::Mailbox;
use crate::task::wait::all::wait_idle;
use crate::task::{Birth, Content, Limit, Outcome, TaskHandle, failed, queue};
use crate::trace::{self, Note, Trace};
use crate::worker;

/// The native part of :class:`dftracer.utils.Runtime`, where it is documented.
#[pyclass(frozen, subclass, weakref, module = "dftracer.utils._native")]
pub(crate) struct Runtime {
    /// Set by `__init__`, so that a subclass may have one with other parameters; by the first use
    /// if that has never called it.
    shared: OnceLock<Arc<Shared>>,
}

/// What the threads of a runtime do.
const LOOPS: Loops =
    Loops { plain: worker::serve, coroutine: worker::coroutine::serve, expire: expiry::expire };

/// More threads than any system grants to one process for each of its pools.
const MAX_SIZE: usize = 32_767;

fn size(value: isize, name: &str) -> PyResult<usize> {
    usize::try_from(value).ok().filter(|size| *size <= MAX_SIZE).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{name} must be 0 (as many as this process may use) or up to {MAX_SIZE}, not {value}"
        ))
    })
}

/// What `submit_to` has read of a submission.
struct Parsed<'py> {
    /// The submission itself.
    token: Py<PyAny>,
    call: Call,
    name: Bound<'py, PyString>,
    interrupt: bool,
    /// What the trace is to say of it, if there is one.
    note: Option<Note>,
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
    fn shared(&self) -> &Arc<Shared> {
        self.shared.get_or_init(|| Shared::new(Sizes::resolve(0, 0, 0), false, LOOPS))
    }

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
        let origin = self.shared().origins.of(callable);
        let is_coroutine = origin.as_ref().is_some_and(|origin| origin.get().is_coroutine);
        Ok((if is_coroutine { LaneKind::Coroutine } else { lane }, origin))
    }

    /// Reads the attributes of submissions that are to be delivered to a mailbox. `None` if not all
    /// are functions, or, where they must be `plain`, one has options.
    fn parse<'py>(
        &self,
        submissions: &Bound<'py, PyAny>,
        plain: bool,
    ) -> PyResult<Option<Vec<Parsed<'py>>>> {
        let py = submissions.py();
        let is_traced = self.shared().tracing().is_some();
        let mut parsed = Vec::new();
        let mut last: Option<(Bound<'py, PyAny>, LaneKind, Option<Py<Origin>>)> = None;
        for item in submissions.try_iter()? {
            let item = item?;
            let callable = item.getattr(intern!(py, "function"))?;
            if callable.is_none() || (plain && item.getattr(intern!(py, "options"))?.is_truthy()?) {
                return Ok(None);
            }
            let args = item.getattr(intern!(py, "args"))?.cast_into::<PyTuple>()?;
            let kwargs: Option<Bound<'py, PyDict>> =
                item.getattr(intern!(py, "kwargs"))?.extract()?;
            let name = item.getattr(intern!(py, "name"))?.cast_into::<PyString>()?;
            let context: Option<Bound<'py, PyContext>> =
                item.getattr(intern!(py, "context"))?.extract()?;
            let interrupt = item.getattr(intern!(py, "interrupt"))?.is_truthy()?;
            let note = match is_traced {
                true => item.getattr(intern!(py, "trace_note"))?.extract()?,
                false => None,
            };
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
            let token = item.unbind();
            parsed.push(Parsed { token, call, name, interrupt, note, lane, origin });
        }
        Ok(Some(parsed))
    }

    /// Makes a task of a call, accepted but not queued, and says for which lane.
    fn accept<'py>(
        &self,
        py: Python<'py>,
        submission: Submission<'py>,
    ) -> PyResult<(LaneKind, Bound<'py, TaskHandle>)> {
        let Submission { call, name, lane } = submission;
        let (lane, origin) = self.look_at(call.callable().bind(py), lane)?;
        self.shared().task_begins()?;
        let task = TaskHandle::new(
            py,
            self.shared().clone(),
            name.map(Bound::unbind),
            Content::Call(call),
            Some(lane),
            origin,
            true,
        );
        let handle = Bound::new(py, task).inspect_err(|_| self.shared().task_refused())?;
        TaskHandle::untrack(&handle);
        TaskHandle::enter_ledger(self.shared(), std::slice::from_ref(&handle));
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
            let batch = Batch::submit(function, self.shared(), origin, items)?;
            return Ok(Submitted::Together(batch));
        }
        let calls = Call::each(function, spread, items)?;
        self.shared().tasks_begin(count)?;
        let birth = Birth::now(py, self.shared(), count);
        let mut handles: Vec<Bound<'py, TaskHandle>> = Vec::with_capacity(count);
        for (number, call) in calls.into_iter().enumerate() {
            let task = TaskHandle::of_birth(
                py,
                &birth,
                number,
                self.shared().clone(),
                None,
                Content::Call(call),
                Some(lane),
                origin.as_ref().map(|origin| origin.clone_ref(py)),
                true,
            );
            let handle = Bound::new(py, task).inspect_err(|_| {
                // Those before it are run, although nobody will have their handles.
                queue::push_each(self.shared(), lane, &handles);
                self.shared().tasks_refused(count - number);
            })?;
            TaskHandle::untrack(&handle);
            handles.push(handle);
        }
        TaskHandle::enter_ledger(self.shared(), &handles);
        queue::push_each(self.shared(), lane, &handles);
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
        if !task_or_fn.is_exact_instance_of::<PyFunction>()
            && let Ok(handle) = task_or_fn.cast::<TaskHandle>()
        {
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
        queue::push(self.shared(), lane, &handle);
        Ok(handle)
    }
}

#[pymethods]
impl Runtime {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self { shared: OnceLock::new() }
    }

    #[pyo3(signature = (threads=0, io_threads=0, python_threads=0, trace=None, keep_frames=false, interrupt=false))]
    fn __init__(
        &self,
        threads: isize,
        io_threads: isize,
        python_threads: isize,
        trace: Option<Bound<'_, PyAny>>,
        keep_frames: bool,
        interrupt: bool,
    ) -> PyResult<()> {
        let sizes = Sizes::resolve(
            size(threads, "threads")?,
            size(io_threads, "io_threads")?,
            size(python_threads, "python_threads")?,
        );
        let is_new = || match self.shared.get() {
            None => Ok(()),
            Some(_) => Err(PyRuntimeError::new_err(
                "this Runtime was set up before: call Runtime.__init__() once, and first",
            )),
        };
        is_new()?; // before a file is made
        let trace = trace.map(|path| trace::open(&path)).transpose()?;
        let shared = Shared::new(sizes, keep_frames, LOOPS);
        if interrupt {
            shared.stopping.interrupt_bodies();
        }
        if let Some(trace) = trace {
            shared.start_trace(trace);
        }
        if let Err(unneeded) = self.shared.set(shared) {
            unneeded.close();
            return is_new();
        }
        log::debug!(
            target: "dftracer.utils",
            "A runtime has started, with {} compute threads, {} I/O threads and up to {} Python \
             workers.",
            sizes.threads,
            sizes.io_threads,
            sizes.python_threads,
        );
        Ok(())
    }

    /// Run a call that blocks, such as one that reads files, on a thread of the I/O lane.
    ///
    /// There it takes no thread of a body that computes. A coroutine function runs on an event
    /// loop of the coroutine lane.
    ///
    /// Parameters
    /// ----------
    /// name:
    ///     The task's name, instead of that of the callable.
    /// interrupt:
    ///     Whether a plain body that is cancelled or runs out of time gets
    ///     :class:`asyncio.CancelledError`, thrown into its thread. That can break locks for the
    ///     whole process; see "Cancellation" in ``docs/lifecycle.md``.
    ///
    /// Raises
    /// ------
    /// TypeError
    ///     If ``function`` is not callable.
    /// RuntimeShutdownError
    ///     If the runtime is shut down.
    /// ForkedRuntimeError
    ///     If it was made before a ``fork()``.
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
        queue::push(self.shared(), lane, &handle);
        Ok(handle)
    }

    /// Write the tasks that are submitted from now on to ``trace``.
    ///
    /// A runtime writes to one trace in its life: if it does already, nothing changes.
    ///
    /// Raises
    /// ------
    /// ForkedRuntimeError
    ///     If the runtime was made before a ``fork()``.
    fn start_trace(&self, trace: Py<Trace>) -> PyResult<()> {
        self.shared().process.check()?;
        self.shared().start_trace(trace);
        Ok(())
    }

    /// Whether tasks are written to ``trace``.
    fn traces_to(&self, trace: &Trace) -> bool {
        self.shared().tracing().is_some_and(|tracing| tracing.is_to(trace))
    }

    /// Run many calls for one reader.
    ///
    /// Of each submission its attributes are read: ``function``, ``args``, ``kwargs`` (or
    /// ``None``), ``name``, ``interrupt`` as for :meth:`submit`, and ``context``. The body runs in
    /// that, which nothing else may run in, or in a new one if that is empty; ``None`` is a copy of
    /// this one. If the runtime has a trace, also ``trace_note``: when the call was created
    /// (:meth:`Trace.clock`), and members of a JSON object, without braces; or ``None``. Without
    /// ``timeouts``, also whether it has ``options``.
    ///
    /// Each outcome is posted to ``mailbox`` under the submission. A failure is the business of the
    /// mailbox's reader: :meth:`wait_all` and :meth:`get_failed` do not speak of it. To
    /// ``report_running`` is to post that each body begins, too. ``timeouts`` say of each for how
    /// many seconds it may run from then on, and with what text it fails
    /// (:class:`~dftracer.utils.TaskTimeoutError`) when they are over; it is asked to stop then.
    ///
    /// Bodies begin in the order of their submission. With a number other than 0, ``ahead``, these
    /// go ahead of all that waits in their lane, except for what was submitted last with the same
    /// number: that they follow. What goes ahead without a pause lets the others wait as long.
    ///
    /// Returns
    /// -------
    /// list[TaskHandle[Any]] | None
    ///     ``None``, and none of them is run, if a ``function`` is ``None``, or there are options
    ///     and no ``timeouts``, which only who understands options can give.
    ///
    /// Raises
    /// ------
    /// TypeError
    ///     If one of them cannot be called; then none of them is.
    /// RuntimeShutdownError
    ///     If the runtime takes no more tasks; then none of the calls is run.
    /// SystemLimitError
    ///     If the system refuses the thread that keeps timeouts; nor then.
    #[pyo3(signature = (mailbox, submissions, report_running=false, timeouts=None, ahead=0))]
    fn submit_to<'py>(
        &self,
        py: Python<'py>,
        mailbox: &Mailbox,
        submissions: &Bound<'py, PyAny>,
        report_running: bool,
        timeouts: Option<Vec<Option<(f64, String)>>>,
        ahead: u64,
    ) -> PyResult<Option<Vec<Bound<'py, TaskHandle>>>> {
        let Some(calls) = self.parse(submissions, timeouts.is_none())? else { return Ok(None) };
        let count = calls.len();
        if timeouts.iter().flatten().any(Option::is_some) {
            self.shared().process.check()?;
            self.shared().deadlines.start()?;
        }
        self.shared().tasks_begin(count)?;
        let birth = Birth::now(py, self.shared(), count);
        let mut timeouts = timeouts.into_iter().flatten();
        let mut handles: Vec<Bound<'py, TaskHandle>> = Vec::with_capacity(count);
        let (mut plain, mut coroutines) = (Vec::new(), Vec::new());
        for Parsed { token, call, name, interrupt, note, lane, origin } in calls {
            let number = handles.len();
            let shared = self.shared().clone();
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
                self.shared().tasks_refused(count - handles.len());
            })?;
            TaskHandle::untrack(&handle);
            if let (Some(note), Some(tracing)) = (note, self.shared().tracing()) {
                tracing.note(handle.get().task_id, &note);
            }
            if interrupt {
                handle.get().allow_interrupt();
            }
            if report_running {
                handle.get().report_begin();
            }
            if let Some(Some((timeout, text))) = timeouts.next()
                && let Ok(timeout) = Duration::try_from_secs_f64(timeout)
            {
                handle.get().set_limit(Limit { timeout, text });
            }
            TaskHandle::deliver_to(&handle, &mailbox.core, token);
            match lane {
                LaneKind::Coroutine => coroutines.push(handle.clone()),
                _ => plain.push(handle.clone()),
            }
            handles.push(handle);
        }
        TaskHandle::enter_ledger(self.shared(), &handles);
        for (lane, batch) in [(LaneKind::Python, plain), (LaneKind::Coroutine, coroutines)] {
            if !batch.is_empty() {
                queue::push_all(self.shared(), py, lane, NonZeroU64::new(ahead), &batch);
            }
        }
        Ok(Some(handles))
    }

    /// Run a program; :meth:`dftracer.utils.Runtime.run_process` says with what.
    ///
    /// With a ``mailbox``, the outcome is posted there under ``token``, and a failure is the
    /// business of its reader. With ``tell_begin`` that it begins is posted too, as by
    /// :meth:`Mailbox.post`. ``note`` is what ``trace_note`` is for :meth:`submit_to`.
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
        process::submit(py, self.shared(), request, |handle| {
            if let (Some(tracing), Some(note)) = (self.shared().tracing(), note) {
                tracing.note(handle.get().task_id, &note);
            }
            if let Some(mailbox) = mailbox {
                TaskHandle::deliver_to(handle, &mailbox.core, token);
            }
        })
    }

    /// Hash the content of files, in parallel on the compute threads.
    ///
    /// Returns
    /// -------
    /// TaskHandle[list[str]]
    ///     The SHA-256 of each file in hexadecimal, in the order of ``paths``. Fails with the
    ///     :class:`OSError` of a file that cannot be read.
    #[pyo3(signature = (paths, *, name=None))]
    fn hash_files<'py>(
        &self,
        py: Python<'py>,
        paths: Vec<PathBuf>,
        name: Option<Bound<'py, PyString>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        files::hash(py, self.shared(), paths, name)
    }

    /// Put a file at ``target``: a copy, a hard link, or a symbolic link.
    ///
    /// It appears there complete or not at all, and never replaces what is there
    /// (:class:`FileExistsError`). Directories on the way are made.
    ///
    /// Returns
    /// -------
    /// TaskHandle[Path]
    ///     The target. Fails with the :class:`OSError` of the file that is the trouble.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If ``how`` is none of the three.
    #[pyo3(signature = (source, target, *, how="copy", name=None))]
    fn stage_file<'py>(
        &self,
        py: Python<'py>,
        source: PathBuf,
        target: PathBuf,
        how: &str,
        name: Option<Bound<'py, PyString>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        files::stage(py, self.shared(), source, target, how, name)
    }

    /// Wait until every task has ended.
    ///
    /// Called inside a task it waits for all tasks but those that are inside ``wait_all``
    /// themselves: for these it would wait for ever.
    ///
    /// Raises
    /// ------
    /// RuntimeError
    ///     With ``raise_on_error``, if tasks have failed since the last call; it names them.
    #[pyo3(signature = (raise_on_error=false))]
    fn wait_all(&self, py: Python<'_>, raise_on_error: bool) -> PyResult<()> {
        wait_idle(self.shared(), py, None)?;
        let (failed, more) = self.shared().take_unreported();
        let count = failed.len() as u64 + more;
        if !raise_on_error || count == 0 {
            return Ok(());
        }
        let mut message = format!("{count} task(s) failed:");
        for failure in failed {
            let text = failed::text_of(py, self.shared(), &failure)?;
            message.push_str(&format!("\n{}: {text}", failure.name.bind(py)));
        }
        if more > 0 {
            message.push_str(&format!("\n... and {more} more"));
        }
        Err(PyRuntimeError::new_err(message))
    }

    /// Return what the runtime is doing, as of now.
    ///
    /// ``total`` is the sum of ``completed``, ``failed``, ``cancelled``, ``running`` and
    /// ``queued``. ``tasks`` holds every task that is unfinished or whose handle is still held,
    /// with its times in milliseconds; a task that was submitted inside another is among its
    /// ``children``. ``workers`` holds the compute workers and those workers of the other lanes
    /// that have started; ``queue_depth`` is the number of tasks that wait in the worker's lane.
    /// ``errors`` holds the failures since :meth:`clear_failed`.
    ///
    /// All numbers are of one moment. What is made of them takes microseconds for each task, and
    /// lets other threads run meanwhile.
    fn get_progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.shared().process.check()?;
        progress::report(py, self.shared())
    }

    /// Return whether tasks that wait will begin before long.
    ///
    /// False if in some lane tasks wait while all of its workers have been busy with the same
    /// tasks for more than 5 seconds; of a runtime that is shut down; and in a copy that a
    /// ``fork()`` has left without threads.
    fn is_responsive(&self) -> bool {
        let shared = self.shared();
        !shared.process.is_copy() && shared.open_for_tasks() && progress::is_responsive(shared)
    }

    /// Call ``callback(handle, exception)`` for each task that fails; ``None`` ends that.
    ///
    /// It is called on the thread that ends the task, or as a done callback on one for callbacks,
    /// before anybody who waits for it wakes. What it raises is logged.
    fn set_error_callback(&self, callback: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        if callback.as_ref().is_some_and(|callback| !callback.is_callable()) {
            return Err(PyTypeError::new_err("set_error_callback() takes a callable or None"));
        }
        self.shared().set_error_callback(callback.map(Bound::unbind));
        Ok(())
    }

    /// Let every task that has not ended in ``millis`` milliseconds run out of time; 0: none.
    fn set_timeout_ms(&self, millis: u64) -> PyResult<()> {
        self.shared().process.check()?;
        self.shared().deadlines.set_timeout_for_all(millis)
    }

    /// Limit how many milliseconds each task may run from now on; 0 takes the limit away.
    fn set_default_task_timeout_ms(&self, millis: u64) -> PyResult<()> {
        self.shared().process.check()?;
        self.shared().deadlines.set_task_timeout(millis, self.shared().open_for_tasks())
    }

    /// Return handles of the tasks that have failed since the last :meth:`clear_failed`.
    ///
    /// The first 10,000 are kept; :attr:`failed_not_kept` counts the others. If the
    /// handle of a task was dropped, a new one is made: its exception is a copy whose traceback
    /// has no variables, unless the runtime was made with ``keep_frames``.
    fn get_failed<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, TaskHandle>>> {
        let (failed, _) = self.shared().failed(py);
        failed.into_iter().map(|failure| failed::handle_of(py, self.shared(), &failure)).collect()
    }

    /// How many have failed since the last :meth:`clear_failed` that are not kept.
    #[getter]
    fn failed_not_kept(&self, py: Python<'_>) -> u64 {
        self.shared().failed(py).1
    }

    /// Forget the failed tasks.
    fn clear_failed(&self) {
        self.shared().clear_failed();
    }

    /// Wait until no body goes on whose task was cancelled or has run out of time, for at most
    /// ``DFTRACER_EXIT_PATIENCE_S`` (3 s); return whether all have returned.
    fn wait_for_bodies(&self, py: Python<'_>) -> bool {
        self.shared().process.is_copy() || self.shared().stopping.wait_for_bodies(py)
    }

    /// Take no more tasks; with ``wait``, return when all have ended and the threads are gone.
    ///
    /// Without it, what was submitted is still run. Inside a task of this runtime it never waits.
    /// Threads whose body goes on though its task was cancelled or has run out of time are left
    /// behind after ``DFTRACER_EXIT_PATIENCE_S`` (3 s), which is logged.
    #[pyo3(signature = (wait=true))]
    fn shutdown(&self, py: Python<'_>, wait: bool) -> PyResult<()> {
        closing::shutdown(self.shared(), py, wait)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.shared.get().map_or(Ok(()), |shared| shared.traverse(&visit))
    }

    /// As the end of a runtime that was dropped: nobody can ask it for anything any more.
    fn __clear__(&self) {
        if let Some(shared) = self.shared.get() {
            shared.forget_failures();
        }
    }

    /// The sizes of the pools, started or not: ``threads``, ``io_threads``,
    /// ``python_threads``.
    #[getter]
    fn sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sizes = PyDict::new(py);
        sizes.set_item("threads", self.shared().sizes.threads)?;
        sizes.set_item("io_threads", self.shared().sizes.io_threads)?;
        sizes.set_item("python_threads", self.shared().sizes.python_threads)?;
        Ok(sizes)
    }

    /// The number of compute threads.
    #[getter]
    fn threads(&self) -> usize {
        self.shared().sizes.threads
    }

    /// The number of I/O threads.
    #[getter]
    fn io_threads(&self) -> usize {
        self.shared().sizes.io_threads
    }

    /// The most Python workers there will be; 0 until the first is started.
    #[getter]
    fn python_threads(&self) -> usize {
        match self.shared().python_workers() {
            0 => 0,
            _ => self.shared().sizes.python_threads,
        }
    }
}

impl Drop for Runtime {
    /// Without `shutdown`: what is queued still runs, then the threads leave.
    fn drop(&mut self) {
        if let Some(shared) = self.shared.get() {
            shared.close();
            shared.forget_failures();
        }
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
