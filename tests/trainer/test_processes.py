"""Several processes on one machine: the same run as one, also when one of them dies."""

import re
import signal
import time

import numpy as np
import pytest
import small_runs as runs
from small_runs import free_port
from steps import assert_params_close

from examples.imagenet.log import read_log

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
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def together(folder):
    """Runs two processes of two devices into a folder of that name; how they ended."""
    data = runs.write_data(folder / "idx")

    def run(name, *more, process=1, signal=None, step=None):
        first = _STRIKE.format(name=signal, step=step) if signal else ""
        words = [*runs.flags(data, folder / name), *more, "--existing", "resume"]
        words += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
        words += ["--heartbeat-timeout", str(HEARTBEAT)]
        processes = [
            runs.begin(
                [*words, "--process", str(i)],
                folder / "cache",
                runs.UNDRAWN + (first if i == process else ""),
            )
            for i in range(2)
        ]
        # The one that is struck ends first.
        order = sorted(range(2), key=lambda i: i != process)
        ended = {i: (runs.end(processes[i]), time.monotonic()) for i in order}
        late = ended[1 - process][1] - ended[process][1]
        assert late < 2 * HEARTBEAT
        return folder / name, [ended[i][0] for i in range(2)]

    return run


def alone(out, *more):
    """One process with four devices: the same slots, the same order of images."""
    words = runs.flags(out.parent / "idx", out.with_name(f"{out.name}-alone"))
    words += [*more, "--devices", "4"]
    process = runs.command_line(words, out.parent / "cache", runs.UNDRAWN)
    assert process.returncode == 0, process.stderr
    return out.with_name(f"{out.name}-alone")


def assert_same_run(out, whole):
    found, expected = runs.saved(out), runs.saved(whole)
    assert found["step"] == expected["step"] == runs.UPDATES
    np.testing.assert_array_equal(found["rng"], expected["rng"])
    for part in ("params", "batch_stats", "opt_state"):
        assert_params_close(found[part], expected[part], ROUNDINGS)
    logs = [read_log(each / "log.jsonl") for each in (out, whole)]
    for kind in ("step", "epoch"):
        mine, its = ([r for r in log if r["kind"] == kind] for log in logs)
        assert [r["step"] for r in mine] == [r["step"] for r in its]
        for a, b in zip(mine, its, strict=True):
            assert a.get("count") == b.get("count")
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    assert logs[0][-1]["kind"] == "result"


def test_a_killed_process_ends_the_others_in_time_and_the_run_goes_on(together):
    out, (first, killed) = together("lars", signal="SIGKILL", step=9)
    assert killed.returncode == -signal.SIGKILL
    assert first.returncode not in (0, None)
    # JAX's words, or those of the trainer where a collective fails first.
    assert re.search("another (task|process) died", first.stderr), first.stderr
    assert 8 in runs.steps_of(out)
    out, both = together("lars")
    for process in both:
        assert process.returncode == 0, process.stderr
    # The first speaks for both; the rest is what Gloo says of its connections.
    assert "accuracy" in both[0].stdout
    assert "accuracy" not in both[1].stdout
    assert_same_run(out, alone(out))


def test_sigterm_on_any_process_stops_all_at_one_step(together):
    sgd = ("--optimizer", "sgd", "--learning-rate", "0.1")
    out, both = together("sgd", *sgd, process=0, signal="SIGTERM", step=6)
    for process in both:
        assert process.returncode == 128 + signal.SIGTERM, process.stderr
        assert "Traceback" not in process.stderr
    stopped = read_log(out / "log.jsonl")[-1]
    assert stopped["kind"] == "stopped"
    assert runs.steps_of(out)[-1] == stopped["step"] < runs.UPDATES
    # On as many devices of one process, which the run need not notice.
    words = [*runs.flags(out.parent / "idx", out), *sgd, "--devices", "4"]
    words += ["--existing", "resume"]
    process = runs.command_line(words, out.parent / "cache", runs.UNDRAWN)
    assert process.returncode == 0, process.stderr
    assert "changed" not in process.stdout
    assert_same_run(out, alone(out, *sgd))
