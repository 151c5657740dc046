"""What a provider says, without what we know it by.

A plug-in must not put credentials into its messages (``providers.errors``), and a far side may repeat to us what it was
sent. What is said ends up in status, events, dead letters and logs, so every answer is cleaned at the one door that all
calls go through, whoever wrote the plug-in.
"""

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

from vmpool.providers.base import Machine
from vmpool.providers.errors import ProviderError, Unavailable

T = TypeVar("T")

REDACTED: Final = "***"
LEAST: Final = 6
"""Shorter values are left alone: a port or a user's name is no secret, and would make every message unreadable."""
LEAST_LINE: Final = 20
"""A line of a longer value, a key in PEM say, that is as long as this is a secret by itself."""


class PluginBroken(Unavailable):
    """A plug-in raised something else than the errors of ``providers.errors``."""

    reason = "PluginBroken"


class Redaction:
    """Hides the values of Secrets in what is shown to people: whole, each longer line, in Base64 and in a URL.

    Not what is only a part of a value, a password in a file of settings say.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        found: set[str] = set()
        for value in values:
            whole = value.strip()
            if len(whole) >= LEAST:
                found |= {whole, base64.b64encode(whole.encode()).decode(), quote(whole, safe="")}
            found |= {line.strip() for line in whole.splitlines() if len(line.strip()) >= LEAST_LINE}
        # The longest first: a value that holds another one goes as a whole.
        self._values = tuple(sorted(found, key=lambda value: (-len(value), value)))

    def text(self, text: str) -> str:
        """Return the text with ``***`` in place of every value."""
        for value in self._values:
            text = text.replace(value, REDACTED)
        return text

    def answer(self, answer: T) -> T:
        """Return what a provider answered, a machine's message cleaned, in lists too.

        Only words for people: an id or an identity is compared with what it was before, and stays what it is.
        """
        cleaned: Any = answer
        match answer:
            case Machine(message=message) if message:
                cleaned = replace(answer, message=self.text(message))
            case list():
                cleaned = [self.answer(each) for each in answer]
        return cast("T", cleaned)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Clean what leaves the block as an error; a mistake of a plug-in that tells a value becomes PluginBroken."""
        try:
            yield
        except ProviderError as error:
            self.error(error)
            raise
        except Exception as error:
            if not self._tells(error):
                raise
            raise PluginBroken(f"{type(error).__name__}: {self.text(str(error))}") from None

    def _tells(self, error: BaseException) -> bool:
        found: BaseException | None = error
        while found is not None:
            if self.text(str(found)) != str(found):
                return True
            found = found.__cause__ or found.__context__
        return False

    def error(self, error: ProviderError) -> None:
        """Clean an error where it is. What it came from goes if it held a value: a log would print it too."""
        error.message = self.text(error.message)
        error.args = tuple(self.text(arg) if isinstance(arg, str) else arg for arg in error.args)
        told: BaseException | None = error
        while told is not None:
            cause = told.__cause__ or told.__context__
            if cause is not None and self.text(str(cause)) != str(cause):
                told.__cause__ = told.__context__ = None
                return
            told = cause
