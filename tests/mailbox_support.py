"""What tests submit to a mailbox."""

from collections.abc import Callable, Mapping
from contextvars import Context
from types import MappingProxyType
from typing import Any


class Call:
    """What a runtime reads of a call whose outcome goes to a mailbox, and its token there."""

    context: Context | None = None
    interrupt = False
    options: Mapping[str, Any] = MappingProxyType({})
    trace_note: tuple[int, str] | None = None

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.function: Callable[..., Any] | None = function
        self.args = args
        self.kwargs = kwargs
        self.name = getattr(function, "__name__", "call")
