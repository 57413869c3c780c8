"""Run Python callables, coroutines and child processes on native threads.

>>> from dftracer.utils import Runtime
>>> with Runtime() as rt:
...     handle = rt.submit(pow, 2, 10)
...     handle.get()
1024
"""

from dftracer.utils._native import ProcessResult, TaskHandle, available_cpus, sleep
from dftracer.utils.completion import as_completed
from dftracer.utils.current import current_task
from dftracer.utils.default import get_default_runtime, peek_default_runtime, set_default_runtime
from dftracer.utils.errors import (
    ForkedRuntimeError,
    RuntimeShutdownError,
    SystemLimitError,
    TaskTimeoutError,
    TooManyBlockedError,
    WaitRefusedError,
)
from dftracer.utils.handle import Cancellation
from dftracer.utils.lifetime.ownership import warn_of_another_owner
from dftracer.utils.logs import get_log_level, set_log_color, set_log_level
from dftracer.utils.runtime import Runtime

__all__ = [
    "Cancellation",
    "ForkedRuntimeError",
    "ProcessResult",
    "Runtime",
    "RuntimeShutdownError",
    "SystemLimitError",
    "TaskHandle",
    "TaskTimeoutError",
    "TooManyBlockedError",
    "WaitRefusedError",
    "as_completed",
    "available_cpus",
    "current_task",
    "get_default_runtime",
    "get_log_level",
    "peek_default_runtime",
    "set_default_runtime",
    "set_log_color",
    "set_log_level",
    "sleep",
]

warn_of_another_owner()
