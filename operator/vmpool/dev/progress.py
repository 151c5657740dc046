"""Tell a waiting user what happens: one live line on a terminal, a line every few seconds anywhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

PLAIN_LINE_SECONDS = 15.0


class Progress:
    """Notes that stay, and one changing line while something long runs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(line), soft_wrap=True)

    @contextmanager
    def live(self, line: str) -> Iterator[Callable[[str], None]]:
        """Show a line until the block ends; the yielded function replaces it as often as the caller likes."""
        if self._console.is_terminal:
            with self._console.status(Text(line)) as status:
                yield lambda text: status.update(Text(text))
        else:
            self.note(line)
            yield _now_and_then(self.note)


def _now_and_then(note: Callable[[str], None]) -> Callable[[str], None]:
    last = time.monotonic()

    def change(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            note(line)

    return change
