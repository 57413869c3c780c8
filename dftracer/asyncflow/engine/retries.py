"""Trying a task or block again when it fails, and limiting how long each attempt may take."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dftracer.asyncflow.errors import let_out, text_of, text_of_error
from dftracer.utils import TaskTimeoutError

if TYPE_CHECKING:
    from dftracer.asyncflow.engine.component import Component

T = TypeVar("T")

RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]
Backoff = float | Callable[[int], float]

log = logging.getLogger("dftracer.asyncflow")

_LONGEST_PAUSE_S = 60.0
"""Up to which a pause is doubled, unless the first is longer."""


@dataclass(frozen=True)
class Policy:
    """What a decorator says about the attempts of its calls."""

    retries: int
    retry_on: RetryOn
    backoff: Backoff
    timeout: float | None

    def wants_retry(self, error: Exception, raised: Any) -> bool:
        """Tell whether an attempt that has failed with ``error`` is worth another.

        Its body has ``raised`` the same, or what cannot be the error of a future.
        """
        if isinstance(self.retry_on, (type, tuple)):
            return isinstance(error, self.retry_on) or isinstance(raised, self.retry_on)
        return bool(self.retry_on(error))

    def pause_after(self, attempt: int) -> float:
        """Return how many seconds to wait after the attempt of that number, the first being 1."""
        if callable(self.backoff):
            return _seconds("what backoff() returns", self.backoff(attempt), least=0)
        longest = max(self.backoff, _LONGEST_PAUSE_S)
        pause = min(self.backoff * 2.0 ** min(attempt - 1, 64), longest)
        return pause * random.uniform(0.5, 1.0)  # so that those who failed together part


def policy_of(asker: str, retries: Any, retry_on: Any, backoff: Any, timeout: Any) -> Policy | None:
    """Return what the options of a decorator mean; ``None`` if there is but one, endless attempt.

    Raises
    ------
    TypeError, ValueError
        If one of them makes no sense; ``asker`` is who is told.
    """
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"{asker}: retries must be a whole number, not {text_of(retries)}")
    if retries < 0:
        raise ValueError(f"{asker}: retries must be 0 or more, not {retries}")
    if not _is_filter(retry_on):
        raise TypeError(
            f"{asker}: retry_on must be an exception type, a tuple of them, or a plain function "
            f"that takes an exception and tells whether to retry, not {text_of(retry_on)}"
        )
    pause: Any = backoff
    if not callable(backoff):
        pause = _seconds(f"{asker}: backoff", backoff, least=0, or_else=" or a function")
    if timeout is not None:
        timeout = _seconds(f"{asker}: timeout", timeout, or_else=" or None")
    return Policy(retries, retry_on, pause, timeout) if retries or timeout is not None else None


def _is_filter(value: Any) -> bool:
    if isinstance(value, type):
        return issubclass(value, BaseException)
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(each, type) and _is_filter(each) for each in value)
    return callable(value) and not inspect.iscoroutinefunction(value)


def _seconds(what: str, value: Any, *, least: float | None = None, or_else: str = "") -> float:
    bound = "above 0" if least is None else f"of {least} or more"
    hint = f"{what} must be a number of seconds {bound}{or_else}, not {text_of(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(hint)
    if not (0 < value < math.inf or value == least):
        raise ValueError(hint)
    return float(value)


class Attempts:
    """The attempts of one call, from the first until the call has ended.

    Each attempt has a description of its own, with ``attempt``, its number, and from the second
    on another ``uid``: a backend may still be at an earlier one that ran out of time.
    """

    def __init__(self, component: Component[Any], policy: Policy) -> None:
        self._component = component
        self._policy = policy
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        """What begins the next attempt, or ends this one."""
        # As they are before any attempt, and all that an attempt is made of: backends and bodies
        # may change what they are given.
        self._description = dict(component._describe())
        assert component._context is not None, "a component that has not ended has its context"
        self._context = component._context.copy()
        self._args, self._kwargs = component._args, component._own_kwargs()
        self._producers = component._producers

    def begin(self) -> None:
        """Describe the next attempt; it is about to be launched."""
        component, old = self._component, self._description
        self._stop_timer()
        self._number += 1
        component._args, component._kwargs = self._args, dict(self._kwargs)
        component._producers = self._producers
        fresh = {
            **old,
            "uid": component.uid if self._number == 1 else f"{component.uid}-{self._number}",
            "attempt": self._number,
            "args": component._args,
            "kwargs": component._kwargs,
            "task_backend_specific_kwargs": dict(old["task_backend_specific_kwargs"]),
            "metadata": dict(old["metadata"]),
            "context": self._context.copy(),
        }
        if self._number == 1:
            component._describe().update(fresh)  # somebody may hold it already
        else:
            component._description = fresh

    def hand_over(self) -> None:
        """Let the time of a task run that is about to be given to its backend."""
        template, timeout = self._component._template, self._policy.timeout
        if timeout is None:
            return
        # Some backends count from the beginning of the body. A service may go on once it is ready.
        if getattr(template.backend, "keeps_timeouts", False) and not template.service:
            options = self._component._describe()["task_backend_specific_kwargs"]
            options.setdefault("timeout", timeout)
        else:
            self._timer = self._call_later(timeout, self._run_out, timeout)

    def _run_out(self, timeout: float) -> None:
        component = self._component
        component._engine._fail(component, self._timeout_error(timeout))
        # Its description is still that of the attempt which has just failed.
        component._engine._cancel_on_backend(component)

    def takes(self, uid: str) -> bool:
        """Tell whether what a backend says of ``uid`` is of this attempt, not an earlier one."""
        return bool(uid == self._component._describe()["uid"])

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
        component._stage = "PENDING"
        self._timer = self._call_later(pause, component._engine._enqueue, component)
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
            self._component._engine._settle(self._component, error=failure)
            raise
        return failure

    def _cancel_members(self) -> None:
        """Cancel what the body of an attempt has called, which nobody else will wait for."""
        engine, number = self._component._engine, self._component._number
        for member in engine._members.pop(number, {}).values():
            engine._cancel(member, f"{self._label()} has ended")

    def _label(self) -> str:
        component = self._component
        return (
            f"{component.uid} '{component.name}': attempt {self._number} of "
            f"{self._policy.retries + 1}"
        )

    def end(self) -> None:
        """Let go: the call has ended, and with it all its attempts."""
        self._stop_timer()
        self._component._attempts = None

    def _call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        # A loop may keep a cancelled timer until it is due: its context, but not what it calls.
        run: Callable[..., Any] = self._context.copy().run
        return self._component.get_loop().call_later(delay, run, callback, *args, context=Context())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
