"""What in a call's arguments is an edge of the graph or a file, and what goes in its place.

Futures and files are found as arguments themselves and inside lists, tuples, dicts and dataclasses,
however nested, shared or cyclic. Other containers are handed on as they are.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dftracer.asyncflow.data import File

ValueOf = Callable[[asyncio.Future[Any]], Any]
"""What is put in place of a future: its result."""

LEAVES = frozenset({int, str, float, bool, bytes, complex, type(None)})
"""The types of most arguments: there is nothing to be found in those."""

Futures = dict[asyncio.Future[Any], None]
Files = dict[File, None]


def find_in_call(
    args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> tuple[Futures, Files | None]:
    """Return every future in the arguments of a call, in order of appearance, and every file.

    The files are ``None`` if there is nothing among the arguments that could be or hold one.
    """
    futures: Futures = {}
    files: Files | None = None
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in LEAVES:
            continue
        if isinstance(value, asyncio.Future):
            futures[value] = None
        else:
            if files is None:
                files = {}
                seen: dict[int, Any] = {}
            _find(value, futures, files, seen)
    return futures, files


def _find(value: Any, futures: Futures, files: Files, seen: dict[int, Any]) -> None:
    """Add every future and file in ``value``, which is no leaf, to what has been found.

    ``seen`` holds, by their ``id()``, the containers that need not be looked through again.
    """
    if isinstance(value, asyncio.Future):
        futures[value] = None
        return
    if isinstance(value, File):
        files[value] = None
        return
    items = _items(value)
    if items is None or id(value) in seen:
        return
    seen[id(value)] = value
    for item in items:
        if type(item) not in LEAVES:
            _find(item, futures, files, seen)


def resolve_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    value_of: ValueOf = asyncio.Future.result,
) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Return the arguments of a call with the result of each future in its place."""
    if not kwargs:
        # The common case: nothing to look into.
        plain = []
        for value in args:
            if type(value) in LEAVES:
                plain.append(value)
            elif isinstance(value, asyncio.Future):
                plain.append(value_of(value))
            else:
                break
        else:
            return tuple(plain), kwargs
    containers = [
        value
        for value in ((*args, *kwargs.values()) if kwargs else args)
        if type(value) not in LEAVES
        and not isinstance(value, asyncio.Future)
        and _items(value) is not None
    ]
    new: dict[int, Any] = {}
    if containers:
        # Together, as they may share parts; but alone if there is one, which is quicker.
        if len(containers) > 1:
            parts = resolve(tuple(containers), value_of)
        else:
            parts = [resolve(containers[0], value_of)]
        new = {id(old): part for old, part in zip(containers, parts, strict=True)}
    values = [value_of(v) if isinstance(v, asyncio.Future) else new.get(id(v), v) for v in args]
    named = {
        key: value_of(v) if isinstance(v, asyncio.Future) else new.get(id(v), v)
        for key, v in (kwargs or {}).items()
    }
    return tuple(values), named


def resolve(value: Any, value_of: ValueOf = asyncio.Future.result) -> Any:
    """Return ``value`` with the result of each future in its place.

    Containers without futures are returned as they are; the others are copied, each once, so that
    what the caller holds does not change.
    """
    if isinstance(value, asyncio.Future):
        return value_of(value)
    if type(value) is list or type(value) is tuple:
        holds_a_future = False
        for item in value:
            if isinstance(item, asyncio.Future):
                holds_a_future = True
            elif type(item) not in LEAVES:
                break
        else:  # the common case: nothing is nested
            if not holds_a_future:
                return value
            parts = [value_of(item) if isinstance(item, asyncio.Future) else item for item in value]
            return parts if type(value) is list else tuple(parts)
    elif _items(value) is None:
        return value
    return _replace(value, _find_holders(value, asyncio.Future), {}, asyncio.Future, value_of)


def place_files(
    args: tuple[Any, ...], kwargs: dict[str, Any], places: Mapping[File, File]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with other files in place of those in ``places``."""
    call = (args, kwargs)
    placed: tuple[tuple[Any, ...], dict[str, Any]] = _replace(
        call, _find_holders(call, File), {}, File, lambda file: places.get(file, file)
    )
    return placed


def _items(value: Any) -> Iterable[Any] | None:
    """Return what ``value`` holds, or ``None`` if it is nothing to look into."""
    kind = type(value)
    if kind in LEAVES:
        return None
    if isinstance(value, dict):
        return dict.values(value)
    if isinstance(value, list):
        return list.__iter__(value)
    if isinstance(value, tuple):
        return tuple.__iter__(value)
    if hasattr(kind, "__dataclass_fields__"):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return None


def _find_holders(root: Any, wanted: type) -> dict[int, Any]:
    """Return, by their ``id()``, the containers in ``root`` with a ``wanted`` at any depth."""
    containers = {id(root): root}
    parents: dict[int, list[int]] = {}
    to_do = [root]
    holding = []
    while to_do:
        container = to_do.pop()
        for item in _items(container) or ():
            if isinstance(item, wanted):
                holding.append(id(container))
            elif type(item) not in LEAVES and _items(item) is not None:
                if id(item) not in containers:
                    containers[id(item)] = item
                    to_do.append(item)
                parents.setdefault(id(item), []).append(id(container))
    holders: dict[int, Any] = {}
    while holding:
        number = holding.pop()
        if number not in holders:
            holders[number] = containers[number]
            holding += parents.get(number, ())
    return holders


def _replace(
    value: Any,
    holders: dict[int, Any],
    copies: dict[int, Any],
    wanted: type,
    stand_in: Callable[[Any], Any],
) -> Any:
    """Return the stand-in of a ``wanted``, the copy of a container that holds one, or ``value``."""
    if isinstance(value, wanted):
        return stand_in(value)
    number = id(value)
    if number not in holders:
        return value
    if number in copies:
        return copies[number]
    if isinstance(value, tuple):
        parts = [
            _replace(item, holders, copies, wanted, stand_in) for item in tuple.__iter__(value)
        ]
        # It may have been copied meanwhile, if it is in a list that is in it.
        if number not in copies:
            copies[number] = _like_tuple(value, parts)
        return copies[number]
    # `copy.copy` keeps type and attributes, without the constructor. The new object is known
    # before what is in it is looked at, which may be the old one.
    new = copies[number] = copy.copy(value)
    if isinstance(value, dict):
        for key, item in list(dict.items(value)):
            dict.__setitem__(new, key, _replace(item, holders, copies, wanted, stand_in))
    elif isinstance(value, list):
        for index, item in enumerate(list.__iter__(value)):
            list.__setitem__(new, index, _replace(item, holders, copies, wanted, stand_in))
    else:
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                old = getattr(value, field.name)
                part = _replace(old, holders, copies, wanted, stand_in)
                if part is not old:
                    object.__setattr__(new, field.name, part)
    return new


def _like_tuple(old: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    kind = type(old)
    if kind is tuple:
        return tuple(parts)
    new: tuple[Any, ...] = tuple.__new__(kind, parts)  # whatever its constructor takes
    if hasattr(old, "__dict__"):
        new.__dict__.update(old.__dict__)
    return new
