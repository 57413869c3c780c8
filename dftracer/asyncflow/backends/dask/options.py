"""What a ``task_description`` may say to a Dask backend, and whether a cluster can do it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed.comm import (  # pyright: ignore[reportMissingImports]
    resolve_address,  # pyright: ignore[reportUnknownVariableType]
)

from dftracer.asyncflow.backends.base import Submission
from dftracer.asyncflow.backends.programs import PROGRAM_OPTIONS, timeout_of
from dftracer.asyncflow.errors import text_of

_TYPES: dict[str, tuple[type, ...]] = {
    "resources": (Mapping,),
    "priority": (int, float),
    "retries": (int,),
    "workers": (str, list, tuple, set, frozenset),
    "allow_other_workers": (bool,),
    "key": (str,),
    "pure": (bool,),
}
"""What is for Dask, and what it may be."""

_FUNCTION_OPTIONS = frozenset({"timeout"})
"""What a function's may say besides."""

_LIMIT = 2**63
"""With a larger number Dask's client loses its connection."""

_TURN = 2**-30
"""By how much a later turn raises the priority."""


@dataclass
class Options:
    """A ``task_description`` that has been understood."""

    timeout: float | None = None
    """Seconds."""
    key: str | None = None
    pure: bool = False
    dask: dict[str, Any] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]
    """For :meth:`distributed.Client.map`."""

    def go_ahead(self, turn: int) -> None:
        """Have the task run before those of its priority that were submitted in earlier turns."""
        self.dask["priority"] = self.dask.get("priority", 0) + turn * _TURN

    @property
    def workers(self) -> list[Any] | None:
        """The only workers that will do; ``None`` if it may be any."""
        return None if self.dask.get("allow_other_workers") else self.dask.get("workers")

    @property
    def resources(self) -> dict[str, float]:
        """What a worker must have."""
        resources: dict[str, float] = self.dask.get("resources", {})
        return resources


def parse(label: str, submission: Submission) -> Options:
    """Understand the ``task_description`` of a task, which messages call ``label``.

    Raises
    ------
    TypeError
        If a value is of a type that does not fit its key.
    ValueError
        If a key is unknown, or a value makes no sense.
    """
    given = {key: value for key, value in submission.options.items() if value is not None}
    own = _FUNCTION_OPTIONS
    if submission.function is None:
        own = PROGRAM_OPTIONS
        given.pop("shell", None)  # the engine has made the command by it
    if not given:
        return Options()
    for key, value in given.items():
        entry = f"{label}: {key!r} in its task_description"
        if key not in own and key not in _TYPES:
            known = ", ".join(sorted({*own, *_TYPES}))
            raise ValueError(f"{entry} is unknown; of such a task, this backend knows {known}")
        kinds = _TYPES.get(key, (object,))
        if not isinstance(value, kinds) or (type(value) is bool and int in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{entry} must be {names}, not {type(value).__name__} {text_of(value)}")
    if not 0 <= given.get("retries", 0) < _LIMIT:
        raise ValueError(f"{label}: 'retries' in its task_description must be 0 or more, to 2**63")
    if not -_LIMIT < given.get("priority", 0) < _LIMIT:
        raise ValueError(f"{label}: 'priority' in its task_description must lie within 2**63 of 0")
    for name, amount in given.get("resources", {}).items():
        if type(name) is not str or type(amount) not in (int, float) or not amount >= 0:
            raise ValueError(
                f"{label}: 'resources' in its task_description must map names to numbers of 0 or "
                f"more, not {text_of(name)} to {text_of(amount)}"
            )
    if given.get("allow_other_workers") and not given.get("workers"):
        raise ValueError(f"{label}: 'allow_other_workers' in its task_description needs 'workers'")
    if "workers" in given:
        workers = given["workers"]
        if not workers:
            raise ValueError(f"{label}: 'workers' in its task_description names no worker")
        given["workers"] = [workers] if isinstance(workers, str) else list(workers)
    return Options(
        timeout=timeout_of(submission),
        key=given.pop("key", None),
        pure=given.pop("pure", False),
        dask={key: value for key, value in given.items() if key not in own},
    )


def why_impossible(options: Options, workers: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say what no worker can satisfy, if there is something.

    Parameters
    ----------
    workers:
        By its address, what the scheduler knows of each.
    """
    named, allowed = options.workers, dict(workers)
    if named:
        allowed = {a: w for a, w in workers.items() if any(_is_meant(n, a, w) for n in named)}
        if not allowed:
            return f"no worker is one of workers={named!r}; there are {_join(workers)}"
    for worker in allowed.values():
        has: Mapping[str, Any] = worker.get("resources") or {}
        if all(has.get(name, 0) >= amount for name, amount in options.resources.items()):
            return None
    offers = [f"{address} with {worker.get('resources')}" for address, worker in allowed.items()]
    return f"no worker has resources={options.resources!r}; there are {_join(offers)}"


def _is_meant(name: Any, address: str, worker: Mapping[str, Any]) -> bool:
    """Tell whether a user may call a worker so: by its address, name or host."""
    if name in (address, worker.get("name"), worker.get("host")):
        return True
    with contextlib.suppress(Exception):  # it is no address
        return bool(resolve_address(name) == address)  # pyright: ignore[reportUnknownArgumentType]
    return False


def _join(items: Iterable[str]) -> str:
    shown = list(items)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return (", ".join(shown[:10]) or "none at all") + more
