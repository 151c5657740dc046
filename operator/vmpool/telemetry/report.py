"""The report of a live process: what any process can say of itself, and how it gets into the log.

One line of the log for each section, so that no line grows beyond what collectors of logs take. Everything is bounded:
what is left out is counted. Written by a thread, so that a process whose loop stands still can be asked too; what
changes under its hands is asked for again.
"""

import asyncio
import gc
import os
import platform
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic_settings import BaseSettings

import vmpool
from vmpool.telemetry import logs

log = logs.get(__name__)

STACKS_MOST = 40
"""Different stacks of tasks that are shown, the most frequent ones first."""
FRAMES_MOST = 14
"""Innermost frames of a stack that are shown."""
NAMES_MOST = 5
"""Names of tasks with the same stack that are shown."""
ITEMS_MOST = 50
"""Single things (loops in trouble, providers) that a section shows."""
TEXT_MOST = 200
"""Characters of one text."""
TRIES = 5
"""How often a section is asked for that changed while it was read."""
SECRET_WORDS = ("password", "secret", "token", "key")
STARTED_AT = time.monotonic()

Section = Callable[[], Mapping[str, Any]]


def write(sections: Mapping[str, Section], why: str) -> None:
    """Log every section as one event ``report``; one that cannot be made says why instead."""
    for name, section in sections.items():
        log.warning("report", why=why, section=name, content=_made(section))
    log.warning("report_ends", why=why, sections=len(sections))


def on_signal(sections: Callable[[], Mapping[str, Section]], number: signal.Signals = signal.SIGUSR1) -> None:
    """Write the report whenever the signal comes, without disturbing what runs; to be called in the main thread.

    One that comes while a report is being written asks for nothing more.
    """
    busy = threading.Lock()

    def work() -> None:
        try:
            write(sections(), "signal")
        except Exception as error:  # noqa: BLE001 - the report disturbs nobody
            log.warning("report_failed", error=str(error))
        finally:
            busy.release()

    def asked(_: int, __: FrameType | None) -> None:
        # Not here: this may have interrupted the very code that holds the log.
        if busy.acquire(blocking=False):
            threading.Thread(target=work, name="report", daemon=True).start()

    signal.signal(number, asked)


def process() -> Mapping[str, Any]:
    """Return version, age, memory, open files and the garbage collector's counts."""
    return {
        "version": vmpool.__version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "uptime_seconds": round(time.monotonic() - STARTED_AT, 1),
        "memory": _memory(),
        "open_files": _open_files(),
        "threads": threading.active_count(),
        "gc": {"enabled": gc.isenabled(), "counts": gc.get_count(), "frozen": gc.get_freeze_count()},
    }


def settings(given: BaseSettings) -> Section:
    """Return a section of the settings that differ from the default; what may be secret is only named."""

    def section() -> Mapping[str, Any]:
        fields = type(given).model_fields
        changed = {
            name: getattr(given, name)
            for name, field in fields.items()
            if getattr(given, name) != field.get_default(call_default_factory=True)
        }
        return {name: _shown(name, value) for name, value in changed.items()}

    return section


def tasks(loop: asyncio.AbstractEventLoop) -> Section:
    """Return a section of the loop's tasks: how many of each sort, and where they wait; equal stacks once."""

    def section() -> Mapping[str, Any]:
        stacks: dict[tuple[str, ...], list[str]] = defaultdict(list)
        sorts: dict[str, int] = defaultdict(int)
        found = asyncio.all_tasks(loop)
        for task in found:
            stacks[_stack_of(task)].append(task.get_name())
            sorts[_sort_of(task.get_name())] += 1
        often = sorted(stacks.items(), key=lambda one: -len(one[1]))
        return {
            "count": len(found),
            "sorts": dict(sorted(sorts.items(), key=lambda one: -one[1])[:ITEMS_MOST]),
            "stacks": [
                {"count": len(names), "names": [_short(name) for name in sorted(names)[:NAMES_MOST]], "stack": stack}
                for stack, names in often[:STACKS_MOST]
            ],
            "stacks_left_out": max(0, len(often) - STACKS_MOST),
        }

    return section


def threads() -> Mapping[str, Any]:
    """Return the stack of every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = list(sys._current_frames().items())
    return {
        "count": len(frames),
        "stacks": {f"{names.get(ident, '?')} ({ident})": stack_of(frame) for ident, frame in frames[:ITEMS_MOST]},
    }


def stack_of(frame: FrameType | None) -> list[str]:
    """Return a stack as text, the innermost frame last; no more than ``FRAMES_MOST`` of them."""
    found: list[str] = []
    while frame is not None and len(found) < FRAMES_MOST:
        found.append(_place(frame))
        frame = frame.f_back
    return found[::-1]


def _made(section: Section) -> Any:
    for attempt in range(1, TRIES + 1):
        try:
            return section()
        except Exception as error:  # noqa: BLE001 - a part that fails must not cost the others
            # Most likely a dictionary that the loop has changed meanwhile.
            if attempt == TRIES or not isinstance(error, RuntimeError):
                return {"error": _short(f"{type(error).__name__}: {error}")}
    return None


def _stack_of(task: "asyncio.Task[Any]") -> tuple[str, ...]:
    """Follow what a task waits for from coroutine to coroutine; its own stack ends at the first wait."""
    found: list[str] = []
    current: Any = task.get_coro()
    while current is not None and len(found) < 4 * FRAMES_MOST:
        frame = _first(current, ("cr_frame", "gi_frame", "ag_frame"))
        if frame is None:
            found.append(_short(type(current).__name__))
            break
        found.append(_place(frame))
        current = _first(current, ("cr_await", "gi_yieldfrom", "ag_await"))
    return tuple(found[-FRAMES_MOST:])


def _first(thing: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)


def _place(frame: FrameType) -> str:
    file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
    return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"


def _sort_of(name: str) -> str:
    """Return what tasks of one sort have in common: the name up to the object."""
    if name.startswith("Task-"):
        return "unnamed"
    return name.split("/", 1)[0].split(" for ", 1)[0][:60]


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, str) and any(word in name for word in SECRET_WORDS):
        return "(set)"
    return value if isinstance(value, int | float | bool) else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 1]}…"


def _memory() -> Mapping[str, int]:
    """Return resident and highest resident bytes; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    wanted = {"VmRSS:": "resident_bytes", "VmHWM:": "highest_bytes"}
    parts = [line.split() for line in lines]
    return {wanted[part[0]]: int(part[1]) * 1024 for part in parts if part and part[0] in wanted}


def _open_files() -> int | None:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return None
