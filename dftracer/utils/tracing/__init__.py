"""Traces of tasks in DFTracer's format: written, read, and several made one.

What is in a trace, and which file a path stands for: ``docs/tracing.md``.
"""

from dftracer.utils._native import Trace
from dftracer.utils.tracing.files import ENVIRONMENT, open_trace, trace_of_environment
from dftracer.utils.tracing.lines import LeftOut
from dftracer.utils.tracing.merging import (
    ProcessNumbers,
    merge_traces,
    read_events,
    trace_files,
)

__all__ = [
    "ENVIRONMENT",
    "LeftOut",
    "ProcessNumbers",
    "Trace",
    "merge_traces",
    "open_trace",
    "read_events",
    "trace_files",
    "trace_of_environment",
]
