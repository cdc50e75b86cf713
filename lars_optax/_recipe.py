"""A recipe has the hyperparameters of a published run and builds its optimizer."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn, cast

import jax
import optax

from lars_optax._layer_stats import stats_tree
from lars_optax._masks import Mask, check_mask
from lars_optax._momentum import in_dtype_of_params, wide_momentum
from lars_optax._rule import FALLBACK_RATIO, Settings
from lars_optax._schedules import (
    epochs_to_steps,
    linear_scaling,
    sqrt_scaling,
    warmup_cosine_schedule,
    warmup_piecewise_constant_schedule,
    warmup_polynomial_decay_schedule,
)
from lars_optax._transform import transform
from lars_optax._validate import check_bool, check_count, check_number

_RATE_NOTE = re.compile(r"\s*learning_rate=\S+ belongs to batch_size=.*? tune it\.")
_CHOICES = {
    "task": ("classification", "self_supervised", "linear_probe"),
    "algorithm": ("sgd", "lars"),
    "decay": ("polynomial", "piecewise_constant", "cosine"),
    "warmup": ("linear", "constant"),
    "momentum_order": ("scaled", "unscaled", "post", "tf_contrib_1.14"),
    "denominator": ("separate", "joint"),
}
_SCALING = {"linear": linear_scaling, "sqrt": sqrt_scaling}
IMAGENET = 1_281_167  # training images


def _text(rate: Any) -> str:
    """Returns a learning rate with six digits, or "<traced>" inside a JAX transform."""
    return "<traced>" if isinstance(rate, jax.core.Tracer) else f"{float(rate):g}"


class Steps(NamedTuple):
    """The numbers of updates of a run, from the log or the code of its source.

    They hold only for this batch size and this number of training examples.
    """

    warmup: int
    total: int  # of the whole run, warm-up included
    batch_size: int
    num_examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of one published run.

    The source prints most values. A value that it does not print is inferred or None.
    `inferred` has the reason for an inferred value. `hints` has what is known about a
    field that is None. `schedule` and `optimizer` raise ValueError if they need a field
    that is None. `replace` gives it a value.

    A learning rate belongs to a batch size. If the source has a scaling rule,
    `at_batch` applies it. Otherwise replace both, for example with `linear_scaling` or
    `sqrt_scaling`.

    Attributes:
      name: The source, the table, the network, the algorithm and the batch size. If two
        recipes agree in these, the name ends in what they differ in, for example the
        learning rate, the number of epochs or the scaling rule.
      source: The publication and the table, or the repository, the commit and the
        files, that print the values.
      task: "classification", "self_supervised" for a network that learns from images
        without labels, or "linear_probe" for a linear classifier on fixed features.
      network: "alexnet", "alexnet_bn", "resnet50" for version 1, "resnet50_v1.5", or
        "vit_base_patch16".
      zero_init_last_bn: Whether the scale of the last BatchNorm of each residual block
        starts at 0.
      algorithm: "sgd" or "lars".
      batch_size: The number of images in one update.
      rate_scaling: The rule by which the source scales the learning rate with the batch
        size, "linear" or "sqrt". None if it states no rule.
      rate_batch_size: The batch size that `learning_rate` belongs to. `replace` sets it
        if it changes only `batch_size`. None means `batch_size`.
      epochs: The length of the run in epochs.
      steps: A `Steps` with the numbers of updates, if the source's log or code has
        them. They replace `epochs` and `warmup_epochs` in a run with the batch size and
        the number of examples of `steps`.
      learning_rate: The peak learning rate γ at `batch_size`.
      decay: "polynomial", "piecewise_constant" or "cosine".
      power: The exponent of the polynomial.
      end_learning_rate: The learning rate at the end of the polynomial or the cosine.
      boundaries: The epochs at which the piecewise constant rate becomes ten times
        smaller.
      warmup: "linear", or "constant" for a warm-up that stays at `warmup_start`.
      warmup_epochs: The length of the warm-up in epochs. 0 disables the warm-up.
      warmup_start: The learning rate at step 0 of a warm-up.
      decay_from_start: Whether the polynomial or the cosine begins at step 0, as in the
        authors' solver. The warm-up then replaces its first steps. If False, it begins
        at the end of the warm-up.
      extra_decay_steps: The number of steps by which the decay is longer than the run.
        It is 1 in Google's runs of MLPerf.
      momentum: The momentum μ. 0 disables momentum.
      nesterov: Whether momentum is Nesterov momentum.
      momentum_order: "scaled" if γ multiplies the update before it enters the momentum,
        as in Caffe and the paper. "unscaled" if γ multiplies the output of the
        momentum. With "post" and "tf_contrib_1.14", γ and the trust ratio multiply the
        output of the momentum. The trust ratio is computed from this output with
        "post", and from the gradient with "tf_contrib_1.14". `optimizer` raises
        ValueError for the last one, because no chain of `scale_by_lars` computes it.
      weight_decay: The weight decay β. 0 disables weight decay.
      mask: The leaves that get weight decay and, with LARS, a trust ratio. True selects
        all.
      trust_coefficient: The trust coefficient η of LARS.
      eps: The term ε in the denominator of the trust ratio. 0 leaves it out.
      denominator: "separate" or "joint", as in `scale_by_lars`. It has no effect if
        `momentum_order` is "post", where the denominator has the norm of the output of
        the momentum.
      fallback_ratio: The factor of LARS on leaves without a trust ratio and on leaves
        with a zero norm. It is 0.024 in the recipe of Barlow Twins and 1 in the other
        published LARS recipes. SGD ignores it.
      label_smoothing: The label smoothing of the loss. 0 disables it.
      top1: The test accuracy that the source prints, as a fraction. If `task` is
        "self_supervised" or "linear_probe", it is the accuracy of a linear classifier
        on the features. None if the source prints none.
      inferred: A mapping from each inferred field to the reason for its value.
      hints: A mapping from a field that is None to what is known about it.
      notes: Further remarks on the run. `replace` adds one if the learning rate belongs
        to another batch size.
    """

    name: str
    source: str
    task: str = "classification"
    network: str
    zero_init_last_bn: bool = False
    algorithm: str
    batch_size: int
    rate_scaling: str | None = None
    rate_batch_size: int | None = None
    epochs: float
    steps: Steps | None = None
    learning_rate: float | None
    decay: str = "polynomial"
    power: float = 2.0
    end_learning_rate: float = 0.0
    boundaries: tuple[float, ...] = ()
    warmup: str = "linear"
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
    eps: float = 0.0
    denominator: str = "separate"
    fallback_ratio: float = FALLBACK_RATIO
    label_smoothing: float = 0.0
    top1: float | None = None
    inferred: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    notes: str = ""

    def replace(self, **fields: Any) -> "Recipe":
        """Returns a copy of the recipe with other values.

        The copy has no entries of `inferred` and `hints` for these fields. A new value
        of `epochs` or `warmup_epochs` sets `steps` to None, unless you give `steps`. A
        learning rate belongs to a batch size, so replace both, for example with
        `linear_scaling` or `sqrt_scaling`. `end_learning_rate` and `warmup_start` keep
        their values. If you replace only `batch_size`, `notes` says which batch size
        the learning rate belongs to.

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
        if fields.keys() & {"epochs", "warmup_epochs"}:
            fields.setdefault("steps", None)
        grounds = {
            name: {k: v for k, v in getattr(self, name).items() if k not in fields}
            for name in ("inferred", "hints")
        }
        belongs: int | None = self.rate_batch_size or self.batch_size
        if "learning_rate" in fields:
            belongs = None
        kept: dict[str, Any] = grounds | {"rate_batch_size": belongs}
        new = dataclasses.replace(self, **(kept | fields))
        notes = _RATE_NOTE.sub("", new.notes).strip()
        if new.rate_batch_size == new.batch_size:
            return dataclasses.replace(new, rate_batch_size=None, notes=notes)
        return dataclasses.replace(new, notes=f"{notes} {new._rate_note()}".strip())

    def at_batch(self, batch_size: int) -> "Recipe":
        """Returns the recipe at another batch size, by the source's own scaling rule.

        The rule of `rate_scaling` gives the learning rate. `end_learning_rate` changes
        by the same factor. `warmup_start` and the number of epochs stay the same.

        Args:
          batch_size: The number of images in one update.

        Raises:
          ValueError: If the source states no scaling rule, if the learning rate is
            None, or if `batch_size` is not an int of at least 1.

        Example:
          >>> from lars_optax import recipes
          >>> recipe = recipes.get("barlow-twins-resnet50-lars-2048").at_batch(1024)
          >>> recipe.batch_size, recipe.learning_rate, recipe.end_learning_rate
          (1024, 0.8, 0.0008)
        """
        self._require("learning_rate")
        check_count("batch_size", batch_size, low=1)
        if self.rate_scaling is None:
            raise ValueError(
                f"{self.name}: {self.source} states no rule that scales the learning "
                "rate with the batch size. Choose a rate and call "
                f"recipe.replace(batch_size={batch_size}, learning_rate=...), for "
                "example with sqrt_scaling."
            )
        rate = cast(float, self.learning_rate)
        base = self.rate_batch_size or self.batch_size
        scale = _SCALING[self.rate_scaling]
        new = self.replace(
            batch_size=batch_size,
            learning_rate=scale(rate, batch_size, base),
            end_learning_rate=scale(self.end_learning_rate, batch_size, base),
        )
        rule = f"by the source's {self.rate_scaling} rule"
        why = f"{_text(rate)} at batch_size={base}, {rule}"
        grounds = {**self.inferred, **new.inferred, "learning_rate": why}
        return dataclasses.replace(new, inferred=grounds)

    def _rate_note(self) -> str:
        """Returns a note if the learning rate belongs to another batch size, else "".

        The pattern `_RATE_NOTE` matches this note.
        """
        if self.rate_batch_size is None or self.learning_rate is None:
            return ""
        rule = "linear_scaling for SGD or sqrt_scaling for LARS"
        if self.rate_scaling is not None:
            rule = f"{self.rate_scaling}_scaling, the rule of its source"
        return (
            f"learning_rate={_text(self.learning_rate)} belongs to "
            f"batch_size={self.rate_batch_size}, but batch_size is {self.batch_size}: "
            f"scale the learning rate too, with {rule}, or tune it."
        )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{self.name}: {name} must be one of {choices}, got "
                    f"{getattr(self, name)!r}."
                )
        if self.rate_scaling not in (None, *_SCALING):
            raise ValueError(
                f"{self.name}: rate_scaling must be None or one of {tuple(_SCALING)}, "
                f"got {self.rate_scaling!r}."
            )
        for name in ("name", "source", "network", "notes"):
            self._check_type(name, str, "a str")
        for name in ("inferred", "hints"):
            self._check_type(name, Mapping, "a mapping from fields to texts")
        for name in ("zero_init_last_bn", "decay_from_start", "nesterov"):
            check_bool(name, getattr(self, name))
        check_mask(self.mask, "mask")
        check_number("momentum", self.momentum, high=1.0, optional=True)
        check_number("label_smoothing", self.label_smoothing, high=1.0)
        check_number("top1", self.top1, optional=True)
        if self.top1 is not None and self.top1 > 1:
            raise ValueError(f"top1 must be a fraction, at most 1, got {self.top1!r}.")
        for name in ("learning_rate", "warmup_epochs", "warmup_start", "weight_decay"):
            check_number(name, getattr(self, name), optional=True)
        for name in ("end_learning_rate", "fallback_ratio", "eps"):
            check_number(name, getattr(self, name))
        for name in ("epochs", "power", "trust_coefficient"):
            check_number(name, getattr(self, name), positive=True)
        check_count("batch_size", self.batch_size, low=1)
        check_count("extra_decay_steps", self.extra_decay_steps)
        if self.rate_batch_size is not None:
            check_count("rate_batch_size", self.rate_batch_size, low=1)
        self._check_steps()
        if not isinstance(self.boundaries, tuple):
            raise ValueError(
                "boundaries must be a tuple of epochs, such as (30, 60, 80), got "
                f"{self.boundaries!r}."
            )
        for epoch in self.boundaries:
            check_number("boundaries", epoch)

    def _check_type(self, name: str, kind: type, what: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind):
            raise ValueError(f"{self.name}: {name} must be {what}, got {value!r}.")

    def _check_steps(self) -> None:
        if self.steps is None:
            return
        if not isinstance(self.steps, Steps):
            raise ValueError(
                f"{self.name}: steps must be None or a recipes.Steps, got "
                f"{self.steps!r}."
            )
        for name, count in self.steps._asdict().items():
            check_count(f"steps.{name}", count, low=0 if name == "warmup" else 1)
        if self.steps.warmup >= self.steps.total:
            raise ValueError(
                f"{self.name}: steps.warmup must be less than steps.total="
                f"{self.steps.total}, got {self.steps.warmup}."
            )

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

        `step_counts` returns the length of the run and of its warm-up.

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
          >>> float(rate(781))  # the end of the warm-up
          17.0
        """
        self._require("learning_rate", "warmup_epochs", "warmup_start")
        warmup, updates = self.step_counts(num_examples)
        peak = cast(float, self.learning_rate)
        start = 0.0 if self.warmup_start is None else self.warmup_start
        if not updates:
            raise ValueError(
                f"{self.name}: epochs={self.epochs} of num_examples={num_examples} "
                f"with batch_size={self.batch_size} round to 0 steps. Give more epochs "
                "or a smaller batch_size."
            )
        if warmup >= updates:
            self._refuse_warmup("epochs", warmup, updates)
        if self.decay == "piecewise_constant":
            scales: dict[int, float] = {}
            for epoch in self.boundaries:  # two may round to the same step
                step = epochs_to_steps(epoch, num_examples, self.batch_size)
                scales[step] = scales.get(step, 1.0) * 0.1
            if any(step < warmup for step in scales):
                self._refuse_warmup("boundaries", warmup, min(scales))
            return warmup_piecewise_constant_schedule(
                start, peak, warmup, scales, warmup=self.warmup
            )
        end = updates + self.extra_decay_steps
        begin = 0 if self.decay_from_start else None
        options: dict[str, Any] = {"warmup": self.warmup, "transition_begin": begin}
        ends = (start, peak, warmup, end, self.end_learning_rate)
        if self.decay == "cosine":
            return warmup_cosine_schedule(*ends, **options)
        return warmup_polynomial_decay_schedule(*ends, self.power, **options)

    def step_counts(self, num_examples: int) -> tuple[int, int]:
        """Returns the number of warm-up steps and the number of steps of the run.

        If `steps` has the batch size of the recipe and the given number of examples,
        both numbers come from `steps`. If not, each number of epochs becomes epochs ·
        num_examples / batch_size steps, rounded to the nearest int.

        Args:
          num_examples: The number of training examples in one epoch.

        Raises:
          ValueError: If `warmup_epochs` is None, or if `num_examples` is not an int of
            at least 1.

        Example:
          >>> from lars_optax import recipes
          >>> recipe = recipes.get("mlperf-v1.0-resnet50-lars-32768")
          >>> recipe.step_counts(1_281_167), recipe.step_counts(50_000)
          ((703, 2355), (27, 92))
        """
        self._require("warmup_epochs")
        check_count("num_examples", num_examples, low=1)
        if self.steps and self.steps[2:] == (self.batch_size, num_examples):
            return self.steps.warmup, self.steps.total
        warmup = cast(float, self.warmup_epochs)
        return (
            epochs_to_steps(warmup, num_examples, self.batch_size),
            epochs_to_steps(self.epochs, num_examples, self.batch_size),
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

        SGD is built as LARS with a trust ratio of 1 on every leaf. A momentum of 0
        allocates no buffer. With the learning rate γ, the momentum μ and the weight
        decay β, `momentum_order` chooses the chain:

            scaled    chain(scale_by_lars(β), scale_by_learning_rate(γ), trace(μ))
            unscaled  chain(scale_by_lars(β), trace(μ), scale_by_learning_rate(γ))
            post      chain(add_decayed_weights(β), trace(μ), scale_by_lars(),
                            scale_by_learning_rate(γ))

        Args:
          num_examples: The number of training examples in one epoch.
          stacked_axes: The axis along which a leaf stacks several layers, as in `lars`.
            None means that every leaf is a single layer.
          axis_name: The mesh axes over which parameters are sharded, as in `lars`.
            Leave it None outside of `shard_map` and `pmap`. For SGD this argument and
            `stacked_axes` only affect which leaves get weight decay.
          accumulator_dtype: The dtype of the momentum buffer. None takes the dtype of
            each parameter.
          keep_layer_stats: Whether the state keeps the norms and the trust ratio of
            each layer. If `momentum_order` is "post", the gradient norm is that of the
            gradient after the momentum.

        Returns:
          A transformation whose `update` needs `params`. Each update has the dtype of
          its parameter.

        Raises:
          ValueError: If a field that it needs is None, if `momentum_order` is
            "tf_contrib_1.14", if `schedule` raises it, or if an argument is invalid, as
            in `lars`.

        Example:
          >>> import jax.numpy as jnp
          >>> from lars_optax import recipes
          >>> tx = recipes.get("mlperf-v1.0-resnet50-lars-8192").optimizer(1_281_167)
          >>> state = tx.init({"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
        """
        self._require(*self.missing())
        if self.momentum_order == "tf_contrib_1.14":
            raise ValueError(
                f"{self.name}: momentum_order='tf_contrib_1.14' multiplies the output "
                "of the momentum by the trust ratio of the gradient, and no chain of "
                "scale_by_lars does this. Call recipe.replace(momentum_order=...) with "
                "'scaled', the order of later rounds, 'unscaled' or 'post'."
            )
        rate = optax.scale_by_learning_rate(self.schedule(num_examples))
        trace = wide_momentum(self.momentum, self.nesterov, accumulator_dtype)
        settings = self._settings(stacked_axes, axis_name)
        if self.momentum_order == "post" and self.algorithm == "lars":
            ratio = dataclasses.replace(settings, weight_decay=0.0)
            return optax.chain(
                transform(_without_ratio(settings), False),
                trace,
                transform(ratio, keep_layer_stats),
                in_dtype_of_params(rate),
            )
        in_order = (rate, trace) if self.momentum_order == "scaled" else (trace, rate)
        return optax.chain(
            transform(settings, keep_layer_stats),
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
        of the recipe's optimizer. If `momentum_order` is "post", the trust ratio
        depends on the momentum, and this function returns the one of the first update
        without Nesterov momentum.
        The state of an optimizer with `keep_layer_stats=True` has the trust ratio of
        the latest update.

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
        settings = Settings(
            weight_decay=self.weight_decay,
            weight_decay_mask=self.mask,
            trust_coefficient=self.trust_coefficient,
            eps=self.eps,
            trust_ratio_mask=self.mask,
            denominator="joint" if self.momentum_order == "post" else self.denominator,
            fallback_ratio=self.fallback_ratio,
            stacked_axes=stacked_axes,
            axis_name=axis_name,
        )
        if self.algorithm == "lars":
            return settings
        # SGD may train a tree in which every leaf is a bias.
        return dataclasses.replace(_without_ratio(settings), allow_no_leaf=True)


def _without_ratio(settings: Settings) -> Settings:
    """Returns settings with a trust ratio of 1 on every leaf."""
    no_leaf = partial(jax.tree.map, lambda _: False)
    return dataclasses.replace(settings, trust_ratio_mask=no_leaf, fallback_ratio=1.0)
