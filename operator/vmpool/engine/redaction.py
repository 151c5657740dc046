"""What a provider says, without what we know it by.

A plug-in must not put credentials into its messages (``providers.errors``), and a far side may repeat to us what it was
sent. What is said ends up in status, events, dead letters and logs, so every answer is cleaned at the one door that all
calls go through, whoever wrote the plug-in.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from vmpool.providers.base import Machine
from vmpool.providers.errors import ProviderError

T = TypeVar("T")

REDACTED: Final = "***"
LEAST: Final = 6
"""Shorter values are left alone: a port or a user's name is no secret, and would make every message unreadable."""
LEAST_LINE: Final = 20
"""A line of a longer value, a key in PEM say, that is as long as this is a secret by itself."""


class Redaction:
    """Hides the values of one Secret, each of its longer lines too, in what is shown to people."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        found: set[str] = set()
        for value in values:
            whole = value.strip()
            found |= {whole} if len(whole) >= LEAST else set()
            found |= {line.strip() for line in whole.splitlines() if len(line.strip()) >= LEAST_LINE}
        # The longest first: a value that holds another one goes as a whole.
        self._values = tuple(sorted(found, key=lambda value: (-len(value), value)))

    def text(self, text: str) -> str:
        """Return the text with ``***`` in place of every value."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        return text

    def answer(self, answer: T) -> T:
        """Return what a provider answered, cleaned where it is words: a text, a machine's message, in lists too."""
        cleaned: Any = answer
        match answer:
            case str():
                cleaned = self.text(answer)
            case Machine(message=message) if message:
                cleaned = replace(answer, message=self.text(message))
            case list():
                cleaned = [self.answer(each) for each in answer]
        return cast("T", cleaned)

    def error(self, error: ProviderError) -> None:
        """Clean an error where it is. What it came from goes if it held a value: a log would print it too."""
        error.message = self.text(error.message)
        error.args = tuple(self.text(arg) if isinstance(arg, str) else arg for arg in error.args)
        seen: BaseException | None = error
        while seen is not None:
            cause = seen.__cause__ or seen.__context__
            if cause is not None and self.text(str(cause)) != str(cause):
                seen.__cause__ = seen.__context__ = None
                return
            seen = cause
