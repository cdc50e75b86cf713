"""Checkpoints that are damaged, or that cannot be read now."""

import collections
import random
import shutil
from unittest.mock import Mock

import pytest
import small_runs as runs
from mutations import mutate
from trees import assert_refused

from examples.imagenet.run.checkpoint import Checkpoints, remove
from examples.imagenet.run.cluster import TryAgain


def without_record(folder):
    shutil.rmtree(folder / "run")


def empty(folder):
    (folder / "run" / "metadata").write_bytes(b"")


def truncated(folder):
    path = folder / "state" / "_METADATA"
    path.write_bytes(path.read_bytes()[:100])


def wrong_metrics(folder):
    (folder / "metrics" / "metrics").write_bytes(b"{")


def wrong_number(folder):
    path = folder / "run" / "metadata"
    path.write_bytes(path.read_bytes().replace(b'"seconds": 0.0', b'"seconds": 9.0'))


def flipped(folder):
    path = max(folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)


def swapped(folder):
    before = folder.with_name("2") / "state"
    (folder / "state").rename(folder / "other")
    before.rename(folder / "state")
    (folder / "other").rename(before)


# After a failed read of orbax, its threads complain that the event loop is closed.
complaints = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
DAMAGES = (without_record, empty, truncated, wrong_metrics, wrong_number, flipped)


@complaints
@pytest.mark.parametrize(
    ("damage", "left"), [*((damage, 2) for damage in DAMAGES), (swapped, 1)]
)
def test_the_newest_whole_checkpoint_takes_the_place_of_damaged_ones(
    tmp_path, damage, left
):
    runs.save_all(tmp_path, (0.1, 0.2, 0.3), 3)
    damage(tmp_path / "checkpoints" / "3")
    config = runs.config(checkpoints=3, out=str(tmp_path))
    with Checkpoints(config, *runs.FACTS) as checkpoints:
        state, _ = checkpoints.restore(runs.made_up(0))
        runs.assert_equal(state, runs.made_up(left))
        assert len(checkpoints.damaged) == 3 - left
        first = checkpoints.damaged[0]
        assert first.startswith("the checkpoint of update 3 is damaged (")
        assert first.endswith(f"it is now {tmp_path}/damaged_checkpoints/3")
        checkpoints.save(runs.made_up(3), 3, 0.0, None)  # in its place
    assert runs.steps_of(tmp_path) == [*range(1, left + 1), 3]
    assert (tmp_path / "damaged_checkpoints" / "3").is_dir()


@complaints
def test_with_all_checkpoints_damaged_the_run_does_not_start_anew(tmp_path):
    runs.save_all(tmp_path, (0.1, 0.2), 2)
    for step in (1, 2):
        flipped(tmp_path / "checkpoints" / str(step))
    checkpoints = Checkpoints(runs.config(out=str(tmp_path)), *runs.FACTS)
    unreadable = r"no checkpoint can be read .* 2 .* 1 is dam"
    assert_refused(unreadable, checkpoints.restore, runs.made_up(0))
    # A second start does not begin anew either, unless it is told to.
    again = runs.config(out=str(tmp_path))
    assert_refused("has the damaged ones", Checkpoints, again, *runs.FACTS)
    remove(tmp_path)
    with Checkpoints(again, *runs.FACTS) as fresh:
        assert fresh.restore(runs.made_up(0)) is None


@complaints
def test_half_deleted_checkpoints_are_removed_and_told(tmp_path):
    """What a kill leaves while orbax deletes an old one."""
    runs.save_all(tmp_path, (0.1, 0.2, 0.3), 3)
    half = tmp_path / "checkpoints" / "1"
    (half / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(half / "state")
    with Checkpoints(runs.config(out=str(tmp_path)), *runs.FACTS) as checkpoints:
        assert checkpoints.newest == 3
        told = f"removed {half}, a checkpoint that was half deleted"
        assert checkpoints.damaged == [told]
    assert runs.steps_of(tmp_path) == [2, 3]


def test_a_checkpoint_that_lacks_one_file_is_kept_aside(tmp_path):
    runs.save_all(tmp_path, (0.1, 0.2), 3)
    (tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(runs.config(out=str(tmp_path)), *runs.FACTS) as checkpoints:
        assert "_CHECKPOINT_METADATA missing" in checkpoints.damaged[0]
    assert (tmp_path / "damaged_checkpoints" / "2" / "state" / "_METADATA").is_file()


def test_a_checkpoint_stays_if_memory_or_threads_are_lacking(tmp_path, monkeypatch):
    runs.save_all(tmp_path, (0.5, 0.6), 2)
    config = runs.config(checkpoints=2, out=str(tmp_path))
    thread = "can't start new thread"
    for error, why in ((MemoryError(), "MemoryError"), (RuntimeError(thread), thread)):
        with Checkpoints(config, *runs.FACTS) as checkpoints:
            read = Mock(side_effect=error)
            monkeypatch.setattr(checkpoints, "_read_record", read)
            with pytest.raises(TryAgain, match=rf"update 2 cannot be read \({why}\)"):
                checkpoints.restore(runs.made_up(0))
    assert runs.steps_of(tmp_path) == [1, 2]
    assert not (tmp_path / "damaged_checkpoints").exists()


@complaints
def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    runs.save_all(tmp_path, (0.1, 0.2), 3)
    checkpoints = Checkpoints(runs.config(out=str(tmp_path)), *runs.FACTS)
    denied = Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(checkpoints._manager, "restore", denied)
    refused = "--out: the checkpoint of update 2 cannot be read .*Permission denied"
    with pytest.raises(TryAgain, match=refused):
        checkpoints.restore(runs.made_up(0))
    assert runs.steps_of(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["5", "007", "12a", "²"])
def test_odd_entries_among_checkpoints_are_left_alone(tmp_path, name):
    runs.save_all(tmp_path, (0.1, 0.2), 3)
    odd = tmp_path / "checkpoints" / name
    odd.touch() if name == "5" else odd.mkdir()
    with Checkpoints(runs.config(out=str(tmp_path)), *runs.FACTS) as checkpoints:
        assert int(checkpoints.restore(runs.made_up(0))[0].step) == 2
    assert odd.exists()


@complaints
def test_damaged_copies_of_checkpoints_are_restored_whole_or_not_at_all(
    tmp_path, request
):
    """One file of the newest, damaged, removed, or changed for one of another step."""
    runs.save_all(tmp_path / "whole", (0.1, 0.2, 0.3), 3)
    chance, restored = random.Random(0), collections.Counter()
    out = tmp_path / "out"
    config = runs.config(checkpoints=3, out=str(out))
    for _ in range(max(1, request.config.getoption("--damaged-copies") // 10)):
        shutil.copytree(tmp_path / "whole", out)
        newest = out / "checkpoints" / "3"
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        path = chance.choice(files)
        kind = chance.randrange(6)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            other = newest.with_name("2") / path.relative_to(newest)
            path.write_bytes(other.read_bytes() if other.exists() else b"")
        else:
            path.write_bytes(mutate(path.read_bytes() or b"x", chance))
        with Checkpoints(config, *runs.FACTS) as checkpoints:
            state, record = checkpoints.restore(runs.made_up(0))
        step = int(state.step)
        runs.assert_equal(state, runs.made_up(step))
        assert (record["seconds"], step in (2, 3)) == (0.0, True)
        if step == 2 and (out / "damaged_checkpoints").exists():
            assert "update 3 is damaged" in checkpoints.damaged[0]
        restored[step] += 1
        shutil.rmtree(out)
    print(f"checkpoints: {restored[2]} refused, {restored[3]} restored")
