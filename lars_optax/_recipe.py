"""What a published recipe is, and how it becomes a schedule and an optimizer."""

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
    """The hyper-parameters of one published run.

    A value is printed by the source, or inferred (`inferred` says from what), or None
    where the source is silent; `hints` then says what is known. `schedule` and
    `optimizer` raise on a None they need; `replace` fills it in. Learning rates belong
    to `batch_size`; for another batch replace both (`linear_scaling`, `sqrt_scaling`).

    Attributes:
      name: lineage, table, network, optimizer, batch and, where needed, the rate.
      source: where the row is printed.
      network: "alexnet", "alexnet_bn", "resnet50" (v1) or "resnet50_v1.5".
      algorithm: "sgd" or "lars".
      batch_size: images per update.
      rate_batch_size: the batch size that `learning_rate` belongs to, where `replace`
        changed the batch size and left the rate; None where they belong together.
      epochs: length of the run.
      learning_rate: the peak, γ.
      decay: "polynomial" or "piecewise_constant".
      power: exponent of the polynomial.
      end_learning_rate: where the polynomial ends.
      boundaries: epochs at which the piecewise constant rate falls tenfold.
      warmup_epochs: 0 for no warm-up.
      warmup_start: learning rate at step 0, where there is a warm-up.
      decay_from_start: whether the polynomial counts from step 0, with the warm-up cut
        out of it (the authors' solver), not from the end of the warm-up.
      extra_decay_steps: steps by which the decay outlasts the run; 1 in MLPerf.
      momentum: μ.
      nesterov: whether the momentum is Nesterov's.
      momentum_order: "scaled" for a ← μa + γ(…), Caffe's and the paper's; "unscaled"
        for γ applied after the momentum.
      weight_decay: β.
      mask: what is decayed and, with LARS, adapted: True for all leaves.
      trust_coefficient: η, for LARS.
      fallback_ratio: what replaces LARS's trust ratio on leaves that are not adapted
        and at zero norms. 1 in the published LARS recipes; SGD does not use it.
      label_smoothing: of the loss.
      top1: the test accuracy the source prints, a fraction; None if it prints none.
      inferred: maps a field to the reason for its value.
      hints: field that is None to what is known of it.
      notes: what else the source says of the run, and whether the learning rate
        belongs to another batch size.
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
        """A copy with other values.

        What `inferred` and `hints` say of a replaced field is dropped. A learning rate
        belongs to a batch size, so replace both (`linear_scaling`, `sqrt_scaling`).
        Where `batch_size` is replaced without `learning_rate`, `notes` says so.

        Raises:
          ValueError: on a name that is no field, and on values out of range.
        """
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(
                f"{self.name}: a recipe has no field {unknown}; it has {sorted(known)}."
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
        """What `_RATE_NOTE` finds."""
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
            raise ValueError(f"boundaries must be a tuple, got {self.boundaries!r}.")
        for epoch in self.boundaries:
            check_number("boundaries", epoch)

    def missing(self) -> tuple[str, ...]:
        """The fields `optimizer` needs that the source leaves out."""
        needed = ["learning_rate", "warmup_epochs", "momentum", "weight_decay"]
        if self.warmup_epochs != 0:
            needed.insert(2, "warmup_start")
        return tuple(name for name in needed if getattr(self, name) is None)

    def _require(self, *names: str) -> None:
        if gaps := [name for name in self.missing() if name in names]:
            known = [f"{gap}: {self.hints[gap]}" for gap in gaps if gap in self.hints]
            raise ValueError(
                f"{self.name}: {self.source} does not state {', '.join(gaps)}. Fill in "
                f"with recipe.replace({gaps[0]}=...)."
                + (f" Known: {'; '.join(known)}." if known else "")
            )

    def schedule(self, num_examples: int) -> optax.Schedule:
        """The learning rate over steps.

        Epochs become round(epochs · num_examples / batch_size) steps.

        Args:
          num_examples: of the training set; an epoch visits each once.

        Raises:
          ValueError: naming the fields that the source leaves out, or those that do
            not fit together.
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
            for epoch in self.boundaries:  # on few data two can fall on one step
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
        """The optimizer, with its schedule for a data set of `num_examples`.

        SGD is LARS with every ratio 1; the momentum is in the recipe's order, and none
        is kept where it is 0.

        Args:
          num_examples: of the training set; an epoch visits each once.
          stacked_axes: as in `lars`; with SGD it counts only in what is decayed.
          axis_name: as in `lars`; checked, but of no effect on SGD.
          accumulator_dtype: dtype of the momentum buffer, None for the parameters'.
          keep_layer_stats: as in `lars`.

        Raises:
          ValueError: naming the fields that the source leaves out, or those that do
            not fit together.
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
        """`lars_optax.layer_stats` with the settings of this recipe's optimizer.

        Args:
          grads: the gradients.
          params: the parameters.
          stacked_axes: as given to `optimizer`.
          axis_name: as given to `optimizer`.

        Returns:
          A tree like `params` with a `LayerStats` at each leaf. With SGD every ratio
          is 1.

        Raises:
          ValueError: if the source does not state the weight decay, and as
            `lars_optax.layer_stats`.
        """
        self._require("weight_decay")
        settings = self._settings(stacked_axes, axis_name)
        layers = settings.layers(grads, params)
        return stats_tree(grads, layers, settings.trust_ratios(layers))

    def _settings(self, stacked_axes: Any, axis_name: Any) -> Settings:
        decayed = adapted = self.mask
        if self.algorithm == "sgd":
            adapted = partial(jax.tree.map, lambda _: False)
            if self.mask == BY_ROLE:  # SGD may train biases alone
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
