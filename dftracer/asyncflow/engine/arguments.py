"""What in a call's arguments is an edge of the graph or a file, and what goes in its place.

Futures and files are found as arguments themselves and inside lists, tuples, dicts and dataclasses,
however nested, shared or cyclic. Other containers are handed on as they are.

What was in a container at the call is noted there. One that held a future then is rebuilt from that
content, and so is one that has been given a future since; all others are handed over as they are,
the same objects. Nothing here calls itself: values may be nested as deep as memory goes. It is one
file, as finding and rebuilding must see the same containers.
"""

# Of values of any type: whatever `isinstance` finds among them has parts of unknown types.
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

from dftracer.asyncflow.data import File
from dftracer.asyncflow.errors import let_out

ValueOf = Callable[[asyncio.Future[Any]], Any]
"""What is put in place of a future: its result."""

LEAVES = frozenset({int, str, float, bool, bytes, complex, type(None)})
"""The types of most arguments: there is nothing to be found in those."""

Futures = dict[asyncio.Future[Any], None]
Files = dict[File, None]


class Inputs(NamedTuple):
    """What a call depends on."""

    dependencies: Sequence[asyncio.Future[Any]]
    own: Sequence[Any]
    """Those among them that are components of the same engine."""
    nodes: list[int]
    """Of those that have not ended, in the engine's graph."""
    sources: Sequence[int]
    """The numbers of those that are components of the same engine."""
    may_have_failed: bool
    """Whether one may have ended with an error without the graph's knowing it."""
    files: Files | None
    contents: Contents


Content = Any
"""What a container holds: a list or a tuple of it, or a dict by keys or names of fields."""
Contents = dict[int, tuple[Any, Content]]
"""Containers and what was in them at a call, by their ``id()``."""


def find_in_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    contents: Contents | None = None,
) -> tuple[Futures, Files | None]:
    """Return every future in the arguments of a call, in order of appearance, and every file.

    The files are ``None`` if there is nothing among the arguments that could be or hold one. What
    is in the containers is added to ``contents``.
    """
    futures: Futures = {}
    files: Files | None = None
    contents = {} if contents is None else contents
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in LEAVES:
            continue
        if isinstance(value, asyncio.Future):
            futures[value] = None
        else:
            files = {} if files is None else files
            _find(value, futures, files, contents)
    return futures, files


def _find(root: Any, futures: Futures, files: Files, contents: Contents) -> None:
    """Add every future and file in ``root``, and the containers, to what has been found."""
    open_: list[Iterator[Any]] = [iter((root,))]
    while open_:
        for value in open_[-1]:
            if type(value) in LEAVES:
                continue
            if isinstance(value, asyncio.Future):
                futures[value] = None
            elif isinstance(value, File):
                files[value] = None
            elif id(value) not in contents:
                content = _content(value)
                if content is not None:
                    contents[id(value)] = (value, content)
                    open_.append(iter(_items(content)))
                    break
        else:
            open_.pop()


def have_got_futures(contents: Contents) -> bool:
    """Tell whether a container, none of which held a future at the call, holds one now."""
    for value, content in contents.values():
        if content is not value and _has_got_a_future(value, content):
            return True
    return False


def _has_got_a_future(value: Any, content: Content) -> bool:
    """Tell whether a container has changed, and holds a future now."""
    if _is_as_before(value, content):
        return False
    futures: Futures = {}
    _find(value, futures, {}, {})
    return bool(futures)


def _is_as_before(value: Any, content: Content) -> bool:
    """Tell whether a container holds this content; equal objects are as good as the same, as a
    future equals none but itself."""
    try:
        if isinstance(value, list):
            return list.__eq__(content, value)
        if isinstance(value, dict):
            return dict.__eq__(content, value)
    except BaseException as fault:  # of objects that cannot be compared
        let_out(fault)
        return False
    if isinstance(value, tuple):
        return True
    now: Any = _content(value)
    return len(now) == len(content) and all(map(is_, now.values(), content.values()))


def resolve_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    value_of: ValueOf = asyncio.Future.result,
    contents: Contents | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Return the arguments of a call with the result of each future in its place.

    The ``contents`` are those of the containers at the call; by default they are as they are now.
    """
    contents = {} if contents is None else contents
    containers = [
        value
        for value in ((*args, *kwargs.values()) if kwargs else args)
        if type(value) not in LEAVES
        and not isinstance(value, asyncio.Future)
        and (id(value) in contents or _is_container(value))
    ]
    new: dict[int, Any] = {}
    if len(containers) == 1:
        [container] = containers
        new[id(container)] = _resolve_one(container, value_of, contents)
    elif containers:  # together, as they may share parts
        new = _rebuild(containers, contents, asyncio.Future, value_of)
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
    return _resolve_one(value, value_of, {}) if _is_container(value) else value


def _resolve_one(container: Any, value_of: ValueOf, contents: Contents) -> Any:
    if type(container) is list or type(container) is tuple:
        content = contents[id(container)][1] if contents else container
        holds_a_future = False
        for item in content:
            if isinstance(item, asyncio.Future):
                holds_a_future = True
            elif type(item) not in LEAVES:
                break
        else:  # the common case: nothing is nested
            if holds_a_future:
                parts = [value_of(i) if isinstance(i, asyncio.Future) else i for i in content]
                return parts if type(container) is list else tuple(parts)
            if not _has_got_a_future(container, content):
                return container
    new = _rebuild([container], contents, asyncio.Future, value_of)
    return new.get(id(container), container)


def place_files(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    places: Mapping[File, File],
    contents: Contents | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with other files in place of those in ``places``."""
    call = (args, kwargs)
    new = _rebuild([call], contents or {}, File, lambda file: places.get(file, file))
    placed: tuple[tuple[Any, ...], dict[str, Any]] = new.get(id(call), call)
    return placed


def _is_container(value: Any) -> bool:
    """Tell whether there may be something in ``value`` to look into."""
    return isinstance(value, (dict, list, tuple)) or (
        type(value) not in LEAVES and hasattr(type(value), "__dataclass_fields__")
    )


def _content(value: Any) -> Content | None:
    """Return what is in ``value`` now, as it stays; ``None`` if it is nothing to look into."""
    if isinstance(value, dict):
        return dict.copy(value)
    if isinstance(value, list):
        return list.copy(value)
    if isinstance(value, tuple):
        return value if type(value) is tuple else tuple.__getitem__(value, slice(None))
    if hasattr(type(value), "__dataclass_fields__"):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _items(content: Content) -> Collection[Any]:
    items: Collection[Any] = content.values() if type(content) is dict else content
    return items


def _rebuild(
    roots: Sequence[Any],
    contents: Contents,
    wanted: type,
    stand_in: Callable[[Any], Any],
) -> dict[int, Any]:
    """Return, by the ``id()`` of the old, a new container for each in ``roots`` that holds a
    ``wanted`` at any depth, with stand-ins in the place of those."""
    holders = _find_holders(roots, contents, wanted)
    new: dict[int, Any] = {}

    def part(item: Any) -> Any:
        if isinstance(item, wanted):
            return stand_in(item)
        return new.get(id(item), item) if type(item) not in LEAVES else item

    # `copy.copy` keeps type and attributes, without the constructor. All that can be filled later
    # is made before what it holds is looked at, which may be the same, or hold it.
    for number, (old, _) in holders.items():
        if not isinstance(old, tuple):
            new[number] = copy.copy(old)
    for old, content in _innermost_first(holders):
        new[id(old)] = _like_tuple(old, [part(item) for item in content])
    for number, (old, content) in holders.items():
        if isinstance(old, dict):
            _fill_dict(new[number], {key: part(item) for key, item in content.items()})
        elif isinstance(old, list):
            list.__setitem__(new[number], slice(None), [part(item) for item in content])
        elif not isinstance(old, tuple):
            _fill_fields(new[number], {name: part(item) for name, item in content.items()})
    return new


def _find_holders(roots: Sequence[Any], contents: Contents, wanted: type) -> Contents:
    """Return the containers in ``roots`` that must be rebuilt, with what they shall hold."""
    found: Contents = {}
    parents: dict[int, list[int]] = {}
    holding: list[int] = []
    to_do = list(roots)
    while to_do:
        container = to_do.pop()
        number = id(container)
        if number in found:
            continue
        known = contents.get(number)
        content = _content(container) if known is None else known[1]
        found[number] = (container, content)
        holds = False
        for item in _items(content):
            if type(item) in LEAVES:
                continue
            if isinstance(item, wanted):
                holds = True
            elif id(item) in contents or _is_container(item):
                parents.setdefault(id(item), []).append(number)
                to_do.append(item)
        if holds or (known is not None and _has_got_a_future(container, content)):
            holding.append(number)
    holders: Contents = {}
    while holding:
        number = holding.pop()
        if number not in holders:
            holders[number] = found[number]
            holding += parents.get(number, ())
    return holders


def _innermost_first(holders: Contents) -> Iterable[tuple[Any, Content]]:
    """Return the tuples among ``holders``, each behind those that it holds."""
    order: dict[int, tuple[Any, Content]] = {}
    for first in holders.values():
        if not isinstance(first[0], tuple) or id(first[0]) in order:
            continue
        open_ = [(first, iter(first[1]))]
        while open_:
            holder, items = open_[-1]
            for item in items:
                if isinstance(item, tuple) and id(item) in holders and id(item) not in order:
                    inner = holders[id(item)]
                    open_.append((inner, iter(inner[1])))
                    break
            else:
                order[id(holder[0])] = holder
                open_.pop()
    return order.values()


def _fill_dict(new: dict[Any, Any], content: dict[Any, Any]) -> None:
    """Have a copy of a dict hold this content."""
    if dict.keys(new) != content.keys():  # it has changed since the call
        for key in [key for key in dict.keys(new) if key not in content]:
            del new[key]
        for key in content:
            if not dict.__contains__(new, key):
                new[key] = content[key]
    for key, item in content.items():
        dict.__setitem__(new, key, item)


def _fill_fields(new: Any, content: dict[str, Any]) -> None:
    """Have a copy of a dataclass hold this content."""
    for name, item in content.items():
        if not hasattr(new, name) or getattr(new, name) is not item:
            object.__setattr__(new, name, item)


def _like_tuple(old: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    kind = type(old)
    if kind is tuple:
        return tuple(parts)
    new: tuple[Any, ...] = tuple.__new__(kind, parts)  # whatever its constructor takes
    if hasattr(old, "__dict__"):
        new.__dict__.update(old.__dict__)
    return new
