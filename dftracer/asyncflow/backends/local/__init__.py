"""Functions on an executor of :mod:`concurrent.futures`."""

from dftracer.asyncflow.backends.local.backend import LocalExecutionBackend

__all__ = ["LocalExecutionBackend"]
