"""Barlow Twins in one file: LARS trains an encoder without labels.

    python -m examples.barlow_twins

Two random views of each image pass through one network. The loss compares the
cross-correlation matrix of the two outputs, over the whole batch, with the identity.
The devices share each batch. After training, a linear classifier is fitted to the
features of the encoder, which stay as they are. This is called a linear probe.

Source: Zbontar et al. 2021, arXiv:2103.03230, and facebookresearch/barlowtwins.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import lars_optax
from examples.imagenet.data.dataset import Dataset, Share, Source
from examples.imagenet.data.index import is_tree
from examples.imagenet.data.sources import load
from examples.imagenet.flags import check, check_number, read_flags
from lars_optax.recipes import Recipe

AXIS = "devices"  # the mesh axis over which a batch is divided


@dataclass(frozen=True)
class Config:
    """Train an encoder with Barlow Twins and print the accuracy of a linear probe."""

    #: "mnist" for 5,000 digits that need no download, or a folder with MNIST's IDX
    #: files. All images must fit into memory.
    data: str = "mnist"
    #: Number of training images of a folder that serve as validation images.
    validation_images: int = 5000
    #: Number of images in one update, a multiple of the number of devices.
    batch_size: int = 1024
    #: Number of times that training sees each image.
    epochs: int = 100
    #: Learning rate of LARS at a batch size of 256. It is scaled linearly to
    #: the value of --batch-size. The published rate is 0.2.
    lars_rate: float = 2.0
    #: Learning rate of SGD at a batch size of 256, scaled in the same way.
    sgd_rate: float = 0.001
    #: Whether to train with SGD too.
    compare: bool = False
    #: Random seeds, all different. There is one run for each.
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        ok = self.data not in ("", "synthetic")
        check(ok, "data", self.data, "give mnist or a folder with MNIST's IDX files")
        check_number("--validation-images", self.validation_images, low=1, high=10**9)
        check_number("--batch-size", self.batch_size, low=1, high=10**7)
        check_number("--epochs", self.epochs, low=1, high=100_000)
        check_number("--lars-rate", self.lars_rate, low=0, high=1e30)
        check_number("--sgd-rate", self.sgd_rate, low=0, high=1e30)
        for seed in self.seeds:
            check_number("--seeds", seed, low=0, below=2**32)
        # A seed that is given twice would make the standard error too small.
        ok = 0 < len(self.seeds) == len(set(self.seeds))
        check(ok, "seeds", self.seeds, "give one or more seeds, all different")


class Network(nn.Module):
    """A convolutional encoder with a projector behind it.

    Returns the features, which the probe uses, and the projections, which the loss
    uses. In training, BatchNorm computes its mean and variance over the images of all
    devices of `axis`.
    """

    projections: int = 256
    channels: Sequence[int] = (8, 16, 32, 128)
    axis: str | None = AXIS

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        norm = partial(nn.BatchNorm, not train, momentum=0.9, axis_name=self.axis)
        for width in self.channels:
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(norm()(x))
        features = x = x.mean((1, 2))
        for _ in range(2):
            x = nn.Dense(self.projections, use_bias=False)(x)
            x = nn.relu(norm()(x))
        return features, nn.Dense(self.projections, use_bias=False)(x)


def random_view(key: jax.Array, image: jax.Array) -> jax.Array:
    """Returns a distorted copy of an image [height, width, channels] from 0 to 1.

    The copy is rotated, sheared, scaled and shifted at random. A random square of it is
    0, and noise is added. The same key gives the same copy.
    """
    keys = jax.random.split(key, 5)
    turn, shear = jax.random.uniform(keys[0], (2,), minval=-0.4, maxval=0.4)
    scale = jnp.exp(jax.random.uniform(keys[1], (2, 1), minval=-0.3, maxval=0.3))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    rotation = jnp.array([[cos, -sin], [sin, cos]])
    affine = scale * rotation @ jnp.array([[1.0, 0.0], [shear, 1.0]])

    # Each pixel of the view takes its value from a place between pixels of the image.
    size = jnp.array(image.shape[:2], jnp.float32)[:, None]
    shift = size * jax.random.uniform(keys[2], (2, 1), minval=-0.12, maxval=0.12)
    pixels = jnp.indices(image.shape[:2], jnp.float32).reshape(2, -1)
    centre = (size - 1) / 2
    places = affine @ (pixels - centre) + centre + shift
    interpolate = partial(jax.scipy.ndimage.map_coordinates, order=1)
    view = jax.vmap(interpolate, (-1, None), -1)(image, tuple(places))

    corner = size * jax.random.uniform(keys[3], (2, 1))
    erased = ((corner <= pixels) & (pixels < corner + 0.3 * size)).all(0)
    view = jnp.where(erased[:, None], 0.0, view).reshape(image.shape)
    return view + 0.1 * jax.random.normal(keys[4], image.shape)


def barlow_loss(a: jax.Array, b: jax.Array, off_diagonal: float = 0.0051) -> jax.Array:
    """Returns Σᵢ (1 − Cᵢᵢ)² + `off_diagonal` · Σᵢ Σⱼ≠ᵢ Cᵢⱼ².

    C is the cross-correlation matrix of a and b, two arrays [images, outputs] of which
    each device has some rows. All devices have equally many rows, so a mean over all
    images is the mean over the devices of their means.
    """

    def standardized(z: jax.Array) -> jax.Array:
        z = z - jax.lax.pmean(z.mean(0), AXIS)
        return z * jax.lax.rsqrt(jax.lax.pmean((z**2).mean(0), AXIS) + 1e-5)

    c = jax.lax.pmean(standardized(a).T @ standardized(b) / len(a), AXIS)
    diagonal = jnp.diagonal(c)
    others = (c**2).sum() - (diagonal**2).sum()
    loss: jax.Array = ((1 - diagonal) ** 2).sum() + off_diagonal * others
    return loss


def make_loss(network: Network, devices: Sequence[jax.Device]) -> Any:
    """Returns a function of params, batch_stats, images and keys on these devices.

    The function returns the loss of the whole batch and the new batch_stats. It takes
    images [n, height, width, channels] and keys [n, 2], one key for each view.
    """

    # Take the gradient of the function that shard_map returns. It has one loss, and JAX
    # adds up what the images of all devices contribute to its gradient. Under pmap, or
    # with check_vma=False, the gradient is taken on each device. Each of n devices then
    # has a copy of the loss, and the derivative of a psum or pmean adds up the copies.
    # A device thus gets n times the contribution of its images. The mean of the
    # devices' gradients is the right gradient, and their sum is n times too large. Such
    # a factor changes the steps of SGD. With LARS it is easily overlooked, because the
    # trust ratio divides by ‖g‖.
    @partial(
        jax.shard_map,
        mesh=Mesh(np.asarray(devices), (AXIS,)),
        in_specs=(P(), P(), P(AXIS), P(AXIS)),
        out_specs=P(),
    )
    def loss(params: Any, batch_stats: Any, images: jax.Array, keys: jax.Array) -> Any:
        projections = []
        for key in keys.T:
            views = jax.vmap(random_view)(key, images)
            variables = {"params": params, "batch_stats": batch_stats}
            (_, z), new = network.apply(
                variables, views, train=True, mutable=["batch_stats"]
            )
            projections.append(z)
            batch_stats = new["batch_stats"]
        return barlow_loss(*projections), batch_stats

    return loss


def make_recipe(algorithm: str, rate: float, config: Config) -> Recipe:
    """Returns the published recipe, adapted to a short run and another learning rate.

    The learning rate is `rate` at a batch size of 256 and is scaled linearly. As
    published, it rises over 1 % of the run and then falls along a cosine to a
    thousandth of its peak.
    """
    peak = lars_optax.linear_scaling(rate, config.batch_size, 256)
    return lars_optax.recipes.get("barlow-twins-resnet50-lars-2048").replace(
        algorithm=algorithm,
        batch_size=config.batch_size,
        learning_rate=peak,
        end_learning_rate=peak / 1000,
        epochs=config.epochs,
        warmup_epochs=config.epochs / 100,
    )


def load_data(config: Config, devices: int) -> Dataset:
    """Returns the data set of the settings.

    Raises ValueError if it is a folder of image files, which would all be read into
    memory. Also raises it if the batch does not divide evenly among the devices, or has
    more images than there are.
    """
    remedy = "give mnist or a folder with MNIST's IDX files"
    check(not is_tree(config.data), "data", config.data, remedy)
    data = load(config.data, config.validation_images)
    size, images = config.batch_size, data.train.size
    near = max(min(size, images) // devices, 1) * devices
    remedy = (
        f"it must be a multiple of {devices}, the number of devices, and at most"
        f" {images}, the number of training images; give {near}"
    )
    check(size % devices == 0 and size <= images, "batch_size", size, remedy)
    return data


def make_update(network: Network, tx: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns a function that updates variables and opt_state with a batch of images.

    The function takes uint8 images and one key, which it splits into a key for each
    view.
    """
    compute = jax.value_and_grad(make_loss(network, devices), has_aux=True)

    @jax.jit
    def update(variables: Any, opt_state: Any, images: jax.Array, key: Any) -> Any:
        params, batch_stats = variables["params"], variables["batch_stats"]
        keys = jax.random.split(key, (len(images), 2))
        (loss, batch_stats), grads = compute(params, batch_stats, images / 255, keys)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": batch_stats}, opt_state, loss

    return update


def pretrain(
    update: Any, variables: Any, opt_state: Any, batches: Any, key: jax.Array
) -> tuple[Any, float]:
    """Trains on all batches, and returns the variables and the last loss."""
    for step, (batch, _) in enumerate(batches):
        variables, opt_state, loss = update(
            variables, opt_state, batch.images, jax.random.fold_in(key, step)
        )
        if jax.default_backend() == "cpu":
            # Virtual CPU devices may run only one step at a time.
            jax.block_until_ready(loss)
    return variables, float(loss)


def read(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and the labels of a source."""
    batches = [batch for batch, _ in source.evaluation(Share(1000))]
    return (
        np.concatenate([batch.images[batch.mask] for batch in batches]),
        np.concatenate([batch.labels[batch.mask] for batch in batches]),
    )


@partial(jax.jit, static_argnums=0)
def features(network: Network, variables: Any, images: jax.Array) -> Any:
    """Returns the features of uint8 images, computed for 1,000 images at a time."""

    def one(image: jax.Array) -> Any:
        return network.apply(variables, image[None] / 255, train=False)[0][0]

    return jax.lax.map(one, images, batch_size=1000)


@jax.jit
def fit(x: jax.Array, labels: jax.Array, penalty: float, weights: Any) -> Any:
    """Returns the weights of a logistic regression after 100 steps of L-BFGS."""

    def loss(weights: Any) -> Any:
        scores = x @ weights["kernel"] + weights["bias"]
        errors = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return errors.mean() + penalty / 2 * (weights["kernel"] ** 2).sum()

    def step(carry: Any, _: None) -> Any:
        weights, state = carry
        value, grad = compute(weights, state=state)
        more = {"value": value, "grad": grad, "value_fn": loss}
        updates, state = tx.update(grad, state, weights, **more)
        return (optax.apply_updates(weights, updates), state), None

    tx, compute = optax.lbfgs(), optax.value_and_grad_from_state(loss)
    return jax.lax.scan(step, (weights, tx.init(weights)), length=100)[0][0]


def probe(inputs: Sequence[Any], labels: Sequence[Any]) -> tuple[float, float]:
    """Returns the validation and the test accuracy of a linear probe, as fractions.

    Each argument has three arrays, for the training, validation and test images. The
    weight decay of the probe is the one with the best validation accuracy.
    """
    centre, spread = inputs[0].mean(0), inputs[0].std(0) + 1e-6
    train, *others = [(x - centre) / spread for x in inputs]
    classes = labels[0].max() + 1
    start = {"kernel": jnp.zeros((train.shape[1], classes)), "bias": jnp.zeros(classes)}
    results = []
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1):
        weights = fit(train, labels[0], penalty, start)
        scores = [x @ weights["kernel"] + weights["bias"] for x in others]
        right = [s.argmax(-1) == y for s, y in zip(scores, labels[1:], strict=True)]
        results.append((float(right[0].mean()), float(right[1].mean())))
    return max(results, key=itemgetter(0))


def standard_errors(accuracies: Sequence[float], images: int) -> tuple[float, float]:
    """Returns two standard errors of the mean of test accuracies, one for each seed.

    The first is that of the mean over seeds, or nan for a single seed. The second comes
    from the number of test images.
    """
    mean, n = np.mean(accuracies), len(accuracies)
    seeds = np.std(accuracies, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return float(seeds), float(np.sqrt(mean * (1 - mean) / images))


def show(rows: dict[str, list[tuple[float, float]]], test_images: int) -> None:
    """Prints mean accuracies in %, with two standard errors of the test accuracy.

    The standard error of a mean over seeds is a dash for a single run.
    """
    print(f"{'':20}validation  test  s.e. (seeds)  s.e. (images)")
    for name, results in rows.items():
        validation, test = np.array(results).T
        means = f"{100 * validation.mean():10.1f}{100 * test.mean():6.1f}"
        seeds, sample = standard_errors(test, test_images)
        of_seeds = "–" if np.isnan(seeds) else f"{100 * seeds:.2f}"
        print(f"{name:20}{means}{of_seeds:>14}{100 * sample:15.2f}")


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Prints a table and returns the validation and test accuracies of its rows.

    Wrong flags or data raise SystemExit with a message.
    """
    devices = jax.devices()
    try:
        config: Config = read_flags(Config, "examples.barlow_twins", arguments)
        data = load_data(config, len(devices))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    splits = [read(source) for source in (data.train, data.validation, data.test)]
    images, labels = zip(*splits, strict=True)
    recipes = [make_recipe("lars", config.lars_rate, config)]
    if config.compare:
        recipes.append(make_recipe("sgd", config.sgd_rate, config))
    _, steps = recipes[0].step_counts(data.train.size)  # as many as with SGD
    network, methods = Network(), {}
    for recipe in recipes:
        tx = recipe.optimizer(data.train.size)
        methods[recipe.algorithm.upper()] = tx, make_update(network, tx, devices)

    pixels = [x.reshape(len(x), -1) / np.float32(255) for x in images]
    rows = {"raw pixels": [probe(pixels, labels)]}
    blank = jnp.zeros((1, *data.image_shape))
    for seed in config.seeds:
        init_key, view_key = jax.random.split(jax.random.key(seed))
        untrained = network.init(init_key, blank, train=False)
        trained = {"untrained encoder": untrained}
        for name, (tx, update) in methods.items():
            start, opt_state = time.perf_counter(), tx.init(untrained["params"])
            batches = data.train.training(seed, range(steps), Share(config.batch_size))
            trained[name], loss = pretrain(
                update, untrained, opt_state, batches, view_key
            )
            seconds = time.perf_counter() - start
            print(f"{name}, seed {seed}: last loss {loss:.1f}, {seconds:.0f} s")
        for name, variables in trained.items():
            inputs = [np.asarray(features(network, variables, x)) for x in images]
            rows.setdefault(name, []).append(probe(inputs, labels))
    print(f"Updates: {steps}. Devices: {len(devices)}. Accuracy of the probe in %:")
    show(rows, len(labels[2]))
    return rows


if __name__ == "__main__":
    main()
