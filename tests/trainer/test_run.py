"""Whole runs through the command line and the loop, and the input they refuse."""

import json
import logging
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import small_runs as runs
from cases import assert_line, assert_usage, cases
from image_trees import write_idx_folder
from logs import PNG_MAGIC

from examples.imagenet import cli
from examples.imagenet.config import Batching, Config, Model, Optimizer, Run
from examples.imagenet.data.arrays import Split, in_memory
from examples.imagenet.report.figures import curve, plot_runs
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit


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
    return fit(experiment, Run(layers_every=40, out=str(out), **run))


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """An experiment, its result and its folder."""
    experiment, out = make(data), tmp_path_factory.mktemp("learned")
    return experiment, train(experiment, out), out


def column(records, name):
    return [record[name] for record in records]


def test_run_learns_and_its_log_tells_all(learned):
    _, result, out = learned
    assert result.accuracy > 0.5  # chance is 0.1
    assert (result.updates, result.count, result.diverged) == (80, 61, False)
    records, steps = runs.records(out), runs.records(out, "step")
    assert (records[0]["kind"], records[-1]["kind"]) == ("config", "result")
    assert column(steps, "step") == list(range(80))
    rates = column(steps, "learning_rate")
    assert (rates[0], np.argmax(rates)) == (0, 20)
    assert rates[20] == pytest.approx(0.05)
    losses = column(steps, "loss")
    assert losses[-1] < 0.5 * losses[0]
    epochs = runs.records(out, "epoch")
    assert column(epochs, "epoch") == [1, 2, 3, 4]
    assert column(epochs, "count") == [61] * 4
    assert epochs[-1]["accuracy"] == records[-1]["accuracy"] == result.accuracy
    expected = np.reshape(losses, (4, 20)).mean(1)
    np.testing.assert_allclose(curve(records)["loss"], expected)


def test_log_tells_speed_and_layers(learned):
    experiment, result, out = learned
    speeds = runs.records(out, "speed")
    assert column(speeds, "step") == list(range(10, 81, 10))
    rates = np.array(column(speeds, "images_per_second"))
    assert (160 / rates).sum() == pytest.approx(result.seconds)
    each = column(speeds, "images_per_second_per_device")
    assert each == pytest.approx(rates / 4)
    assert all(0 < wait < 1 for wait in column(speeds, "data_wait"))
    layers = runs.records(out, "layers")
    assert column(layers, "step") == [0, 40]
    tables = column(layers, "layers")
    assert list(tables[1]) == experiment.layer_names
    before, row = (table["conv1/kernel"] for table in tables)
    rate = experiment.schedule.rates[40].item()
    assert (row["trust_ratio"], row["local_rate"]) == (1, rate)
    start = np.linalg.norm(experiment.init(0).params["conv1"]["kernel"])
    assert before["param_norm"] == pytest.approx(start, rel=1e-5)
    assert row["param_norm"] != before["param_norm"]


def test_epochs_need_not_be_whole_nor_divide_into_batches(data, tmp_path):
    """2.5 epochs of 320 images in batches of 48: 17 updates, evaluated thrice."""
    assert train(make(data, epochs=2.5, batch_size=48), tmp_path).updates == 17
    epochs = runs.records(tmp_path, "epoch")
    assert column(epochs, "epoch") == [1, 2, 2.5]
    assert column(epochs, "step") == [7, 13, 17]


def test_run_repeats_bit_for_bit_and_seeds_differ(learned, tmp_path):
    experiment, _, first = learned
    again, other = tmp_path / "again", tmp_path / "other"
    train(experiment, again)
    train(experiment, other, seed=1)
    losses = [column(runs.records(x, "step"), "loss") for x in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


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
    result, log = train(make(data, 1e6), tmp_path, log_every=5), tmp_path / "log.jsonl"
    assert (result.diverged, result.count) == (True, 61)
    assert result.updates < 80
    (lost,) = runs.records(tmp_path, "not_finite")
    assert lost["step"] == result.updates  # the updates before it are the last
    assert lost["where"].startswith("the output of ")
    lines = log.read_text()
    assert not any(word in lines for word in ("NaN", "Infinity"))
    assert json.loads(lines.splitlines()[-1])["diverged"] is True
    plot_runs({"lost": [log]}, tmp_path / "lost.png")
    assert (tmp_path / "lost.png").read_bytes().startswith(PNG_MAGIC)


def test_command_line_trains_on_a_folder_and_leaves_log_and_picture(tmp_path):
    folder, out = tmp_path / "idx", tmp_path / "out"
    write_idx_folder(folder, ".gz", train=stripes(0, 360), t10k=stripes(2, 83))
    flags = f"--data {folder} --validation-images 40 --evaluate-on test --devices 2"
    flags += " --optimizer lars --learning-rate 10 --warmup-epochs 0.5 --epochs 2"
    flags += f" --batch-size 16 --network alexnet_bn_small --out {out}"
    run = runs.command_line(flags.split(), tmp_path / "cache")
    assert "over 2 cpu devices, 40 updates" in run.stdout
    result = runs.records(out)[-1]
    assert (result["count"], result["updates"]) == (83, 40)
    assert result["accuracy"] > 0.4  # chance is 0.1
    assert (out / "curves.png").read_bytes().startswith(PNG_MAGIC)
    assert f"{result['accuracy']:.2%}" in run.stdout


@cases(
    "flags, message",
    uneven=(
        "--batch-size 30 --devices 4",
        "got 30; .*by 4 .*; give 28 or 32$",
    ),
    too_small=("--batch-size 3 --devices 4", r"got 3; .*divisible by 4 = .*; give 4$"),
    large=("--batch-size 4000", "got 4000; .* at most 3200, the .*; give 3200$"),
    no_data=("--data /nowhere", "train-images-idx3-ubyte"),
    no_devices=("--devices 99", "got 99; a process has"),
    short=(
        "--epochs 0.004 --warmup-epochs 0",
        "0.004; that is at most half an update",
    ),
    long=(
        "--epochs 9e4 --batch-size 8 --data synthetic",
        "90000.0; that is 14,413,128,750 updates, of at most 100,000,000; give fewer",
    ),
    all_warmup=(
        "--warmup-epochs 2.999999 --epochs 3",
        "2.999999; that is 300 updates, and the run has 300; give at most 2.99$",
    ),
    early_boundary=(
        "--boundaries 6 3 --decay piecewise_constant",
        "the warm-up of 500 updates ends later; give .* --warmup-epochs, 5$",
    ),
)
def test_bad_input_ends_with_one_line_that_names_the_flag(flags, message, tmp_path):
    out = tmp_path / "out"
    assert_line(f"{flags.split()[0]}: .*{message}", f"{flags} --out {out}")
    assert not out.exists()


@pytest.mark.parametrize("name", ["log.jsonl", "curves.png", "checkpoints"])
def test_a_file_or_folder_in_the_way_of_a_run_is_refused_at_its_start(name, tmp_path):
    path = tmp_path / name
    if name == "checkpoints":
        path.write_text("mine")
        kind = "folder"
    else:
        path.mkdir()
        kind = "file"
    for existing in ("refuse", "resume", "replace"):
        message = f"--out: '{path}' is not a {kind}, which the run needs there; remove"
        assert_line(message, f"--out {tmp_path} --existing {existing}")
        assert path.exists()


def test_a_folder_whose_name_is_not_utf_8_is_refused(capsys):
    assert_usage(
        r"--out: got '/tmp/a\udcff'; checkpoints need", "--out /tmp/a\udcff", capsys
    )


def test_images_that_are_all_one_grey_are_refused_by_their_flag(tmp_path):
    grey = Split(np.full((40, 12, 12), 7, np.uint8), np.arange(40) % 10)
    write_idx_folder(tmp_path, "", train=grey, t10k=grey)
    flags = f"--data {tmp_path} --validation-images 8 --network alexnet_bn_small"
    assert_line("--data: the pixels of all training images are the same", flags)


OUT_OF_BOUNDS = """--momentum 1
--dropout 1
--epochs 0
--epochs 1e300
--width nan
--width 1e9
--learning-rate inf
--weight-decay -1
--trust-coefficient 0
--warmup-epochs 10 --epochs 10
--seed -1
--eval-batch-size 1000000000000
--extra-decay-steps 99999999999999999999
--step-timeout 99999999999999
--profile 1:99999999999999999999
--coordinator a:99999 --processes 1 --process 0
--out=
--data="""


@pytest.mark.parametrize("flags", OUT_OF_BOUNDS.splitlines())
def test_values_out_of_bounds_are_refused_by_flag(flags, capsys):
    assert_usage(f"{flags.split()[0].rstrip('=')}: got", flags, capsys)


@cases(
    "error",
    of_numpy=MemoryError("Unable to allocate 139. GiB"),
    of_a_device=jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat 1"),
)
def test_too_little_memory_is_told_in_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", Mock(side_effect=error))
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 1
    line = f"error: the memory is too small ({' '.join(str(error).split())}); give a "
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_a_bound_is_told(capsys):
    message = "--dropout: got 1.0; give 0 ≤ dropout < 1"
    assert_usage(message, "--dropout 1 --network alexnet", capsys)
    message = "--width: got 17.0; give 0 < width ≤ 16"
    assert_usage(message, "--width 17", capsys)


def test_what_orbax_leaves_behind_is_not_printed(monkeypatch):
    """Tracebacks of its failed tasks; the trainer says in a line what is damaged."""
    monkeypatch.setattr(cli, "run", Mock(return_value=None))
    names = ("absl", "asyncio")
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)
    cli.main([])
    assert not any(logging.getLogger(x).isEnabledFor(logging.ERROR) for x in names)
