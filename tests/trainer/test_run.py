"""Whole runs through the command line and the loop, and the input they refuse."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from image_trees import write_idx
from small_runs import command_line

from examples.imagenet.cli import main
from examples.imagenet.config import Batching, Config, Model, Optimizer, Run
from examples.imagenet.data.arrays import Split, in_memory
from examples.imagenet.log import read_log
from examples.imagenet.report.figures import curve, plot_runs
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit

ROOT = Path(__file__).parents[2]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def stripes(seed, n):
    """Ten classes of 12×12 images: a bright row or column number 1, 3, 5, 7 or 9."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, 10, n).astype(np.int32)
    images = random.randint(0, 120, (n, 12, 12), np.uint8)
    for image, label in zip(images, labels, strict=True):
        line = image if label < 5 else image.T
        line[1 + 2 * (label % 5)] += 120
    return Split(images[..., None], labels)


@pytest.fixture(scope="module")
def data():
    return in_memory(stripes(0, 320), stripes(1, 61), stripes(2, 83), 10)


def make(data, learning_rate=0.05, **batching):
    """The experiment on the stripes, on 4 devices."""
    batching = {"batch_size": 16, "epochs": 4, "eval_batch_size": 32} | batching
    optimizer = Optimizer("sgd", learning_rate=learning_rate, warmup_epochs=1)
    config = Config(
        model=Model(width=0.5), optimizer=optimizer, batching=Batching(**batching)
    )
    return Experiment(config, data, jax.local_devices()[:4])


def train(experiment, out, **run):
    """Its result and its log."""
    result = fit(experiment, Run(layers_every=40, out=str(out), **run))
    return result, out / "log.jsonl"


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    experiment = make(data)
    return experiment, *train(experiment, tmp_path_factory.mktemp("learned"))


def test_run_learns_and_its_log_tells_all(learned):
    _, result, log = learned
    assert result.accuracy > 0.5  # chance is 0.1
    assert (result.updates, result.count, result.diverged) == (80, 61, False)
    records = read_log(log)
    kinds = [record["kind"] for record in records]
    assert (kinds[0], kinds[-1]) == ("config", "result")
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(80))
    rates = [record["learning_rate"] for record in steps]
    assert (rates[0], np.argmax(rates)) == (0, 20)
    assert rates[20] == pytest.approx(0.05)
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [(record["epoch"], record["count"]) for record in epochs] == [
        (epoch, 61) for epoch in (1, 2, 3, 4)
    ]
    assert epochs[-1]["accuracy"] == records[-1]["accuracy"] == result.accuracy
    expected = np.reshape([r["loss"] for r in steps], (4, 20)).mean(1)
    np.testing.assert_allclose(curve(records)["loss"], expected)


def test_log_tells_speed_and_layers(learned):
    experiment, result, log = learned
    speeds = [record for record in read_log(log) if record["kind"] == "speed"]
    assert [record["step"] for record in speeds] == list(range(10, 81, 10))
    seconds = sum(160 / record["images_per_second"] for record in speeds)
    assert seconds == pytest.approx(result.seconds)
    for record in speeds:
        each = record["images_per_second"] / 4
        assert record["images_per_second_per_device"] == pytest.approx(each)
        assert 0 < record["data_wait"] < 1
    layers = [record for record in read_log(log) if record["kind"] == "layers"]
    assert [record["step"] for record in layers] == [0, 40]
    table = layers[1]["layers"]
    assert list(table) == experiment.layer_names
    row = table["conv1/kernel"]
    rate = experiment.schedule.rates[40].item()
    assert (row["trust_ratio"], row["local_rate"]) == (1, rate)
    before = layers[0]["layers"]["conv1/kernel"]
    start = experiment.init(0).params["conv1"]["kernel"]
    assert before["param_norm"] == pytest.approx(float(np.linalg.norm(start)), rel=1e-5)
    assert row["param_norm"] != before["param_norm"]


def test_epochs_need_not_be_whole_nor_divide_into_batches(data, tmp_path):
    """2.5 epochs of 320 images in batches of 48: 17 updates, evaluated thrice."""
    result, log = train(make(data, epochs=2.5, batch_size=48), tmp_path)
    assert result.updates == 17
    epochs = [record for record in read_log(log) if record["kind"] == "epoch"]
    ends = [(record["epoch"], record["step"]) for record in epochs]
    assert ends == [(1, 7), (2, 13), (2.5, 17)]


def test_run_repeats_bit_for_bit_and_seeds_differ(learned, tmp_path):
    experiment, _, log = learned

    def losses(path):
        return [r["loss"] for r in read_log(path) if r["kind"] == "step"]

    _, again = train(experiment, tmp_path / "again")
    _, other = train(experiment, tmp_path / "other", seed=1)
    assert losses(again) == losses(log)
    assert losses(other) != losses(log)


def test_evaluation_does_not_depend_on_its_batch(learned, data):
    """61 images in batches of 32, and of 64 with three padded rows, score alike."""
    experiment, _, _ = learned
    state = experiment.init(0)
    scores = experiment.evaluate(state)
    wide = make(data, eval_batch_size=61)
    assert wide.eval_batch == 64
    other = wide.evaluate(state)
    assert (other.accuracy, other.count) == (scores.accuracy, 61)
    assert other.loss == pytest.approx(scores.loss, rel=1e-5)  # order of float32 sums


def test_divergence_stops_the_run_and_is_reported(data, tmp_path):
    result, log = train(make(data, 1e6), tmp_path, log_every=5)
    assert (result.diverged, result.count) == (True, 61)
    assert result.updates < 80
    lost = next(r for r in read_log(log) if r["kind"] == "not_finite")
    assert lost["step"] == result.updates  # the updates before it are the last
    assert lost["where"].startswith("the output of ")
    lines = log.read_text()
    assert not any(word in lines for word in ("NaN", "Infinity"))
    assert json.loads(lines.splitlines()[-1])["diverged"] is True
    plot_runs({"lost": [log]}, tmp_path / "lost.png")
    assert (tmp_path / "lost.png").read_bytes().startswith(PNG_MAGIC)


def test_command_line_trains_on_a_folder_and_leaves_log_and_picture(tmp_path):
    folder, out = tmp_path / "idx", tmp_path / "out"
    folder.mkdir()
    for stem, part in (("train", stripes(0, 360)), ("t10k", stripes(2, 83))):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", part.images[..., 0])
        labels = part.labels.astype(np.uint8)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    flags = f"--data {folder} --validation-images 40 --evaluate-on test --devices 2"
    flags += " --optimizer lars --learning-rate 10 --warmup-epochs 0.5 --epochs 2"
    flags += f" --batch-size 16 --network alexnet_bn_small --out {out}"
    run = command_line(flags.split(), tmp_path / "cache")
    assert run.returncode == 0, run.stderr
    assert "over 2 cpu devices, 40 updates" in run.stdout
    log = read_log(out / "log.jsonl")
    result = log[-1]
    assert (result["count"], result["updates"]) == (83, 40)
    assert result["accuracy"] > 0.4  # chance is 0.1
    assert (out / "curves.png").read_bytes().startswith(PNG_MAGIC)
    assert f"{result['accuracy']:.2%}" in run.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch-size 30 --devices 4", "got 30; .*divisible by 4 .*; give 28 or 32$"),
        ("--batch-size 3 --devices 4", "got 3; .*divisible by 4 = .*; give 4$"),
        ("--batch-size 4000", "got 4000; .* at most 3200, the .*; give 3200$"),
        ("--data /nowhere", "train-images-idx3-ubyte"),
        ("--devices 99", "got 99; JAX has"),
        (
            "--epochs 0.004 --warmup-epochs 0",
            "0.004; that is at most half an update of 32 im",
        ),
    ],
)
def test_bad_input_ends_with_one_line_that_names_the_flag(flags, message, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=message) as error:
        main([*flags.split(), "--out", str(out)])
    assert str(error.value).startswith(f"error: {flags.split()[0]}: ")
    assert not out.exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--momentum 1",
        "--epochs 0",
        "--width nan",
        "--learning-rate inf",
        "--weight-decay -1",
        "--trust-coefficient 0",
        "--warmup-epochs 10 --epochs 10",
        "--seed -1",
    ],
)
def test_values_out_of_bounds_are_refused_by_flag(flags, capsys):
    with pytest.raises(SystemExit) as error:
        main(flags.split())
    assert error.value.code != 0
    assert flags.split()[0] in capsys.readouterr().err
