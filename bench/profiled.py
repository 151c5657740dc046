"""What is profiled, with the profiler inside: ``python -m bench.profiled <task> <report>``, run by ``bench.profile``.

``busy``, ``quiet`` and ``start`` run the operator, with settings as ``vmpool operator`` takes them, and SIGUSR1 turns
the profiler on, or off with a report; for ``start`` it is on from the first line. ``gateway`` does the same with
``vmpool gateway``. ``memory`` runs the operator and reports at SIGUSR1 what it has allocated since it was started and
still holds. ``plan`` needs no signal.
"""

import gc
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pyinstrument
from pyinstrument.renderers import ConsoleRenderer
from pyinstrument.session import Session

from bench.figures import commit

ROOT = Path(__file__).parent.parent
LINES = 140
"""Longest report, beside its heading."""
FLAT_LINES = 25
PLANS = 20
PLANNED_VMS = 10_000
TOP = 20
LEAST_SHARE = 0.008
"""Of the whole; what takes less is left out of the tree."""
INTERVAL = 0.001
QUIET_INTERVAL = 0.0002
"""Seconds between two samples. Short where the loop often waits: work that ends before its first sample is not seen."""
KB = 1024.0


class Plain(ConsoleRenderer):
    """Without the banner: it names the time and the path of the program."""

    def render_preamble(self, session: Session) -> str:  # noqa: ARG002
        return ""


def report(session: Session) -> str:
    """Return where the time went, first by function and then by call, in at most ``LINES`` lines.

    Time spent waiting for events is left out: it is nobody's work.
    """
    waited = sum(spent for stack, spent in session.frame_records if _waits(stack))
    session.frame_records = [(stack, spent) for stack, spent in session.frame_records if not _waits(stack)]
    busy = sum(spent for _, spent in session.frame_records)
    options = {"filter_threshold": LEAST_SHARE}
    # "[self]" stands for the inside of all functions together: what is wanted here is each one's own.
    flat = [
        line
        for line in Plain(flat=True, processor_options=options).render(session).splitlines()
        if "[self]" not in line
    ]
    tree = Plain(unicode=True, processor_options=options).render(session).splitlines()
    return cut(
        [
            f"pyinstrument {pyinstrument.__version__}, a sample every {session.min_interval * 1000:g} ms; "
            f"commit {commit()}",
            f"{busy:.2f} s busy, {waited:.2f} s waiting for events; {session.cpu_time:.2f} CPU s, with the profiler",
            "",
            "Seconds in the function itself",
            "",
            *(line for line in flat[:FLAT_LINES] if line.strip()),
            "",
            "Seconds in the function and what it calls",
            "",
            *(line for line in tree if line.strip()),
        ]
    )


def _waits(stack: list[str]) -> bool:
    """Whether a sample was taken while the event loop had nothing to do."""
    functions = (frame.split("\x00") for frame in stack[-2:])
    return any(function == "select" and path.endswith("selectors.py") for function, path, *_ in functions)


def cut(lines: list[str]) -> str:
    """Return at most ``LINES`` lines as text, saying how many are left out, without the path of this checkout."""
    left_out = len(lines) - LINES
    if left_out > 0:
        lines = [*lines[:LINES], f"... {left_out} lines of smaller shares are left out"]
    return "\n".join(line.rstrip().replace(f"{ROOT}/", "") for line in lines) + "\n"


# --- tasks ------------------------------------------------------------------------------------------------------------


def profile_process(to: Path, interval: float, run: Callable[[], None], *, from_start: bool = False) -> None:
    """Run the operator or the gateway; write the report when the profiler is turned off."""
    profiler = pyinstrument.Profiler(interval, async_mode="disabled")

    def switch(_number: int, _frame: FrameType | None) -> None:
        if profiler.is_running:
            _write(to, report(profiler.stop()))
        else:
            profiler.start()

    signal.signal(signal.SIGUSR1, switch)
    if from_start:
        profiler.start()
    run()


def measure_operator(to: Path) -> None:
    """Run the operator; at SIGUSR1 write by file and line what it has allocated since and still holds."""
    import vmpool.rim.process  # noqa: F401  (what importing it allocates is not what VMs cost)

    gc.collect()
    tracemalloc.start()

    def tell(_number: int, _frame: FrameType | None) -> None:
        gc.collect()
        _write(to, allocations(tracemalloc.take_snapshot()))

    signal.signal(signal.SIGUSR1, tell)
    _run_operator()


def allocations(held: tracemalloc.Snapshot) -> str:
    """Return what is allocated by file and by line, largest first."""
    held = held.filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    total = sum(trace.size for trace in held.traces)
    lines = [f"tracemalloc; commit {commit()}", f"{total / KB:,.0f} KB held, allocated since the modules were loaded"]
    for key in ("filename", "lineno"):
        lines += ["", f"KB held by {'file' if key == 'filename' else 'line'}, and in how many blocks", ""]
        for one in held.statistics(key)[:TOP]:
            frame = one.traceback[0]
            where = short(frame.filename) + (f":{frame.lineno}" if key == "lineno" else "")
            lines.append(f"{one.size / KB:10,.0f} {one.count:9,}  {where}")
    return cut(lines)


def short(path: str) -> str:
    """Return a file's path as seen from where Python has found it."""
    for folder in sorted((one for one in sys.path if one), key=len, reverse=True):
        if path.startswith(f"{folder.rstrip('/')}/"):
            return path[len(folder.rstrip("/")) + 1 :]
    return path.rsplit("/lib/", 1)[-1]


def profile_plan(to: Path) -> None:
    """Profile plans over a large pool."""
    from bench.claim_queue import NOW
    from bench.plan import snapshot
    from vmpool.plan.pool import plan_pool

    seen = snapshot(PLANNED_VMS)
    plan_pool(seen, NOW)
    began = time.thread_time()
    for _ in range(PLANS):
        plan_pool(seen, NOW)
    bare = time.thread_time() - began
    with pyinstrument.Profiler(INTERVAL) as profiler:
        for _ in range(PLANS):
            plan_pool(seen, NOW)
    session = profiler.last_session
    assert session is not None, "it has just ended"
    _write(to, f"{PLANS} plans; {bare:.2f} CPU s without the profiler\n{report(session)}")


def _run_operator() -> None:
    from vmpool.rim.process import run_operator
    from vmpool.settings import Settings

    run_operator(Settings())


def _run_gateway() -> None:
    from vmpool.gateway.process import run_gateway
    from vmpool.settings import GatewaySettings, Settings

    run_gateway(Settings(), GatewaySettings())


def _write(to: Path, text: str) -> None:
    """Write the report whole: who waits for the file must not see half of it."""
    part = to.with_suffix(".part")
    part.write_text(text)
    part.replace(to)


TASKS: dict[str, Callable[[Path], None]] = {
    "busy": lambda to: profile_process(to, INTERVAL, _run_operator),
    "quiet": lambda to: profile_process(to, QUIET_INTERVAL, _run_operator),
    "start": lambda to: profile_process(to, INTERVAL, _run_operator, from_start=True),
    "gateway": lambda to: profile_process(to, QUIET_INTERVAL, _run_gateway),
    "memory": measure_operator,
    "plan": profile_plan,
}


if __name__ == "__main__":
    TASKS[sys.argv[1]](Path(sys.argv[2]))
