"""Laws of examples/resnet50_pmap.py: devices share one batch, and each image counts."""

import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from image_trees import encoded, picture, write_tree
from trees import assert_equal

import lars_optax
from examples import resnet50_pmap as example
from examples.imagenet.models.resnet import ResNet
from lars_optax import recipes

N, SIDE, CLASSES = 4, 12, 5  # images of one device, pixels, classes
# The order of sums over images differs; BatchNorm divides by small deviations.
assert_close = partial(assert_equal, rtol=1e-4)
NETWORK = ResNet(
    CLASSES, 128.0, 64.0, width=0.0625, blocks=(1, 1), stride_in=2, small_stem=True
)
RATE = lars_optax.warmup_polynomial_decay_schedule(0.0, 0.5, 1, 4)
OPTIMIZERS = {
    "sgd": optax.sgd(RATE, momentum=0.9),
    "lars": lars_optax.lars(lambda count: 20 * RATE(count), 5e-4),
}
SMALL = "--network resnet_small --width 0.0625 --dtype float32 --warmup-epochs 1"


def on_devices(step, devices):
    map_over = partial(jax.pmap, in_axes=(None, 0, 0), out_axes=None, devices=devices)
    return map_over(step, example.AXIS)


@cache
def train_on(n, name):
    step = partial(example.train_step, NETWORK, OPTIMIZERS[name])
    return on_devices(step, jax.local_devices()[:n])


def first_state(tx):
    """Is the same whenever it is called."""
    blank = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    variables = NETWORK.init(jax.random.key(0), blank, train=False)
    params = variables["params"]
    return params, variables["batch_stats"], tx.init(params)


def random_batch(seed, n):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, N, SIDE, SIDE, 3), np.uint8)
    return images, random.integers(0, CLASSES, (n, N))


def loss_of_one_device(params, batch_stats, images, labels):
    """The loss without any device axis, from its definition."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = NETWORK.apply(variables, images, train=True, mutable="batch_stats")
    log_probs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_probs, labels[:, None], -1)[:, 0]
    return -(0.9 * right + 0.1 * log_probs.mean(-1)).mean(), new["batch_stats"]


GRADIENT = jax.jit(jax.value_and_grad(loss_of_one_device, has_aux=True))


def update(tx, state, grads, moments):
    params, batch_stats, opt_state = state
    updates, opt_state = tx.update(grads, opt_state, params)
    batch_stats = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, batch_stats, moments)
    return optax.apply_updates(params, updates), batch_stats, opt_state


def test_file_has_at_most_200_lines():
    assert len(Path(example.__file__).read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_of_four_devices_are_those_of_one_on_the_whole_batch(name, devices):
    """With the same images on each device, but other labels.

    BatchNorm's moments are then those of the whole batch on each device, whatever the
    parameters are, and the gradients of the devices differ.
    """
    tx, n = OPTIMIZERS[name], len(devices)
    found = whole = first_state(tx)
    for seed in range(4):
        images, labels = random_batch(seed, n)
        images[:] = images[0]
        found, loss = jax.block_until_ready(train_on(n, name)(found, images, labels))
        batch = images.reshape(-1, *images.shape[2:]), labels.reshape(-1)
        (expected, moments), grads = GRADIENT(*whole[:2], *batch)
        whole = update(tx, whole, grads, moments)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        assert_close(found, whole)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found[0], first_state(tx)[0])
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_gradients_and_moments_are_means_over_the_devices(devices):
    tx, n = OPTIMIZERS["sgd"], len(devices)
    found = alone = first_state(tx)
    for seed in range(2):  # the first learning rate is 0
        images, labels = random_batch(seed, n)
        found, _ = jax.block_until_ready(train_on(n, "sgd")(found, images, labels))
        pairs = zip(images, labels, strict=True)
        results = [GRADIENT(*alone[:2], *pair) for pair in pairs]
        (_, moments), grads = jax.tree.map(lambda *x: np.mean(x, 0), *results)
        alone = update(tx, alone, grads, moments)
    assert_close(found, alone)


class FirstPixel:
    """A network that takes the first pixel of an image for its class."""

    def apply(self, variables, images, train):
        assert not train
        return jax.nn.one_hot(images[:, 0, 0, 0], CLASSES)


@pytest.mark.parametrize("counts", [(8,), (8, 8, 5), (3,)])
def test_evaluation_counts_each_image_once(counts, eight_devices):
    """Also in a last batch that is not full. Class 0 is that of a black image."""
    random = np.random.default_rng(0)
    labels = [random.integers(0, CLASSES, n) for n in counts]
    shown = [(y + random.permutation(len(y)) % 2) % CLASSES for y in labels]
    images = [np.full((2, 3, 2, len(x)), x, np.uint8).T for x in shown]
    eval_step = partial(example.eval_step, FirstPixel())
    count = jax.pmap(eval_step, example.AXIS, devices=eight_devices)
    batches = zip(images, labels, strict=True)
    found = example.evaluate(count, ({}, {}, None), batches, 8)
    assert found == np.mean(np.concatenate(shown) == np.concatenate(labels))
    assert 0 < found < 1


def test_evaluation_reads_the_middle_of_an_image(tmp_path):
    image = np.zeros((32, 48, 3), np.uint8)
    image[2:30, 10:38] = [[[250, 120, 10]]]  # 28 pixels of 32, in the middle
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image))  # a PNG by another name, which keeps the pixels
    middle, label = example.read_image((str(path), 3), pixels=28)
    np.testing.assert_array_equal(middle, image[2:30, 10:38])
    assert label == 3


def test_training_reads_random_parts_that_depend_on_the_generator(tmp_path):
    """Of an image whose red grows to the right, and whose green grows downwards."""
    down, right = np.mgrid[0:64, 0:64].astype(np.uint8) * 4
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(np.stack([right, down, 0 * down], -1)))
    parts = [
        example.read_image((path, 0), np.random.default_rng(seed), pixels=16)[0]
        for seed in [*range(200), 0]
    ]
    np.testing.assert_array_equal(parts[0], parts[-1])
    red, green = (np.array(parts[:200], float)[..., i] for i in range(2))
    across, along = red[:, 8, -1] - red[:, 8, 0], green[:, -1, 8] - green[:, 0, 8]
    assert (along > 0).all()  # never upside down
    assert 70 < (across < 0).sum() < 130  # half are mirrored
    # The share of the area, of the last pixel's centre less the first's in 63 pixels.
    area = np.abs(across) * along / (4 * 63) ** 2
    assert 0.04 < area.min() < 0.12
    assert 0.8 < area.max() <= 1
    # As in the trainer, a part that does not fit is drawn again. If it were cut to the
    # image instead, more than one part in seven would be as wide or as high as it.
    longest = np.maximum(np.abs(across), along)
    assert (longest > 0.99 * longest.max()).sum() < 200 / 7
    assert np.ptp(red.mean((1, 2))) > 100


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 2)])
def test_tiny_and_narrow_images_are_read(size, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(0, *size)))
    for random in (None, *map(np.random.default_rng, range(20))):
        image, _ = example.read_image((path, 0), random, pixels=8)
        assert image.shape == (8, 8, 3)


def write_colours(root, train=("red", "blue"), val=("red", "blue")):
    """Class folders of red and of blue images: 128 in train and 13 in val."""
    files = {}
    for split, names, count in (("train", train, 128), ("val", val, 13)):
        for i in range(count):
            name = names[i % len(names)]
            image = picture(i, 20, 24) // 3
            image[..., 0 if name == "red" else 2] += 150
            files[f"{split}/{name}/{i}.JPEG"] = encoded(image, "JPEG", quality=95)
    return write_tree(root, files)


def test_command_line_trains_on_class_folders(tmp_path, capsys):
    folder = write_colours(tmp_path)
    flags = f"{SMALL} --pixels 12 --batch-size 64 --epochs 12 --learning-rate 60"
    accuracy = example.main([*flags.split(), "--data", str(folder)])
    printed = capsys.readouterr().out
    assert printed.count("images/s") == printed.count("accuracy") == 13
    assert "update 24 of 24" in printed
    assert printed.endswith(f"accuracy {accuracy:.2%}\n")
    assert accuracy > 0.9


def test_command_line_trains_on_noise_with_the_settings_of_the_recipe(
    monkeypatch, capsys
):
    """At another batch size and for fewer epochs."""
    made, lars = [], lars_optax.lars

    def record(*args, **more):
        made.append((args[0], lars(*args, **more)))
        return made[-1][1]

    monkeypatch.setattr(lars_optax, "lars", record)
    tiny = NETWORK.clone(classes=1000)
    monkeypatch.setattr(example, "make_model", lambda *args, **more: tiny)
    flags = "--pixels 8 --batch-size 8 --epochs 1.5 --warmup-epochs 0.5"
    assert 0 <= example.main(flags.split()) <= 1
    shown = re.findall(r"update (\d+) of 15", capsys.readouterr().out)
    assert shown == ["1", "10", "15"]

    recipe = recipes.get("mlperf-v1.0-resnet50-lars-8192")
    names = ("batch_size", "epochs", "warmup_epochs", "learning_rate", "weight_decay")
    for name in ("network", *names):
        assert getattr(example.Config(), name) == getattr(recipe, name)
    recipe = recipe.replace(
        batch_size=8,
        learning_rate=lars_optax.sqrt_scaling(recipe.learning_rate, 8, 8192),
        epochs=1.5,
        warmup_epochs=0.5,
        steps=None,
        end_learning_rate=0.0,
        extra_decay_steps=0,
    )
    ((schedule, tx),) = made
    counts = np.arange(17)
    np.testing.assert_allclose(schedule(counts), recipe.schedule(80)(counts), rtol=1e-6)
    params = {"conv": {"kernel": jnp.ones((3, 4))}, "bn": {"scale": jnp.ones(4)}}
    grads = jax.tree.map(lambda w: 0.1 + 0.2 * w, params)
    optimizers = tx, recipe.optimizer(80)
    states = [one.init(params) for one in optimizers]
    for _ in range(4):
        pairs = zip(optimizers, states, strict=True)
        updates, states = zip(
            *(tx.update(grads, s, params) for tx, s in pairs), strict=True
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *updates)


@pytest.mark.parametrize(("flags", "message"), [
    ("--batch-size 12", "--batch-size: got 12; give a multiple of 8, .* such as 8$"),
    ("--batch-size 0", "--batch-size: got 0; give a multiple of 8, .* such as 8$"),
    ("--batch-size -8", "--batch-size: got -8; give a multiple of 8, .* such as 8$"),
    ("--epochs 5", "--warmup-epochs: got 5; give fewer updates, .* which are 50$"),
    ("--epochs 0", "--warmup-epochs: got 5; give fewer updates, .* which are 0$"),
    ("--epochs .1 --warmup-epochs .09", "--warmup-epochs: .* which are 1$"),
    ("--warmup-epochs -1", "--warmup-epochs: got -1.0; give a finite number ≥ 0$"),
    ("--weight-decay -1", "--weight-decay: got -1.0; give a finite number ≥ 0$"),
    ("--learning-rate inf", "--learning-rate: got inf; give a finite number ≥ 0$"),
    ("--epochs nan", "--epochs: got nan; give a finite number ≥ 0$"),
    ("--data nowhere", "--data: got 'nowhere'; give a folder with train/CLASS/"),
])  # fmt: skip
def test_a_wrong_flag_is_refused_with_its_value_and_a_remedy(flags, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        example.main(flags.split())


def test_wrong_folders_are_refused(tmp_path):
    def run(name):
        example.main(["--data", str(tmp_path / name), "--batch-size", "8"])

    write_tree(tmp_path / "empty", {"train/cat/1.jpg": b"", "val/cat": None})
    with pytest.raises(SystemExit, match=r"--data: .*empty'; give .* val/CLASS/\*.jpg"):
        run("empty")
    write_colours(tmp_path / "classes", val=("red", "cat"))
    with pytest.raises(SystemExit, match=r"--data: .* must both have blue, cat$"):
        run("classes")


def test_an_unreadable_image_is_named(tmp_path):
    folder = write_colours(tmp_path)
    config = example.Config(data=str(folder), pixels=8, batch_size=8)
    _, _, train, val = example.load(config)
    broken = folder / "val" / "red" / "4.JPEG"
    for raw in (b"", b"words", broken.read_bytes()[:-100]):
        broken.write_bytes(raw)
        with pytest.raises(ValueError, match=r"val/red/4.JPEG: .*; replace or remove"):
            list(val)
    next(iter(train))
