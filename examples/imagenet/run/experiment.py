"""An experiment: settings, a data set and devices, to train with any seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lars_optax import epochs_to_steps
from lars_optax.recipes import Recipe

from ..config import Config, Model, Run
from ..data.dataset import Batch, Batches, Broken, Dataset, Share, Source
from ..data.sources import fingerprint
from ..flags import check, flag
from ..models import make_model, published_pixel_std
from ..plan import make_plan
from ..provenance import versions
from ..recipe import to_recipe
from ..step.devices import AXIS, parallelize
from ..step.diagnose import named_leaves
from ..step.step import SOLVERS, TrainState, eval_step, init_state, train_step

_MOST_UPDATES = 10**8


@dataclass(frozen=True)
class Scores:
    """Means over the evaluated images. Accuracies are fractions."""

    loss: float
    accuracy: float  # top-1
    top5_accuracy: float
    count: int  # images evaluated


class Schedule(NamedTuple):
    """When a run evaluates, and the learning rate of each of its updates."""

    updates: int  # of the whole run
    epochs: Mapping[int, float]  # where an epoch ends: updates done to epochs done
    rates: np.ndarray  # [updates]


def make_schedule(recipe: Recipe, images: int) -> Schedule:
    """Returns the schedule of a recipe for a number of training images.

    Raises ValueError if the run would have no update, or too many to plan. Also raises
    it if the warm-up takes all updates, or ends after the first boundary.
    """

    def steps(epochs: float) -> int:
        return epochs_to_steps(epochs, images, recipe.batch_size)

    # The error of `epochs_to_steps` at too many steps names no flag.
    epochs, planned = recipe.epochs, round(recipe.epochs * images / recipe.batch_size)
    remedy = f"that is {planned:,} updates, of at most {_MOST_UPDATES:,}; give fewer"
    ok = planned <= _MOST_UPDATES
    check(ok, "epochs", epochs, f"{remedy} epochs, or a larger --batch-size")
    warmup, updates = recipe.step_counts(images)
    remedy = f"that is at most half an update of {recipe.batch_size} images; give more"
    check(updates > 0, "epochs", epochs, f"{remedy} epochs, or a smaller --batch-size")
    _check_warmup(recipe, images, warmup, updates)
    if updates != steps(epochs):  # the number of updates is that of the source
        epochs = updates * recipe.batch_size / images
    ends = {steps(k): k for k in range(1, int(epochs) + 1)} | {updates: epochs}
    rates = jax.jit(jax.vmap(recipe.schedule(images)))(np.arange(updates))
    return Schedule(updates, ends, np.asarray(rates))


def _check_warmup(recipe: Recipe, images: int, done: int, updates: int) -> None:
    """Raises ValueError unless the warm-up ends before the last update of the run.

    The warm-up has `done` updates. It must also end by the first boundary of a
    piecewise constant rate.
    """
    warmup = recipe.warmup_epochs or 0
    # Rounded down, as a few more than six digits are of no use.
    most = math.floor((updates - 1) * recipe.batch_size / images * 1e6 + 1e-3) / 1e6
    remedy = f"that is {done:,} updates, and the run has {updates:,}; give at most"
    check(done < updates, "warmup_epochs", warmup, f"{remedy} {most}")
    if recipe.decay != "piecewise_constant" or not recipe.boundaries:
        return
    first = min(recipe.boundaries)
    remedy = f"the warm-up of {done:,} updates ends later; give no less than"
    ok = epochs_to_steps(first, images, recipe.batch_size) >= done
    check(ok, "boundaries", recipe.boundaries, f"{remedy} --warmup-epochs, {warmup:g}")


class Experiment:
    """Settings, a data set and devices, which `loop.fit` can train with any seed.

    The seed and the output folder are those of the `Run` given to `fit`, not those of
    `config`. The training step is compiled once, for all seeds.

    `make_optimizer` takes the settings as a recipe, and the number of training images.
    It may be a function of your own; the log does not record which.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        devices: Sequence[jax.Device],
        make_optimizer: Callable[[Recipe, int], Any] = Recipe.optimizer,
    ) -> None:
        self._config, self.dataset, self.devices = config, dataset, devices
        self.data, self.batching = data, batching = config.data, config.batching
        self.process, images = jax.process_index(), dataset.train.size
        together = len({device.process_index for device in devices})
        # A dry run describes processes that are not there.
        processes = config.cluster.processes if config.dry_run else None
        each = len(devices) // together
        self.plan = make_plan(batching, each, images, processes or together)
        self.recipe = to_recipe(config)
        self.eval_split: Source = getattr(dataset, data.evaluate_on)
        none = (
            f"{data.source!r} has no {data.evaluate_on} images; give the other split,"
        )
        remedy = f"{none} or more than 0 --validation-images"
        check(self.eval_split.size > 0, "evaluate_on", data.evaluate_on, remedy)
        # Rounded up, so that every device gets as many images.
        self.eval_batch = -(-batching.eval_batch_size // len(devices)) * len(devices)
        self.schedule = make_schedule(self.recipe, images)
        platform = devices[0].platform
        self.model = build_model(config.model, dataset, platform)
        self.tx = make_optimizer(self.recipe, images)
        update = partial(
            train_step,
            model=self.model,
            tx=self.tx,
            accumulate=batching.accumulate,
            solvers=batching.solvers_per_device,
            label_smoothing=self.recipe.label_smoothing,
            layer_stats=self.recipe.layer_stats,
            platform=platform,
        )
        spread = partial(parallelize, devices=devices, engine=batching.engine)
        self.step = spread(update, donate_state=True)
        self.eval_step = spread(partial(eval_step, model=self.model))
        self.shapes = jax.eval_shape(self.init, 0)
        self._check_noise_scale()
        self.layer_names = [name for name, _ in named_leaves(self.shapes.params)]
        self._compiled = False

    def config(self, run: Run, **others: Any) -> Config:
        """Returns all settings, with `run` and `others` in place of these groups."""
        return replace(self._config, run=run, **others)

    def facts(self) -> dict[str, Any]:
        """Returns what the log has besides settings: versions, devices, batch split."""
        return {
            "plan": self.plan._asdict(),
            "versions": versions(),
            "platform": self.devices[0].platform,
            "images": self.dataset.train.size,
        }

    def identity(self) -> dict[str, Any]:
        """Returns facts about the data that must match when a run resumes."""
        images, content = self.dataset.train.size, fingerprint(self.dataset)
        return {"images": images, "content": content}

    def grouping(self) -> dict[str, Any]:
        """Returns the numbers of a batch's split on which the results depend.

        They are the number of devices, and the images that share BatchNorm statistics
        or dropout.
        """
        plan, sync = self.plan, self._config.model.bn == "sync"
        devices = plan.processes * plan.devices
        found = {"devices": devices}
        if self.shapes.batch_stats:
            together = plan.images_per_slot * (devices * plan.solvers if sync else 1)
            found["images over which BatchNorm takes its statistics"] = together
        if getattr(self.model, "dropout", 0):
            slots = devices * plan.solvers * plan.accumulate
            found["parts of a batch with their own random dropout"] = slots
        return found

    def _check_noise_scale(self) -> None:
        """Raises ValueError if --noise-scale has no independent gradients to compare.

        That is if an update computes one gradient, or if BatchNorm makes the gradient
        of a device depend on the images of others.
        """
        devices = self.plan.processes * self.plan.devices
        wanted, accumulate = self.batching.noise_scale, self.plan.accumulate
        remedy = "an update has one gradient; give more --devices or --accumulate"
        check(not wanted or devices * accumulate > 1, "noise_scale", wanted, remedy)
        sync = self._config.model.bn == "sync" and bool(self.shapes.batch_stats)
        remedy = "the gradients of the devices depend on each other; give --bn local"
        check(not (wanted and sync) or devices == 1, "noise_scale", wanted, remedy)

    def epoch(self, step: int) -> float:
        """Returns the number of epochs done before update `step`, counted from 0."""
        return step * self.batching.batch_size / self.dataset.train.size

    def init(self, seed: int) -> TrainState:
        """Returns the state before the first update, on every device."""
        shape = self.dataset.image_shape
        wanted = self.batching.noise_scale
        return self.place(init_state(seed, self.model, self.tx, shape, wanted))

    def place(self, state: TrainState) -> TrainState:
        """Returns a copy of the state on every device."""
        copies: TrainState = self.step.place(state)
        return copies

    def batches(self, seed: int, done: int = 0) -> Batches:
        """Yields this process's share of each batch after the first `done` updates."""
        share = self._share(self.batching.batch_size)
        steps = range(done, self.schedule.updates)
        return self.dataset.train.training(seed, steps, share)

    def batch(self, seed: int, step: int) -> Batch:
        """Returns the batch of all processes in update number `step`, from 0."""
        share, steps = Share(self.batching.batch_size), range(step, step + 1)
        return next(self.dataset.train.training(seed, steps, share))[0]

    def _share(self, size: int) -> Share:
        return Share(size, self.process, self.plan.processes)

    def compile(self) -> None:
        """Compiles the step and the evaluation by running each once, without effect."""
        if self._compiled:
            return
        share = self._share(self.batching.batch_size)
        batch, _ = next(self.dataset.train.training(0, range(1), share))
        state, _ = self.step(self.init(0), batch)
        batch, _ = next(self.eval_split.evaluation(self._share(self.eval_batch)))
        jax.block_until_ready(self.eval_step(state, batch))
        self._compiled = True

    def evaluate(
        self,
        state: TrainState,
        watch: Callable[[tuple[Broken, ...]], None] = lambda broken: None,
        split: Source | None = None,
    ) -> Scores:
        """Returns means over all images of `split`, each counted once.

        The default is the split that the settings name. After each batch `watch` is
        called with its images that could not be read.
        """
        split = split or self.eval_split
        total = {"loss": 0.0, "correct": 0, "top5": 0, "count": 0}
        share = self._share(self.eval_batch)
        for batch, broken in split.evaluation(share):
            watch(broken)
            sums = jax.device_get(self.eval_step(state, batch))
            total = {name: total[name] + sums[name].item() for name in total}
        count = int(total["count"])
        if count != split.size:
            raise RuntimeError(
                f"the evaluation counted {count} images instead of"
                f" {split.size}: the data must yield each image exactly once"
            )
        loss, accuracy, top5 = (total[k] / count for k in ("loss", "correct", "top5"))
        return Scores(loss, accuracy, top5, count)


def build_model(
    model: Model, dataset: Dataset, platform: str | None = None
) -> nn.Module:
    """Returns the network, which normalizes the pixels of the data set.

    It subtracts the data's mean and divides by the published standard deviation of the
    network, or by the data's own if there is none. `platform` is that of the devices
    that run the network; None is JAX's default.

    Raises ValueError if the standard deviation of a colour channel is 0, and for a flag
    that the network does not have.
    """
    axes = {"local": None, "sync": (AXIS, SOLVERS)}[model.bn]
    pixel_std = published_pixel_std(model.network) or dataset.pixel_std
    if not np.all(pixel_std):
        raise ValueError(
            "--data: the pixels of all training images are the same in some colour"
            " channel, so they cannot be divided by their standard deviation, which is"
            " 0; give other images"
        )
    try:
        return make_model(
            model.network,
            classes=dataset.classes,
            width=model.width,
            pixel_mean=dataset.pixel_mean,
            pixel_std=pixel_std,
            dtype=model.dtype,
            dropout=model.dropout,
            zero_init_last_bn=model.zero_init_last_bn,
            bn_axis_name=axes,
            platform=platform,
        )
    except ValueError as error:
        # Name the flag and its value: "bn_axis_name: got …" becomes "--bn: got 'sync'".
        name, _, rest = str(error).partition(":")
        if name == "bn_axis_name":
            rest = rest.replace(repr(axes), repr(model.bn))
        raise ValueError(f"{flag(name.removesuffix('_axis_name'))}:{rest}") from None
