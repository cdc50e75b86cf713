"""How a run ends before its end: by a signal, or by a number that is not finite.

And a trace of some of its steps.
"""

import gzip
import json
import signal

import jax
import numpy as np
import pytest
import small_runs as runs

from examples.imagenet.__main__ import DIVERGED
from examples.imagenet.config import Run
from examples.imagenet.log import read_log
from examples.imagenet.run.cluster import StopSignals
from examples.imagenet.run.loop import Stopped, check_run, fit
from examples.imagenet.step.diagnose import first_not_finite


def at_step(step, act):
    def show(record):
        if (record["kind"], record.get("step")) == ("step", step):
            act()

    return show


def test_ctrl_c_saves_logs_and_goes_on_to_the_same_end(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = runs.train(whole, log_every=1)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    interrupt = at_step(4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped, match="SIGINT after update 6") as error:
        runs.train(stopped, interrupt, log_every=1)
    assert (error.value.signum, error.value.updates) == (signal.SIGINT, 6)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert read_log(stopped / "log.jsonl")[-1] == {"kind": "stopped", "step": 6}
    assert runs.steps_of(stopped) == [6]
    found = runs.train(stopped, log_every=1)
    assert (found.loss, found.accuracy) == (expected.loss, expected.accuracy)
    runs.assert_equal(runs.saved(stopped), runs.saved(whole))
    assert runs.logged(stopped) == runs.logged(whole)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts_at_once(second):
    class Acted(Exception):
        pass

    def act(signum, frame):
        raise Acted(signum)

    before = {s: signal.signal(s, act) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with StopSignals() as stops:
            assert stops.agreed(1) is None
            signal.raise_signal(signal.SIGINT)
            assert stops.agreed(2) == signal.SIGINT
            with pytest.raises(Acted):
                signal.raise_signal(second)
        with StopSignals():
            assert not any(signal.getsignal(s) is act for s in before)
        assert all(signal.getsignal(s) is act for s in before)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def assert_finite(out):
    for step in runs.steps_of(out):
        leaves = jax.tree.leaves(runs.saved(out, step))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.fixture
def poison_batches(monkeypatch):
    """Puts a pixel that is not finite into the images of one update."""
    experiment = runs.experiment()
    stream, one = experiment.batches, experiment.batch

    def poison(step):
        def spoiled(k, good):
            images = good.images.astype(np.float32)
            if k == step:
                images[3, 5, 5] = np.nan
            return good._replace(images=images)

        def batches(seed, done=0):
            for k, (batch, broken) in enumerate(stream(seed, done), done):
                yield spoiled(k, batch), broken

        monkeypatch.setattr(experiment, "batches", batches)
        monkeypatch.setattr(
            experiment, "batch", lambda seed, k: spoiled(k, one(seed, k))
        )

    return poison


# After 12 updates, in the middle of what is fetched at once; right after a checkpoint.
@pytest.mark.parametrize("step", [13, 12])
def test_a_lost_update_ends_the_run_and_leaves_its_checkpoints(
    tmp_path, poison_batches, step
):
    poison_batches(step)
    assert runs.train(tmp_path, checkpoint_every=3).diverged
    records = read_log(tmp_path / "log.jsonl")
    (lost,) = (r for r in records if r["kind"] == "not_finite")
    assert lost == {"kind": "not_finite", "step": step, "where": "the output of conv1"}
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(step + 1))
    assert steps[-1]["loss"] is None
    assert runs.steps_of(tmp_path)[-1] == 12
    assert_finite(tmp_path)
    # A run that goes on from there, and does not end so, has a log that says so.
    poison_batches(None)
    assert not runs.train(tmp_path, checkpoint_every=3).diverged
    kinds = [r["kind"] for r in read_log(tmp_path / "log.jsonl")]
    assert "not_finite" not in kinds
    steps = [r["step"] for r in runs.logged(tmp_path) if r["kind"] == "step"]
    assert steps == list(range(runs.UPDATES))


def test_a_run_that_diverges_exits_with_a_status_and_one_line(tmp_path):
    folder, out = runs.write_data(tmp_path / "idx"), tmp_path / "out"
    words = "--optimizer sgd --learning-rate 1e30 --warmup-epochs 0.5"
    arguments = [*runs.flags(folder, out), *words.split()]
    process = runs.command_line(arguments, tmp_path / "cache")
    assert process.returncode == DIVERGED, process.stderr
    assert "Traceback" not in process.stderr
    assert "not finite, first" in process.stdout
    records = read_log(out / "log.jsonl")
    (lost,) = (r for r in records if r["kind"] == "not_finite")
    assert lost["where"].split()[0] == "the"
    assert runs.steps_of(out)
    assert_finite(out)


def poison(state, layer, leaf, value):
    """The state with one number of a parameter replaced, or all where it is finite."""
    params = jax.tree.map(np.array, state.params)
    where = ... if np.isfinite(value) else 0
    params[layer][leaf][where] = value
    return state._replace(params=params)


@pytest.mark.parametrize(
    ("poisons", "found"),
    [
        ([], None),
        ([("fc1", "bias", np.nan)], "the parameter fc1/bias"),
        ([("conv1", "kernel", 3e38), ("fc2", "kernel", np.inf)], "the parameter fc2"),
        ([("conv1", "kernel", 3e38), ("fc1", "kernel", 3e38)], "the output of conv1"),
        ([("conv2", "kernel", 3e38), ("fc2", "kernel", 3e38)], "the output of conv2"),
        ([("bn3", "scale", 3e38), ("fc2", "kernel", 3e38)], "the output of bn3"),
        ([("fc2", "kernel", 3e38)], "the output of fc2"),
    ],
)
def test_the_first_thing_not_finite_is_named(poisons, found):
    experiment = runs.experiment()
    state, batch = jax.device_get(experiment.init(0)), experiment.batch(0, 0)
    for each in poisons:
        state = poison(state, *each)
    name = first_not_finite(
        experiment.model, state, batch, experiment.plan.images_per_slot
    )
    assert name is found is None or name.startswith(found)


def test_an_image_that_is_not_finite_is_found_in_any_slot():
    experiment = runs.experiment()
    state, batch = jax.device_get(experiment.init(0)), experiment.batch(0, 0)
    for image in (0, 15):
        images = batch.images.astype(np.float32)
        images[image, 4, 4] = np.inf
        lost = batch._replace(images=images)
        assert (
            first_not_finite(experiment.model, state, lost, 8) == "the output of conv1"
        )


def test_no_update_after_the_lost_one_counts(tmp_path, poison_batches):
    """The steps fetched together with it saw good images."""
    poison_batches(3)
    lost = runs.train(tmp_path, log_every=8)
    epochs = [r for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "epoch"]
    assert [(r["step"], r["epoch"]) for r in epochs] == [(3, 3 / 8)]
    assert (lost.updates, lost.diverged) == (3, True)
    experiment = runs.experiment()
    state = experiment.init(0)
    for step in range(3):
        state, _ = experiment.step(state, experiment.batch(0, step))
    scores = experiment.evaluate(state)
    assert (lost.loss, lost.accuracy) == (scores.loss, scores.accuracy)


def test_an_update_that_overflows_is_not_saved(tmp_path, monkeypatch):
    """Its loss and its gradients are finite; only the new parameters would not be."""
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
    result = runs.train(tmp_path, checkpoint_every=1)
    records = read_log(tmp_path / "log.jsonl")
    (lost,) = (r for r in records if r["kind"] == "not_finite")
    assert (lost["step"], lost["where"]) == (0, "the new params/fc2/bias")
    assert result.diverged
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_profile_is_a_trace_of_those_steps_alone(tmp_path):
    fit(runs.experiment(), Run(profile="3:5", out=str(tmp_path)))
    (trace,) = tmp_path.glob("profile/**/perfetto_trace.json.gz")
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))  # TensorBoard's
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "train"]
    assert sorted(steps) == ["3", "4"]


def test_a_profile_beyond_the_end_is_refused():
    with pytest.raises(ValueError, match="--profile: got '20:25'; the run has 24"):
        check_run(runs.experiment(), Run(profile="20:25"))
