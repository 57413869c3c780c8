//! `Runtime`: what a caller submits to.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use dftracer_core::sizes::{self, Sizes};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use crate::call::copy_context;
use crate::coroutine::is_coroutine_function;
use crate::handle::{Outcome, TaskHandle, Work};
use crate::mailbox::Mailbox;
use crate::process::{self, Request};
use crate::shared::{self, LaneKind, Shared};

#[pyclass(frozen, subclass, weakref, module = "dftracer.utils._native")]
pub(crate) struct Runtime {
    shared: Arc<Shared>,
}

fn size(value: isize, name: &str) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| {
        PyValueError::new_err(format!(
            "{name} must be 0 (as many as this process may use) or more, not {value}"
        ))
    })
}

/// What `submit_to` takes for each call: token, function, arguments, keywords, name.
type MailboxCall<'py> = (
    Py<PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyDict>>,
    Bound<'py, PyString>,
);

/// A call that is to become a task.
struct Call<'py> {
    callable: Bound<'py, PyAny>,
    args: Bound<'py, PyTuple>,
    kwargs: Option<Bound<'py, PyDict>>,
    name: Option<Bound<'py, PyString>>,
    /// Whether `wait_all` and `get_failed` speak of it.
    tracked: bool,
}

impl Runtime {
    /// Makes a task of a call, accepted but not queued, and says for which lane.
    fn accept<'py>(&self, call: Call<'py>) -> PyResult<(LaneKind, Bound<'py, TaskHandle>)> {
        let Call { callable, args, kwargs, name, tracked } = call;
        let py = callable.py();
        if !callable.is_callable() {
            let kind = callable.get_type().qualname()?;
            return Err(PyTypeError::new_err(format!(
                "submit() takes a callable, a coroutine function or a TaskHandle, not {kind}: \
                 pass the function itself, without calling it"
            )));
        }
        let lane =
            if is_coroutine_function(&callable) { LaneKind::Coroutine } else { LaneKind::Python };
        let context = copy_context(py)?;
        let work = Work::Call {
            callable: callable.unbind(),
            args: args.unbind(),
            kwargs: kwargs.map(Bound::unbind),
            context,
        };
        self.shared.task_begins()?;
        let name = name.map(Bound::unbind);
        let task = TaskHandle::new(self.shared.clone(), name, work, Some(lane), tracked);
        let handle = Bound::new(py, task).inspect_err(|_| self.shared.task_refused())?;
        Ok((lane, handle))
    }
}

#[pymethods]
impl Runtime {
    #[new]
    #[pyo3(signature = (threads=0, io_threads=0, python_threads=0))]
    fn new(threads: isize, io_threads: isize, python_threads: isize) -> PyResult<Self> {
        let sizes = Sizes::resolve(
            size(threads, "threads")?,
            size(io_threads, "io_threads")?,
            size(python_threads, "python_threads")?,
        );
        let shared = Shared::new(sizes);
        log::debug!("runtime started: {sizes:?}");
        Ok(Self { shared })
    }

    #[pyo3(signature = (task_or_fn, /, *args, name=None, **kwargs))]
    fn submit<'py>(
        &self,
        task_or_fn: &Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        name: Option<Bound<'py, PyString>>,
        kwargs: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        if let Ok(handle) = task_or_fn.cast::<TaskHandle>() {
            return Ok(handle.clone());
        }
        let callable = task_or_fn.clone();
        let call = Call { callable, args, kwargs, name, tracked: true };
        let (lane, handle) = self.accept(call)?;
        self.shared.push(lane, &handle);
        Ok(handle)
    }

    /// As `submit` for many calls and one reader: each outcome is posted to `mailbox` under the
    /// call's token, and failures are its business, not that of `wait_all`.
    fn submit_to<'py>(
        &self,
        py: Python<'py>,
        mailbox: &Mailbox,
        calls: Vec<MailboxCall<'py>>,
    ) -> PyResult<Vec<Bound<'py, TaskHandle>>> {
        let mut handles = Vec::with_capacity(calls.len());
        let (mut plain, mut coroutines) = (Vec::new(), Vec::new());
        let mut failure = None;
        for (token, callable, args, kwargs, name) in calls {
            let call = Call { callable, args, kwargs, name: Some(name), tracked: false };
            match self.accept(call) {
                Ok((lane, handle)) => {
                    TaskHandle::deliver_to(&handle, &mailbox.core, token);
                    match lane {
                        LaneKind::Python => plain.push(handle.clone()),
                        LaneKind::Coroutine => coroutines.push(handle.clone()),
                    }
                    handles.push(handle);
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failure {
            // All or nothing: none of them is queued yet, and nobody else has seen the handles.
            for handle in handles {
                handle.get().forget_waiters();
                TaskHandle::settle(handle.as_unbound(), Outcome::Cancelled, Some(py));
            }
            return Err(error);
        }
        for (lane, batch) in [(LaneKind::Python, plain), (LaneKind::Coroutine, coroutines)] {
            if !batch.is_empty() {
                self.shared.push_all(py, lane, &batch);
            }
        }
        Ok(handles)
    }

    #[pyo3(signature = (argv, *, cwd=None, env=None, stdin=None, timeout=None, name=None, mailbox=None, token=None))]
    #[allow(clippy::too_many_arguments)] // keywords of one Python call
    fn run_process<'py>(
        &self,
        py: Python<'py>,
        argv: Vec<OsString>,
        cwd: Option<PathBuf>,
        env: Option<Vec<(OsString, OsString)>>,
        stdin: Option<Bound<'py, PyBytes>>,
        timeout: Option<f64>,
        name: Option<Bound<'py, PyString>>,
        mailbox: Option<&Mailbox>,
        token: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, TaskHandle>> {
        let request = Request {
            argv,
            cwd,
            env,
            stdin: stdin.map(|bytes| bytes.as_bytes().to_vec()),
            timeout,
            name: name.map(Bound::unbind),
            tracked: mailbox.is_none(),
        };
        process::submit(py, &self.shared, request, |handle| {
            if let Some(mailbox) = mailbox {
                let token = token.unwrap_or_else(|| py.None());
                TaskHandle::deliver_to(handle, &mailbox.core, token);
            }
        })
    }

    #[pyo3(signature = (raise_on_error=false))]
    fn wait_all(&self, py: Python<'_>, raise_on_error: bool) -> PyResult<()> {
        self.shared.wait_idle(py)?;
        let failed = self.shared.take_unreported();
        if !raise_on_error || failed.is_empty() {
            return Ok(());
        }
        let mut message = format!("{} task(s) failed:", failed.len());
        for handle in failed {
            let handle = handle.bind(py);
            let error = handle.getattr("exception")?;
            let kind = error.get_type().qualname()?;
            let text = error.str().map_or_else(|_| String::new(), |text| text.to_string());
            message.push_str(&format!("\n{}: {kind}: {text}", handle.getattr("name")?));
        }
        Err(PyRuntimeError::new_err(message))
    }

    fn get_failed(&self, py: Python<'_>) -> Vec<Py<TaskHandle>> {
        self.shared.failed(py)
    }

    fn clear_failed(&self) {
        self.shared.clear_failed();
    }

    #[pyo3(signature = (wait=true))]
    fn shutdown(&self, py: Python<'_>, wait: bool) -> PyResult<()> {
        self.shared.shutdown(py, wait)
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
    }
}

/// At interpreter exit: no thread of ours may be left that could touch a dying interpreter.
#[pyfunction]
pub(crate) fn shutdown_all(py: Python<'_>) -> PyResult<()> {
    for shared in shared::live_runtimes() {
        shared.shutdown(py, true)?;
    }
    Ok(())
}

/// In the child of a `fork()`.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    shared::forked();
}

/// The CPUs this process may use: its affinity and cgroup limits, not the number in the box.
#[pyfunction]
pub(crate) fn available_cpus() -> usize {
    sizes::available_cpus()
}
