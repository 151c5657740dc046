"""How long machines of one pool took lately to boot and to go: it tells when to look. Memory only."""

from collections import deque
from collections.abc import Mapping
from datetime import timedelta

from vmpool.plan.looks import REMEMBERED, expected_duration
from vmpool.plan.snapshot import Step


class Durations:
    """The last few durations by provider and step; ``REMEMBERED`` of each, for the providers a pool ever named."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, Step], deque[timedelta]] = {}
        self._expected: dict[tuple[str, Step], timedelta] = {}

    @property
    def expected(self) -> Mapping[tuple[str, Step], timedelta]:
        """Return what to expect, as it stands now."""
        return self._expected

    def took(self, provider: str, step: Step, span: timedelta) -> None:
        """Remember that a step was seen to be done after this time."""
        last = self._last.setdefault((provider, step), deque(maxlen=REMEMBERED))
        last.append(span)
        expected = expected_duration(last)
        assert expected is not None, "there is at least this one"
        self._expected[provider, step] = expected

    def forget(self) -> None:
        """Another template: what the old one took says nothing about it."""
        self._last.clear()
        self._expected.clear()
