"""Which of its parameters the body of a program or prompt awaits itself.

Such a parameter is handed over as the future that has ended; all others as values. It is found when
the function is decorated, once: in its source, or, where there is none, in its code.
"""

from __future__ import annotations

import ast
import asyncio
import dis
import inspect
import sys
import textwrap
from collections.abc import Mapping
from types import CodeType
from typing import Any, NamedTuple

_FIRST = frozenset({"wait_for", "shield", "ensure_future", "create_task"})
"""Functions of asyncio that await their first argument."""
_ALL = frozenset({"gather", "wait", "as_completed"})
"""Those that await what is in all of them."""

_COPIES = frozenset({"list", "tuple", "set", "iter", "reversed", "enumerate", "zip"})
_VIEWS = frozenset({"values", "items", "copy"})
"""What gives the parts of a container."""
_KNOWN = _FIRST | _ALL | _COPIES | _VIEWS | {"asyncio"}

_NO_AWAITABLE = (
    "can't be used in 'await' expression",
    "object can't be awaited",  # since CPython 3.14
    "An asyncio.Future, a coroutine or an awaitable is required",
    "a coroutine was expected",
    "Passing coroutines is forbidden",
)


class Awaited(NamedTuple):
    """The parameters that a body awaits."""

    names: frozenset[str]
    positions: frozenset[int]
    """Where these are among the positional arguments."""
    rest: int | None
    """From which position on all are awaited, if there is such a parameter."""
    takes_other_keywords: bool
    """Whether those keyword arguments are awaited that are no parameters."""
    known: frozenset[str]
    """The names of all parameters."""

    def is_awaited(self, position: int) -> bool:
        """Tell whether a positional argument is awaited by the body."""
        return position in self.positions or (self.rest is not None and position >= self.rest)

    def is_awaited_as(self, name: str) -> bool:
        """Tell the same of a keyword argument."""
        return name in self.names or (self.takes_other_keywords and name not in self.known)

    def keep(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        values: tuple[tuple[Any, ...], dict[str, Any] | None],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the ``values`` of the arguments of a call, but for those that are awaited."""
        new_args, new_kwargs = values
        return (
            tuple(
                old if self.is_awaited(position) else new
                for position, (old, new) in enumerate(zip(args, new_args, strict=True))
            ),
            {
                name: (kwargs or {})[name] if self.is_awaited_as(name) else new
                for name, new in (new_kwargs or {}).items()
            },
        )


def awaited_by(function: Any, parameters: Mapping[str, inspect.Parameter]) -> Awaited | None:
    """Return which parameters a function awaits; ``None`` if none."""
    body = inspect.unwrap(function)
    while not hasattr(body, "__code__"):
        inner: Any = getattr(body, "__func__", None) or getattr(body, "func", None)
        if inner is None:
            body_type: Any = type(body)  # pyright: ignore[reportUnknownVariableType]
            inner = getattr(body_type, "__call__", None)  # noqa: B004 - an object that is called
            if not hasattr(inner, "__code__"):
                return None
        body = inspect.unwrap(inner)
    names = _in_source(body)
    if names is None:
        names = _in_code(body.__code__)
    names &= parameters.keys()
    if not names:
        return None
    positions: set[int] = set()
    rest: int | None = None
    takes_other_keywords = False
    for position, (name, parameter) in enumerate(parameters.items()):
        if name not in names:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = position
        elif parameter.kind is parameter.VAR_KEYWORD:
            takes_other_keywords = True
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            positions.add(position)
    return Awaited(
        frozenset(names), frozenset(positions), rest, takes_other_keywords, frozenset(parameters)
    )


def explained(error: TypeError, definition: Any) -> TypeError:
    """Return what to raise for an error of a body: that of one that has awaited a value says so."""
    if not any(text in str(error) for text in _NO_AWAITABLE):
        return error
    awaited: Awaited | None = definition.awaited
    names = awaited.names if awaited else inspect.signature(definition.body).parameters
    shown = " or ".join(f"'{name}'" for name in sorted(names))
    if not shown:
        return error
    what = f"awaits its parameter {shown}, which is a value"
    if awaited is None:  # it may be anything else, too
        what = f"awaits a value, perhaps its parameter {shown}"
    failure = TypeError(
        f"'{definition.name}' {what}: {error}: a parameter is handed over as a future if the body "
        "says 'await' of it itself (also in asyncio.gather, wait_for and the like) and the call "
        "was given a future for it, otherwise as a value"
    )
    return failure.with_traceback(error.__traceback__)


# --- in the source --------------------------------------------------------------------------------


def _in_source(function: Any) -> set[str] | None:
    """Return the names that the source of a function awaits; ``None`` if there is none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except Exception:  # also what `tokenize` raises where a file was edited since
        return None
    code: CodeType = function.__code__
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef)) and node.name == code.co_name
    ]
    if not found:
        return None
    reader = _Reader(function.__globals__)
    for statement in found[0].body:
        reader.visit(statement)
    return reader.awaited()


class _Reader(ast.NodeVisitor):
    """Finds what a body awaits, and which names stand for the same or for a part of it."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known
        self._names: set[str] = set()
        self._origins: dict[str, set[str]] = {}

    def awaited(self) -> set[str]:
        """Return the names that are awaited, under whatever other names."""
        names, open_ = set(self._names), list(self._names)
        while open_:
            new = self._origins.get(open_.pop(), set()) - names
            names |= new
            open_ += new
        return names

    def visit_Await(self, node: ast.Await) -> None:
        self._names |= self._parts_in(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if self._name_of(node.func) in _ALL | _FIRST:
            self._names |= self._parts_in(node)  # which is awaited later
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._stands_for(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._stands_for(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._stands_for(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._stands_for(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._stands_for(node.target, node.iter)
        self.generic_visit(node)

    def _stands_for(self, target: ast.expr, value: ast.expr) -> None:
        parts = [each.id for each in ast.walk(target) if isinstance(each, ast.Name)]
        for part in parts:
            self._origins.setdefault(part, set()).update(self._parts_in(value))

    def _parts_in(self, value: ast.expr) -> set[str]:
        """Return the names of what a value is, or is made of, if it is awaited; what a function is
        called with that may do anything with it is none of that."""
        if isinstance(value, ast.Name):
            return {value.id}
        parts: list[ast.expr] = []
        if isinstance(value, ast.Call):
            name = self._name_of(value.func)
            if name in _FIRST:
                parts = value.args[:1] or [
                    each.value for each in value.keywords if each.arg == "fut"
                ]
            elif name in _ALL:
                parts = value.args if name == "gather" else value.args[:1]
            elif isinstance(value.func, ast.Attribute):
                parts = [value.func.value] if name in _VIEWS else []
            elif name in _COPIES:
                parts = value.args
        elif isinstance(value, (ast.Starred, ast.Subscript, ast.NamedExpr)):
            parts = [value.value]
        elif isinstance(value, (ast.List, ast.Tuple, ast.Set)):
            parts = value.elts
        elif isinstance(value, ast.Dict):
            parts = value.values
        elif isinstance(value, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            parts = [value.elt]
        elif isinstance(value, ast.IfExp):
            parts = [value.body, value.orelse]
        elif isinstance(value, ast.BoolOp):
            parts = value.values
        elif isinstance(value, ast.BinOp):
            parts = [value.left, value.right]
        return set[str]().union(*map(self._parts_in, parts))

    def _name_of(self, function: ast.expr) -> str:
        """Return the name of a function that is asyncio's, or of a container's; else nothing."""
        if isinstance(function, ast.Name):
            known = self._known.get(function.id)
            is_asyncio = known is None or known is getattr(asyncio, function.id, None)
            return function.id if is_asyncio or function.id not in _ALL | _FIRST else ""
        if not isinstance(function, ast.Attribute):
            return ""
        if function.attr in _ALL | _FIRST and function.attr != "create_task":  # of any group
            module = function.value.id if isinstance(function.value, ast.Name) else ""
            if module != "asyncio" and self._known.get(module) is not asyncio:
                return ""
        return function.attr


# --- in the code ----------------------------------------------------------------------------------


def _in_code(code: CodeType) -> set[str]:
    """Return the parameters that a function awaits, without its source.

    What is computed right before it is awaited is looked through, back to where that begins.
    """
    names: set[str] = set()
    before: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "GET_AWAITABLE":
            names |= _loaded(before)
        if instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            before.append(instruction)
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return names & set(code.co_varnames[:count])


def _loaded(before: list[dis.Instruction]) -> set[str]:
    """Return the local names in the expression that these instructions end with."""
    wanted = 1
    locals_: list[str] = []
    globals_: set[str] = set()
    attributes: set[str] = set()
    is_call = False
    for instruction in reversed(before):
        name = instruction.opname
        if name == "END_FOR":  # the way of a loop's end, which is counted as if it went on
            wanted += sys.version_info < (3, 13)
            continue
        wanted -= dis.stack_effect(instruction.opcode, _argument(instruction), jump=False)
        if name.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")):
            value = instruction.argval
            locals_[:0] = value if isinstance(value, tuple) else [value]
        elif name.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
            globals_.add(str(instruction.argval))
        elif name.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            attributes.add(str(instruction.argval))
        elif name.startswith("CALL"):
            is_call = True
        if wanted <= 0:
            break
    callee = globals_ | attributes
    if not is_call:
        return set() if callee else set(locals_)
    if not callee or not callee <= _KNOWN:
        return set()
    if attributes & (_FIRST | _ALL) and "asyncio" not in globals_:
        return set()  # a method of something else, such as an event's `wait`
    return set(locals_) if callee & _ALL else set(locals_[:1])


def _argument(instruction: dis.Instruction) -> int | None:
    return instruction.arg if instruction.opcode >= dis.HAVE_ARGUMENT else None
