"""What the errors of orbax and tensorstore say of a checkpoint that cannot be used.

tensorstore raises errors of its own, whose text has the number of the system's error.
"""

import re
from collections.abc import Iterator

# tensorstore adds details such as " [os_error_code='28']" to its messages; those of an
# array that could not be opened are pages long.
_DETAILS = re.compile(r""" \[[\w \[\]]+='(?:[^'\\]|\\.)*'\]""")


def cause(error: Exception) -> str:
    """Returns the end of an error's message, where orbax and tensorstore say why."""
    text = _DETAILS.sub("", " ".join(str(error).split()))
    return text if len(text) <= 160 else f"… {text[-160:]}"


def of_absence(error: BaseException) -> bool:
    """Returns True if an error says that a path is absent, or of the wrong kind."""
    return any(
        isinstance(each, FileNotFoundError | NotADirectoryError)
        or re.search(r"os_error_code='(2|20|21)'", str(each))
        for each in _causes(error)
    )


def of_storage(error: BaseException) -> bool:
    """Returns True if an error, or one that it came from, is of a file or a disk."""
    return any(
        isinstance(each, OSError) or "os_error_code" in str(each)
        for each in _causes(error)
    )


def of_resources(error: BaseException) -> bool:
    """Returns True if an error says that there is no memory or thread left."""
    texts = "can't start new thread", "RESOURCE_EXHAUSTED"
    return any(
        isinstance(each, MemoryError) or any(text in str(each) for text in texts)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, the one that it came from, and so on."""
    while error:
        yield error
        error = error.__cause__ or error.__context__
