"""One owner of a run's folder at a time."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest
from small_runs import ROOT

from examples.imagenet.run.cluster import TryAgain
from examples.imagenet.run.lock import owned

OWN = """
import sys, time
from pathlib import Path
from examples.imagenet.run.lock import owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    command = [sys.executable, "-c", OWN, str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"owned\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path, owner):
    who = rf"process {owner.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d "
    with (
        pytest.raises(TryAgain, match=rf"--out: '.*out' is in use by {who}.*another"),
        owned(tmp_path / "out"),
    ):
        pytest.fail("two owners")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_does_not_block(tmp_path, owner, how):
    owner.send_signal(how)
    owner.wait()
    with owned(tmp_path / "out") as warning:
        assert not warning
    assert not list((tmp_path / "out").iterdir())  # no trace is left


def test_within_one_process_there_is_one_owner_too(tmp_path):
    with owned(tmp_path):
        with (
            pytest.raises(TryAgain, match=f"process {os.getpid()} on"),
            owned(tmp_path),
        ):
            pytest.fail("two owners")
        assert (tmp_path / "lock").exists()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path) as warning:
        assert warning.startswith(
            f"--out: {str(tmp_path)!r} cannot be locked (No locks"
        )


def test_a_file_of_the_user_is_not_taken_for_a_lock(tmp_path):
    mine, link = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    for path in (mine, link):
        path.parent.mkdir()
    mine.write_bytes(b"important \xff")
    link.symlink_to(mine)
    with (
        pytest.raises(ValueError, match="is not a lock of the trainer"),
        owned(mine.parent),
    ):
        pytest.fail("owned")
    with pytest.raises(OSError, match="symbolic links"), owned(link.parent):
        pytest.fail("owned")
    assert mine.read_bytes() == b"important \xff"


def test_an_owner_whose_folder_was_replaced_leaves_the_new_lock(tmp_path):
    folder = tmp_path / "out"
    with owned(folder):
        folder.rename(tmp_path / "old")
        folder.mkdir()
        (folder / "lock").write_text("process 1 on another host")
    assert (folder / "lock").exists()
