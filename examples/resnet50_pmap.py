"""ResNet-50 in one file: LARS with a large batch on all GPUs of a machine, by pmap.

    pip install ".[examples]"
    python -m examples.resnet50_pmap --batch-size 2048 --data DIR

The default settings follow the recipe "mlperf-v1.0-resnet50-lars-8192". The trainer,
`examples.imagenet`, adds checkpoints, gradient accumulation and several machines.
"""

import glob
import itertools
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import grain
import jax
import numpy as np
import optax
import tyro
from PIL import Image

import lars_optax
from examples.imagenet.models import make_model

AXIS = "devices"  # the name of the axis over which pmap maps
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)  # of ImageNet's pixels


@dataclass(frozen=True)
class Config:
    """Train ResNet-50 with LARS on all GPUs, and print its accuracy and its speed."""

    data: str = "synthetic"  #: "synthetic" for noise, or DIR/{train,val}/CLASS/*.jpg.
    network: Literal["resnet50_v1.5", "resnet_small"] = "resnet50_v1.5"
    width: float = 1.0  #: Factor on the number of channels of every layer but the last.
    pixels: int = 224  #: Side of the images, in pixels; about 32 for resnet_small.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  #: Number format of activations.
    batch_size: int = 8192  #: Number of images in one update, over all devices.
    epochs: float = 44  #: Number of times that training sees each image.
    warmup_epochs: float = 5  #: Epochs in which the learning rate rises from 0.
    learning_rate: float = 17.0  #: Peak at batch size 8192; grows as √(batch size).
    weight_decay: float = 2e-4  #: Weight decay of all weights.
    seed: int = 0  #: Random seed of the initial weights and of the images.


def check(ok: bool, flag: str, value: object, remedy: str) -> None:
    """Ends the program unless `ok`; the message has flag, value and remedy."""
    if not ok:
        raise SystemExit(f"error: {flag}: got {value!r}; {remedy}")


def list_images(folder: str, split: str) -> tuple[set[str], list[tuple[str, int]]]:
    """Returns the classes of a split, and each image's path and number of its class."""
    paths = sorted(glob.glob(f"{glob.escape(folder)}/{split}/*/*.[jJ]*[gG]"))
    check(paths != [], "--data", folder, f"give a folder with {split}/CLASS/*.jpg")
    names = [os.path.basename(os.path.dirname(path)) for path in paths]
    classes, labels = np.unique(names, return_inverse=True)
    return set(classes.tolist()), list(zip(paths, labels.tolist(), strict=True))


def read_image(file: tuple[str, int], random: Any = None, *, pixels: int) -> Any:
    """Returns the middle of an image, or a random part if `random` is a generator."""
    path, label = file
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow raises exceptions of many types
        raise ValueError(f"{path}: {error}; replace or remove this image") from error
    size = np.array(image.size)  # width and height, as in `part` and `corner`
    part, place, step = np.full(2, size.min() * 7 / 8), np.full(2, 0.5), 1
    if random is not None:
        area, ratio = random.uniform(0.08, 1, 10), (4 / 3) ** random.uniform(-1, 1, 10)
        parts = np.sqrt(area * size.prod() * np.array([ratio, 1 / ratio])).T
        part = parts[(parts <= size).all(1).argmax()].clip(max=size)  # first that fits
        place, step = random.random(2), random.choice([-1, 1])  # -1 mirrors it
    corner = place * (size - part)
    box = (*corner, *(corner + part))
    crop = image.resize((pixels, pixels), Image.Resampling.BILINEAR, box)
    return np.asarray(crop)[:, ::step], label


def load(config: Config) -> tuple[int, int, Any, Any]:
    """Returns the numbers of training images and classes, and batches of train, val."""
    size, pixels, random = config.batch_size, config.pixels, np.random.default_rng(0)
    if config.data == "synthetic":
        noise = random.integers(0, 256, (size, pixels, pixels, 3), np.uint8)
        batch = noise, random.integers(0, 1000, size)
        return 10 * size, 1000, itertools.repeat(batch), [batch]
    classes, train = list_images(config.data, "train")
    others, val = list_images(config.data, "val")
    odd = ", ".join(sorted(classes ^ others)[:5])
    check(odd == "", "--data", config.data, f"train and val must both have {odd}")
    read = partial(read_image, pixels=pixels)
    # Each epoch has all training images in another random order.
    shuffled = grain.MapDataset.source(train).seed(config.seed).shuffle().repeat()
    images = shuffled.random_map(read), grain.MapDataset.source(val).map(read)
    ahead = grain.ReadOptions(os.cpu_count() or 1, prefetch_buffer_size=2 * size)
    batches = [split.to_iter_dataset(ahead).batch(size) for split in images]
    return len(train), len(classes), *batches


def train_step(network: Any, tx: Any, state: Any, images: Any, labels: Any) -> Any:
    """Returns the new state and the loss. Each device runs it on its own images."""
    params, batch_stats, opt_state = state

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        outputs = network.apply(variables, images, train=True, mutable="batch_stats")
        logits, new = outputs  # this network returns the moments of this batch alone
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
        # The loss has no weight decay, because LARS adds it to the gradient.
        return optax.softmax_cross_entropy(logits, targets).mean(), new["batch_stats"]

    (loss, moments), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    # LARS takes the norm of the gradient of the whole batch, so the devices' mean comes
    # before the optimizer. BatchNorm normalizes the images of each device by their own
    # mean and variance, and evaluation uses running averages over all devices.
    loss, moments, grads = jax.lax.pmean((loss, moments, grads), AXIS)
    updates, opt_state = tx.update(grads, opt_state, params)
    batch_stats = optax.incremental_update(moments, batch_stats, 0.1)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), loss


def eval_step(network: Any, state: Any, images: Any, labels: Any) -> Any:
    """Returns the number of correct images. One with the label -1 is never correct."""
    variables = {"params": state[0], "batch_stats": state[1]}
    logits = network.apply(variables, images, train=False)
    return jax.lax.psum((logits.argmax(-1) == labels).sum(), AXIS)


def shares(batch: Any) -> list[Any]:
    """Returns images and labels with a new first axis, which counts the devices."""
    return [x.reshape(jax.local_device_count(), -1, *x.shape[1:]) for x in batch]


def evaluate(count: Any, state: Any, batches: Any, size: int) -> float:
    """Returns the accuracy over all images. Padding has the label -1."""
    correct = total = 0
    for images, labels in batches:
        fill = [(0, size - len(labels)), (0, 0), (0, 0), (0, 0)]
        batch = np.pad(images, fill), np.pad(labels, fill[:1], constant_values=-1)
        correct += int(count(state, *shares(batch))[0])
        total += len(labels)
    return correct / total


def main(arguments: list[str] | None = None) -> float:
    """Trains, and returns the accuracy on the images in val, a fraction."""
    config = tyro.cli(Config, prog="python -m examples.resnet50_pmap", args=arguments)
    size, devices = config.batch_size, jax.local_device_count()
    near = max(size // devices, 1) * devices
    remedy = f"give a multiple of {devices}, the number of devices, such as {near}"
    check(size == near, "--batch-size", size, remedy)
    for name, value in vars(config).items():
        ok = not isinstance(value, float) or 0 <= value < np.inf
        check(ok, "--" + name.replace("_", "-"), value, "give a finite number ≥ 0")
    images, classes, train, val = load(config)
    build = partial(make_model, config.network, pixel_mean=MEAN, pixel_std=STD)
    network = build(classes=classes, width=config.width, dtype=config.dtype)
    steps = lars_optax.epochs_to_steps(config.epochs, images, size)
    warmup = lars_optax.epochs_to_steps(config.warmup_epochs, images, size)
    remedy = f"give fewer updates, {warmup} now, than --epochs has, which are {steps}"
    check(warmup < steps, "--warmup-epochs", config.warmup_epochs, remedy)
    peak = lars_optax.sqrt_scaling(config.learning_rate, size, 8192)
    rate = lars_optax.warmup_polynomial_decay_schedule(0.0, peak, warmup, steps)
    # Biases and BatchNorm's parameters have no weight decay and a trust ratio of 1.
    tx = lars_optax.lars(rate, config.weight_decay, fallback_ratio=1.0)

    def init(blank: Any) -> Any:
        variables = network.init(jax.random.key(config.seed), blank, train=False)
        params = variables["params"]
        return params, variables["batch_stats"], tx.init(params)

    blanks = np.zeros((devices, 1, config.pixels, config.pixels, 3), np.uint8)
    # Every device has a copy of the state, and gets its share of each batch.
    state = jax.pmap(init)(blanks)
    update = jax.pmap(partial(train_step, network, tx), AXIS, donate_argnums=0)
    count = jax.pmap(partial(eval_step, network), AXIS)
    last, start = 0, time.perf_counter()
    for step, batch in enumerate(itertools.islice(train, steps), 1):
        state, loss = update(state, *shares(batch))
        # The time of the first update includes that of the compilation.
        shown = step in (1, steps) or step % max(images // size, 1) == 0
        # On virtual devices of a CPU, two steps at the same time could deadlock.
        if shown or jax.default_backend() == "cpu":
            jax.block_until_ready(loss)
        if shown:
            speed = (step - last) * size / (time.perf_counter() - start)
            print(f"update {step} of {steps}: loss {loss[0]:.3f}, {speed:.0f} images/s")
            accuracy = evaluate(count, state, val, size)
            print(f"accuracy {accuracy:.2%}")
            last, start = step, time.perf_counter()
    return accuracy


if __name__ == "__main__":
    main()
