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

import dftracer.utils as _utils

if not hasattr(_utils, "available_cpus"):
    raise ImportError(
        "'dftracer.utils' belongs to another distribution, probably dftracer-utils, which has "
        "replaced files of dftracer-asyncflow. Uninstall both and install only one of them, or "
        "use two environments."
    )

from dftracer.asyncflow.backends.local import LocalExecutionBackend
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend
from dftracer.asyncflow.components import Component
from dftracer.asyncflow.data import File, InputFile, OutputFile
from dftracer.asyncflow.errors import (
    CommandError,
    DataError,
    DependencyFailureError,
    EngineShutdownError,
    ExecutableError,
    WorkerDiedError,
)
from dftracer.asyncflow.workflow_manager import WorkflowEngine
from dftracer.utils.primitives import __version__

__all__ = [
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
    "RuntimeExecutionBackend",
    "WorkerDiedError",
    "WorkflowEngine",
    "__version__",
]
