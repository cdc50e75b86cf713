"""A recipe has the hyperparameters of a published run and builds its optimizer."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn, cast

import jax
import optax

from lars_optax._layer_stats import stats_tree
from lars_optax._masks import BY_ROLE, Mask, check_mask, exclude_bias_and_norm
from lars_optax._momentum import in_dtype_of_params, wide_momentum
from lars_optax._rule import FALLBACK_RATIO, Settings
from lars_optax._schedules import (
    epochs_to_steps,
    warmup_piecewise_constant_schedule,
    warmup_polynomial_decay_schedule,
)
from lars_optax._transform import transform
from lars_optax._validate import check_count, check_number

_RATE_NOTE = re.compile(r"\s*learning_rate=\S+ belongs to batch_size=.*? tune it\.")
_CHOICES = {
    "algorithm": ("sgd", "lars"),
    "decay": ("polynomial", "piecewise_constant"),
    "momentum_order": ("scaled", "unscaled"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of one published run.

    The source prints most values. A value that it does not print is inferred or None.
    `inferred` has the reason for an inferred value. `hints` has what is known about a
    field that is None. `schedule` and `optimizer` raise ValueError if they need a field
    that is None. Set it with `replace`.

    A learning rate belongs to a batch size. For another batch size replace both, for
    example with `linear_scaling` or `sqrt_scaling`.

    Attributes:
      name: The source, the table, the network, the algorithm and the batch size. The
        learning rate is added where it is needed to tell two recipes apart.
      source: The publication and the table that print the values.
      network: "alexnet", "alexnet_bn", "resnet50" for version 1, or "resnet50_v1.5".
      algorithm: "sgd" or "lars".
      batch_size: The number of images in one update.
      rate_batch_size: The batch size that `learning_rate` belongs to, if `replace`
        changed only the batch size. None if they belong together.
      epochs: The length of the run in epochs.
      learning_rate: The peak learning rate γ.
      decay: "polynomial" or "piecewise_constant".
      power: The exponent of the polynomial.
      end_learning_rate: The learning rate at which the polynomial ends.
      boundaries: The epochs at which the piecewise constant rate becomes ten times
        smaller.
      warmup_epochs: The length of the warm-up in epochs. 0 disables the warm-up.
      warmup_start: The learning rate at step 0 of a warm-up.
      decay_from_start: Whether the polynomial begins at step 0, as in the authors'
        solver. The warm-up then replaces its first steps. Otherwise it begins at the
        end of the warm-up.
      extra_decay_steps: The number of steps by which the decay is longer than the run.
        It is 1 for MLPerf.
      momentum: The momentum μ. 0 disables momentum.
      nesterov: Whether momentum is Nesterov momentum.
      momentum_order: "scaled" if the update that enters the momentum is multiplied by
        γ, as in Caffe and the paper. "unscaled" if γ multiplies the momentum's output.
      weight_decay: The weight decay β. 0 disables weight decay.
      mask: The leaves that get weight decay and, with LARS, a trust ratio. True selects
        all.
      trust_coefficient: The trust coefficient η of LARS.
      fallback_ratio: The factor of LARS on leaves without a trust ratio and where a
        norm is zero. It is 1 in the published LARS recipes. SGD does not use it.
      label_smoothing: The label smoothing of the loss. 0 disables it.
      top1: The test accuracy that the source prints, as a fraction. None if it prints
        none.
      inferred: A mapping from each inferred field to the reason for its value.
      hints: A mapping from a field that is None to what is known about it.
      notes: What else the source says about the run. After `replace` it may also say
        that the learning rate belongs to another batch size.
    """

    name: str
    source: str
    network: str
    algorithm: str
    batch_size: int
    rate_batch_size: int | None = None
    epochs: float
    learning_rate: float | None
    decay: str = "polynomial"
    power: float = 2.0
    end_learning_rate: float = 0.0
    boundaries: tuple[float, ...] = ()
    warmup_epochs: float | None
    warmup_start: float | None = None
    decay_from_start: bool = True
    extra_decay_steps: int = 0
    momentum: float | None
    nesterov: bool = False
    momentum_order: str = "scaled"
    weight_decay: float | None
    mask: Mask = True
    trust_coefficient: float = 0.001
    fallback_ratio: float = FALLBACK_RATIO
    label_smoothing: float = 0.0
    top1: float | None = None
    inferred: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: str = ""

    def replace(self, **fields: Any) -> "Recipe":
        """Returns a copy of the recipe with other values.

        The entries of `inferred` and `hints` for these fields are dropped. A learning
        rate belongs to a batch size, so replace both, for example with `linear_scaling`
        or `sqrt_scaling`. If you replace only `batch_size`, `notes` says so.

        Args:
          **fields: The new values, by the names of the attributes.

        Raises:
          ValueError: If a name is not a field, or if a value is out of range.

        Example:
          >>> from lars_optax import recipes, sqrt_scaling
          >>> recipe = recipes.get("mlperf-v1.0-resnet50-lars-8192")
          >>> smaller = recipe.replace(
          ...     batch_size=2048, learning_rate=sqrt_scaling(17.0, 2048, 8192)
          ... )
          >>> smaller.batch_size, smaller.learning_rate
          (2048, 8.5)
        """
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(
                f"{self.name}: a recipe has no field {unknown}; the fields are "
                f"{sorted(known)}."
            )
        grounds = {
            name: {k: v for k, v in getattr(self, name).items() if k not in fields}
            for name in ("inferred", "hints")
        }
        notes = _RATE_NOTE.sub("", fields.pop("notes", self.notes)).strip()
        belongs: int | None = self.rate_batch_size or self.batch_size
        if "learning_rate" in fields:
            belongs = None
        kept: dict[str, Any] = grounds | {"rate_batch_size": belongs}
        new = dataclasses.replace(self, **(kept | fields))
        if new.rate_batch_size == new.batch_size:
            return dataclasses.replace(new, rate_batch_size=None, notes=notes)
        return dataclasses.replace(new, notes=f"{notes} {new._rate_note()}".strip())

    def _rate_note(self) -> str:
        """Returns a note if the learning rate belongs to another batch size, else "".

        The pattern `_RATE_NOTE` matches this note.
        """
        if self.rate_batch_size is None or self.learning_rate is None:
            return ""
        return (
            f"learning_rate={self.learning_rate:g} belongs to "
            f"batch_size={self.rate_batch_size}, but batch_size is {self.batch_size}: "
            "scale the learning rate too, with linear_scaling for SGD or sqrt_scaling "
            "for LARS, or tune it."
        )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{self.name}: {name} must be one of {choices}, got "
                    f"{getattr(self, name)!r}."
                )
        check_mask(self.mask, "mask")
        check_number("momentum", self.momentum, high=1.0, optional=True)
        check_number("label_smoothing", self.label_smoothing, high=1.0)
        for name in ("learning_rate", "warmup_epochs", "warmup_start", "weight_decay"):
            check_number(name, getattr(self, name), optional=True)
        for name in ("end_learning_rate", "fallback_ratio"):
            check_number(name, getattr(self, name))
        for name in ("epochs", "power", "trust_coefficient"):
            check_number(name, getattr(self, name), positive=True)
        check_count("batch_size", self.batch_size, low=1)
        check_count("extra_decay_steps", self.extra_decay_steps)
        if self.rate_batch_size is not None:
            check_count("rate_batch_size", self.rate_batch_size, low=1)
        if not isinstance(self.boundaries, tuple):
            raise ValueError(
                "boundaries must be a tuple of epochs, such as (30, 60, 80), got "
                f"{self.boundaries!r}."
            )
        for epoch in self.boundaries:
            check_number("boundaries", epoch)

    def missing(self) -> tuple[str, ...]:
        """Returns the names of the fields that `optimizer` needs and that are None.

        Example:
          >>> from lars_optax import recipes
          >>> recipes.get("paper-t6-alexnet-lars-4096").missing()
          ('learning_rate', 'warmup_start')
        """
        needed = ["learning_rate", "warmup_epochs", "momentum", "weight_decay"]
        if self.warmup_epochs != 0:
            needed.insert(2, "warmup_start")
        return tuple(name for name in needed if getattr(self, name) is None)

    def _require(self, *names: str) -> None:
        if gaps := [name for name in self.missing() if name in names]:
            known = [f"{gap}: {self.hints[gap]}" for gap in gaps if gap in self.hints]
            raise ValueError(
                f"{self.name}: {self.source} does not state {', '.join(gaps)}. Choose "
                f"a value and call recipe.replace({'=..., '.join(gaps)}=...)."
                + (f" What is known: {'; '.join(known)}." if known else "")
            )

    def schedule(self, num_examples: int) -> optax.Schedule:
        """Returns the learning rate schedule over the steps of a run.

        A number of epochs becomes epochs · num_examples / batch_size steps, rounded to
        the nearest int.

        Args:
          num_examples: The number of training examples in one epoch.

        Returns:
          A schedule. `jax.jit` and `jax.vmap` accept it.

        Raises:
          ValueError: If a field that it needs is None, if the run rounds to 0 steps, if
            the warm-up does not end before the run, or if it ends after the first
            boundary.

        Example:
          >>> from lars_optax import recipes
          >>> rate = recipes.get("mlperf-v1.0-resnet50-lars-8192").schedule(1_281_167)
          >>> float(rate(782))  # the end of the warm-up
          17.0
        """
        self._require("learning_rate", "warmup_epochs", "warmup_start")
        check_count("num_examples", num_examples, low=1)

        def steps(epochs: float) -> int:
            return epochs_to_steps(epochs, num_examples, self.batch_size)

        peak, warmup = cast(float, self.learning_rate), cast(float, self.warmup_epochs)
        start = 0.0 if self.warmup_start is None else self.warmup_start
        updates = steps(self.epochs)
        if not updates:
            raise ValueError(
                f"{self.name}: epochs={self.epochs} of num_examples={num_examples} "
                f"with batch_size={self.batch_size} round to 0 steps. Give more epochs "
                "or a smaller batch_size."
            )
        if steps(warmup) >= updates:
            self._refuse_warmup("epochs", steps(warmup), updates)
        if self.decay == "piecewise_constant":
            scales: dict[int, float] = {}
            for epoch in self.boundaries:  # two may round to the same step
                scales[steps(epoch)] = scales.get(steps(epoch), 1.0) * 0.1
            if any(step < steps(warmup) for step in scales):
                self._refuse_warmup("boundaries", steps(warmup), min(scales))
            return warmup_piecewise_constant_schedule(
                start, peak, steps(warmup), scales
            )
        return warmup_polynomial_decay_schedule(
            start,
            peak,
            steps(warmup),
            updates + self.extra_decay_steps,
            self.end_learning_rate,
            self.power,
            transition_begin=0 if self.decay_from_start else None,
        )

    def _refuse_warmup(self, field: str, warmup_steps: int, end: int) -> NoReturn:
        what = "the first boundary" if field == "boundaries" else "the run's end"
        raise ValueError(
            f"{self.name}: warmup_epochs={self.warmup_epochs} lasts {warmup_steps} "
            f"steps, but {what} is at step {end} ({field}={getattr(self, field)}, "
            f"batch_size={self.batch_size}). Change warmup_epochs or {field}."
        )

    def optimizer(
        self,
        num_examples: int,
        *,
        stacked_axes: Any = None,
        axis_name: Any = None,
        accumulator_dtype: Any = None,
        keep_layer_stats: bool = False,
    ) -> optax.GradientTransformationExtraArgs:
        """Returns the optimizer of the recipe, with its schedule.

        SGD is built as LARS with a trust ratio of 1 on every leaf. The learning rate is
        applied before or after the momentum, as `momentum_order` says. A momentum of 0
        allocates no buffer.

        Args:
          num_examples: The number of training examples in one epoch.
          stacked_axes: The axis along which a leaf stacks several layers, as in `lars`.
            For SGD it only affects which leaves get weight decay. None means that every
            leaf is a single layer.
          axis_name: The mesh axes over which parameters are sharded, as in `lars`. For
            SGD it is checked but has no effect. Leave it None outside of `shard_map`
            and `pmap`.
          accumulator_dtype: The dtype of the momentum buffer. None takes the dtype of
            each parameter.
          keep_layer_stats: Whether the state keeps the norms and the trust ratio of
            each layer.

        Returns:
          A transformation whose `update` needs `params`. Each update has the dtype of
          its parameter.

        Raises:
          ValueError: If a field that it needs is None, if `schedule` raises it, or if
            an argument is invalid, as in `lars`.

        Example:
          >>> import jax.numpy as jnp
          >>> from lars_optax import recipes
          >>> tx = recipes.get("mlperf-v1.0-resnet50-lars-8192").optimizer(1_281_167)
          >>> state = tx.init({"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
        """
        self._require(*self.missing())
        rate = optax.scale_by_learning_rate(self.schedule(num_examples))
        trace = wide_momentum(self.momentum, self.nesterov, accumulator_dtype)
        in_order = (rate, trace) if self.momentum_order == "scaled" else (trace, rate)
        return optax.chain(
            transform(self._settings(stacked_axes, axis_name), keep_layer_stats),
            in_order[0],
            in_dtype_of_params(in_order[1]),
        )

    def layer_stats(
        self,
        grads: optax.Updates,
        params: optax.Params,
        *,
        stacked_axes: Any = None,
        axis_name: Any = None,
    ) -> Any:
        """Returns the norms and the trust ratio of each layer, by this recipe's rule.

        These are the statistics that `lars_optax.layer_stats` returns with the settings
        of the recipe's optimizer.

        Args:
          grads: The gradients, a tree like `params`.
          params: The parameters.
          stacked_axes: The axis along which a leaf stacks several layers, as given to
            `optimizer`.
          axis_name: The mesh axes over which parameters are sharded, as given to
            `optimizer`.

        Returns:
          A tree like `params` with a `LayerStats` at each leaf. For SGD every trust
          ratio is 1.

        Raises:
          ValueError: If the weight decay of the recipe is None, or if an argument does
            not fit the parameters, as in `lars_optax.layer_stats`.
        """
        self._require("weight_decay")
        settings = self._settings(stacked_axes, axis_name)
        layers = settings.layers(grads, params)
        return stats_tree(grads, settings.layer_stats(layers))

    def _settings(self, stacked_axes: Any, axis_name: Any) -> Settings:
        decayed = adapted = self.mask
        if self.algorithm == "sgd":
            adapted = partial(jax.tree.map, lambda _: False)
            if self.mask == BY_ROLE:  # SGD may train only biases
                decayed = partial(exclude_bias_and_norm, stacked_axes=stacked_axes)
        return Settings(
            weight_decay=self.weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=self.trust_coefficient,
            trust_ratio_mask=adapted,
            fallback_ratio=self.fallback_ratio if self.algorithm == "lars" else 1.0,
            stacked_axes=stacked_axes,
            axis_name=axis_name,
        )
