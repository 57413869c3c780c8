"""Run Python callables, coroutines and child processes on native threads.

>>> from dftracer.utils import Runtime
>>> with Runtime() as rt:
...     handle = rt.submit(pow, 2, 10)
...     handle.get()
1024
"""

from dftracer.utils._native import ProcessResult, TaskHandle, available_cpus
from dftracer.utils.default import get_default_runtime, peek_default_runtime, set_default_runtime
from dftracer.utils.handle import Cancellation
from dftracer.utils.runtime import Runtime

__all__ = [
    "Cancellation",
    "ProcessResult",
    "Runtime",
    "TaskHandle",
    "available_cpus",
    "get_default_runtime",
    "peek_default_runtime",
    "set_default_runtime",
]
