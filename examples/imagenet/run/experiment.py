"""One configuration bound to data and devices: network, optimizer, step, evaluation.

Compiled once, run for any seed by `loop.fit`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lars_optax import epochs_to_steps
from lars_optax.recipes import Recipe

from ..config import Config
from ..data.arrays import Dataset, Source
from ..data.batches import Batch, Share, evaluation, training
from ..data.folders import Broken
from ..data.sources import fingerprint
from ..flags import check, flag
from ..models import make_model, published_pixel_std
from ..plan import make_plan
from ..provenance import versions
from ..recipe import layer_stats, to_recipe
from ..step.devices import AXIS, parallelize
from ..step.step import SOLVERS, TrainState, eval_step, init_state, train_step


@dataclass(frozen=True)
class Scores:
    loss: float
    accuracy: float  # top-1, as a fraction
    top5_accuracy: float
    count: int  # images evaluated


class Trainer:
    """A configuration bound to data and devices; compiled at its first step.

    `make_optimizer` takes the configuration's recipe and the number of training images.
    One of your own may use their schedule alone; the log does not know it.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        devices: Sequence[jax.Device],
        make_optimizer: Callable[[Recipe, int], Any] = Recipe.optimizer,
    ) -> None:
        run, batching = config.run, config.batching
        self.config, self.data, self.devices = config, data, devices
        processes = len({device.process_index for device in devices})
        each = len(devices) // processes
        if config.dry_run:  # the others are not there
            processes = config.cluster.processes or 1
        self.plan = make_plan(batching, each, data.train.size, processes)
        self.process = jax.process_index()
        self.recipe = to_recipe(config)
        self.eval_split: Source = getattr(data, config.data.evaluate_on)
        if not self.eval_split.size:
            raise ValueError(
                f"--evaluate-on: got {config.data.evaluate_on!r}, of which"
                f" {config.data.source!r} has no images; give the other split, or more"
                " than 0 --validation-images"
            )
        # Rounded up to a size every device gets an equal share of.
        self.eval_batch = -(-batching.eval_batch_size // len(devices)) * len(devices)
        self.updates = self._steps(batching.epochs)
        remedy = (
            f"half an update of {batching.batch_size} or less; give more, or a smaller"
        )
        check(self.updates > 0, "epochs", batching.epochs, f"{remedy} --batch-size")
        if run.profiled:
            ok = run.profiled.stop <= self.updates
            remedy = f"the run has {self.updates} updates; give two of them"
            check(ok, "profile", run.profile, remedy)
        self.epochs = {
            self._steps(k): k for k in range(1, int(batching.epochs) + 1)
        } | {self.updates: batching.epochs}  # updates done to epochs done
        self.model = build_model(config, data)
        self.tx = make_optimizer(self.recipe, data.train.size)
        schedule = jax.jit(jax.vmap(self.recipe.schedule(data.train.size)))
        self.rates = np.asarray(schedule(np.arange(self.updates)))
        self.step = parallelize(
            partial(
                train_step,
                model=self.model,
                tx=self.tx,
                accumulate=batching.accumulate,
                solvers=batching.solvers_per_device,
                label_smoothing=self.recipe.label_smoothing,
                layer_stats=layer_stats(self.recipe),
            ),
            devices,
            engine=batching.engine,
            donate_state=True,
        )
        self.eval_step = parallelize(
            partial(eval_step, model=self.model), devices, engine=batching.engine
        )
        self.shapes = jax.eval_shape(self.init, 0)
        self.layer_names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(self.shapes.params)
        ]
        self._compiled = False

    def facts(self) -> dict[str, Any]:
        """What the configuration leaves to the machine."""
        platform = self.devices[0].platform
        plan = self.plan._asdict()
        images = self.data.train.size
        return {
            "plan": plan,
            "platform": platform,
            "images": images,
            "versions": versions(),
        }

    def identity(self) -> dict[str, Any]:
        """What of the data makes it this run."""
        images, content = self.data.train.size, fingerprint(self.data)
        return {"images": images, "content": content}

    def grouping(self) -> dict[str, Any]:
        """How a batch is cut, where that has an effect beyond roundings."""
        plan, sync = self.plan, self.config.model.bn == "sync"
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
        return step * self.config.batching.batch_size / self.data.train.size

    def _steps(self, epochs: float) -> int:
        batching = self.config.batching
        return epochs_to_steps(epochs, self.data.train.size, batching.batch_size)

    def init(self, seed: int) -> TrainState:
        return self.place(init_state(seed, self.model, self.tx, self.data.image_shape))

    def place(self, state: TrainState) -> TrainState:
        """A copy on every device."""
        copies: TrainState = self.step.place(state)
        return copies

    def batches(
        self, seed: int, done: int = 0
    ) -> Iterator[tuple[Batch, tuple[Broken, ...]]]:
        """This process's share of what the updates from number `done` on train on."""
        return self._training(seed, range(done, self.updates))

    def _training(
        self, seed: int, steps: range
    ) -> Iterator[tuple[Batch, tuple[Broken, ...]]]:
        share = self._share(self.config.batching.batch_size)
        workers = self.config.data.workers
        return training(self.data.train, seed, share, steps, workers)

    def batch(self, seed: int, step: int) -> Batch:
        """What all processes together train on in update `step`, counted from 0."""
        share, steps = Share(self.config.batching.batch_size), range(step, step + 1)
        return next(training(self.data.train, seed, share, steps))[0]

    def _share(self, size: int) -> Share:
        return Share(size, self.process, self.plan.processes)

    def compile(self) -> None:
        """Runs one step and one evaluation on a state that is thrown away."""
        if self._compiled:
            return
        batch, _ = next(self._training(0, range(1)))
        state, _ = self.step(self.init(0), batch)
        share, workers = self._share(self.eval_batch), self.config.data.workers
        batch, _ = next(evaluation(self.eval_split, share, workers))
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
        share, workers = self._share(self.eval_batch), self.config.data.workers
        for batch, broken in evaluation(self.eval_split, share, workers):
            watch(broken)
            sums = jax.device_get(self.eval_step(state, batch))
            total = {name: total[name] + sums[name].item() for name in total}
        count = int(total["count"])
        if count != self.eval_split.size:
            raise RuntimeError(f"evaluated {count} images of {self.eval_split.size}")
        return Scores(
            total["loss"] / count,
            total["correct"] / count,
            total["top5"] / count,
            count,
        )


def build_model(config: Config, data: Dataset) -> nn.Module:
    """The network for the data's pixels: the published divisor, or their own."""
    model = config.model
    axes = {"local": None, "sync": (AXIS, SOLVERS)}[model.bn]
    try:
        return make_model(
            model.network,
            classes=data.classes,
            width=model.width,
            pixel_mean=data.pixel_mean,
            pixel_std=published_pixel_std(model.network) or data.pixel_std,
            dtype=model.dtype,
            dropout=model.dropout,
            zero_init_last_bn=model.zero_init_last_bn,
            bn_axis_name=axes,
        )
    except ValueError as error:  # "bn_axis_name: …" becomes "--bn: …"
        name, _, rest = str(error).replace(repr(axes), repr(model.bn)).partition(":")
        raise ValueError(f"{flag(name.removesuffix('_axis_name'))}:{rest}") from None
