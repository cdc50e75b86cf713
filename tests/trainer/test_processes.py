"""Several processes on one machine: the same run as one, also when one of them dies."""

import re
import signal
import time

import numpy as np
import pytest
import small_runs as runs
from steps import assert_params_close

HEARTBEAT = 8  # s
# A process kills itself, or asks itself to stop, before an update's batch is read.
_STRIKE = """
import os, signal, time
from examples.imagenet.run.recorder import Recorder
add = Recorder.add
def strike(self, step, metrics):
    add(self, step, metrics)
    if step == {step}:
        os.kill(os.getpid(), signal.{name})
        time.sleep(2)  # JAX looks for the signal once a second
Recorder.add = strike
"""
# Sums over the processes are taken in another order, and LARS divides by norms of them:
# float32 roundings of 6e-8, of 24 updates.
ROUNDINGS = 3e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    runs.write_data(folder / "idx")
    return folder


def flags(out, more):
    return [*runs.flags(out.parent / "idx", out), *more.split(), "--existing", "resume"]


def together(out, more="", struck=1, strike=""):
    """Runs two processes of two devices; how they ended."""
    words = f"{more} --coordinator 127.0.0.1:{runs.free_port()} --processes 2"
    words = flags(out, f"{words} --heartbeat-timeout {HEARTBEAT}")

    def begin(i):
        code = runs.UNDRAWN + (strike if i == struck else "")
        return runs.begin([*words, "--process", str(i)], out.parent / "cache", code)

    processes = [begin(i) for i in range(2)]
    # The one that is struck ends first.
    first, began = runs.end(processes[struck]), time.monotonic()
    second = runs.end(processes[1 - struck])
    assert time.monotonic() - began < 2 * HEARTBEAT
    return (first, second) if struck == 0 else (second, first)


def alone(out, more=""):
    """One process with four devices: the same slots, the same order of images."""
    words = flags(out, f"{more} --devices 4")
    return runs.command_line(words, out.parent / "cache", runs.UNDRAWN)


def assert_same_run_alone(out, more=""):
    """One process that nothing interrupts gives the same but for roundings."""
    whole = out.with_name(f"{out.name}-alone")
    alone(whole, more)
    found, expected = runs.saved(out), runs.saved(whole)
    assert found["step"] == expected["step"] == runs.UPDATES
    np.testing.assert_array_equal(found["rng"], expected["rng"])
    for part in ("params", "batch_stats", "opt_state"):
        assert_params_close(found[part], expected[part], ROUNDINGS)
    for kind in ("step", "epoch"):
        records = runs.records(out, kind), runs.records(whole, kind)
        for a, b in zip(*records, strict=True):
            assert (a["step"], a.get("count")) == (b["step"], b.get("count"))
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    assert runs.records(out)[-1]["kind"] == "result"


def test_a_killed_process_ends_the_others_in_time_and_the_run_goes_on(folder):
    out = folder / "lars"
    first, killed = together(out, strike=_STRIKE.format(name="SIGKILL", step=9))
    assert killed.returncode == -signal.SIGKILL
    assert first.returncode not in (0, None)
    # JAX's words, or those of the trainer where a collective fails first.
    assert re.search("another (task|process) died", first.stderr), first.stderr
    assert 8 in runs.steps_of(out)
    both = together(out)
    for process in both:
        assert process.returncode == 0, process.stderr
    # The first speaks for both; the rest is what Gloo says of its connections.
    assert "accuracy" in both[0].stdout
    assert "accuracy" not in both[1].stdout
    assert_same_run_alone(out)


def test_sigterm_on_any_process_stops_all_at_one_step(folder):
    out, sgd = folder / "sgd", "--optimizer sgd --learning-rate 0.1"
    strike = _STRIKE.format(name="SIGTERM", step=6)
    for process in together(out, sgd, 0, strike):
        assert process.returncode == 128 + signal.SIGTERM, process.stderr
        assert "Traceback" not in process.stderr
    stopped = runs.records(out)[-1]
    assert stopped["kind"] == "stopped"
    assert runs.steps_of(out)[-1] == stopped["step"] < runs.UPDATES
    # On as many devices of one process, which the run need not notice.
    assert "changed" not in alone(out, sgd).stdout
    assert_same_run_alone(out, sgd)
