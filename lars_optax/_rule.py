"""The checked settings of LARS, and the trust ratio of a layer.

`scale_by_lars` and `layer_stats` both use this module, so their trust ratios are equal.
XLA also finds the same reductions in both and computes them once.
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
    """One leaf of the parameters, with its gradient and the settings for this leaf."""

    param: jax.Array  # w
    grad: jax.Array  # g
    decayed_grad: jax.Array  # g + βw, in at least float32
    weight_decay: Any  # β, or 0 if the leaf is not decayed
    adapted: bool  # whether λ is computed; otherwise fallback_ratio replaces it
    stacked: int | None  # the axis along which the leaf stacks layers
    axis_names: AxisNames  # the mesh axes over which the leaf is sharded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked arguments of `scale_by_lars`, and the learning rate of `larc`.

    Raises ValueError if an argument is out of range.
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
    clip_at: Any = None  # the learning rate γ, only for `larc`

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
                "denominator must be 'separate' as in the paper or 'joint' as in "
                f"optax.lars, got {self.denominator!r}."
            )

    def at(self, count: jax.Array) -> "Settings":
        """Returns these settings with the value of each schedule at step `count`."""

        def value(x: Any) -> Any:
            return x(count) if callable(x) else x

        return dataclasses.replace(
            self, weight_decay=value(self.weight_decay), clip_at=value(self.clip_at)
        )

    def layers(self, updates: optax.Updates, params: optax.Params) -> list[Layer]:
        """Returns a `Layer` for each leaf of the parameters that has a gradient.

        The weight decay of these settings must be a number. The method `at` replaces a
        schedule by its value.

        Raises ValueError if `params` is None, if updates and parameters do not match,
        or if a mask, `stacked_axes` or `axis_name` does not fit the parameters.
        """
        if params is None:
            raise ValueError(
                "params is None, but LARS needs the norm of each parameter; call "
                "update(updates, state, params)."
            )
        check_updates(updates, params)
        settings = self._leaf_settings(params)
        leaves = zip(flatten(params)[1], flatten(updates)[1], settings, strict=True)
        return [self._layer(w, g, *rest) for w, g, rest in leaves if not is_empty(g)]

    def _layer(
        self,
        param: Any,
        grad: Any,
        decayed: bool,
        *rest: *tuple[bool, int | None, AxisNames],
    ) -> Layer:
        param, grad = jnp.asarray(param), jnp.asarray(grad)
        wide = norm_dtype(param.dtype)
        decayed_grad = grad.astype(wide)
        if norm_dtype(grad.dtype) != wide:
            grad = decayed_grad  # so both norms have the precision of the parameter
        if not decayed:
            return Layer(param, grad, decayed_grad, 0.0, *rest)
        weight_decay = jnp.asarray(self.weight_decay, jnp.finfo(wide).dtype)
        decayed_grad += weight_decay.astype(wide) * param.astype(wide)
        return Layer(param, grad, decayed_grad, weight_decay, *rest)

    def check(self, params: optax.Params) -> None:
        """Raises ValueError if an update would reject these parameters.

        Also raises it for a leaf that is neither floating-point nor complex, even if
        this leaf never gets a gradient.
        """
        for path, leaf in zip(*flatten(params)[:2], strict=True):
            if not is_empty(leaf):
                check_parameter(path, leaf)
        self._leaf_settings(params)

    def _leaf_settings(
        self, params: optax.Params
    ) -> list[tuple[bool, bool, int | None, AxisNames]]:
        """Returns the settings of each leaf of the parameters.

        They are whether the leaf gets weight decay, whether it gets a trust ratio, the
        axis along which it stacks layers, and the mesh axes over which it is sharded.
        """
        if not jax.tree.leaves(params):  # an unused group of optax.partition
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
        """Returns the factor of each leaf's update: its trust ratio, or a fallback.

        Leaves that the trust ratio mask excludes have `fallback_ratio`. The factor is a
        scalar, or a vector with one value for each layer that the leaf stacks.
        """
        joint = self.denominator == "joint"
        adapted = [x for x in layers if x.adapted]
        grads = [x.decayed_grad if joint else x.grad for x in adapted]
        norms = norms_of([x.param for x in adapted] + grads, adapted + adapted)
        pairs = zip(norms[: len(adapted)], norms[len(adapted) :], strict=True)
        ratios = (
            trust_ratio(w, g, 0 if joint else x.weight_decay, self)
            for x, (w, g) in zip(adapted, pairs, strict=True)
        )
        fallback = jnp.asarray(self.fallback_ratio)
        return [next(ratios) if x.adapted else fallback for x in layers]


def norms_of(arrays: list[jax.Array], layers: list[Layer]) -> list[jax.Array]:
    """Returns the norms of arrays that belong to layers, such as their gradients.

    `arrays[i]` belongs to `layers[i]`, and is stacked and sharded in the same way.
    """
    return layer_norms(
        arrays, [x.stacked for x in layers], [x.axis_names for x in layers]
    )


def trust_ratio(
    param_norm: jax.Array, grad_norm: jax.Array, weight_decay: Any, settings: Settings
) -> jax.Array:
    """Returns the trust ratio of a layer with weights w and gradient g.

    It is λ = η‖w‖ / (‖g‖ + β‖w‖ + ε), where ‖w‖ is `param_norm`, ‖g‖ is `grad_norm`
    and β is `weight_decay`. The settings have the trust coefficient η and ε, which is
    `eps`. For the joint denominator pass ‖g + βw‖ as `grad_norm` and 0 as
    `weight_decay`.

    If `settings.clip_at` is a learning rate γ, the result is LARC's factor min(λ/γ, 1).
    Where a norm is 0, the result is `settings.fallback_ratio`. Where a norm is not
    finite, it is NaN.
    """
    eta, eps, fallback = (
        jnp.asarray(x, param_norm.dtype)
        for x in (settings.trust_coefficient, settings.eps, settings.fallback_ratio)
    )
    # w = 0 in a layer initialised to zero. g = 0 in a layer that does not affect the
    # loss.
    undefined = (param_norm == 0) | (grad_norm == 0)
    # A quotient 0/0 would make the derivative NaN, although `where` discards its value.
    denominator = jnp.where(undefined, 1, grad_norm + weight_decay * param_norm + eps)
    ratio = eta * param_norm / denominator
    if settings.max_ratio is not None:
        ratio = jnp.minimum(ratio, jnp.asarray(settings.max_ratio, ratio.dtype))
    if settings.clip_at is not None:
        gamma = jnp.asarray(settings.clip_at, ratio.dtype)
        # A warm-up may start at γ = 0. The update is then 0 for any finite factor.
        is_zero = gamma == 0
        factor = jnp.minimum(ratio / jnp.where(is_zero, 1, gamma), 1)
        ratio = jnp.where(is_zero, 1, factor)
    ratio = jnp.where(undefined, fallback, ratio)
    # An infinite norm would give λ = 0 and freeze the layer without an error.
    finite = jnp.isfinite(param_norm) & jnp.isfinite(grad_norm)
    return jnp.where(finite, ratio, jnp.nan)
