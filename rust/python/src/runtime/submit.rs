//! `Runtime.submit`, written down to the interpreter's own calling convention: PyO3 would take
//! `*args` with `**kwargs` through two tuples, which cost as much as the rest of the way in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::api::Runtime;
use super::arguments::Arguments;
use crate::interp::call::{panic_error, panic_text};

/// Its signature and its docstring, as CPython takes them.
const TEXT: &std::ffi::CStr =
    c"submit($self, task_or_fn, /, *args, name=None, interrupt=False, **kwargs)
--

Run ``task_or_fn(*args, **kwargs)`` on a worker thread, in a copy of this context.

A coroutine function runs in an :class:`asyncio.Task` on a worker's event loop; what is
returned is its result. A handle is returned as it is.

Parameters
----------
name:
    The task's name, instead of that of the callable.
interrupt:
    Whether a plain body that is cancelled or runs out of time gets
    :class:`asyncio.CancelledError`, thrown into its thread. That can break locks for the
    whole process; see \"Cancellation\" in ``docs/lifecycle.md``.

Raises
------
TypeError
    If ``task_or_fn`` is neither callable nor a handle.
RuntimeShutdownError
    If the runtime is shut down.
ForkedRuntimeError
    If it was made before a ``fork()``.";

/// Gives the class its method.
pub(crate) fn install(class: &Bound<'_, PyType>) -> PyResult<()> {
    let definition = Box::new(ffi::PyMethodDef {
        ml_name: c"submit".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: submit },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: TEXT.as_ptr(),
    });
    // SAFETY: attached; a class, and a definition that is never freed, as the method refers to it.
    let method = unsafe {
        let method = ffi::PyDescr_NewMethod(class.as_ptr().cast(), Box::leak(definition));
        Bound::from_owned_ptr_or_err(class.py(), method)
    }?;
    class.setattr("submit", method)
}

unsafe extern "C" fn submit(
    runtime: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    Python::attach(|py| {
        let submitted = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the descriptor lets only instances of its class through, which the caller
            // holds; and CPython calls as it was told in the definition.
            let (runtime, arguments) = unsafe {
                let runtime = Borrowed::from_ptr(py, runtime).cast_unchecked::<Runtime>();
                (runtime, Arguments::new(py, args, count, keywords)?)
            };
            runtime.get().submit(py, arguments)
        }));
        match submitted {
            Ok(Ok(handle)) => handle.into_ptr(),
            Ok(Err(error)) => {
                error.restore(py);
                std::ptr::null_mut()
            }
            Err(panic) => {
                panic_error(&panic_text(panic.as_ref())).restore(py);
                std::ptr::null_mut()
            }
        }
    })
}
