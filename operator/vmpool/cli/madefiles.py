"""Files that are made from the code and committed: which of them are not as they are to be, and bringing them there."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def stale(root: Path, wanted: Mapping[str, str], present: Iterable[str]) -> list[str]:
    """Return the files below ``root`` that are not as wanted: changed, missing, or ``present`` and no longer made."""
    changed = [path for path, text in wanted.items() if _read(root / path) != text]
    return sorted([*changed, *(path for path in present if path not in wanted)])


def write(root: Path, wanted: Mapping[str, str], present: Iterable[str]) -> list[str]:
    """Bring the files below ``root`` up to date and return those that were not."""
    found = stale(root, wanted, present)
    for path in found:
        target = root / path
        if path in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(wanted[path], encoding="utf-8")
        else:
            target.unlink()
    return found


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None
