"""Where a call is made: in whose body, and under which workflow's name."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any, NamedTuple

from dftracer.asyncflow.engine.component import Component


class Scope(NamedTuple):
    """What a body's context holds, and with it those of what the body leaves running."""

    owner: weakref.ref[Component[Any]] | None
    """The component whose body it is. Contexts live on: they keep no component."""
    workflow_id: str | None


ScopeVariable = ContextVar[Scope | None]


def owner_in(scope: Scope | None) -> Component[Any] | None:
    """Return the component in whose body this is, if there is one and it is alive."""
    return None if scope is None or scope.owner is None else scope.owner()
