"""What decorating a function gives: all that its calls have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dftracer.asyncflow.engine.peers.awaited import Awaited
from dftracer.asyncflow.engine.retries import Policy
from dftracer.asyncflow.observe.counts import Tally

Kind = Literal["function", "executable", "prompt", "block"]


@dataclass(frozen=True, eq=False)
class Definition:
    """A decorated function."""

    kind: Kind
    body: Callable[..., Any]
    """What was decorated."""
    function: Callable[..., Any] | None
    """What a backend calls; ``None`` if it calls nothing of this."""
    name: str
    is_async: bool
    backend: Any
    """The backend that its calls run on, as it was given; for a block, the engine's default one."""
    target: Any
    """The same as an :class:`~dftracer.asyncflow.backends.base.ExecutionBackend`."""
    backend_name: str | None
    """The name by which the decorator chose it, if it did."""
    service: bool
    capture_stdio: bool
    interrupt: bool
    """Whether a plain body that is cancelled or runs out of time gets an exception."""
    policy: Policy | None
    """How often and for how long its calls are tried, if that is not once and without end."""
    options: Mapping[str, Any]
    """The default of the parameter ``task_description``, which a call may override key by key."""
    awaited: Awaited | None
    """The parameters that the body of a program or prompt awaits itself."""
    workflow_id_is_argument: bool
    component: type[Any]
    """What a call is."""
    uid_prefix: str
    """What the identifiers of its calls begin with: the engine's name where tasks of two engines
    would otherwise be taken for one."""
    tally: Tally
    """Where its calls are counted, but for those in the bodies of blocks."""
    needs_loop: bool
    """Whether something of each call runs in the engine's event loop before, or instead of, a
    backend: the body of a block, of what makes a command or prompt, of ``loop="engine"``."""
    runs_in_loop: bool
    """Whether its calls run there and on no backend."""
    window: int
    """How many of its calls that others wait for its backend is given at a time; 0 for all."""
    is_plain: bool
    """Whether a call that has no files is only handed to its backend, once."""

    def uid_of(self, number: int) -> str:
        """Return the identifier of the call of that number."""
        return f"{self.uid_prefix}{self.component.kind}.{number:06d}"
