"""The rule: its settings, checked once, and the mathematics of one layer.

`scale_by_lars` and `layer_stats` both use it. So they cannot disagree, and XLA finds
the same reductions in both and does them once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lars_optax._axes import (
    AxisNames,
    resolve_axis_names,
    resolve_stacked_axes,
    shapes_for_roles,
)
from lars_optax._masks import Mask, check_mask, refuse_empty_default, resolve_mask
from lars_optax._norms import layer_norms, norm_dtype
from lars_optax._tree import check_parameter, check_updates, flatten, is_empty
from lars_optax._validate import check_number, is_zero

# The default of fallback_ratio, chosen by benchmarks/study/default_ratio.py.
FALLBACK_RATIO = 0.02


class Layer(NamedTuple):
    """One leaf of the parameters, its gradient, and how the rule applies to it."""

    param: jax.Array  # w
    grad: jax.Array  # g
    step: jax.Array  # g + βw, in float32 at least
    weight_decay: Any  # β, 0 where the leaf is not decayed
    adapted: bool  # takes λ, else fallback_ratio
    stacked: int | None  # the axis of the layers that the leaf stacks
    axis_names: AxisNames  # the mesh axes over which the leaf is sharded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `scale_by_lars`, and the learning rate at which `larc` clips.

    Raises ValueError if a value is out of range.
    """

    weight_decay: Any
    weight_decay_mask: Mask
    trust_coefficient: Any
    eps: Any = 0.0
    trust_ratio_mask: Mask
    denominator: str = "separate"
    fallback_ratio: Any
    max_ratio: Any = None
    stacked_axes: Any
    axis_name: Any
    clip_at: Any = None  # γ, for `larc` alone

    def __post_init__(self) -> None:
        check_number("weight_decay", self.weight_decay, schedule=True)
        check_number("trust_coefficient", self.trust_coefficient, positive=True)
        check_number("eps", self.eps)
        check_number("fallback_ratio", self.fallback_ratio)
        check_number("max_ratio", self.max_ratio, positive=True, optional=True)
        check_mask(self.weight_decay_mask, "weight_decay_mask")
        check_mask(self.trust_ratio_mask, "trust_ratio_mask")
        if self.denominator not in ("separate", "joint"):
            raise ValueError(
                "denominator must be 'separate', the paper's, or 'joint', Optax's; "
                f"got {self.denominator!r}."
            )

    def at(self, count: jax.Array) -> "Settings":
        """The settings in which each schedule has its value at step `count`."""

        def value(x: Any) -> Any:
            return x(count) if callable(x) else x

        return dataclasses.replace(
            self, weight_decay=value(self.weight_decay), clip_at=value(self.clip_at)
        )

    def layers(self, updates: optax.Updates, params: optax.Params) -> list[Layer]:
        """One layer for each leaf of `flatten(params)` that has a gradient.

        The weight decay is a number here, see `at`.
        """
        if params is None:
            raise ValueError(
                "params is None, but LARS scales each update by its parameter's norm: "
                "call update(updates, state, params)."
            )
        check_updates(updates, params)
        leaves = zip(flatten(params)[1], flatten(updates)[1], strict=True)
        return [
            self._layer(param, grad, *how)
            for (param, grad), how in zip(leaves, self._of_leaves(params), strict=True)
            if not is_empty(grad)
        ]

    def _layer(
        self,
        param: Any,
        grad: Any,
        decayed: bool,
        *how: *tuple[bool, int | None, AxisNames],
    ) -> Layer:
        param, grad = jnp.asarray(param), jnp.asarray(grad)
        wide = norm_dtype(param.dtype)
        step = grad.astype(wide)
        if norm_dtype(grad.dtype) != wide:
            grad = step  # both norms have the parameter's precision
        if not decayed:
            return Layer(param, grad, step, 0.0, *how)
        weight_decay = jnp.asarray(self.weight_decay, jnp.finfo(wide).dtype)
        step += weight_decay.astype(wide) * param.astype(wide)
        return Layer(param, grad, step, weight_decay, *how)

    def check(self, params: optax.Params) -> None:
        """Raise ValueError for parameters that an update would refuse.

        It also refuses any leaf that is neither floating-point nor complex, even one
        that never gets a gradient.
        """
        for path, leaf in zip(*flatten(params)[:2], strict=True):
            if not is_empty(leaf):
                check_parameter(path, leaf)
        self._of_leaves(params)

    def _of_leaves(
        self, params: optax.Params
    ) -> list[tuple[bool, bool, int | None, AxisNames]]:
        """For each leaf: decayed, adapted, its stacking axis, its mesh axes."""
        if not jax.tree.leaves(params):  # as of an unused group of optax.partition
            return [(False, False, None, AxisNames())] * len(flatten(params)[0])
        stacked = resolve_stacked_axes(self.stacked_axes, params)
        names = resolve_axis_names(self.axis_name, params, stacked)
        shapes = shapes_for_roles(self.axis_name, params)
        adapted = resolve_mask(
            self.trust_ratio_mask, "trust_ratio_mask", params, stacked, shapes
        )
        refuse_empty_default(self.trust_ratio_mask, "trust_ratio_mask", params, adapted)
        decayed = resolve_mask(
            self.weight_decay_mask, "weight_decay_mask", params, stacked, shapes
        )
        if is_zero(self.weight_decay):
            decayed = [False] * len(decayed)
        else:
            refuse_empty_default(
                self.weight_decay_mask, "weight_decay_mask", params, decayed
            )
        return list(zip(decayed, adapted, stacked, names, strict=True))

    def trust_ratios(self, layers: list[Layer]) -> list[jax.Array]:
        """The factor of each layer's step: λ where it is adapted, else fallback_ratio.

        λ is a scalar, or a vector over the layers that a leaf stacks.
        """
        joint = self.denominator == "joint"
        adapted = [x for x in layers if x.adapted]
        grads = [x.step if joint else x.grad for x in adapted]
        norms = norms_of([x.param for x in adapted] + grads, adapted + adapted)
        pairs = zip(norms[: len(adapted)], norms[len(adapted) :], strict=True)
        ratios = (
            trust_ratio(w, g, 0 if joint else x.weight_decay, self)
            for x, (w, g) in zip(adapted, pairs, strict=True)
        )
        fallback = jnp.asarray(self.fallback_ratio)
        return [next(ratios) if x.adapted else fallback for x in layers]


def norms_of(arrays: list[jax.Array], layers: list[Layer]) -> list[jax.Array]:
    """The norm of each array, split and summed over devices as its layer says."""
    return layer_norms(
        arrays, [x.stacked for x in layers], [x.axis_names for x in layers]
    )


def trust_ratio(
    param_norm: jax.Array, grad_norm: jax.Array, weight_decay: Any, settings: Settings
) -> jax.Array:
    """λ = η‖w‖ / (‖g‖ + β‖w‖ + ε), from the two norms.

    For the joint denominator pass ‖g + βw‖ as `grad_norm` and 0 as `weight_decay`.
    With a `clip_at` of γ it returns LARC's factor min(λ/γ, 1).
    """
    eta, eps, fallback = (
        jnp.asarray(x, param_norm.dtype)
        for x in (settings.trust_coefficient, settings.eps, settings.fallback_ratio)
    )
    # Zero norms: a layer not yet trained (w = 0) or one the loss does not see (g = 0).
    undefined = (param_norm == 0) | (grad_norm == 0)
    # 0/0 must not reach the division: its derivative would be NaN on both branches.
    denominator = jnp.where(undefined, 1, grad_norm + weight_decay * param_norm + eps)
    ratio = eta * param_norm / denominator
    if settings.max_ratio is not None:
        ratio = jnp.minimum(ratio, jnp.asarray(settings.max_ratio, ratio.dtype))
    if settings.clip_at is not None:
        gamma = jnp.asarray(settings.clip_at, ratio.dtype)
        # γ = 0, as a warm-up may start: no factor matters, and 1 is finite.
        is_zero = gamma == 0
        factor = jnp.minimum(ratio / jnp.where(is_zero, 1, gamma), 1)
        ratio = jnp.where(is_zero, 1, factor)
    ratio = jnp.where(undefined, fallback, ratio)
    # An infinite norm would give λ = 0 and freeze the layer in silence.
    finite = jnp.isfinite(param_norm) & jnp.isfinite(grad_norm)
    return jnp.where(finite, ratio, jnp.nan)
