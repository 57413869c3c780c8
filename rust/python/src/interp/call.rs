//! Calling a task's body: in its own context, whatever it raises, even at interpreter exit.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

// PyO3 declares these functions as some that never unwind. They do: until CPython 3.13 a thread that
// wants the interpreter while it shuts down is ended by a forced unwind through our frames.
unsafe extern "C-unwind" {
    fn PyObject_Call(
        callable: *mut ffi::PyObject,
        args: *mut ffi::PyObject,
        kwargs: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
    fn PyIter_Send(
        iterator: *mut ffi::PyObject,
        argument: *mut ffi::PyObject,
        result: *mut *mut ffi::PyObject,
    ) -> c_int;
    fn PyObject_VectorcallDict(
        callable: *mut ffi::PyObject,
        args: *const *mut ffi::PyObject,
        nargs: usize,
        kwargs: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// Dropped only by a forced unwind: stops it here, before it runs destructors that would touch an
/// interpreter that is gone. The thread then waits for the end of the process.
struct HangOnUnwind;

impl Drop for HangOnUnwind {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// What a task calls, and in which context. Most calls have few parts, and are kept small: without a
/// tuple for a single argument, and without a context where that of the submission is empty.
pub(crate) enum Call {
    /// `callable(argument)` in an empty context.
    One { callable: Py<PyAny>, argument: Py<PyAny> },
    /// `callable(*args)` in an empty context.
    Plain { callable: Py<PyAny>, args: Py<PyTuple> },
    /// `callable(*args, **kwargs)` in a context.
    Full(Box<FullCall>),
}

/// All that a call can have.
pub(crate) struct FullCall {
    callable: Py<PyAny>,
    args: Py<PyTuple>,
    kwargs: Option<Py<PyDict>>,
    context: Py<PyAny>,
}

impl Call {
    /// `callable(argument)` in a copy of the current context.
    pub(crate) fn with_one(
        callable: Bound<'_, PyAny>,
        argument: Borrowed<'_, '_, PyAny>,
    ) -> PyResult<Self> {
        let py = callable.py();
        let (callable, argument) = (callable.unbind(), argument.to_owned().unbind());
        Ok(match copy_context(py)? {
            None => Self::One { callable, argument },
            Some(context) => {
                let args = PyTuple::new(py, [argument])?.unbind();
                Self::Full(Box::new(FullCall { callable, args, kwargs: None, context }))
            }
        })
    }

    /// A call in `context`, or in a copy of the current one. If that is empty, in a new one.
    pub(crate) fn new(
        callable: Bound<'_, PyAny>,
        args: Bound<'_, PyTuple>,
        kwargs: Option<Bound<'_, PyDict>>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = callable.py();
        let context = match context {
            Some(context) => unless_empty(context)?,
            None => copy_context(py)?,
        };
        let kwargs = kwargs.filter(|kwargs| !kwargs.is_empty());
        let callable = callable.unbind();
        if kwargs.is_none() && context.is_none() {
            if args.len() == 1 {
                return Ok(Self::One { callable, argument: args.get_item(0)?.unbind() });
            }
            return Ok(Self::Plain { callable, args: args.unbind() });
        }
        let context = context.map_or_else(|| new_context(py), Ok)?;
        let (args, kwargs) = (args.unbind(), kwargs.map(Bound::unbind));
        Ok(Self::Full(Box::new(FullCall { callable, args, kwargs, context })))
    }

    /// `function(item)`, or `function(*item)` to `spread`, for each of the items, each in its own
    /// copy of the current context.
    pub(crate) fn each(
        function: &Bound<'_, PyAny>,
        spread: bool,
        items: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Self>> {
        let py = function.py();
        let in_empty_context = copy_context(py)?.is_none();
        let callable = || function.clone().unbind();
        let calls = items.into_iter().map(|item| {
            Ok(match (spread, in_empty_context) {
                (false, true) => Self::One { callable: callable(), argument: item.unbind() },
                (false, false) => Self::with_one(function.clone(), item.as_borrowed())?,
                (true, true) => {
                    Self::Plain { callable: callable(), args: item.cast_into()?.unbind() }
                }
                (true, false) => Self::new(function.clone(), item.cast_into()?, None, None)?,
            })
        });
        calls.collect()
    }

    pub(crate) fn callable(&self) -> &Py<PyAny> {
        match self {
            Self::One { callable, .. } | Self::Plain { callable, .. } => callable,
            Self::Full(call) => &call.callable,
        }
    }

    /// What it is to run in.
    pub(crate) fn context(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Full(call) => Ok(call.context.clone_ref(py)),
            _ => new_context(py),
        }
    }

    /// Calls in the context that is current. A Rust panic below becomes an exception.
    pub(crate) fn here<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: attached, and all parts are held by `self`.
        owned(py, unsafe { self.guarded() })
    }

    /// # Safety
    ///
    /// Attached; the answer is a new reference, or null with an exception set.
    unsafe fn guarded(&self) -> *mut ffi::PyObject {
        let null = std::ptr::null_mut();
        match self {
            // SAFETY: live objects.
            Self::One { callable, argument } => unsafe {
                guarded_call_one(callable.as_ptr(), argument.as_ptr())
            },
            // SAFETY: live objects of the right types.
            Self::Plain { callable, args } => unsafe {
                guarded_call(callable.as_ptr(), args.as_ptr(), null)
            },
            Self::Full(call) => {
                let kwargs = call.kwargs.as_ref().map_or(null, Py::as_ptr);
                // SAFETY: live objects of the right types.
                unsafe { guarded_call(call.callable.as_ptr(), call.args.as_ptr(), kwargs) }
            }
        }
    }
}

/// `callable(argument)` in the context that is current.
pub(crate) fn call_one<'py>(
    py: Python<'py>,
    callable: &Py<PyAny>,
    argument: &Py<PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, live objects.
    owned(py, unsafe { guarded_call_one(callable.as_ptr(), argument.as_ptr()) })
}

/// Whether Python code may run when this reference is dropped: not if there are others, nor if the
/// object is of a built-in kind that refers to nothing. The caller is attached.
pub(crate) fn runs_code_when_dropped(object: &Py<PyAny>) -> bool {
    let object = object.as_ptr();
    // SAFETY: attached, a live object.
    unsafe {
        ffi::Py_REFCNT(object) == 1
            && (ffi::PyObject_IS_GC(object) != 0
                || ffi::PyType_HasFeature(ffi::Py_TYPE(object), ffi::Py_TPFLAGS_HEAPTYPE) != 0)
    }
}

/// The contexts of calls that are each made in a copy of their own of the same one.
pub(crate) struct Contexts<'a> {
    /// `None` if that is empty.
    original: Option<&'a Py<PyAny>>,
    /// An empty one that nobody else has.
    spare: Option<Py<PyAny>>,
}

impl<'a> Contexts<'a> {
    pub(crate) fn of(original: Option<&'a Py<PyAny>>) -> Self {
        Self { original, spare: None }
    }

    /// One for the next call.
    pub(crate) fn next<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match (self.original, self.spare.take()) {
            (Some(original), _) => copy_of(original.bind(py)),
            (None, Some(spare)) => Ok(spare.into_bound(py)),
            (None, None) => new_context(py).map(|context| context.into_bound(py)),
        }
    }

    /// Takes one back after its call. If that has set no variable, and nobody holds the context, as
    /// the token of a change would, it cannot be told from a new one, and serves the next call.
    pub(crate) fn take_back(&mut self, context: Bound<'_, PyAny>) {
        // SAFETY: attached, a live object.
        let is_ours = unsafe { ffi::Py_REFCNT(context.as_ptr()) } == 1;
        if self.original.is_none() && is_ours && matches!(context.len(), Ok(0)) {
            self.spare = Some(context.unbind());
        }
    }
}

/// A context with the same variables.
pub(crate) fn copy_of<'py>(context: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, a context; a new reference or null with an exception set.
    unsafe {
        let copy = ffi::PyContext_Copy(context.as_ptr());
        Bound::from_owned_ptr_or_err(context.py(), copy)
    }
}

/// A copy of the calling thread's current context; `None` if that is empty.
pub(crate) fn copy_context(py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
    // SAFETY: attached; a new reference or null with an exception set.
    unless_empty(unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }?)
}

fn unless_empty(context: Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
    Ok((context.len()? > 0).then(|| context.unbind()))
}

fn new_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    // SAFETY: attached; a new reference or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_New()) }.map(Bound::unbind)
}

/// What a call has returned, or the error that is set.
fn owned(py: Python<'_>, result: *mut ffi::PyObject) -> PyResult<Bound<'_, PyAny>> {
    if !result.is_null() {
        // SAFETY: a new reference.
        return Ok(unsafe { Bound::from_owned_ptr(py, result) });
    }
    // PyO3 turns a PanicException back into a panic when it fetches the error.
    // SAFETY: null with an exception set.
    catch_unwind(AssertUnwindSafe(|| unsafe { Bound::from_owned_ptr_or_err(py, result) }))
        .unwrap_or_else(|panic| Err(panic_error(&panic_text(panic.as_ref()))))
}

/// What a step of a coroutine has come to.
pub(crate) enum Step<'py> {
    /// It waits for this.
    Suspended(Bound<'py, PyAny>),
    /// It has ended with this.
    Ended(Bound<'py, PyAny>),
}

/// Makes the first step of `coroutine`, whatever it raises.
pub(crate) fn begin_coroutine<'py>(coroutine: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = coroutine.py();
    let none = py.None();
    let mut result = std::ptr::null_mut();
    let guard = HangOnUnwind;
    // SAFETY: attached, live objects; a coroutine can be sent to.
    let end = unsafe { PyIter_Send(coroutine.as_ptr(), none.as_ptr(), &raw mut result) };
    std::mem::forget(guard);
    let result = owned(py, result)?;
    Ok(if end == ffi::PySendResult::PYGEN_RETURN as c_int {
        Step::Ended(result)
    } else {
        Step::Suspended(result)
    })
}

/// Does `work` with `context` as the current context.
pub(crate) fn in_context<'py, T>(
    context: &Bound<'py, PyAny>,
    work: impl FnOnce() -> PyResult<T>,
) -> PyResult<T> {
    // SAFETY: attached, and a context; an exception is set if it is refused.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } < 0 {
        return Err(PyErr::fetch(context.py()));
    }
    let _left = LeaveContext(context);
    work()
}

/// Leaves a context, also when what was done in it panics.
struct LeaveContext<'a, 'py>(&'a Bound<'py, PyAny>);

impl Drop for LeaveContext<'_, '_> {
    fn drop(&mut self) {
        // SAFETY: attached; the thread that entered it leaves it. Refused, with an exception set,
        // only where the work has changed the contexts of this thread behind our back.
        unsafe {
            if ffi::PyContext_Exit(self.0.as_ptr()) < 0 {
                ffi::PyErr_Clear();
            }
        }
    }
}

/// `callable(*args)` in the context that is current, whatever it raises.
pub(crate) fn call_with<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, live objects of the right types.
    owned(callable.py(), unsafe {
        guarded_call(callable.as_ptr(), args.as_ptr(), std::ptr::null_mut())
    })
}

/// Calls `callable(argument)` for the rest of a thread's life, as above, but in no context.
pub(crate) fn call_for_life<'py>(
    callable: &Bound<'py, PyAny>,
    argument: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = callable.py();
    let args = PyTuple::new(py, [argument])?;
    // SAFETY: attached, live objects of the right types; a new reference or null with an
    // exception set.
    unsafe {
        let result = guarded_call(callable.as_ptr(), args.as_ptr(), std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, result)
    }
}

/// # Safety
///
/// As for `PyObject_Call`.
unsafe fn guarded_call(
    callable: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
    kwargs: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let guard = HangOnUnwind;
    // SAFETY: the caller's promise.
    let result = unsafe { PyObject_Call(callable, args, kwargs) };
    std::mem::forget(guard);
    result
}

/// # Safety
///
/// Attached, live objects; the answer is a new reference, or null with an exception set.
unsafe fn guarded_call_one(
    callable: *mut ffi::PyObject,
    argument: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // The free place before the argument is for the `self` of a bound method.
    let mut arguments = [std::ptr::null_mut(), argument];
    let guard = HangOnUnwind;
    // SAFETY: one argument stands where the pointer says, and the place before it may be written
    // to; else the caller's promise.
    let result = unsafe {
        PyObject_VectorcallDict(
            callable,
            arguments.as_mut_ptr().add(1),
            1 | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
            std::ptr::null_mut(),
        )
    };
    std::mem::forget(guard);
    result
}

/// The exception that stands for a panic at a job's boundary.
pub(crate) fn panic_error(text: &str) -> PyErr {
    PyRuntimeError::new_err(format!("panic in native code: {text}"))
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}
