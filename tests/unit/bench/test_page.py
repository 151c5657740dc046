"""The plots and tables of docs/performance.md are what the kept results make."""

from typing import Any

import pytest

from bench import page
from bench.fill import VARIANTS
from bench.plots import drawn, results

KEPT = results()
SIZES = {"seconds_50": 0.5, "vms_per_second_50": 100.0, "writes_per_vm_50": 2.0, "seconds_500": 4.0}


def document(name: str, metrics: dict[str, float], **parts: Any) -> dict[str, Any]:
    plain = {"commit": "abc", "floor": metrics, "ratio": dict.fromkeys(metrics, 1.0), "pairs": [{}] * 5}
    return {"name": name, "metrics": metrics, "promises": {}, **plain, **parts}


FILL = document("fill", {f"seconds_{one.name}": one.bound * 1.05 for one in VARIANTS})
MEMORY = document("memory", {"rss_mb_0": 70.0, "rss_mb_1000": 75.0, "rss_mb_5000": 95.0})
PAGE = f"# Before\n\n{page.BEGIN}\nold\n{page.END}\n\nAfter.\n"


@pytest.mark.parametrize(("name", "needs"), [("fill.svg", {"fill", "fill_sizes"}), ("memory.svg", {"memory"})])
def test_the_plot_is_current(name: str, needs: set[str]) -> None:
    if missing := needs - KEPT.keys():
        pytest.skip(f"no results of {', '.join(sorted(missing))}: make bench")
    assert (page.IMAGES / name).read_text() == drawn(KEPT)[name], f"{name} is stale; type: make plots"


def test_the_tables_are_current() -> None:
    if not KEPT:
        pytest.skip("no results: make bench")
    text = page.PAGE.read_text()
    assert text == page.renewed(text, KEPT), "docs/performance.md is stale; type: make plots"


def test_the_same_results_give_the_same_plots_and_other_results_others() -> None:
    kept = {"fill": FILL, "fill_sizes": document("fill_sizes", SIZES), "memory": MEMORY}
    plots = drawn(kept)
    assert plots.keys() == {"fill.svg", "memory.svg"}
    assert drawn(kept) == plots
    more = drawn({"memory": document("memory", {**MEMORY["metrics"], "rss_mb_5000": 96.0})})
    assert more.keys() == {"memory.svg"}
    assert more["memory.svg"] != plots["memory.svg"]


def test_a_plot_is_readable_on_any_background_and_tells_nothing_of_when_or_where() -> None:
    plot = drawn({"memory": MEMORY})["memory.svg"]
    assert "fill: #ffffff" in plot
    assert ">resident memory in MB</text>" in plot
    assert "<dc:date>" not in plot


def test_the_tables_show_every_promise_and_every_figure_beside_its_floor() -> None:
    kept = {
        "plan": document("plan", {"plan_ms_10000": 61.0}, pairs=[{}]),
        "fill": document(
            "fill",
            {"seconds_1s_10": 53.21, "rate_instant": 160.0},
            floor={"seconds_1s_10": 51.0},
            ratio={"seconds_1s_10": 1.043},
            promises={
                "seconds_1s_10 <= 55": {"value": 53.21, "kept": True},
                "rate_instant ratio >= 0.6 of the floor": {"value": 0.55, "kept": False},
            },
        ),
        "later": document("later", {"x": 1.0}),
    }
    lines = page.block(kept).splitlines()
    assert "| `fill` | `seconds_1s_10` | <= 55 | 53.21 | yes |" in lines
    assert "| `fill` | `rate_instant` | >= 0.6 of the floor | 0.55 | **no** |" in lines
    assert "| `seconds_1s_10` | 53.21 | 51 | 1.043 |" in lines
    assert "| `rate_instant` | 160 |  |  |" in lines
    assert "Medians of 5 pairs, commit `abc`." in lines
    assert "One pair, commit `abc`." in lines
    assert [line for line in lines if line.startswith("### `")] == ["### `fill`", "### `plan`", "### `later`"]


def test_the_sizes_are_one_row_each() -> None:
    text = page.block({"fill_sizes": document("fill_sizes", SIZES)})
    assert "| 50 | 0.5 | 0.5 | 1 | 100 | 2 |" in text.splitlines()


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    made = page.renewed(PAGE, {"memory": MEMORY})
    assert made.startswith(f"# Before\n\n{page.BEGIN}\n")
    assert made.endswith(f"{page.END}\n\nAfter.\n")
    assert "old" not in made
    assert page.renewed(made, {"memory": MEMORY}) == made


@pytest.mark.parametrize("lost", [page.BEGIN, page.END])
def test_a_page_without_its_marks_is_not_overwritten(lost: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        page.renewed(PAGE.replace(lost, ""), {"memory": MEMORY})
