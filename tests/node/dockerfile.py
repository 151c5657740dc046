"""Reads our Dockerfile: the part of the language that it uses, and an error for everything else."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
WORDS = frozenset(
    {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "USER", "WORKDIR"}
)


@dataclass(frozen=True)
class Step:
    """One instruction; ``text`` has its variables in place, but for those of RUN, which are the shell's."""

    word: str
    text: str


@dataclass
class Stage:
    """What one FROM begins."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, word: str) -> str:
        """The text of the last such instruction; fails where there is none."""
        found = [step.text for step in self.steps if step.word == word]
        assert found, f"stage {self.name or self.base} has no {word}"
        return found[-1]

    def pairs(self, word: str) -> dict[str, str]:
        """Names and values of all ENV or LABEL instructions."""
        items = [item for step in self.steps if step.word == word for item in shlex.split(step.text)]
        return dict(item.split("=", 1) for item in items)

    def listed(self, word: str) -> list[str]:
        """The arguments of an instruction in its JSON form; the shell's form is refused."""
        return [str(each) for each in json.loads(self.last(word))]


def read(text: str, given: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages of a Dockerfile; ``given`` are build arguments. Raises ValueError for what is not understood."""
    outer: dict[str, str] = {}
    inner: dict[str, str] = {}
    stages: list[Stage] = []
    for line in _lines(text):
        word, _, rest = line.partition(" ")
        if word not in WORDS:
            raise ValueError(f"not understood: {line}")
        known = inner if stages and word != "FROM" else outer
        rest = rest.strip() if word == "RUN" else _filled(rest.strip(), known)
        if word == "ARG":
            name, _, default = rest.partition("=")
            known[name] = (given or {}).get(name, default or outer.get(name, ""))
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
            inner = {}
        elif not stages:
            raise ValueError(f"before any FROM: {line}")
        else:
            stages[-1].steps.append(Step(word, rest))
    return stages


def _lines(text: str) -> list[str]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", kept)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def _filled(text: str, known: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in known:
            raise ValueError(f"no ARG {name} before: {text}")
        return known[name]

    return VARIABLE.sub(value, text)
