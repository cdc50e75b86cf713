"""Tables of cases, and command lines that must be refused in this process."""

import pytest

from examples.imagenet import cli


def cases(names, /, **table):
    """Runs a test for each keyword, which is the case's id, with its values."""
    return pytest.mark.parametrize(names, table.values(), ids=table)


def words(arguments):
    """A command line's arguments as a list; a string is cut at its spaces."""
    return arguments.split() if isinstance(arguments, str) else list(arguments)


def assert_line(message, arguments, main=cli.main):
    """The command ends with one line, `error: ` and what the message matches."""
    with pytest.raises(SystemExit, match=f"^error: {message}") as end:
        main(words(arguments))
    assert "\n" not in end.value.code
    return end.value.code


def assert_usage(message, arguments, capsys, main=cli.main):
    """The command ends with the status of a wrong flag, and says so."""
    with pytest.raises(SystemExit) as end:
        main(words(arguments))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
