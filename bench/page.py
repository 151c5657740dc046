"""``python -m bench.page``: bring the plots and the tables of ``docs/performance.md`` up to date with the results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.plots import Document, drawn, results

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "images"
BEGIN = "<!-- Made by `make plots` from bench/results; do not edit until the next mark. -->"
END = "<!-- The end of what `make plots` has made. -->"
ORDER = (
    "fill",
    "fill_sizes",
    "cold_start",
    "idle",
    "react",
    "checkout",
    "claim",
    "failures",
    "takeover",
    "memory",
    "plan",
)
"""As the page explains them; others follow."""
BY_SIZE = "fill_sizes"


def block(kept: Mapping[str, Document]) -> str:
    """Return the tables: every promise and whether it was kept, then every figure beside its floor."""
    names = [*(name for name in ORDER if name in kept), *sorted(kept.keys() - set(ORDER))]
    documents = [kept[name] for name in names]
    heads = ("Benchmark", "Figure", "Promise", "Measured", "Kept")
    parts = ["### What is promised", _table(heads, (row for one in documents for row in _promises(one)))]
    for document in documents:
        pairs = len(document["pairs"])
        of = f"Medians of {pairs} pairs" if pairs > 1 else "One pair"
        parts += [f"### `{document['name']}`", f"{of}, commit `{document['commit']}`.", _figures(document)]
    return "\n\n".join(parts)


def renewed(text: str, kept: Mapping[str, Document]) -> str:
    """Return the page with its tables made anew. Raises ValueError for a page without the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has lost the marks between which its tables stand")
    return f"{before}{BEGIN}\n\n{block(kept)}\n\n{END}{after}"


def _promises(document: Document) -> Iterator[Sequence[str]]:
    for said, found in document["promises"].items():
        metric, _, promise = said.partition(" ")
        kept = "yes" if found["kept"] else "**no**"
        yield f"`{document['name']}`", f"`{metric}`", promise.removeprefix("ratio "), _number(found["value"]), kept


def _figures(document: Document) -> str:
    if document["name"] == BY_SIZE:
        return _by_size(document)
    rows = [
        (f"`{name}`", _number(value), _number(document["floor"].get(name)), _number(document["ratio"].get(name)))
        for name, value in document["metrics"].items()
    ]
    return _table(("Figure", "vmpool", "Floor", "Ratio"), rows)


def _by_size(document: Document) -> str:
    """Return one row for each size instead of one for each of its figures."""
    prefix = "seconds_"
    sizes = [name.removeprefix(prefix) for name in document["metrics"] if name.startswith(prefix)]
    rows = [
        (
            size,
            *(_number(document[part].get(f"seconds_{size}")) for part in ("metrics", "floor", "ratio")),
            *(_number(document["metrics"].get(f"{name}_{size}")) for name in ("vms_per_second", "writes_per_vm")),
        )
        for size in sizes
    ]
    return _table(("VMs", "Seconds", "of the floor", "Ratio", "VMs a second", "Writes a VM"), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def outputs(kept: Mapping[str, Document], page: str) -> dict[Path, str]:
    """Return what ``make plots`` writes, by path; ``page`` is the page as it stands."""
    return {PAGE: renewed(page, kept), **{IMAGES / name: svg for name, svg in drawn(kept).items()}}


def main() -> None:
    """Write what is not up to date and say so."""
    IMAGES.mkdir(exist_ok=True)
    for path, text in outputs(results(), PAGE.read_text()).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
