"""The plots of ``docs/performance.md``, drawn from the kept results and from nothing else.

The same results give the same bytes: an SVG in the repository changes when a figure does.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import RESULTS
from bench.fill import VARIANTS

Document = Mapping[str, Any]
"""What ``Result.document`` has kept."""

OURS, FLOOR, BOUND = "#0072b2", "#d55e00", "#555555"
"""Two colours that differ for every eye, also in grey, and a third that steps back."""
STYLE = {
    "svg.hashsalt": "vmpool",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
KB = 1024.0


def results(folder: Path = RESULTS) -> dict[str, Document]:
    """Return the kept results by the name of their benchmark."""
    documents = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    return {document["name"]: document for document in documents}


def drawn(kept: Mapping[str, Document]) -> dict[str, str]:
    """Return the SVGs by file name; a plot whose results are not all there is left out."""
    plots: dict[str, tuple[Callable[..., Figure], Sequence[str]]] = {
        "fill.svg": (fill_plot, ("fill_sizes", "fill")),
        "memory.svg": (memory_plot, ("memory",)),
    }
    made: dict[str, str] = {}
    for name, (plot, needs) in plots.items():
        if all(need in kept for need in needs):
            with styled():
                made[name] = _svg(plot(*(kept[need] for need in needs)))
    return made


@contextmanager
def styled() -> Iterator[None]:
    """Draw in our style, whatever the user's own settings are."""
    with mpl.rc_context(), style.context(["default", STYLE]):
        yield


def fill_plot(sizes: Document, fill: Document) -> Figure:
    """Return how filling grows with the pool's size, and how near it comes to what machines of a second bound it by."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _lines(left, sizes, "seconds_", FLOOR, "bare client", part="floor")
    _lines(left, sizes, "seconds_", OURS, "vmpool", part="metrics")
    left.set(title="Machines that run at once", xlabel="VMs in the pool", ylabel="seconds until all are Ready")
    left.set_xlim(left=0)
    left.set_ylim(bottom=0)
    left.legend(frameon=False, loc="upper left")
    _times_of_the_bound(right, fill)
    return figure


def memory_plot(memory: Document) -> Figure:
    """Return what is resident over the number of VMs, and what was promised."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    none, most = memory["metrics"]["rss_mb_0"], max(_sizes(memory["metrics"], "rss_mb_"))
    promised = [none, none + most * 20.0 / KB]
    axes.plot([0, most], promised, color=BOUND, linestyle="--", label="promise: 20 KB a VM")
    _lines(axes, memory, "rss_mb_", OURS, "vmpool", part="metrics")
    _lines(axes, memory, "rss_mb_", FLOOR, "bare client that holds the same objects", part="floor")
    axes.set(xlabel="VMs", ylabel="resident memory in MB")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _lines(axes: Axes, document: Document, prefix: str, color: str, label: str, *, part: str) -> None:
    found = _sizes(document[part], prefix)
    marker = "o" if part == "metrics" else "s"
    axes.plot(list(found), list(found.values()), color=color, marker=marker, label=label)


def _times_of_the_bound(axes: Axes, fill: Document) -> None:
    """Draw the variants whose machines take time, as multiples of the time that machines alone take."""
    bounded = [variant for variant in VARIANTS if variant.machine_seconds]
    axes.axvline(1.0, color=BOUND, linestyle="--", linewidth=1.5)
    for row, variant in enumerate(bounded):
        for part, color, marker, shift in (("metrics", OURS, "o", -0.17), ("floor", FLOOR, "s", 0.17)):
            seconds = fill[part][f"seconds_{variant.name}"]
            axes.plot(seconds / variant.bound, row + shift, color=color, marker=marker, linestyle="none")
            # In a column beside the plot: next to its mark it would lie over others.
            beside = axes.get_yaxis_transform()
            axes.text(1.03, row + shift, f"{seconds:.1f} s", color=color, va="center", transform=beside)
        if variant.slack:
            axes.plot([variant.slack] * 2, [row - 0.35, row + 0.35], color=BOUND, linewidth=1.5)
            axes.annotate("promise", (variant.slack, row - 0.38), ha="left", va="bottom", color=BOUND, fontsize=9)
    names = [
        f"cloud makes\n{one.slots} at a time" if one.slots else f"pool asks for\n{one.pending} at a time"
        for one in bounded
    ]
    axes.set_yticks(range(len(bounded)), names)
    axes.set_ylim(len(bounded) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.95), high)
    axes.set(title="Machines that take 1 s", xlabel="times the bound of the machines alone")


def _sizes(figures: Mapping[str, float], prefix: str) -> dict[int, float]:
    """Return the figures of one prefix by the number behind it, smallest first."""
    found = {int(name.removeprefix(prefix)): value for name, value in figures.items() if name.startswith(prefix)}
    return dict(sorted(found.items()))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    # One end of line at the end, as in every text of the repository.
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
