"""Asyncio workflows: decorated functions become tasks, futures between them become edges.

>>> import asyncio
>>> from dftracer.asyncflow import WorkflowEngine
>>> async def main():
...     async with await WorkflowEngine.create() as flow:
...         @flow.function_task
...         def square(x):
...             return x * x
...         return await square(square(3))
>>> asyncio.run(main())
81
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import dftracer.utils as _utils

if not hasattr(_utils, "available_cpus"):
    raise ImportError(
        "'dftracer.utils' belongs to another distribution, probably dftracer-utils, which has "
        "replaced files of dftracer-asyncflow. Uninstall both and install only one of them, or "
        "use two environments."
    )

from dftracer.asyncflow.backends.local.backend import LocalExecutionBackend
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend
from dftracer.asyncflow.data import File, InputFile, OutputFile
from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.errors import (
    CircularWaitError,
    CommandError,
    DataError,
    DependencyFailureError,
    EngineShutdownError,
    ExecutableError,
    PromptError,
    WorkerDiedError,
)
from dftracer.asyncflow.workflow_manager import WorkflowEngine
from dftracer.utils.primitives import __version__

if _TYPE_CHECKING:
    from dftracer.asyncflow.backends.dask.backend import (
        DaskExecutionBackend as DaskExecutionBackend,
    )
    from dftracer.asyncflow.backends.prompts import OpenAIBackend as OpenAIBackend

_EXTRAS = {
    "DaskExecutionBackend": ("dftracer.asyncflow.backends.dask.backend", "dask"),
    "OpenAIBackend": ("dftracer.asyncflow.backends.prompts", "prompt"),
}
"""What is imported when it is first asked for, from where, and the extra that it needs."""


def __getattr__(name: str) -> _Any:
    if name not in _EXTRAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _EXTRAS[name]
    try:
        value = getattr(_importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} needs {error.name!r}: pip install 'dftracer-asyncflow[{extra}]'"
        ) from error
    globals()[name] = value
    return value


__all__ = [
    "CircularWaitError",
    "CommandError",
    "Component",
    "DataError",
    "DependencyFailureError",
    "EngineShutdownError",
    "ExecutableError",
    "File",
    "InputFile",
    "LocalExecutionBackend",
    "NoopExecutionBackend",
    "OutputFile",
    "PromptError",
    "RuntimeExecutionBackend",
    "WorkerDiedError",
    "WorkflowEngine",
    "__version__",
]
