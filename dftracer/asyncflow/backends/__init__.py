"""Where tasks run. Each module holds one backend; ``base`` says what a backend is."""

from dftracer.asyncflow.backends.base import StateMapper
from dftracer.asyncflow.backends.local.backend import LocalExecutionBackend
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.backends.runtime import RuntimeExecutionBackend

__all__ = [
    "LocalExecutionBackend",
    "NoopExecutionBackend",
    "RuntimeExecutionBackend",
    "StateMapper",
]
