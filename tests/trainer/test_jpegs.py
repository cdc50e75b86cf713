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

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
TRAIN, TEST = 24, 5  # of each class
FLAGS = """--network alexnet_bn_small --width 0.25 --batch-size 16 --epochs 4
    --learning-rate 5 --warmup-epochs 1 --validation-images 0 --evaluate-on test
    --eval-batch-size 4 --devices 2 --layers-every 3"""


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
    experiment = bind(parse(f"{FLAGS} --data {photos}".split()))
    experiment.compile()
    return experiment


@pytest.fixture
def start(compiled, photos, tmp_path):
    """A run on a copy of the photographs, with what `flags` change."""
    folder, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(photos, folder)

    def run(flags="", *show):
        config = parse(f"{FLAGS} --data {folder} --out {out} {flags}".split())
        experiment = bind(config)
        experiment.step, experiment.eval_step = compiled.step, compiled.eval_step
        return runs.train_on(experiment, config.run, *show)

    run.folder, run.out = folder, out
    return run


def test_photographs_are_learnt_and_each_test_image_counted_once(photos, tmp_path):
    flags = f"{FLAGS} --data {photos} --out {tmp_path} --epochs 10 --workers 2"
    result = main(flags.split())
    assert (result.updates, result.count) == (30, 2 * TEST)
    assert result.accuracy >= 0.9  # by chance: 0.5
    epochs = runs.records(tmp_path, "epoch")
    assert [record["count"] for record in epochs] == [2 * TEST] * 10
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_an_unreadable_file_ends_the_run_with_a_checkpoint(start):
    photo = start.folder / "train" / "china" / "3.jpg"
    whole = photo.read_bytes()
    cut = runs.when("epoch", 3, lambda: photo.write_bytes(whole[: len(whole) // 2]))
    with pytest.raises(DataLost, match=r"china/3\.jpg': .*--broken blank") as error:
        start("--log-every 2", cut)
    assert "prepare" in str(error.value)
    (lost,) = runs.records(start.out, "broken")
    assert lost["path"] == str(photo)
    assert 3 <= lost["step"] < 12  # some batches were read ahead
    assert runs.steps_of(start.out)[-1] == lost["step"]
    photo.write_bytes(whole)
    assert start("--log-every 2").updates == 12
    assert runs.steps_logged(start.out) == list(range(12))


def test_a_file_that_is_unreadable_at_the_start_ends_the_run_before_it(start):
    photo = start.folder / "train" / "china" / "3.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    message = r"--data: cannot read the image '.*china/3\.jpg': .*--broken blank"
    for _ in range(2):  # twice, because the first must not fill the cache
        with pytest.raises(ValueError, match=message):
            start()
    assert not start.out.exists()
    photo.write_bytes(whole)
    assert start().updates == 12


def test_unreadable_files_are_each_named_when_the_run_goes_on(start):
    for name in ("train/flower/1.jpg", "test/china/24.jpg"):
        (start.folder / name).write_bytes(b"\xff\xd8 no more")
    (start.folder / "train/flower/2.jpg").unlink()
    (start.folder / "train/flower/2.jpg").symlink_to("nowhere")
    assert start("--broken blank").count == 2 * TEST
    lost = runs.records(start.out, "broken")
    named = [Path(r["path"]).relative_to(start.folder).as_posix() for r in lost]
    # Each once an epoch, of four.
    expected = ["test/china/24.jpg", "train/flower/1.jpg", "train/flower/2.jpg"]
    assert sorted(named) == sorted(expected * 4)
    assert all(r["reason"] for r in lost)


def test_an_epoch_whose_evaluation_was_cut_short_is_evaluated_on_resuming(start):
    test, hidden = start.folder / "test", start.folder / "hidden"
    with pytest.raises(DataLost, match="no longer exists"):
        start("", runs.when("step", 2, lambda: test.rename(hidden)))
    assert runs.steps_of(start.out) == [3]
    hidden.rename(test)
    assert start().updates == 12
    assert runs.steps_logged(start.out, "epoch") == [3, 6, 9, 12]


def test_a_folder_that_goes_ends_the_run_with_a_checkpoint(start):
    with pytest.raises(DataLost, match="no longer exists"):
        start("", runs.when("epoch", 3, lambda: shutil.rmtree(start.folder)))
    assert 3 <= runs.steps_of(start.out)[-1] <= 6
