"""The log: strict JSON lines, resumable after any kill, and TensorBoard's scalars."""

import gc
import json
import re
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from cases import cases
from tensorboardX.proto.event_pb2 import Event
from trees import assert_refused

from examples.imagenet.log import Log, read_log, tensorboard

CONFIG = {"kind": "config", "run": {"epochs": 2}}
RESULT = {"kind": "result", "updates": 4, "accuracy": 0.5}
STOPPED = {"kind": "stopped", "step": 5}


FULL = Path("/dev/full")  # a file that takes nothing


def assert_raises(message):
    return pytest.raises(OSError, match=f"^{message}")


def records(updates):
    """A log of so many updates: a checkpoint after each second, which ends an epoch."""
    found = [CONFIG]
    for step in range(updates):
        found.append({"kind": "step", "step": step, "loss": 1 / (step + 1)})
        found.append({"kind": "layers", "step": step, "layers": {"w": {"norm": 2.0}}})
        if step % 2:
            found.append({"kind": "speed", "step": step + 1, "data_wait": 0.0})
            found.append({"kind": "epoch", "step": step + 1, "accuracy": 0.5})
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def write(path, found, **options):
    with Log(path, lambda record: None, **options) as log:
        for record in found:
            log.write(**record)


@pytest.mark.parametrize("updates", [0, 2, 4])
@cases("end", killed=[], finished=[RESULT], stopped=[STOPPED, RESULT])
def test_a_resumed_log_holds_what_the_checkpoint_holds(path, updates, end):
    write(path, [*records(5), *end])
    write(path, [], resume_at=updates)
    assert read_log(path) == records(updates)
    more = {"kind": "step", "step": updates}
    write(path, [more], resume_at=updates)
    assert read_log(path) == [*records(updates), more]
    assert list(path.parent.iterdir()) == [path]


def test_the_update_that_was_lost_is_cut_but_not_a_stop_at_the_checkpoint(path):
    stop, lost = {"kind": "stopped", "step": 4}, {"kind": "not_finite", "step": 4}
    write(path, [*records(4), stop, lost, RESULT])
    write(path, [], resume_at=4)
    assert read_log(path) == [*records(4), stop]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_half_written_last_line_is_none(path, cut):
    write(path, records(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    *kept, last = records(2)
    assert len(json.dumps(last)) > 40  # every cut is within it
    assert read_log(path) == kept
    write(path, [last], resume_at=2)
    assert path.read_bytes() == whole


def test_another_line_that_is_no_json_is_named(path):
    path.write_text('{"kind": "config"}\n\0\0\n{"kind": "result"}\n')
    message = r"log\.jsonl: line 2 is not JSON: .*delete"
    assert_refused(message, write, path, [], resume_at=4)


def test_a_new_log_forgets_the_old_one_and_a_lost_one_is_begun(tmp_path):
    path = tmp_path / "in/a/new/folder/log.jsonl"
    assert read_log(path) == []
    write(path, records(2), resume_at=2)
    assert read_log(path) == records(2)
    write(path, [CONFIG])
    assert read_log(path) == [CONFIG]


def test_nothing_but_strict_json_is_written_and_shown_as_it_was(path):
    shown = []
    lost = {"kind": "step", "step": 0, "loss": np.nan, "accuracy": 0.5}
    layers = {"w": {"norm": np.inf, "rate": 1.0}, "b": {"norm": -np.inf}}
    with Log(path, shown.append) as log:
        log.write(**lost)
        log.write(kind="layers", step=0, layers=layers)
        # On disk at once: a kill loses no whole line.
        assert len(read_log(path)) == 2
    assert shown[0] == lost
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    step, layers = read_log(path)
    assert (step["loss"], step["accuracy"]) == (None, 0.5)
    assert layers["layers"] == {"w": {"norm": None, "rate": 1.0}, "b": {"norm": None}}


def events(path):
    """The events in a file: each framed by its length and two checksums."""
    raw, found = path.read_bytes(), []
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        found.append(Event.FromString(raw[12 : 12 + length]))
        raw = raw[16 + length :]
    return found


def scalars(folder):
    """{(name, step): value} as TensorBoard shows it: a restart drops what it redoes."""
    found = {}
    files = sorted(Path(folder).iterdir(), key=lambda path: events(path)[0].wall_time)
    for event in (event for path in files for event in events(path)):
        if event.session_log.status:
            found = {key: v for key, v in found.items() if key[1] < event.step}
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_holds_the_numbers_of_each_record_at_its_step(tmp_path):
    show = tensorboard(tmp_path)
    layers = {"conv/kernel": {"trust_ratio": 0.25, "local_rate": 0.5}}
    show(CONFIG)
    show({"kind": "step", "step": 3, "loss": 1.5, "accuracy": 0.125})
    show({"kind": "layers", "step": 3, "layers": layers})
    show({"kind": "epoch", "step": 4, "epoch": 1, "split": "test", "accuracy": 0.75})
    show(RESULT)
    assert scalars(tmp_path) == {
        ("step/loss", 3): 1.5,
        ("step/accuracy", 3): 0.125,
        ("layers/conv/kernel/trust_ratio", 3): 0.25,
        ("layers/conv/kernel/local_rate", 3): 0.5,
        ("epoch/epoch", 4): 1.0,
        ("epoch/accuracy", 4): 0.75,
    }


def test_tensorboard_of_a_resumed_run_shows_no_step_twice(tmp_path):
    first, second = tensorboard(tmp_path), tensorboard(tmp_path)
    first(CONFIG)
    for step in range(4):
        first({"kind": "step", "step": step, "loss": 1.0})
    first({"kind": "stopped", "step": 4})
    second({"kind": "resume", "step": 2, "versions": {}})
    second({"kind": "step", "step": 2, "loss": 2.0})
    second({"kind": "speed", "step": 3, "data_wait": 0.5})
    second(RESULT)
    assert scalars(tmp_path) == {
        ("step/loss", 0): 1.0,
        ("step/loss", 1): 1.0,
        ("step/loss", 2): 2.0,
        ("speed/data_wait", 3): 0.5,
    }


def test_tensorboard_on_a_full_disk_is_one_error(tmp_path, capfd):
    show = tensorboard(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").mkdir()
    full = patch("tensorboardX.record_writer.open_file", lambda _: FULL.open("wb"))
    with full, assert_raises("--tensorboard: cannot write to .*: No space left"):
        show({"kind": "step", "step": 0, "loss": 1.0})
    gc.collect()
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_a_log_that_is_deleted_or_replaced_ends_the_run(path):
    message = f"--out: {re.escape(str(path))} was deleted or replaced during the run"
    for act in (path.unlink, lambda: path.rename(path.with_suffix(".old"))):
        with Log(path, lambda record: None) as log:
            log.write(**CONFIG)
            act()
            with assert_raises(message):
                log.write(**RESULT)
