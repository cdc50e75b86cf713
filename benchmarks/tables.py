"""Tables for the README and the results' pages."""

import re
from collections.abc import Iterable


def markdown(rows: Iterable[Iterable[str]]) -> str:
    """The first row is the header."""
    head, *rest = map(list, rows)
    lines = [head, ["---"] * len(head), *rest]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def placed(text: str, name: str, table: str) -> str:
    """The text with the table between its marks, `<!-- name -->`, made anew."""
    marks = rf"(?s)(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)"
    new, count = re.subn(marks, lambda _: table, text)
    if count != 1:
        raise ValueError(f"found the marks <!-- {name} --> {count} times, not once")
    return new
