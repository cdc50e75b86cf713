"""The checked settings of LARS, and the norms and the trust ratio of each layer.

`scale_by_lars` and `layer_stats` both use this module, so their trust ratios are equal.
XLA also finds the same reductions in both and computes them once.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
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
from lars_optax._norms import layer_sums, norm_dtype, per_platform, safe_sqrt
from lars_optax._tree import check_parameter, check_updates, flatten, is_empty
from lars_optax._validate import check_number, is_zero

# The default of fallback_ratio, chosen by benchmarks/study/default_ratio.py.
FALLBACK_RATIO = 0.02


# The numbers among the settings, with what `check_number` allows for each.
_NUMBERS: dict[str, dict[str, bool]] = {
    "weight_decay": {"schedule": True},
    "trust_coefficient": {"positive": True},
    "eps": {},
    "fallback_ratio": {},
    "max_ratio": {"positive": True, "optional": True},
}


class Layer(NamedTuple):
    """One leaf of the parameters, with its gradient and the settings for this leaf."""

    param: jax.Array  # w
    grad: jax.Array  # g
    decayed_grad: jax.Array  # g + βw, in at least float32
    weight_decay: Any  # β, or 0 if the leaf is not decayed
    adapted: bool  # whether λ is computed; otherwise fallback_ratio replaces it
    stacked: int | None  # the axis along which the leaf stacks layers
    axis_names: AxisNames  # the mesh axes over which the leaf is sharded


class LayerStats(NamedTuple):
    """The norms and the trust ratio of one leaf.

    Each field is a scalar, or a vector over the layers that the leaf stacks. Its dtype
    is float32, or float64 for float64 parameters.
    """

    param_norm: jax.Array  # ‖w‖
    grad_norm: jax.Array  # ‖g‖
    trust_ratio: jax.Array  # λ or fallback_ratio, the factor of g + βw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked arguments of `scale_by_lars`, and the learning rate of `larc`.

    Raises ValueError if an argument is out of range. Python and NumPy numbers become
    floats.
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
    allow_no_leaf: bool = False  # whether a mask given by its name may select no leaf

    def __post_init__(self) -> None:
        for name, allowed in _NUMBERS.items():
            number = check_number(name, getattr(self, name), **allowed)
            object.__setattr__(self, name, number)  # the class is frozen
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
        if not self.allow_no_leaf:
            refuse_empty_default(
                self.trust_ratio_mask, "trust_ratio_mask", params, adapted
            )
        decayed = resolve_mask(
            self.weight_decay_mask, "weight_decay_mask", params, stacked, shapes
        )
        if is_zero(self.weight_decay):
            decayed = [False] * len(decayed)
        elif not self.allow_no_leaf:
            refuse_empty_default(
                self.weight_decay_mask, "weight_decay_mask", params, decayed
            )
        return list(zip(decayed, adapted, stacked, names, strict=True))

    def trust_ratios(self, layers: list[Layer]) -> list[jax.Array]:
        """Returns the factor of each leaf's update: its trust ratio, or a fallback.

        Leaves that the trust ratio mask excludes have `fallback_ratio`. The factor is a
        scalar, or a vector with one value for each layer that the leaf stacks.
        """
        stats = iter(self._measure([x for x in layers if x.adapted]))
        fallback = jnp.asarray(self.fallback_ratio)
        return [next(stats).trust_ratio if x.adapted else fallback for x in layers]

    def layer_stats(self, layers: list[Layer], kept: bool = False) -> list[LayerStats]:
        """Returns the norms and the factor of each leaf, as in `trust_ratios`.

        `kept` is True if each number becomes an array in the state of an optimizer.
        """
        return self._measure(layers, grad_norms=True, kept=kept)

    def _measure(
        self, layers: list[Layer], grad_norms: bool = False, kept: bool = False
    ) -> list[LayerStats]:
        """Returns the statistics of each layer.

        Without `grad_norms`, and with the joint denominator, `grad_norm` is ‖g + βw‖.
        """
        joint = self.denominator == "joint"
        arrays = []
        for x in layers:
            in_denominator = x.decayed_grad if joint and x.adapted else x.grad
            arrays.append([x.param, in_denominator])
            if joint and x.adapted and grad_norms:
                arrays[-1].append(x.grad)
        stacked, names = [x.stacked for x in layers], [x.axis_names for x in layers]
        sums = layer_sums(arrays, stacked, names)
        numbers = Numbers(*(getattr(self, name) for name in Numbers._fields))

        def stats(layer: Layer, sums: Sequence[jax.Array]) -> Any:
            weight_decay = 0 if joint else layer.weight_decay
            return _stats(list(sums), layer.adapted, weight_decay, numbers)

        def measure(on_gpu: bool) -> list[LayerStats]:
            if on_gpu:
                return _at_once(stats, layers, sums, kept)
            return list(map(stats, layers, sums))

        found: list[LayerStats] = per_platform(measure)
        return found


class Numbers(NamedTuple):
    """The settings on which `trust_ratio` depends, as numbers or traced arrays."""

    trust_coefficient: Any
    eps: Any
    fallback_ratio: Any
    max_ratio: Any
    clip_at: Any


# With jit, JAX traces this function once for all layers whose sums have equal types.
@functools.partial(jax.jit, static_argnames="adapted", inline=True)
def _stats(
    sums: list[jax.Array], adapted: bool, weight_decay: Any, numbers: Numbers
) -> LayerStats:
    """Returns the statistics of a layer from the sums of squares of its arrays.

    These arrays are w, the array whose norm is in the denominator of the trust ratio,
    and g if that is another array.
    """
    param_norm, norm, *rest = map(safe_sqrt, sums)
    if adapted:
        ratio = trust_ratio(param_norm, norm, weight_decay, numbers)
    else:
        ratio = jnp.full_like(param_norm, numbers.fallback_ratio)
    return LayerStats(param_norm, rest[0] if rest else norm, ratio)


def _at_once(
    stats: Callable[[Layer, Sequence[jax.Array]], LayerStats],
    layers: list[Layer],
    sums: list[list[jax.Array]],
    kept: bool,
) -> list[LayerStats]:
    """Returns the statistics of each layer, with one kernel for all layers of a kind.

    Layers are of the same kind if their settings and the types of their sums are equal.
    Their sums are stacked into vectors.
    """
    found: dict[int, LayerStats] = {}
    groups: dict[Any, list[int]] = {}
    for i, (x, row) in enumerate(zip(layers, sums, strict=True)):
        # The weight decay of a layer is 0.0 or the same array as in other layers.
        kind = x.adapted, type(x.weight_decay), x.axis_names, *map(jax.typeof, row)
        groups.setdefault(kind, []).append(i)
    for members in groups.values():
        stats_of = functools.partial(stats, layers[members[0]])
        columns = zip(*(sums[i] for i in members), strict=True)
        vectors = [jnp.stack(column) for column in columns]
        if kept:
            # One kernel can compute many scalars from vectors. To copy the scalars of a
            # computed vector, XLA would launch a kernel for each. So the statistics are
            # computed as scalars. The barrier makes XLA keep the vectors of sums.
            rows = zip(*map(jax.lax.optimization_barrier, vectors), strict=True)
            found.update(zip(members, map(stats_of, rows), strict=True))
        else:
            rows = zip(*stats_of(vectors), strict=True)
            found.update(zip(members, itertools.starmap(LayerStats, rows), strict=True))
    return [found[i] for i in range(len(layers))]


def trust_ratio(
    param_norm: jax.Array, grad_norm: jax.Array, weight_decay: Any, numbers: Numbers
) -> jax.Array:
    """Returns the trust ratio of a layer with weights w and gradient g.

    It is λ = η‖w‖ / (‖g‖ + β‖w‖ + ε), where ‖w‖ is `param_norm`, ‖g‖ is `grad_norm`
    and β is `weight_decay`. The numbers have the trust coefficient η and ε, which is
    `eps`. For the joint denominator pass ‖g + βw‖ as `grad_norm` and 0 as
    `weight_decay`.

    If `numbers.clip_at` is a learning rate γ, the result is LARC's factor min(λ/γ, 1).
    Where a norm is 0, the result is `numbers.fallback_ratio`. Where a norm is not
    finite, it is NaN.
    """
    eta, eps, fallback = (jnp.asarray(x, param_norm.dtype) for x in numbers[:3])
    # w = 0 in a layer initialised to zero. g = 0 in a layer that does not affect the
    # loss.
    undefined = (param_norm == 0) | (grad_norm == 0)
    # A quotient 0/0 would make the derivative NaN, although `where` discards its value.
    denominator = jnp.where(undefined, 1, grad_norm + weight_decay * param_norm + eps)
    ratio = eta * param_norm / denominator
    if numbers.max_ratio is not None:
        ratio = jnp.minimum(ratio, jnp.asarray(numbers.max_ratio, ratio.dtype))
    if numbers.clip_at is not None:
        gamma = jnp.asarray(numbers.clip_at, ratio.dtype)
        # A warm-up may start at γ = 0. The update is then 0 for any finite factor.
        is_zero = gamma == 0
        factor = jnp.minimum(ratio / jnp.where(is_zero, 1, gamma), 1)
        ratio = jnp.where(is_zero, 1, factor)
    ratio = jnp.where(undefined, fallback, ratio)
    # An infinite norm would give λ = 0 and freeze the layer without an error.
    finite = jnp.isfinite(param_norm) & jnp.isfinite(grad_norm)
    return jnp.where(finite, ratio, jnp.nan)
