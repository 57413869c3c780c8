"""What in a call's arguments is an edge of the graph, and what goes in its place.

Futures are found as arguments themselves and inside lists, tuples, dicts and dataclasses, however
nested. Other containers are handed on as they are.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

_LEAVES = frozenset({int, str, float, bool, bytes, complex, type(None)})
_CONTAINERS = (list, tuple, dict)


def find_futures(value: Any, found: dict[asyncio.Future[Any], None]) -> None:
    """Add every future in ``value`` to the keys of ``found``, in order of appearance."""
    kind = type(value)
    if kind in _LEAVES:
        return
    if isinstance(value, asyncio.Future):
        found[value] = None
    elif isinstance(value, dict):
        for item in value.values():
            find_futures(item, found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            find_futures(item, found)
    elif _is_record(value):
        for field in dataclasses.fields(value):
            find_futures(getattr(value, field.name, None), found)


def resolve(value: Any) -> Any:
    """Return ``value`` with the result of each future in its place.

    Containers without futures are returned as they are; the others are copied, so that what the
    caller holds does not change.
    """
    if isinstance(value, asyncio.Future):
        return value.result()
    if isinstance(value, dict):
        items = {key: resolve(item) for key, item in value.items()}
        return value if _same(items.values(), value.values()) else _like_dict(value, items)
    if isinstance(value, (list, tuple)):
        parts = [resolve(item) for item in value]
        return value if _same(parts, value) else _like_sequence(value, parts)
    if type(value) not in _LEAVES and _is_record(value):
        return _resolve_record(value)
    return value


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _same(new: Any, old: Any) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _like_dict(old: dict[Any, Any], items: dict[Any, Any]) -> Any:
    if type(old) is dict:
        return items
    # A subclass may need more than its items to be made (defaultdict): copy it, then fill it in.
    new = old.copy()
    new.update(items)
    return new


def _like_sequence(old: Any, parts: list[Any]) -> Any:
    kind = type(old)
    if kind is list:
        return parts
    if kind is tuple:
        return tuple(parts)
    if hasattr(kind, "_make"):  # a named tuple takes its fields one by one
        return kind._make(parts)
    return kind(parts)


def _resolve_record(value: Any) -> Any:
    changed = {}
    for field in dataclasses.fields(value):
        if not hasattr(value, field.name):
            continue
        old = getattr(value, field.name)
        new = resolve(old)
        if new is not old:
            changed[field.name] = new
    if not changed:
        return value
    # Not `replace()`: it would run `__post_init__` again, and cannot set fields without init.
    import copy

    record = copy.copy(value)
    for name, item in changed.items():
        object.__setattr__(record, name, item)
    return record
