"""Checkpoints: what is in them, which are kept, and which are refused."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, raise_signal
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import logs
import numpy as np
import pytest
import small_runs as runs
from cases import assert_line, cases
from image_trees import read_tree
from logs import write
from trees import assert_refused

from examples.imagenet import cli as command
from examples.imagenet.config import FACTS
from examples.imagenet.report.runs import read_runs
from examples.imagenet.run.checkpoint import Checkpoints, exist
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import Stopped


@pytest.mark.parametrize("reopen", [False, True])
@cases(
    "accuracies, kept",
    best_is_old=((0.1, 0.9, 0.3, 0.4, 0.5), [2, 4, 5]),
    best_is_newest=((0.1, 0.2, 0.3, 0.4), [3, 4]),
    # The newest of equals, so that a perfect score does not pin the first.
    two_are_best=((0.9, 0.9, 0.1, 0.2), [2, 3, 4]),
    first_was_evaluated=((0.5, None, None, None), [1, 3, 4]),
    third_was_evaluated=((None, None, 0.2, None, None, None), [3, 5, 6]),
    none_was_evaluated=((None, None, None), [2, 3]),
)
def test_newest_two_and_the_best_are_kept(tmp_path, accuracies, kept, reopen):
    runs.save_all(tmp_path, accuracies, 2, reopen=reopen)
    assert runs.steps_of(tmp_path) == kept
    for step in kept:
        runs.assert_equal(runs.saved(tmp_path, step), runs.made_up(step))


def test_a_state_that_is_written_late_is_that_of_its_step(tmp_path, monkeypatch):
    """Its buffers are given to the next update while a thread writes them."""
    trained_on, mkdir = threading.Event(), os.mkdir

    def late(path, *args, **kwargs):
        if "/3.orbax-checkpoint-tmp/state" in str(path):
            assert trained_on.wait(60)
        mkdir(path, *args, **kwargs)

    given = []

    class Watched(Checkpoints):
        def save(self, state, *rest):
            given.append((state, jax.tree.map(np.array, state)))
            super().save(state, *rest)

    def check():
        assert not (tmp_path / "checkpoints" / "3").exists()
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0][0].params))
        trained_on.set()

    monkeypatch.setattr(os, "mkdir", late)
    kept = {"log_every": 1, "checkpoint_every": 3, "checkpoints": 20}
    runs.train(tmp_path, runs.when("step", 5, check), Watched, **kept)
    assert trained_on.is_set()
    assert runs.steps_of(tmp_path) == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    runs.assert_equal(runs.saved(tmp_path, 3), given[0][1])


def test_a_finished_run_trains_nothing_and_repeats_its_result(tmp_path, monkeypatch):
    first, experiment = runs.train(tmp_path), runs.experiment()
    monkeypatch.setattr(experiment, "compile", lambda: None)
    before = runs.logged(tmp_path)
    monkeypatch.setattr(experiment, "step", replace(experiment.step, mapped=None))
    assert runs.train(tmp_path) == first
    assert runs.logged(tmp_path) == before
    kinds = [record["kind"] for record in runs.records(tmp_path)]
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
        checkpoints.save(runs.made_up(1), 1, 0.0, None)
    return words, folder / "out"


@pytest.fixture
def no_training(monkeypatch):
    compiled = Mock(side_effect=AssertionError("something was compiled"))
    monkeypatch.setattr(Experiment, "compile", compiled)


@pytest.mark.usefixtures("no_training")
@cases(
    "flags, named",
    network=("--network alexnet_small", "--network was 'alexnet_bn_small', now 'alexn"),
    width=("--width 0.5 --seed 3", "--width was 0.25, now 0.5; --seed was 0, now 3"),
    optimizer=("--optimizer sgd", "--optimizer was 'lars', now 'sgd'"),
    length=("--batch-size 32 --epochs 4", "--batch-size was 16, .*--epochs was 3"),
    held_out=(
        "--validation-images 16",
        "--validation-images was 32, now 16; the number of training images was 128, now"
        " 144; what --data holds .* was '",
    ),
    data=("--data mnist", "images was 128, now 3200; what --data holds .* was '"),
    split=("--evaluate-on test", "--evaluate-on was 'validation'"),
    list=("--boundaries 1 2", r"--boundaries was \[\], now \(1.0, 2.0\)"),
    rule=("--momentum 0.8 --bn sync", "--bn was 'local', .*--momentum was 0.9"),
    images=("--augment rrc --pixels 32", "--pixels was None, .*--augment was 'caffe'"),
)
def test_checkpoint_of_another_run_is_refused_by_flag(old, flags, named):
    words, out = old
    before = read_tree(out)
    more = [*flags.split(), "--existing", "resume"]
    line = assert_line(f"--existing resume: .*{named}", [*words, *more])
    assert line.count(" was ") == named.count(" was ")
    assert read_tree(out) == before


@pytest.mark.usefixtures("no_training")
def test_checkpoints_are_refused_unless_the_run_says_what_to_do(old):
    words, out = old
    before = read_tree(out)
    assert_line("--out: .*--existing resume", words)
    assert read_tree(out) == before


def test_what_changes_no_state_may_differ(old):
    words, out = old
    more = "--log-every 3 --layers-every 0 --devices 1 --accumulate 2 --tensorboard"
    more += " --engine shard_map --checkpoints 5 --checkpoint-every 7"
    more += " --eval-batch-size 8 --profile 1:2 --broken blank --workers 3"
    more += " --coordinator a:1 --processes 2 --process 1 --step-timeout 9"
    more += f" --heartbeat-timeout 9 --data {out}/../idx"
    config = command.parse([*words, *more.split()])
    with Checkpoints(config, *of(words)) as checkpoints:
        state, record = checkpoints.restore(runs.made_up(0))
        assert checkpoints.changes == []
        speed = {
            "accumulate": 2,
            "engine": "shard_map",
            "workers": 3,
            "broken": "blank",
        }
        given = {k: v for k, v in speed.items() if FACTS[k].speed}
        assert given == {k: checkpoints.settings[k] for k in given}
        assert all(FACTS[k].speed for k in checkpoints.settings)
    assert (state.step, record["seconds"]) == (1, 0.0)


def test_arrays_of_bfloat16_are_saved_and_restored(tmp_path):
    half = jnp.arange(3, dtype=jnp.bfloat16)
    state = runs.made_up(1)._replace(opt_state=(half, jnp.bfloat16(2)))
    config = runs.config(checkpoints=1, out=str(tmp_path))
    with Checkpoints(config, *runs.FACTS) as checkpoints:
        checkpoints.save(state, 1, 0.0, None)
    with Checkpoints(config, *runs.FACTS) as checkpoints:
        runs.assert_equal(checkpoints.restore(state)[0], state)


def test_a_run_resumes_into_a_log_that_is_lost(tmp_path):
    """Its log begins with the settings again, so that it can be reported."""
    stop = runs.when("step", 4, lambda: raise_signal(SIGINT))
    with pytest.raises(Stopped):
        runs.train(tmp_path, stop, log_every=1)
    (tmp_path / "log.jsonl").unlink()
    runs.train(tmp_path, log_every=8)
    kinds = [record["kind"] for record in runs.records(tmp_path)]
    assert kinds[:3] == ["config", "resume", "step"]
    assert read_runs([str(tmp_path)])[0].status == "finished"


def test_the_log_of_a_run_whose_checkpoints_are_gone_is_kept(
    old, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "fit", Mock(side_effect=Stopped(SIGINT, 0, False)))
    words = [*old[0], "--out", str(tmp_path), "--existing", "resume"]
    kept = tmp_path / "log.1.jsonl"
    written = write(tmp_path / "made", logs.config(), logs.step(0))
    Path(written, "log.jsonl").rename(tmp_path / "log.jsonl")
    with pytest.raises(SystemExit):
        command.main(words)
    assert f"the log of the earlier run is now {kept}" in capsys.readouterr().out
    assert kept.exists()
    assert not (tmp_path / "log.jsonl").exists()


def test_a_batch_cut_otherwise_is_told_and_not_refused(old):
    words = [*old[0], "--devices", "4"]
    with Checkpoints(command.parse(words), *of(words)) as checkpoints:
        assert checkpoints.any
        moments = "images over which BatchNorm takes its statistics: 4 instead of 8"
        assert checkpoints.changes == ["devices: 4 instead of 2", moments]


def test_images_of_the_same_number_but_others_are_refused(old, tmp_path):
    labels = runs.write_data(tmp_path / "idx") / "train-labels-idx1-ubyte"
    raw = bytearray(labels.read_bytes())
    raw[-1] ^= 1
    labels.write_bytes(raw)
    words = [*old[0], "--data", str(labels.parent)]
    other = r"what --data holds .* was '.*', now '"
    assert_refused(other, Checkpoints, command.parse(words), *of(words))


def test_existing_replace_deletes_them(old, tmp_path):
    words = [*old[0], "--out", str(tmp_path)]
    for _ in range(2):
        with Checkpoints(command.parse(words), *runs.FACTS) as checkpoints:
            assert checkpoints.restore(runs.made_up(0)) is None
            checkpoints.save(runs.made_up(1), 1, 0.0, None)
        again = command.parse([*words, "--existing", "replace", "--seed", "1"])
        with command._out(again.run):
            pass
        assert not exist(tmp_path)
