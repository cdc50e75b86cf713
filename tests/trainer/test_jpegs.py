"""Runs on real photographs: to the end, and with files that cannot be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import small_runs as runs
from image_trees import encoded, write_tree
from PIL import Image

from examples.imagenet.cli import bind, main, parse
from examples.imagenet.data.dataset import DataLost
from examples.imagenet.log import read_log
from examples.imagenet.run.checkpoint import Checkpoints
from examples.imagenet.run.loop import fit

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
TRAIN, TEST = 24, 5  # of each class
_FLAGS = """--network alexnet_bn_small --width 0.25 --batch-size 16 --epochs 4
    --learning-rate 5 --warmup-epochs 1 --validation-images 0 --evaluate-on test
    --eval-batch-size 4 --devices 2 --layers-every 3"""
FLAGS = _FLAGS.split()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pieces of a temple and of a flower: JPEGs of 80×80 to be told apart."""
    files = {}
    for name in ("china", "flower"):
        image = np.asarray(Image.open(PHOTOS / f"{name}.jpg"))
        corners = np.random.RandomState(0).randint(0, (347, 560), (TRAIN + TEST, 2))
        for i, (y, x) in enumerate(corners):
            split = "train" if i < TRAIN else "test"
            piece = image[y : y + 80, x : x + 80]
            files[f"{split}/{name}/{i}.jpg"] = encoded(piece, "JPEG", quality=90)
    return write_tree(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def compiled(photos):
    experiment = bind(parse([*FLAGS, "--data", str(photos)]))
    experiment.compile()
    return experiment


@pytest.fixture
def start(compiled, photos, tmp_path):
    """A run on a copy of the photographs, with what `flags` change."""
    folder, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(photos, folder)

    def run(*flags, show=lambda record: None):
        words = [*FLAGS, "--data", str(folder), "--out", str(out), *flags]
        config = parse(words)
        experiment = bind(config)
        experiment.step, experiment.eval_step = compiled.step, compiled.eval_step
        facts = experiment.identity(), experiment.grouping()
        return fit(experiment, config.run, show, Checkpoints(config, *facts))

    run.folder, run.out = folder, out
    return run


def test_photographs_are_learnt_and_each_test_image_counted_once(photos, tmp_path):
    out = tmp_path / "out"
    words = [*FLAGS, "--data", str(photos), "--epochs", "10", "--workers", "2"]
    result = main([*words, "--out", str(out)])
    assert (result.updates, result.count) == (30, 2 * TEST)
    assert result.accuracy >= 0.9  # by chance: 0.5
    log = read_log(out / "log.jsonl")
    assert [r["count"] for r in log if r["kind"] == "epoch"] == [2 * TEST] * 10
    assert (out / "curves.png").stat().st_size > 10_000


def test_an_unreadable_file_ends_the_run_with_a_checkpoint(start):
    whole = start.folder / "train" / "china" / "3.jpg"
    good = whole.read_bytes()

    def cut(record):
        if (record["kind"], record.get("step")) == ("epoch", 3):
            whole.write_bytes(good[: len(good) // 2])

    with pytest.raises(DataLost, match=r"china/3\.jpg': .*--broken blank") as error:
        start("--log-every", "2", show=cut)
    assert "prepare" in str(error.value)
    (lost,) = (r for r in read_log(start.out / "log.jsonl") if r["kind"] == "broken")
    assert lost["path"] == str(whole)
    done = lost["step"]
    assert 3 <= done < 12  # some batches were read ahead
    assert runs.steps_of(start.out)[-1] == done
    whole.write_bytes(good)
    assert start("--log-every", "2").updates == 12
    steps = [r["step"] for r in runs.logged(start.out) if r["kind"] == "step"]
    assert steps == list(range(12))


def test_unreadable_files_are_each_named_when_the_run_goes_on(start):
    for name in ("train/flower/1.jpg", "test/china/24.jpg"):
        (start.folder / name).write_bytes(b"\xff\xd8 no more")
    (start.folder / "train" / "flower" / "2.jpg").unlink()
    (start.folder / "train" / "flower" / "2.jpg").symlink_to("nowhere")
    result = start("--broken", "blank")
    assert result.count == 2 * TEST
    lost = [r for r in read_log(start.out / "log.jsonl") if r["kind"] == "broken"]
    named = [Path(r["path"]).relative_to(start.folder).as_posix() for r in lost]
    # Each once an epoch, of four.
    expected = ["test/china/24.jpg", "train/flower/1.jpg", "train/flower/2.jpg"]
    assert sorted(named) == sorted(expected * 4)
    assert all(r["reason"] for r in lost)


def test_an_epoch_whose_evaluation_was_cut_short_is_evaluated_on_resuming(start):
    hidden = start.folder / "hidden"

    def remove(record):
        if (record["kind"], record.get("step")) == ("step", 2):
            (start.folder / "test").rename(hidden)

    with pytest.raises(DataLost, match="is gone"):
        start(show=remove)
    assert runs.steps_of(start.out) == [3]
    hidden.rename(start.folder / "test")
    assert start().updates == 12
    epochs = [r["step"] for r in runs.logged(start.out) if r["kind"] == "epoch"]
    assert epochs == [3, 6, 9, 12]


def test_a_folder_that_goes_ends_the_run_with_a_checkpoint(start):
    def remove(record):
        if (record["kind"], record.get("step")) == ("epoch", 3):
            shutil.rmtree(start.folder)

    with pytest.raises(DataLost, match="is gone"):
        start(show=remove)
    assert 3 <= runs.steps_of(start.out)[-1] <= 6
