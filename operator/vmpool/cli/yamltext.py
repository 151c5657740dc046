"""YAML as people read it: keys in their order, and a text of several lines as such, so that a change shows by line."""

from collections.abc import Iterable
from typing import Final

import yaml

WIDTH: Final = 110


class _Dumper(yaml.SafeDumper):
    pass


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _lines)


def document(made: object) -> str:
    """Return one document."""
    return documents([made])


def documents(made: Iterable[object]) -> str:
    """Return several documents of one file."""
    return str(yaml.dump_all(made, Dumper=_Dumper, sort_keys=False, width=WIDTH))
