"""An experiment: settings bound to a data set and devices, without a seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lars_optax import epochs_to_steps
from lars_optax.recipes import Recipe

from ..config import Batching, Config, Data, Model, Optimizer, Run
from ..data.dataset import Batch, Batches, Broken, Dataset, Share, Source
from ..data.sources import fingerprint
from ..flags import check, flag
from ..models import make_model, published_pixel_std
from ..plan import make_plan
from ..provenance import versions
from ..recipe import to_recipe
from ..step.devices import AXIS, Parallel, parallelize
from ..step.diagnose import named_leaves
from ..step.step import SOLVERS, TrainState, eval_step, init_state, train_step


@dataclass(frozen=True)
class Scores:
    loss: float
    accuracy: float  # top-1, as a fraction
    top5_accuracy: float
    count: int  # images evaluated


class Schedule(NamedTuple):
    """When a run evaluates, and the learning rate of each of its updates."""

    updates: int
    epochs: Mapping[int, float]  # at the end of each: updates done to epochs done
    rates: np.ndarray  # [updates]


def make_schedule(recipe: Recipe, images: int) -> Schedule:
    """Raises ValueError if the recipe's epochs are less than one update."""

    def steps(epochs: float) -> int:
        return epochs_to_steps(epochs, images, recipe.batch_size)

    epochs, updates = recipe.epochs, steps(recipe.epochs)
    remedy = f"half an update of {recipe.batch_size} or less; give more, or a smaller"
    check(updates > 0, "epochs", epochs, f"{remedy} --batch-size")
    ends = {steps(k): k for k in range(1, int(epochs) + 1)} | {updates: epochs}
    rates = jax.jit(jax.vmap(recipe.schedule(images)))(np.arange(updates))
    return Schedule(updates, ends, np.asarray(rates))


class Experiment:
    """What the settings train and evaluate, on a data set and devices.

    Its step is compiled at its first call; `loop.fit` then runs it with any seed.

    `recipe` is the name of the recipe that the settings began with. `processes` is for
    a dry run, whose other processes are not there. `make_optimizer` takes the settings
    as a recipe, and the number of training images. One of your own may use the recipe's
    schedule alone; the log does not know it.
    """

    def __init__(
        self,
        data: Data,
        model: Model,
        optimizer: Optimizer,
        batching: Batching,
        dataset: Dataset,
        devices: Sequence[jax.Device],
        *,
        recipe: str | None = None,
        processes: int | None = None,
        make_optimizer: Callable[[Recipe, int], Any] = Recipe.optimizer,
    ) -> None:
        self._settings: dict[str, Any] = {
            "recipe": recipe,
            "data": data,
            "model": model,
            "optimizer": optimizer,
            "batching": batching,
        }
        self.data, self.batching = data, batching
        self.dataset, self.devices = dataset, devices
        self.process = jax.process_index()
        together = len({device.process_index for device in devices})
        each, images = len(devices) // together, dataset.train.size
        self.plan = make_plan(batching, each, images, processes or together)
        self.recipe = to_recipe(self.config(Run()))
        self.eval_split = _evaluated(data, dataset)
        # Rounded up to a size every device gets an equal share of.
        self.eval_batch = -(-batching.eval_batch_size // len(devices)) * len(devices)
        self.schedule = make_schedule(self.recipe, images)
        self.model = build_model(model, dataset)
        self.tx = make_optimizer(self.recipe, images)
        self.step, self.eval_step = self._steps()
        self.shapes = jax.eval_shape(self.init, 0)
        self.layer_names = [name for name, _ in named_leaves(self.shapes.params)]
        self._compiled = False

    @classmethod
    def of(
        cls,
        config: Config,
        dataset: Dataset,
        devices: Sequence[jax.Device],
        make_optimizer: Callable[[Recipe, int], Any] = Recipe.optimizer,
    ) -> "Experiment":
        """Of a whole configuration, whatever it says of the run."""
        return cls(
            config.data,
            config.model,
            config.optimizer,
            config.batching,
            dataset,
            devices,
            recipe=config.recipe,
            processes=config.cluster.processes or 1 if config.dry_run else None,
            make_optimizer=make_optimizer,
        )

    def _steps(self) -> tuple[Parallel, Parallel]:
        """An update and an evaluation of one batch, on all devices."""
        update = partial(
            train_step,
            model=self.model,
            tx=self.tx,
            accumulate=self.batching.accumulate,
            solvers=self.batching.solvers_per_device,
            label_smoothing=self.recipe.label_smoothing,
            layer_stats=self.recipe.layer_stats,
            platform=self.devices[0].platform,
        )
        evaluate = partial(eval_step, model=self.model)
        spread = partial(parallelize, devices=self.devices, engine=self.batching.engine)
        return spread(update, donate_state=True), spread(evaluate)

    def config(self, run: Run, **others: Any) -> Config:
        """The whole configuration of one of its runs."""
        return Config(run=run, **self._settings, **others)

    def facts(self) -> dict[str, Any]:
        """What the configuration leaves to the machine."""
        found: dict[str, Any] = {"plan": self.plan._asdict(), "versions": versions()}
        found["platform"] = self.devices[0].platform
        return found | {"images": self.dataset.train.size}

    def identity(self) -> dict[str, Any]:
        """What of the data makes it this run."""
        images, content = self.dataset.train.size, fingerprint(self.dataset)
        return {"images": images, "content": content}

    def grouping(self) -> dict[str, Any]:
        """How a batch is cut, where that has an effect beyond roundings."""
        plan, sync = self.plan, self._settings["model"].bn == "sync"
        devices = plan.processes * plan.devices
        found = {"devices": devices}
        if self.shapes.batch_stats:
            together = plan.images_per_slot * (devices * plan.solvers if sync else 1)
            found["images of which BatchNorm takes the moments"] = together
        if getattr(self.model, "dropout", 0):
            slots = devices * plan.solvers * plan.accumulate
            found["slots with dropout masks of their own"] = slots
        return found

    def epoch(self, step: int) -> float:
        """Epochs before update `step`."""
        return step * self.batching.batch_size / self.dataset.train.size

    def init(self, seed: int) -> TrainState:
        return self.place(
            init_state(seed, self.model, self.tx, self.dataset.image_shape)
        )

    def place(self, state: TrainState) -> TrainState:
        """A copy on every device."""
        copies: TrainState = self.step.place(state)
        return copies

    def batches(self, seed: int, done: int = 0) -> Batches:
        """This process's share of what the updates from number `done` on train on."""
        share = self._share(self.batching.batch_size)
        return self.dataset.train.training(
            seed, range(done, self.schedule.updates), share
        )

    def batch(self, seed: int, step: int) -> Batch:
        """What all processes together train on in update `step`, counted from 0."""
        share, steps = Share(self.batching.batch_size), range(step, step + 1)
        return next(self.dataset.train.training(seed, steps, share))[0]

    def _share(self, size: int) -> Share:
        return Share(size, self.process, self.plan.processes)

    def compile(self) -> None:
        """Runs one step and one evaluation on a state that is thrown away."""
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
    ) -> Scores:
        """Means over every image of the split, each exactly once.

        `watch` is called after each batch with what of it was unreadable.
        """
        total = {"loss": 0.0, "correct": 0, "top5": 0, "count": 0}
        share = self._share(self.eval_batch)
        for batch, broken in self.eval_split.evaluation(share):
            watch(broken)
            sums = jax.device_get(self.eval_step(state, batch))
            total = {name: total[name] + sums[name].item() for name in total}
        count = int(total["count"])
        if count != self.eval_split.size:
            raise RuntimeError(f"evaluated {count} images of {self.eval_split.size}")
        loss, accuracy, top5 = (total[k] / count for k in ("loss", "correct", "top5"))
        return Scores(loss, accuracy, top5, count)


def _evaluated(data: Data, dataset: Dataset) -> Source:
    split: Source = getattr(dataset, data.evaluate_on)
    if not split.size:
        raise ValueError(
            f"--evaluate-on: got {data.evaluate_on!r}, of which {data.source!r} has no"
            " images; give the other split, or more than 0 --validation-images"
        )
    return split


def build_model(model: Model, dataset: Dataset) -> nn.Module:
    """The network for the data's pixels: the published divisor, or their own."""
    axes = {"local": None, "sync": (AXIS, SOLVERS)}[model.bn]
    try:
        return make_model(
            model.network,
            classes=dataset.classes,
            width=model.width,
            pixel_mean=dataset.pixel_mean,
            pixel_std=published_pixel_std(model.network) or dataset.pixel_std,
            dtype=model.dtype,
            dropout=model.dropout,
            zero_init_last_bn=model.zero_init_last_bn,
            bn_axis_name=axes,
        )
    except ValueError as error:  # "bn_axis_name: …" becomes "--bn: …"
        name, _, rest = str(error).replace(repr(axes), repr(model.bn)).partition(":")
        raise ValueError(f"{flag(name.removesuffix('_axis_name'))}:{rest}") from None
