"""Processes that are killed or told to stop, and go on as if nothing had been."""

import re
import signal

import numpy as np
import pytest
import small_runs as runs

from examples.imagenet.log import read_log
from examples.imagenet.run.checkpoint import cause
from examples.imagenet.step.step import TrainState

# Code that runs before the command line: a signal to itself at a chosen moment, which
# another process could not meet as exactly.
_SIGNAL = """
import os, signal, sys
from examples.imagenet.log import Log
def strike():
    os.kill(os.getpid(), signal.{name})
"""
_AT_STEP = """
write = Log.write
def write_and_strike(self, **record):
    write(self, **record)
    if (record["kind"], record.get("step")) == ("step", {step}):
        {half}
        strike()
Log.write = write_and_strike
"""
_HALF_A_LINE = """self._file.write('{"kind": "st'); self._file.flush()"""
# The checkpoint is on disk but for its last renaming.
_WHILE_SAVING = """
def watch(event, args):
    if event == "os.rename":
        name = os.path.basename(args[0]).split(".")[0]
        if "tmp" in str(args[0]) and name.isdigit() and int(name) >= {step}:
            strike()
sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def start(folder):
    """Runs the command line into a folder of that name; returns it and the process."""
    data = runs.write_data(folder / "idx")

    def run(name, first="", existing="resume"):
        words = [*runs.flags(data, folder / name), "--existing", existing]
        return folder / name, runs.command_line(
            words, folder / "cache", runs.UNDRAWN + first
        )

    return run


@pytest.fixture(scope="module")
def whole(start):
    """A run that nothing interrupts."""
    out, process = start("whole", existing="refuse")
    assert process.returncode == 0, process.stderr
    return out


def assert_same_run(out, whole):
    assert runs.steps_of(out) == runs.steps_of(whole)
    state = runs.saved(out)
    assert state["step"] == runs.UPDATES
    assert set(TrainState._fields) == set(state)
    runs.assert_equal(state, runs.saved(whole))
    assert runs.logged(out) == runs.logged(whole)
    steps = [r["step"] for r in runs.logged(out) if r["kind"] == "step"]
    assert steps == list(range(runs.UPDATES))
    assert read_log(out / "log.jsonl")[-1]["kind"] == "result"


def test_five_kills_change_no_bit_of_the_state_and_no_line_of_the_log(start, whole):
    random = np.random.default_rng(0)
    # The first before there is any checkpoint.
    steps = [0, *sorted(random.choice(np.arange(3, 22, 2), 4, replace=False))]
    at_step = [_AT_STEP.replace("{half}", "pass")] * 5
    at_step[1] = _AT_STEP.replace("{half}", _HALF_A_LINE)
    at_step[2] = at_step[4] = _WHILE_SAVING
    for step, moment in zip(steps, at_step, strict=True):
        first = _SIGNAL.format(name="SIGKILL") + moment.replace("{step}", str(step))
        out, process = start("killed", first)
        assert process.returncode == -signal.SIGKILL, process.stderr
        left = [path.name for path in (out / "checkpoints").iterdir()]
        if moment is _WHILE_SAVING:
            assert any("tmp" in name for name in left)
    out, process = start("killed")
    assert process.returncode == 0, process.stderr
    assert_same_run(out, whole)


def test_sigterm_saves_logs_and_goes_on_to_the_same_end(start, whole):
    first = _SIGNAL.format(name="SIGTERM") + _AT_STEP.replace("{half}", "pass")
    out, process = start("stopped", first.replace("{step}", "10"))
    assert process.returncode == 128 + signal.SIGTERM, process.stderr
    assert "Traceback" not in process.stderr
    # Steps 10 and 11 were logged together; the signal found the next under way.
    last = read_log(out / "log.jsonl")[-1]
    assert last == {"kind": "stopped", "step": 13}
    assert runs.steps_of(out)[-1] == 13
    out, process = start("stopped")
    assert process.returncode == 0, process.stderr
    assert_same_run(out, whole)


def test_a_disk_that_fills_up_ends_the_run_and_loses_no_checkpoint(start, whole):
    """No file may grow beyond what the log has yet to need, as on a full disk."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (14336, -1))"
    first = "from examples.imagenet.log import Log" + _AT_STEP.replace("{half}", limit)
    first = first.replace("strike()", "pass").replace("{step}", "10")
    out, process = start("full", first)
    assert process.returncode == 1
    # tensorstore prints tracebacks of its own before and after it.
    error = re.search(
        r"error: --out: a checkpoint could not be saved \(.*File too large.*\);"
        r" .* complete checkpoint \(after update: (\d+)\)",
        process.stderr,
    )
    assert error, process.stderr
    names = [path.name for path in (out / "checkpoints").iterdir()]
    newest = max(int(name) for name in names if name.isdigit())
    # The log is up to three steps late: those of 10 and 12 may be on their way by then.
    assert newest in (8, 10, 12)
    assert error[1] == str(newest)
    # With room again the run goes on.
    out, process = start("full")
    assert process.returncode == 0, process.stderr
    assert_same_run(out, whole)


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
