"""Wait for a condition with a deadline: the one place where tests are allowed to pass time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

POLL_SECONDS = 0.02
POLL_GROWTH = 1.3
POLL_MAX_SECONDS = 0.5


@overload
async def until(condition: Callable[[], Awaitable[T]], *, deadline: float = ..., what: str = ...) -> T: ...
@overload
async def until(condition: Callable[[], T], *, deadline: float = ..., what: str = ...) -> T: ...
async def until(condition: Callable[[], T | Awaitable[T]], *, deadline: float = 20.0, what: str = "the condition") -> T:
    """Return the first truthy value of ``condition()``, sync or async.

    Raises AssertionError with the last value seen when ``deadline`` seconds have passed.
    """
    end = time.monotonic() + deadline
    pause = POLL_SECONDS
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {deadline:g} s; last value: {value!r}")
        await asyncio.sleep(pause)
        pause = min(pause * POLL_GROWTH, POLL_MAX_SECONDS)
