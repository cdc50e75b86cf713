"""How a run ends before its end: by a signal, or by a number that is not finite.

And a trace of some of its steps.
"""

import gzip
import json
from contextlib import ExitStack
from functools import partial
from signal import SIGINT, SIGTERM, getsignal, raise_signal, signal
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import small_runs as runs
from cases import cases
from trees import assert_refused

from examples.imagenet.__main__ import DIVERGED
from examples.imagenet.config import Run
from examples.imagenet.data.arrays import Split
from examples.imagenet.data.dataset import DataLost
from examples.imagenet.run.cluster import StopSignals
from examples.imagenet.run.loop import Stopped, check_run, fit
from examples.imagenet.run.recorder import Recorder
from examples.imagenet.step.diagnose import first_not_finite
from lars_optax import LayerStats


def handlers():
    return [getsignal(number) for number in (SIGTERM, SIGINT)]


def test_ctrl_c_saves_logs_and_goes_on_to_the_same_end(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = runs.train(whole, log_every=1)
    before = handlers()
    interrupt = runs.when("step", 4, lambda: raise_signal(SIGINT))
    with pytest.raises(Stopped, match="SIGINT after update 6") as error:
        runs.train(stopped, interrupt, log_every=1)
    assert (error.value.signum, error.value.updates) == (SIGINT, 6)
    assert handlers() == before
    assert runs.records(stopped)[-1] == {"kind": "stopped", "step": 6}
    assert runs.steps_of(stopped) == [6]
    found = runs.train(stopped, log_every=1)
    assert (found.loss, found.accuracy) == (expected.loss, expected.accuracy)
    runs.assert_same_run(stopped, whole)


@pytest.mark.parametrize("second", [SIGINT, SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts_at_once(second):
    class Acted(Exception):
        pass

    def act(signum, frame):
        raise Acted(signum)

    with ExitStack() as stack:
        for number in (SIGINT, SIGTERM):
            stack.callback(signal, number, signal(number, act))
        with StopSignals() as stops:
            assert stops.agreed(1) is None
            raise_signal(SIGINT)
            assert stops.agreed(2) == SIGINT
            with pytest.raises(Acted):
                raise_signal(second)
        with StopSignals():
            assert act not in handlers()
        assert handlers() == [act, act]


def test_two_signals_at_once_end_the_process_without_a_message():
    """Python reports a signal as lost if its handler is gone when it comes to it."""
    code = """
from signal import *
from examples.imagenet.run.cluster import StopSignals
both = {SIGINT, SIGTERM}
with StopSignals():
    pthread_sigmask(SIG_BLOCK, both)
    raise_signal(SIGINT)
    raise_signal(SIGTERM)
    pthread_sigmask(SIG_UNBLOCK, both)
    print("still there")
"""
    ended = runs.python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-SIGTERM, "", "")


def assert_finite(out):
    for step in runs.steps_of(out):
        leaves = jax.tree.leaves(runs.saved(out, step))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def with_pixel(batch, image, value):
    """The batch with one pixel of one image replaced."""
    images = batch.images.astype(np.float32)
    images[image, 5, 5] = value
    return batch._replace(images=images)


@pytest.fixture
def poison_batches(monkeypatch):
    """Puts a pixel that is not finite into the images of one update."""
    training = Split.training

    def poison(step):
        def poisoned(self, seed, steps, share):
            stream = training(self, seed, steps, share)
            for k, (batch, broken) in zip(steps, stream, strict=True):
                yield with_pixel(batch, 3, np.nan if k == step else 0), broken

        monkeypatch.setattr(Split, "training", poisoned)

    return poison


# After 12 updates, in the middle of what is fetched at once; right after a checkpoint.
@pytest.mark.parametrize("step", [13, 12])
def test_a_lost_update_ends_a_run_and_keeps_checkpoints(tmp_path, poison_batches, step):
    poison_batches(step)
    assert runs.train(tmp_path, checkpoint_every=3).diverged
    (lost,) = runs.records(tmp_path, "not_finite")
    assert lost == {"kind": "not_finite", "step": step, "where": "the output of conv1"}
    assert runs.steps_logged(tmp_path) == list(range(step + 1))
    assert runs.records(tmp_path, "step")[-1]["loss"] is None
    assert runs.steps_of(tmp_path)[-1] == 12
    assert_finite(tmp_path)
    # A run that goes on from there, and does not end so, has a log that says so.
    poison_batches(None)
    assert not runs.train(tmp_path, checkpoint_every=3).diverged
    assert not runs.records(tmp_path, "not_finite")
    assert runs.steps_logged(tmp_path) == list(range(runs.UPDATES))


def test_a_run_that_diverges_exits_with_a_status_and_one_line(tmp_path):
    folder, out = runs.write_data(tmp_path / "idx"), tmp_path / "out"
    words = "--optimizer sgd --learning-rate 1e30 --warmup-epochs 0.5"
    arguments = [*runs.flags(folder, out), *words.split()]
    process = runs.command_line(arguments, tmp_path / "cache", status=DIVERGED)
    assert "Traceback" not in process.stderr
    assert "not finite, first" in process.stdout
    assert "the accuracy below is that before this update" in process.stdout
    (lost,) = runs.records(out, "not_finite")
    assert lost["where"].split()[0] == "the"
    assert runs.steps_of(out)
    assert_finite(out)


def poison(state, layer, leaf, value):
    """The state with one number of a parameter replaced, or all where it is finite."""
    params = jax.tree.map(np.array, state.params)
    where = ... if np.isfinite(value) else 0
    params[layer][leaf][where] = value
    return state._replace(params=params)


@pytest.fixture(scope="module")
def first():
    """(state, batch) of the first update, and where the first loss of them is found."""
    experiment = runs.experiment()
    state, batch = jax.device_get(experiment.init(0)), experiment.batch(0, 0)
    slot = experiment.plan.images_per_slot
    assert slot == 8
    return state, batch, partial(first_not_finite, experiment.model, slot=slot)


HUGE = 3e38


@cases(
    "found, poisons",
    nothing=("None", {}),
    parameter=("the parameter fc1/bias", {"fc1/bias": np.nan}),
    its_end=("the parameter fc2", {"conv1/kernel": HUGE, "fc2/kernel": np.inf}),
    first=("the output of conv1", {"conv1/kernel": HUGE, "fc1/kernel": HUGE}),
    middle=("the output of conv2", {"conv2/kernel": HUGE, "fc2/kernel": HUGE}),
    norm=("the output of bn3", {"bn3/scale": HUGE, "fc2/kernel": HUGE}),
    last=("the output of fc2", {"fc2/kernel": HUGE}),
)
def test_the_first_thing_not_finite_is_named(first, found, poisons):
    state, batch, find = first
    for name, value in poisons.items():
        state = poison(state, *name.split("/"), value)
    assert str(find(state, batch)).startswith(found)


@pytest.mark.parametrize("image", [0, 15])
def test_an_image_that_is_not_finite_is_found_in_any_slot(first, image):
    state, batch, find = first
    assert find(state, with_pixel(batch, image, np.inf)) == "the output of conv1"


def test_no_update_after_the_lost_one_counts(tmp_path, poison_batches):
    """The steps fetched together with it saw good images."""
    poison_batches(3)
    lost = runs.train(tmp_path, log_every=8)
    (epoch,) = runs.records(tmp_path, "epoch")
    assert (epoch["step"], epoch["epoch"]) == (3, 3 / 8)
    assert (lost.updates, lost.diverged) == (3, True)
    experiment = runs.experiment()
    state = experiment.init(0)
    for step in range(3):
        state, _ = experiment.step(state, experiment.batch(0, step))
    scores = experiment.evaluate(state)
    assert (lost.loss, lost.accuracy) == (scores.loss, scores.accuracy)


@pytest.fixture
def overflowing(monkeypatch):
    """An experiment whose loss and gradients are finite, but not its new parameters."""
    experiment = runs.experiment()
    clean = experiment.init

    def init(seed):
        """Equal logits, however large; momenta that carry some of them to infinity."""
        state = clean(seed)
        (momentum,) = (part for part in state.opt_state if hasattr(part, "trace"))
        state.params["fc2"]["bias"] += 3e38
        signs = np.where(np.arange(10) < 5, 3e38, -3e38).astype(np.float32)
        momentum.trace["fc2"]["bias"] += signs
        return state

    experiment.compile()
    monkeypatch.setattr(experiment, "init", init)
    return experiment


def assert_overflow_was_logged_and_not_saved(out):
    (lost,) = runs.records(out, "not_finite")
    assert (lost["step"], lost["where"]) == (0, "the new params/fc2/bias")
    assert not any((out / "checkpoints").iterdir())


@pytest.mark.usefixtures("overflowing")
def test_an_update_that_overflows_is_not_saved(tmp_path):
    lost = runs.train(tmp_path, checkpoint_every=1)
    assert (lost.updates, lost.diverged) == (1, True)  # the state has changed
    assert_overflow_was_logged_and_not_saved(tmp_path)


def test_a_trust_ratio_that_is_not_finite_is_named():
    names = Mock(layer_names=["conv/bias", "conv/kernel"])
    layers = LayerStats(np.ones(2), np.ones(2), np.array([0.02, np.nan]))
    where = Recorder._where(Mock(experiment=names), None, 0, layers)
    assert where == "the trust ratio of conv/kernel"


def test_an_update_that_overflows_is_not_saved_either_if_an_image_is_lost(
    tmp_path, monkeypatch, overflowing
):
    lost = Mock(side_effect=DataLost("cannot read the image"))
    monkeypatch.setattr(overflowing, "evaluate", lost)
    with pytest.raises(DataLost):
        runs.train(tmp_path, checkpoint_every=1)
    assert_overflow_was_logged_and_not_saved(tmp_path)


def test_a_profile_is_a_trace_of_those_steps_alone(tmp_path):
    fit(runs.experiment(), Run(profile="3:5", out=str(tmp_path)))
    (trace,) = tmp_path.glob("profile/**/perfetto_trace.json.gz")
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))  # TensorBoard's
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "train"]
    assert sorted(steps) == ["3", "4"]


def test_a_profile_beyond_the_end_is_refused():
    message = "--profile: got '20:25'; the run has 24"
    assert_refused(message, check_run, runs.experiment(), Run(profile="20:25"))
