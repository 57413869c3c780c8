"""The attempts of one call: each is another submission, with a time limit of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from operator import attrgetter
from typing import Any, TypeVar

from dftracer.asyncflow.engine.component import Component
from dftracer.asyncflow.engine.interfaces import Keeper
from dftracer.asyncflow.engine.retries import Policy
from dftracer.asyncflow.errors import let_out, text_of_error
from dftracer.utils import TaskTimeoutError

T = TypeVar("T")

log = logging.getLogger("dftracer.asyncflow")


class Attempt:
    """One try at a task: what its backend is given. A backend may still be at an earlier one, which
    ran out of time."""

    __slots__ = (
        "args",
        "command",
        "component",
        "context",
        "description",
        "kwargs",
        "number",
        "options",
        "prompt",
        "trace_note",
    )

    function = property(attrgetter("component.definition.function"))
    name = property(attrgetter("component.definition.name"))
    interrupt = property(attrgetter("component.definition.interrupt"))
    capture_stdio = property(attrgetter("component.definition.capture_stdio"))

    def __init__(self, component: Component[Any], options: Mapping[str, Any]) -> None:
        self.component = component
        self.number = component.attempt
        self.args = component.args
        self.kwargs = component.kwargs
        self.context = component.context
        self.command: Sequence[str] | None = component.command
        self.prompt: str | None = component.prompt
        self.options = options
        self.trace_note: tuple[int, str] | None = None
        self.description: dict[str, Any] | None = None

    @property
    def uid(self) -> str:
        """The identifier of the call, with the number of the attempt from the second on."""
        uid = self.component.uid
        return uid if self.number < 2 else f"{uid}-{self.number}"

    def as_dict(self) -> dict[str, Any]:
        """Return the description of the call as it was for this attempt."""
        if self.description is None:
            description = self.component.as_dict()
            if self.component.submission is not self:
                description = {**description, "uid": self.uid, "args": self.args}
                description["kwargs"] = self.kwargs or {}
            description["task_backend_specific_kwargs"] = dict(self.options)
            self.description = description
        return self.description

    def describe(self, **facts: Any) -> None:
        """Add facts to the description."""
        self.as_dict().update(facts)


class Attempts:
    """The attempts of one call, from the first until the call has ended."""

    def __init__(self, scheduler: Keeper, component: Component[Any], policy: Policy) -> None:
        self._scheduler = scheduler
        self._component = component
        self._policy = policy
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        """What begins the next attempt, or ends this one."""
        # All that an attempt is made of, as it was before: backends and bodies may change it.
        assert component.context is not None, "a component that has not ended has its context"
        self._context = component.context.copy()
        self._args, self._kwargs = component.args, component.kwargs or {}
        self._producers = component.producers

    def begin(self) -> None:
        """Prepare the component for the next attempt, which is about to be launched."""
        component = self._component
        if self._timer is not None:
            self._stop_timer()
        self._number = component.attempt = self._number + 1
        component.args, component.kwargs = self._args, dict(self._kwargs)
        component.producers = self._producers
        component.context = self._context.copy()
        if self._number > 1:
            component.description = None  # the last attempt's stays what it is
        elif component.description is not None:  # somebody may hold it already
            component.description.update(attempt=1, context=component.context)

    def submission(self) -> Attempt:
        """Return the attempt as its backend is given it, and start its timeout."""
        component, timeout = self._component, self._policy.timeout
        definition, options = component.definition, component.options
        if timeout is not None:
            # Some backends count from the beginning of the body. A service may go on once it is
            # ready.
            if definition.target.keeps_timeouts and not definition.service:
                options = {"timeout": timeout, **options}
            else:
                self._timer = self._call_later(timeout, self._run_out, timeout)
        attempt = component.submission = Attempt(component, options)
        return attempt

    def _run_out(self, timeout: float) -> None:
        attempt = self._component.submission
        # The backend may still be at it, and report its end.
        self._component.submission = None
        self._scheduler.fail(self._component, self._timeout_error(timeout))
        self._scheduler.stop_submission(self._component.definition.target, attempt)

    async def limit(self, body: Awaitable[T]) -> T:
        """Await a body that runs in the event loop, and cancel it when the time is over."""
        timeout, task = self._policy.timeout, asyncio.current_task()
        if timeout is None or task is None:
            return await body
        is_over = False

        def run_out() -> None:
            nonlocal is_over
            is_over = True
            task.cancel()

        timer = self._call_later(timeout, run_out)
        try:
            return await body
        except asyncio.CancelledError:
            if not is_over:
                raise
            self._cancel_members()
            raise self._timeout_error(timeout) from None
        finally:
            timer.cancel()

    def _timeout_error(self, timeout: float) -> TaskTimeoutError:
        return TaskTimeoutError(
            f"{self._label()} took longer than {timeout:g} seconds: raise the timeout of its "
            "decorator if it needs more"
        )

    def fail(self, error: Exception, raised: Any) -> Exception | None:
        """End an attempt that has failed with ``error``, which stands for what it has ``raised``.

        Returns
        -------
        Exception or None
            What the call fails with; ``None`` if there will be another attempt.
        """
        self._stop_timer()
        if self._number > self._policy.retries:
            return error
        try:
            if not self._policy.wants_retry(error, raised):
                return error
            pause = self._policy.pause_after(self._number)
        except BaseException as fault:  # of what the decorator was given
            return self._undecided(fault, error)
        self._cancel_members()
        component = self._component
        component.place, component.is_running = None, False
        self._timer = self._call_later(pause, self._scheduler.enqueue, component)
        log.warning(
            "%s failed, the next is in %.3g seconds: %s", self._label(), pause, text_of_error(error)
        )
        return None

    def _undecided(self, fault: BaseException, error: Exception) -> Exception:
        """Return what a call fails with whose ``retry_on`` or ``backoff`` has raised ``fault``."""
        if fault is not error:
            fault.__cause__ = error
        if isinstance(fault, Exception):
            return fault
        text = f"{self._label()}: retry_on or backoff raised {text_of_error(fault)}"
        failure = RuntimeError(text)
        failure.__cause__ = fault
        try:
            let_out(fault)
        except BaseException:
            self._scheduler.settle(self._component, error=failure)
            raise
        return failure

    def _cancel_members(self) -> None:
        """Cancel what the body of an attempt has called, which nobody else will wait for."""
        self._scheduler.cancel_members(self._component, f"{self._label()} has ended")

    def _label(self) -> str:
        component = self._component
        return (
            f"{component.uid} '{component.name}': attempt {self._number} of "
            f"{self._policy.retries + 1}"
        )

    def end(self) -> None:
        """Stop the timer: the call has ended, and with it all its attempts."""
        if self._timer is not None:
            self._stop_timer()
        self._component.attempts = None

    def _call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        # A loop may keep a cancelled timer until it is due: its context, but not what it calls.
        run: Callable[..., Any] = self._context.copy().run
        loop: asyncio.AbstractEventLoop = self._component.get_loop()
        return loop.call_later(delay, run, callback, *args, context=Context())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
