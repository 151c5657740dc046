"""Virtual time: an asyncio loop whose clock jumps to the next timer, and the names by which the engine reads time.

Everything that is not decided by the code itself (the time, random names, what is logged) comes from here while a
story runs, so that a seed tells the same story each time.
"""

import asyncio
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from random import Random
from types import ModuleType
from typing import Any, Final

import vmpool.engine
import vmpool.kube

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
RESOLUTION: Final = 1e-6
"""Timers nearer to each other than this fire together: sums of floats differ in their last digits."""


class Stuck(Exception):
    """Nothing will ever happen any more, or far too much has."""


class _Jump:
    """Stands for the selector: waiting for a timer is setting the clock to it."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.turns = 0
        self.most = most

    def select(self, timeout: float | None) -> list[Any]:
        self.turns += 1
        if timeout is None:
            raise Stuck("nothing is due")
        if self.turns > self.most:
            raise Stuck(f"{self.turns} turns of the loop")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without sockets or threads; ``most`` bounds its turns (Stuck is raised beyond it)."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._jump = _Jump(most)
        self._selector = self._jump
        self._clock_resolution = RESOLUTION

    def time(self) -> float:
        """Return the seconds since the story began."""
        return self._jump.now

    @property
    def turns(self) -> int:
        """How often the loop has turned."""
        return self._jump.turns

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none: nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""


class _Time:
    """Stands for the module ``time`` and, by ``now``, for the class ``datetime``."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return EPOCH.timestamp() + self._loop.time()

    def perf_counter(self) -> float:
        # Work takes no time here: what a round costs on this machine must not change the story.
        return 0.0

    def now(self, _: tzinfo | None = None) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())


class _Chance:
    """Stands for the modules ``random`` and ``secrets``."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def random(self) -> float:
        return self._random.random()

    def choice(self, of: str) -> str:
        return self._random.choice(of)

    def token_hex(self, count: int) -> str:
        return f"{self._random.getrandbits(8 * count):0{2 * count}x}"


class _Log:
    """Stands for a module's logger; ``tell`` gets the lines, or nobody."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell = tell

    def _line(self, event: str, *values: object, **fields: object) -> None:
        if self._tell is not None:
            shown = event % values if values else event
            what = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("exc_info", "letter"))
            self._tell(f"    {shown} {what}")

    debug = info = warning = error = critical = exception = _line


def _modules() -> list[ModuleType]:
    found = []
    for package in (vmpool.engine, vmpool.kube):
        found += [
            importlib.import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
        ]
    return found


MODULES: Final = _modules()


@contextmanager
def virtual(loop: VirtualLoop, random: Random, tell: Callable[[str], None] | None, **more: object) -> Iterator[None]:
    """Let the engine and its client live in the loop's time for a while.

    ``more`` are further names to replace wherever a module of the engine has them.
    """
    time, chance = _Time(loop), _Chance(random)
    stand_ins: dict[str, object] = {"time": time, "random": chance, "secrets": chance, "log": _Log(tell), **more}
    before: list[tuple[ModuleType, str, object]] = []
    try:
        for module in MODULES:
            for name, stand_in in stand_ins.items():
                if name in vars(module) and (
                    name not in ("time", "random") or isinstance(vars(module)[name], ModuleType)
                ):
                    before.append((module, name, vars(module)[name]))
                    setattr(module, name, stand_in)
            if vars(module).get("datetime") is datetime and module.__name__.endswith((".world", ".loop", ".lane")):
                before.append((module, "datetime", datetime))
                setattr(module, "datetime", time)  # noqa: B010 - a name that the module owns
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
