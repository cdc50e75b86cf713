"""Text on the terminal: characters that control it are shown and have no effect.

Paths, the fields of a log and the messages of libraries may contain such characters,
and may look like markup.
"""

import sys
from typing import Any

from rich.console import Console


def printable(text: str) -> str:
    r"""Returns the text as one line: a newline becomes \n, an escape character \x1b.

    So does every other character that has no appearance of its own, such as half of a
    surrogate pair or a mark that reverses the direction of writing.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


class Terminal(Console):
    """A console that prints each text as one line, without markup."""

    def __init__(self, **options: Any) -> None:
        plain = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
        super().__init__(**plain | options)
        # A terminal that lacks a character shows its escape.
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")

    def print(self, *objects: Any, **options: Any) -> None:
        lines = [printable(x) if isinstance(x, str) else x for x in objects]
        super().print(*lines, **options)
