"""One owner of a run's folder at a time.

The owner holds a lock of the operating system on the file `lock` in the folder. The
system releases it when the process ends, however it ends, so a dead owner never blocks
the folder. Over NFS the lock also holds between machines, if the server has locks.
"""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..log import same_file
from .cluster import TryAgain

_FILE = "lock"


@contextmanager
def owned(folder: Path) -> Iterator[str]:
    """Creates the folder if need be, and owns it until the context ends.

    Yields a warning if the file system has no locks, otherwise "". Raises TryAgain,
    with the owner, if another process owns the folder, and OSError if it is read-only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, warning = folder / _FILE, ""
    while True:
        # Opened without truncation: the file describes the present owner.
        with open(path, "a+", errors="replace", opener=_open_file) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)  # an owner that has just begun writes its description
                file.seek(0)
                owner = file.read() or "another process"
                raise TryAgain(
                    f"--out: {str(folder)!r} is in use by {owner}; wait until it ends,"
                    " stop it, or give another --out"
                ) from None
            except OSError as error:
                warning = (
                    f"--out: {str(folder)!r} cannot be locked ({error.strerror}); make"
                    " sure that no other run uses it"
                )
            # Between opening and locking, an owner that ended may have deleted it.
            if not same_file(file, path):
                continue
            file.seek(0)
            if (text := file.read(80)) and not text.startswith("process "):
                raise ValueError(
                    f"--out: {str(path)!r} is not a lock of the trainer, which needs"
                    " this name for its lock; rename it, or give another --out"
                )
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            file.flush()
            try:
                yield warning
            finally:
                if same_file(file, path):
                    path.unlink(missing_ok=True)
            return


def _open_file(path: str, flags: int) -> int:
    """Opens a regular file; raises OSError for a link, a pipe or a device."""
    number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a file", path)
    return number
