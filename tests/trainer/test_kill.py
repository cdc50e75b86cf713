"""Processes that are killed or told to stop, and go on as if nothing had been."""

import re
import signal

import numpy as np
import pytest
import small_runs as runs
from cases import cases

from examples.imagenet.run.storage_errors import cause
from examples.imagenet.step.step import TrainState

# Code that runs before the command line, and acts at a moment that another process
# could not meet as exactly.
_AT_STEP = """
import os, resource, signal
from examples.imagenet.log import Log
write = Log.write
def write_and_act(self, **record):
    write(self, **record)
    if (record["kind"], record.get("step")) == ("step", {step}):
        {act}
Log.write = write_and_act
"""
# The checkpoint is on disk but for its last renaming.
_WHILE_SAVING = """
import os, signal, sys
def watch(event, args):
    if event == "os.rename":
        name = os.path.basename(args[0]).split(".")[0]
        if "tmp" in str(args[0]) and name.isdigit() and int(name) >= {step}:
            {act}
sys.addaudithook(watch)
"""
_KILL = "os.kill(os.getpid(), signal.SIGKILL)"
_STOP = "os.kill(os.getpid(), signal.SIGTERM)"
_KILL_IN_A_LINE = """self._file.write('{"kind": "st'); self._file.flush(); """ + _KILL
# No file may grow beyond what the log has yet to need, as on a full disk.
_FILL_UP = "resource.setrlimit(resource.RLIMIT_FSIZE, (14336, -1))"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs the command line into a folder of that name; returns it and the process."""
    folder = tmp_path_factory.mktemp("kill")
    data = runs.write_data(folder / "idx")

    def run(name, first="", status=0):
        words = [*runs.flags(data, folder / name), "--existing", "resume"]
        words += ["--tensorboard"] if name == "events" else []
        code = runs.UNDRAWN + first
        return folder / name, runs.command_line(words, folder / "cache", code, status)

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def whole(start):
    """A run that nothing interrupts."""
    return start("whole")[0]


def assert_resumes(start, name, whole):
    """The run goes on to the very state and log of one that nothing interrupts."""
    out, _ = start(name)
    assert runs.steps_of(out) == runs.steps_of(whole)
    state = runs.saved(out)
    assert state["step"] == runs.UPDATES
    assert set(TrainState._fields) == set(state)
    runs.assert_same_run(out, whole)
    assert runs.steps_logged(out) == list(range(runs.UPDATES))
    assert runs.records(out)[-1]["kind"] == "result"


def test_five_kills_change_no_bit_of_the_state_and_no_line_of_the_log(start, whole):
    later = np.random.default_rng(0).choice(np.arange(3, 22, 2), 4, replace=False)
    steps = [0, *sorted(later)]  # the first before there is any checkpoint
    moments = [_AT_STEP, _AT_STEP, _WHILE_SAVING, _AT_STEP, _WHILE_SAVING]
    for i, (step, moment) in enumerate(zip(steps, moments, strict=True)):
        first = moment.format(step=step, act=_KILL_IN_A_LINE if i == 1 else _KILL)
        out, _ = start("killed", first, -signal.SIGKILL)
        if moment is _WHILE_SAVING:
            left = [path.name for path in (out / "checkpoints").iterdir()]
            assert any("tmp" in name for name in left)
    assert_resumes(start, "killed", whole)


def test_sigterm_saves_logs_and_goes_on_to_the_same_end(start, whole):
    first = _AT_STEP.format(step=10, act=_STOP)
    out, process = start("stopped", first, 128 + signal.SIGTERM)
    assert "Traceback" not in process.stderr
    # Steps 10 and 11 were logged together; the signal found the next under way.
    assert runs.records(out)[-1] == {"kind": "stopped", "step": 13}
    assert runs.steps_of(out)[-1] == 13
    assert_resumes(start, "stopped", whole)


def test_a_disk_that_fills_up_ends_the_run_and_loses_no_checkpoint(start, whole):
    out, process = start("full", _AT_STEP.format(step=10, act=_FILL_UP), 1)
    line = r"error: --out: a checkpoint could not be saved \(.*File too large.*\);"
    line += r" .* complete checkpoint \(after update: (\d+)\)"
    error = re.fullmatch(f"{line}\n", process.stderr)
    assert error, process.stderr
    names = [path.name for path in (out / "checkpoints").iterdir()]
    newest = max(int(name) for name in names if name.isdigit())
    # The log is up to three steps late: those of 10 and 12 may be on their way by then.
    assert newest in (8, 10, 12)
    assert error[1] == str(newest)
    # With room again the run goes on.
    assert_resumes(start, "full", whole)


@cases(
    "name, act, line",
    deleted=(
        "gone",
        "os.rename({out!r}, {out!r} + '.old'); os.system('rm -rf {out}.old')",
        "--out: .*/gone/(log.jsonl|checkpoints) was deleted or replaced during the run",
    ),
    moved=(
        "away",
        "os.rename({out!r}, {out!r} + '.moved')",
        "--out: .*/away/(log.jsonl|checkpoints) was deleted or replaced during the run",
    ),
    full_tensorboard=(
        "events",
        "import tensorboardX.record_writer as r;"
        " r.open_file = lambda path: open('/dev/full', 'wb')",
        "--tensorboard: cannot write to .*/events/tensorboard: No space left on device",
    ),
)
def test_what_ends_a_run_is_one_line(start, name, act, line):
    out = start.folder / name
    act = act.format(out=str(out))
    first = act if name == "events" else _AT_STEP.format(step=10, act=act)
    _, process = start(name, f"{first}\n", 1)
    assert re.fullmatch(f"error: {line}.*\n", process.stderr), process.stderr


def test_the_cause_of_a_failed_write_outlives_the_shortening():
    """tensorstore adds what it knows behind it: of an open array a page."""
    full = "No space left on device"
    spec = r"{\"path\":\"it\'s [\"here\"]" + "p" * 200 + "}"
    message = (
        f'Error writing "{"d" * 200}": Failed to write 75 bytes: {full}'
        f"\n[os_error_code='28'] [source locations='a.cc:1'] [spec='{spec}']"
    )
    shown = cause(ValueError(message))
    assert shown.startswith("… ddd")
    assert shown.endswith(f"75 bytes: {full}")
    assert len(shown) == 162
    assert cause(OSError(28, full)) == f"[Errno 28] {full}"
