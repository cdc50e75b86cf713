"""The log: strict JSON lines, resumable after any kill, and TensorBoard's scalars."""

import gc
import json
import re
import struct
from pathlib import Path
from unittest.mock import patch

import logs
import numpy as np
import pytest
import small_runs as runs
from cases import assert_line, cases
from matplotlib.figure import Figure
from mutations import mutate, mutate_field
from tensorboardX.proto.event_pb2 import Event
from trees import assert_refused

from examples.imagenet.log import Log, read_log, set_aside, tensorboard
from examples.imagenet.records import KINDS
from examples.imagenet.report import __main__ as report

CONFIG = logs.config()
STOPPED = {"kind": "stopped", "step": 5}


FULL = Path("/dev/full")  # a file that takes nothing


def assert_raises(message):
    return pytest.raises(OSError, match=f"^{message}")


def records(updates):
    """A log of so many updates: a checkpoint after each second, which ends an epoch."""
    found = [CONFIG]
    for step in range(updates):
        found += [logs.step(step, loss=1 / (step + 1)), logs.layers(step)]
        if step % 2:
            found += [logs.speed(5, done=step + 1), logs.epoch(1, 0.5, step + 1)]
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def write(path, found, **options):
    with Log(path, lambda record: None, **options) as log:
        for record in found:
            log.write(**record)


@pytest.mark.parametrize("updates", [0, 2, 4])
@cases("end", killed=[], finished=[logs.RESULT], stopped=[STOPPED, logs.RESULT])
def test_a_resumed_log_holds_what_the_checkpoint_holds(path, updates, end):
    write(path, [*records(5), *end])
    write(path, [], resume_at=updates)
    assert read_log(path) == records(updates)
    more = logs.step(updates)
    write(path, [more], resume_at=updates)
    assert read_log(path) == [*records(updates), more]
    assert list(path.parent.iterdir()) == [path]


def test_the_update_that_was_lost_is_cut_but_not_a_stop_at_the_checkpoint(path):
    stop, lost = {"kind": "stopped", "step": 4}, logs.LOST | {"step": 4}
    write(path, [*records(4), stop, lost, logs.RESULT])
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
    path.write_text(f"{json.dumps(CONFIG)}\n\0\0\n{json.dumps(STOPPED)}\n")
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
    lost = logs.step(0, loss=np.nan)
    row = {"grad_norm": 2.0, "trust_ratio": 1.0, "local_rate": 1.0}
    w, b = row | {"param_norm": np.inf}, row | {"param_norm": -np.inf}
    with Log(path, shown.append) as log:
        log.write(**lost)
        log.write(kind="layers", step=0, layers={"w": w, "b": b})
        # On disk at once: a kill loses no whole line.
        assert len(read_log(path)) == 2
    assert shown[0] == lost
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    step, layers = read_log(path)
    assert (step["loss"], step["accuracy"]) == (None, 0.5)
    assert layers["layers"] == dict.fromkeys("wb", row | {"param_norm": None})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The log of a real run, which has every kind of record."""
    folder = tmp_path_factory.mktemp("all_kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return runs.all_kinds(folder) / "log.jsonl"


def test_the_table_of_records_has_all_that_the_trainer_writes(real):
    found = read_log(real)
    assert {record["kind"] for record in found} == KINDS.keys()
    for record in found:
        assert record.keys() - {"kind"} == KINDS[record["kind"]].fields.keys()


def damaged(path, kind, /, **fields):
    """A log whose record of some kind has other fields, as literals of JSON."""
    found = [CONFIG, logs.step(0), logs.layers(0), logs.speed(5), logs.epoch(1, 0.5, 1)]
    marks = {name: f"the value of {name}" for name in fields}
    found = [r | marks if r["kind"] == kind else r for r in found]
    text = "".join(json.dumps(record) + "\n" for record in found)
    for name, literal in fields.items():
        text = text.replace(json.dumps(marks[name]), literal)
    path.write_text(text)


DEEP, TEN = "[" * 10**5 + "]" * 10**5, "1" + "0" * 400
WRONG = {
    "null": ("epoch", {"accuracy": "null"}, "5 has epoch.accuracy = null, .* 0 to 1"),
    "above": ("epoch", {"accuracy": "1.5"}, "5 has epoch.accuracy = 1.5, .* 0 to 1"),
    "text": (
        "step",
        {"step": '"7"'},
        "2 has step.step = '7', .* a whole number from 0",
    ),
    "true": ("step", {"step": "true"}, "2 has step.step = True, .* a whole number"),
    "negative": ("step", {"step": "-1"}, "2 has step.step = -1, .* from 0 to 2"),
    "nan": ("step", {"loss": "NaN"}, "2 has step.loss = nan, .* 1e300, or null"),
    "infinite": ("step", {"loss": "1e999"}, "2 has step.loss = inf, .* 1e300, or null"),
    "huge": ("step", {"loss": TEN}, r"2 has step.loss = 10+\.\.\.0+, .*1e300"),
    "digits": ("step", {"loss": "1" * 5000}, "2 is not JSON: '{"),
    "deep": ("step", {"loss": DEEP}, "2 is not JSON: '{"),
    "nested": (
        "step",
        {"loss": "[[[[[[[[]]]]]]]]"},
        r"2 has step.loss = \[{6}.{,20}, ",
    ),
    "still": ("speed", {"images_per_second": "0"}, "4 has .*_second = 0, .* from 1e-9"),
    "devices": (
        "speed",
        {"images_per_second_per_device": "6"},
        "4 has .*at most .*, 5",
    ),
    "kind": (
        "step",
        {"kind": '"x"'},
        "2 has kind = 'x', which must be one of config, ",
    ),
    "kinds": ("step", {"kind": "{}"}, "2 has kind = {}, which must be one of config, "),
    "run": ("config", {"run": "null"}, "1 has config.run = null, .* an object"),
    "no_network": ("config", {"model": "{}"}, "1 has no config.model.network, "),
    "batch": ("config", {"batching": '{"batch_size": 0}'}, "1 has .*batch_size = 0, "),
    "setting": (
        "config",
        {"data": '{"pixels": {}}'},
        "1 has config.data.pixels = {}, ",
    ),
    "no_layers": ("layers", {"layers": "{}"}, "3 has layers.layers = {}, .* a layer"),
    "layer": (
        "layers",
        {"layers": '{"w": {}}'},
        "3 has no layers.layers.w.param_norm, ",
    ),
}


@cases("kind, fields, message", **WRONG)
def test_a_field_that_is_not_as_the_trainer_writes_it_is_named(
    path, kind, fields, message
):
    damaged(path, kind, **fields)
    message = rf"log\.jsonl: line {message}.*; delete the line, or put back a good copy"
    assert_refused(message, read_log, path)
    assert_refused(message, write, path, [], resume_at=0)
    arguments = [str(path), "--out", str(path.parent / "out")]
    line = assert_line(f"RUN: .*{message}", arguments, report.main)
    assert line.isprintable()
    assert len(line) < 600


@cases(
    "line, message",
    number=(b"5", "line 1 has 5, which must be an object"),
    latin=(b'{"kind": "st\xe9p"}', r"line 1 is not JSON: .*\\xe9p"),
    no_kind=(b"{}", "line 1 has no kind, which must be one of config"),
)
def test_a_line_that_is_no_record_is_named(path, line, message):
    path.write_bytes(line + b"\n")
    assert_refused(message, read_log, path)
    assert_refused(message, write, path, [], resume_at=0)


def test_logs_of_older_versions_lack_fields(path):
    config = {key: CONFIG[key] for key in ("kind", "model", "optimizer", "batching")}
    epoch = {k: v for k, v in logs.epoch(1, 0.5, 1).items() if k != "top5_accuracy"}
    old = [config, logs.step(0), epoch, {"kind": "resume", "step": 1}]
    write(path, old)
    assert read_log(path) == old
    report.main([str(path), "--out", str(path.parent / "out")])


def refusal(function, *arguments, **options):
    """The message with which a call is refused; "" if it is not."""
    try:
        function(*arguments, **options)
    except (ValueError, SystemExit) as error:
        return str(error)
    return ""


@cases("damage", bytes=mutate, fields=mutate_field)
def test_no_damaged_log_ends_a_report_or_a_resumed_run_with_a_traceback(
    real, path, damage, damaged_copies, monkeypatch, capsys
):
    draw, out = Figure.savefig, path.parent / "out"
    monkeypatch.setattr(Figure, "savefig", lambda self, to, dpi: draw(self, to, dpi=20))
    ends = {"refused": 0, "accepted": 0}
    for copy in damaged_copies([real.read_bytes()], damage):
        path.write_bytes(copy)
        why = refusal(report.main, [str(path), "--out", str(out)])
        if why:
            assert why.startswith(f"error: RUN: '{path}': ")
            assert why.isprintable()
        else:
            said = capsys.readouterr().out.split("\n")
            assert all(line.isprintable() for line in said)
            assert "<" not in (out / "report.md").read_text("utf-8")
            json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
        ends["refused" if why else "accepted"] += 1
        if why := refusal(write, path, [], resume_at=2):
            assert str(path) in why
        else:
            read_log(path)
    print(f"logs: {ends}")


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


def test_tensorboard_holds_the_numbers_of_each_record_at_the_updates_done(tmp_path):
    show = tensorboard(tmp_path)
    layers = {"conv/kernel": {"trust_ratio": 0.25, "local_rate": 0.5}}
    show(CONFIG)
    show({"kind": "step", "step": 3, "loss": 1.5, "accuracy": 0.125})
    show({"kind": "layers", "step": 3, "layers": layers})
    show({"kind": "epoch", "step": 4, "epoch": 1, "split": "test", "accuracy": 0.75})
    show(logs.RESULT)
    assert scalars(tmp_path) == {
        ("step/loss", 4): 1.5,
        ("step/accuracy", 4): 0.125,
        ("layers/conv/kernel/trust_ratio", 4): 0.25,
        ("layers/conv/kernel/local_rate", 4): 0.5,
        ("epoch/epoch", 4): 1.0,
        ("epoch/accuracy", 4): 0.75,
    }


def test_tensorboard_of_a_resumed_run_shows_no_step_twice(tmp_path):
    first, second = tensorboard(tmp_path), tensorboard(tmp_path)
    first(CONFIG)
    for step in range(4):
        first({"kind": "step", "step": step, "loss": 1.0})
        if step == 1:
            first({"kind": "epoch", "step": 2, "split": "test", "accuracy": 0.5})
    first({"kind": "stopped", "step": 4})
    second({"kind": "resume", "step": 2, "versions": {}})
    second({"kind": "step", "step": 2, "loss": 2.0})
    second({"kind": "speed", "step": 3, "data_wait": 0.5})
    second(logs.RESULT)
    assert scalars(tmp_path) == {
        ("step/loss", 1): 1.0,
        ("step/loss", 2): 1.0,
        ("epoch/accuracy", 2): 0.5,  # that of the checkpoint
        ("step/loss", 3): 2.0,
        ("speed/data_wait", 3): 0.5,
    }


def test_tensorboard_keeps_what_a_run_showed_before_its_log_was_lost(tmp_path):
    first, second = tensorboard(tmp_path), tensorboard(tmp_path)
    first({"kind": "step", "step": 0, "loss": 1.0})
    first({"kind": "stopped", "step": 1})
    second(CONFIG)  # of the new log
    second({"kind": "resume", "step": 1, "versions": {}})
    second({"kind": "step", "step": 1, "loss": 2.0})
    second(logs.RESULT)
    assert scalars(tmp_path) == {("step/loss", 1): 1.0, ("step/loss", 2): 2.0}


def test_tensorboard_on_a_full_disk_is_one_error(tmp_path, capfd):
    show = tensorboard(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").mkdir()
    full = patch("tensorboardX.record_writer.open_file", lambda _: FULL.open("wb"))
    with full, assert_raises("--tensorboard: cannot write to .*: No space left"):
        show({"kind": "step", "step": 0, "loss": 1.0})
    gc.collect()
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_a_log_that_cannot_be_written_is_named(path):
    with Log(path, lambda record: None) as log:
        log.write(**CONFIG)
    beside = path.with_suffix(".cut")
    beside.mkdir()
    with assert_raises(f"--out: cannot write to {re.escape(str(beside))}: Is a dir"):
        Log(path, lambda record: None, 0)


def test_a_log_that_is_deleted_or_replaced_ends_the_run(path):
    message = f"--out: {re.escape(str(path))} was deleted or replaced during the run"
    for act in (path.unlink, lambda: path.rename(path.with_suffix(".old"))):
        with Log(path, lambda record: None) as log:
            log.write(**CONFIG)
            act()
            with assert_raises(message):
                log.write(**STOPPED)


def test_a_log_is_set_aside_if_it_has_records_of_training(path):
    assert set_aside(path) is None
    for number in (1, 2):
        with Log(path, lambda record: None) as log:
            assert log.empty
            log.write(**CONFIG)
            assert not log.empty
        assert set_aside(path) is None
        with Log(path, lambda record: None, 1) as log:
            log.write(**logs.step(0))
        kept = path.read_bytes()
        aside = path.with_name(f"log.{number}.jsonl")
        assert set_aside(path) == aside
        assert aside.read_bytes() == kept
        assert not path.exists()
