"""Checkpoints: what is in them, which are kept, and which are refused."""

import os
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
import small_runs as runs

from examples.imagenet import cli as command
from examples.imagenet.log import read_log
from examples.imagenet.run.checkpoint import Checkpoints, exist
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.step.step import TrainState


def made_up(step):
    return TrainState(
        np.array(step, np.int32),
        np.zeros(2, np.uint32),
        {"w": np.full(3, step, np.float32)},
        {},
        (),
        np.array(True),
    )


def save_all(out, accuracies, *, keep=2, reopen=False):
    """A checkpoint for each accuracy, its step counted from 1."""
    config = runs.config(checkpoints=keep, out=str(out))
    checkpoints = Checkpoints(config, *runs.FACTS)
    for step, accuracy in enumerate(accuracies, 1):
        checkpoints.save(made_up(step), step, 0.0, accuracy)
        if reopen:
            checkpoints.close()
            checkpoints = Checkpoints(config, *runs.FACTS)
    checkpoints.close()


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ((0.1, 0.9, 0.3, 0.4, 0.5), [2, 4, 5]),
        ((0.1, 0.2, 0.3, 0.4), [3, 4]),
        # Of equals the newest, so that a perfect score does not pin the first.
        ((0.9, 0.9, 0.1, 0.2), [2, 3, 4]),
        # States that were not evaluated.
        ((0.5, None, None, None), [1, 3, 4]),
        ((None, None, 0.2, None, None, None), [3, 5, 6]),
        ((None, None, None), [2, 3]),
    ],
)
def test_newest_two_and_the_best_are_kept(tmp_path, accuracies, kept, reopen):
    save_all(tmp_path, accuracies, reopen=reopen)
    assert runs.steps_of(tmp_path) == kept
    for step in kept:
        runs.assert_equal(runs.saved(tmp_path, step), made_up(step))


def test_a_saved_state_is_that_of_its_step_however_late_it_is_written(
    tmp_path, monkeypatch
):
    """Its buffers are given to the next update while a thread writes them."""
    trained_on, mkdir = threading.Event(), os.mkdir

    def late(path, *args, **kwargs):
        if "/3.orbax-checkpoint-tmp/state" in str(path):
            assert trained_on.wait(60)
        mkdir(path, *args, **kwargs)

    given, copies = [], []

    class Watched(Checkpoints):
        def save(self, state, *rest):
            given.append(state)
            copies.append(jax.tree.map(np.array, state))
            super().save(state, *rest)

    def show(record):
        if record["kind"] == "step" and record["step"] == 5:
            assert not (tmp_path / "checkpoints" / "3").exists()
            params = jax.tree.leaves(given[0].params)
            assert all(leaf.is_deleted() for leaf in params)
            trained_on.set()

    monkeypatch.setattr(os, "mkdir", late)
    kept = {"log_every": 1, "checkpoint_every": 3, "checkpoints": 20}
    runs.train(tmp_path, show, Watched, **kept)
    assert trained_on.is_set()
    assert runs.steps_of(tmp_path) == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    runs.assert_equal(runs.saved(tmp_path, 3), copies[0])


def test_a_finished_run_trains_nothing_and_gives_its_result_again(
    tmp_path, monkeypatch
):
    first, experiment = runs.train(tmp_path), runs.experiment()
    monkeypatch.setattr(experiment, "compile", lambda: None)
    before = runs.logged(tmp_path)
    monkeypatch.setattr(experiment, "step", replace(experiment.step, mapped=None))
    assert runs.train(tmp_path) == first
    assert runs.logged(tmp_path) == before
    kinds = [record["kind"] for record in read_log(tmp_path / "log.jsonl")]
    assert kinds[-2:] == ["resume", "result"]
    assert kinds.count("result") == 1


def of(words):
    experiment = command.bind(command.parse(words))
    return experiment.identity(), experiment.grouping()


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Flags of a run, and the folder with the checkpoint it left."""
    folder = tmp_path_factory.mktemp("old")
    words = runs.flags(runs.write_data(folder / "idx"), folder / "out")
    config, facts = command.parse(words), of(words)
    with Checkpoints(config, *facts) as checkpoints:
        checkpoints.save(made_up(1), 1, 0.0, None)
    return words, folder / "out"


@pytest.fixture
def no_training(monkeypatch):
    def compile(*args):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(Experiment, "compile", compile)


def contents(folder):
    return {
        path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--network alexnet_small", ["--network was 'alexnet_bn_small', now 'alexnet"]),
        ("--width 0.5 --seed 3", ["--width was 0.25, now 0.5", "--seed was 0, now 3"]),
        ("--optimizer sgd", ["--optimizer was 'lars', now 'sgd'"]),
        (
            "--batch-size 32 --epochs 4",
            ["--batch-size was 16", "--epochs was 3"],
        ),
        (
            "--validation-images 16",
            [
                "--validation-images was 32, now 16",
                "the number of training images was 128, now 144",
                "what --data holds .* was '",
            ],
        ),
        ("--data mnist", ["training images was 128, now 3200", "what --data holds"]),
        ("--evaluate-on test", ["--evaluate-on was 'validation'"]),
        ("--boundaries 1 2", ["--boundaries was \\[\\], now \\(1.0, 2.0\\)"]),
        (
            "--momentum 0.8 --bn sync",
            ["--momentum was 0.9", "--bn was 'local'"],
        ),
        ("--augment rrc --pixels 32", ["--pixels was None", "--augment was 'caffe'"]),
    ],
)
def test_checkpoint_of_another_run_is_refused_by_flag(old, flags, named):
    words, out = old
    before = contents(out)
    with pytest.raises(SystemExit, match=named[0]) as error:
        command.main([*words, *flags.split(), "--existing", "resume"])
    for each in named[1:]:
        error.match(each)
    assert str(error.value).startswith("error: --existing resume: ")
    assert str(error.value).count(" was ") == len(named)
    assert contents(out) == before


def test_what_changes_no_state_may_differ(old):
    words, out = old
    more = "--log-every 3 --layers-every 0 --devices 1 --accumulate 2 --tensorboard"
    more += " --engine shard_map --checkpoints 5 --checkpoint-every 7"
    more += " --eval-batch-size 8 --profile 1:2 --broken blank --workers 3"
    more += " --coordinator a:1 --processes 2 --process 1 --step-timeout 9"
    more += f" --heartbeat-timeout 9 --data {out}/../idx"
    config = command.parse([*words, *more.split()])
    facts = of(words)
    with Checkpoints(config, *facts) as checkpoints:
        state, record = checkpoints.restore(made_up(0))
        assert checkpoints.changes == []
    assert (state.step, record["seconds"]) == (1, 0.0)


def test_a_batch_cut_otherwise_is_told_and_not_refused(old):
    words, _ = old
    config = command.parse([*words, "--devices", "4"])
    with Checkpoints(config, *of([*words, "--devices", "4"])) as checkpoints:
        assert checkpoints.any
        assert checkpoints.changes == [
            "devices: 4 instead of 2",
            "images over which BatchNorm takes its statistics: 4 instead of 8",
        ]


def test_images_of_the_same_number_but_others_are_refused(old, tmp_path):
    words, _ = old
    other = runs.write_data(tmp_path / "idx")
    labels = other / "train-labels-idx1-ubyte"
    raw = bytearray(labels.read_bytes())
    raw[-1] ^= 1
    labels.write_bytes(raw)
    words = [*words, "--data", str(other)]
    with pytest.raises(ValueError, match=r"what --data holds .* was '.*', now '"):
        Checkpoints(command.parse(words), *of(words))


@pytest.mark.usefixtures("no_training")
def test_checkpoints_are_refused_unless_the_run_says_what_to_do(old):
    words, out = old
    before = contents(out)
    with pytest.raises(SystemExit, match=r"error: --out: .*--existing resume"):
        command.main(words)
    assert contents(out) == before


def test_existing_replace_deletes_them(old, monkeypatch, tmp_path):
    words, _ = old
    words = [*words, "--out", str(tmp_path)]
    for _ in range(2):
        with Checkpoints(command.parse(words), *runs.FACTS) as checkpoints:
            assert checkpoints.restore(made_up(0)) is None
            checkpoints.save(made_up(1), 1, 0.0, None)
        again = command.parse([*words, "--existing", "replace", "--seed", "1"])
        command._prepare_out(again.run)
        assert not exist(tmp_path)
