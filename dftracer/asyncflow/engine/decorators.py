"""What decorating a function does: describe it once, and make of each call a component."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from dftracer.asyncflow.backends import registry
from dftracer.asyncflow.backends.noop import NoopExecutionBackend
from dftracer.asyncflow.engine.component import Block, Component, RemoteTask, Task
from dftracer.asyncflow.engine.definition import Definition, Kind
from dftracer.asyncflow.engine.peers.awaited import awaited_by
from dftracer.asyncflow.engine.retries import Backoff, RetryOn, policy_of
from dftracer.asyncflow.errors import text_of

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from dftracer.asyncflow.engine.scheduler import Scheduler

P = ParamSpec("P")
R = TypeVar("R")
C_co = TypeVar("C_co", covariant=True)

if TYPE_CHECKING:

    class Options(TypedDict, total=False):
        """What all four decorators take besides ``service``, ``backend`` and ``capture_stdio``,
        which may be given by position too."""

        retries: int
        retry_on: RetryOn
        backoff: Backoff
        timeout: float | None

    class FunctionOptions(Options, total=False):
        """What that of functions takes besides."""

        loop: Literal["engine"] | None
        interrupt: bool


class Call(Protocol[P, C_co]):
    """A decorated function: keeps the parameters of the body and gives a component.

    The second form is for the futures that may stand in place of any value, and for the keyword
    arguments that every call takes: ``task_description=`` and ``workflow_id=``.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C_co: ...
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> C_co: ...


class FunctionDecorator(Protocol):
    """``@flow.function_task``: what a call gives is an awaitable of the body's result."""

    @overload
    def __call__(
        self,
        function: Callable[P, Coroutine[Any, Any, R]],
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[FunctionOptions],
    ) -> Call[P, Task[R]]: ...
    @overload
    def __call__(
        self,
        function: Callable[P, R],
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[FunctionOptions],
    ) -> Call[P, Task[R]]: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[FunctionOptions],
    ) -> FunctionDecorator: ...


class ExecutableDecorator(Protocol):
    """``@flow.executable_task`` and ``@flow.prompt_task``: what a call gives is an awaitable of
    the text that the program or the model writes."""

    @overload
    def __call__(
        self,
        function: Callable[P, Any],
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[Options],
    ) -> Call[P, Task[str]]: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[Options],
    ) -> ExecutableDecorator: ...


class BlockDecorator(Protocol):
    """``@flow.block``: what a call gives is an awaitable of the body's result."""

    @overload
    def __call__(
        self,
        function: Callable[P, Coroutine[Any, Any, R]],
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[Options],
    ) -> Call[P, Block[R]]: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        **options: Unpack[Options],
    ) -> BlockDecorator: ...


_NOT_GIVEN: Any = object()


def make_decorator(
    engine: Scheduler, backend_named: Callable[[str | None, str], Any], kind: Kind
) -> Callable[..., Any]:
    """Return the decorator of one kind of component, for use with and without parentheses."""

    def decorator(
        function: Any = _NOT_GIVEN,
        /,
        service: bool = False,
        backend: str | None = None,
        capture_stdio: bool = False,
        *,
        retries: int = 0,
        retry_on: RetryOn = Exception,
        backoff: Backoff = 0.1,
        timeout: float | None = None,
        loop: str | None = None,
        interrupt: bool = False,
    ) -> Callable[..., Any]:
        attribute = _attribute(kind)
        flags = (
            ("service", service),
            ("capture_stdio", capture_stdio),
            ("interrupt", interrupt),
        )
        for option, value in flags:
            if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"@flow.{attribute}: {option} must be True or False, "
                    f"not {type(value).__name__} {text_of(value)}"
                )
        if interrupt and kind != "function":
            raise TypeError(
                f"@flow.{attribute}: interrupt=True is for the bodies of function tasks, which a "
                f"{attribute} has not"
            )
        policy = policy_of(f"@flow.{attribute}", retries, retry_on, backoff, timeout)
        target = backend_named(backend, f"@flow.{attribute}")

        _check_loop(kind, loop, backend)
        # `None` stands for no function before options that are given by position.
        has_options = service or capture_stdio or backend is not None
        absent = (_NOT_GIVEN, None) if has_options else (_NOT_GIVEN,)
        if any(function is each for each in absent):
            return functools.partial(
                decorator,
                service=service,
                backend=backend,
                capture_stdio=capture_stdio,
                retries=retries,
                retry_on=retry_on,
                backoff=backoff,
                timeout=timeout,
                loop=loop,
                interrupt=interrupt,
            )

        name, is_async = _describe(kind, function)
        if loop is not None and not is_async:
            raise TypeError(
                f"@flow.{attribute}: loop='engine' takes an async function, and '{name}' is none: "
                "it would block the engine's event loop"
            )
        # A dry run runs nothing.
        runs_in_loop = loop is not None and not isinstance(target, NoopExecutionBackend)
        parameters = _parameters_of(function)
        awaits = is_async and kind in ("executable", "prompt")
        awaited = awaited_by(function, parameters) if awaits else None
        if awaited is not None:
            engine.has_awaiting_bodies = True
        called = registry.guarded(target, function, name) if kind == "function" else None
        component: type[Component[Any]] = Block if kind == "block" else Task
        if kind != "block" and engine.targets[target.name].leaves_results:
            component = RemoteTask
        definition = Definition(
            kind=kind,
            body=function,
            function=called,
            name=name,
            is_async=is_async,
            backend=target,
            target=engine.targets[target.name],
            backend_name=backend,
            service=service,
            capture_stdio=capture_stdio,
            interrupt=interrupt,
            policy=policy,
            options=_default_options(name, parameters),
            awaited=awaited,
            workflow_id_is_argument="workflow_id" in parameters,
            component=component,
            uid_prefix=(
                f"{engine.uid}." if kind != "block" and registry.shares_names(target) else ""
            ),
            tally=engine.counts.of(kind, name),
            needs_loop=kind != "function" or runs_in_loop,
            runs_in_loop=kind == "block" or runs_in_loop,
            window=(
                engine.targets[target.name].window
                if kind == "function" and not is_async and not service
                else 0
            ),
            is_plain=kind == "function" and not runs_in_loop and policy is None,
        )
        register = engine.register

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs:
                return register(definition, args, *_split_options(definition, kwargs))
            return register(definition, args)

        vars(call)["__task_description__"] = dict(definition.options)
        return call

    decorator.__name__ = _attribute(kind)
    decorator.__qualname__ = f"WorkflowEngine.{decorator.__name__}"
    return decorator


def _attribute(kind: Kind) -> str:
    return kind if kind == "block" else f"{kind}_task"


def _check_loop(kind: Kind, loop: Any, backend: str | None) -> None:
    """Refuse an option ``loop`` that makes no sense."""
    if loop is None:
        return
    attribute = _attribute(kind)
    if kind != "function":
        raise TypeError(f"@flow.{attribute} has no option 'loop': it is one of @flow.function_task")
    if loop != "engine":
        raise ValueError(f"@flow.{attribute}: loop must be 'engine' or None, not {text_of(loop)}")
    if backend is not None:
        raise ValueError(
            f"@flow.{attribute}: loop='engine' runs on no backend: leave out backend={backend!r}"
        )


def _describe(kind: Kind, function: Any) -> tuple[str, bool]:
    """Return the name of what is decorated, and whether it is async."""
    attribute = _attribute(kind)
    if inspect.iscoroutine(function):
        name = function.__qualname__
        function.close()  # or it would warn that it was never awaited
        raise TypeError(
            f"@flow.{attribute} takes a function, not the coroutine that calling '{name}' gave: "
            "pass the function itself"
        )
    if not callable(function):
        raise TypeError(
            f"@flow.{attribute} takes a function, not {type(function).__name__} {text_of(function)}"
        )
    name = getattr(function, "__name__", None) or type(function).__name__
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
    if kind == "block" and not is_async:
        raise TypeError(
            f"@flow.block takes an async function, and '{name}' is none: a block runs in the event "
            "loop, where it awaits its tasks"
        )
    return name, is_async


def _parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _default_options(name: str, parameters: Mapping[str, inspect.Parameter]) -> Mapping[str, Any]:
    parameter = parameters.get("task_description")
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return {}
    if not isinstance(parameter.default, Mapping):
        raise TypeError(
            f"the default of 'task_description' in '{name}' must be a dict, not "
            f"{type(parameter.default).__name__} {text_of(parameter.default)}"
        )
    return dict(parameter.default)  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]


def _split_options(
    definition: Definition, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any], str | None]:
    """Take out of a call's keyword arguments what is meant for the engine."""
    description = kwargs.pop("task_description", None)
    if definition.workflow_id_is_argument:
        # Also the body's own business, which may be anything.
        value = kwargs.get("workflow_id")
        workflow_id = value if isinstance(value, str) else None
    else:
        workflow_id = kwargs.pop("workflow_id", None)
    if not description:
        return kwargs, definition.options, workflow_id
    if not isinstance(description, Mapping):
        raise TypeError(
            f"task_description of '{definition.name}' must be a dict, not "
            f"{type(description).__name__} {text_of(description)}"
        )
    return kwargs, {**definition.options, **description}, workflow_id
