"""What a run would be: `--dry-run`. Trains nothing and allocates no network."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lars_optax import epochs_to_steps
from lars_optax.recipes import Recipe

from .plan import Plan
from .run.experiment import Experiment
from .step.step import TrainState, init_state


def describe(experiment: Experiment, changed: Sequence[str] = ()) -> str:
    """The run in words and numbers, for `--dry-run`."""
    recipe, plan, model = experiment.recipe, experiment.plan, experiment.model
    dataset, schedule = experiment.dataset, experiment.schedule
    examples, updates = dataset.train.size, schedule.updates
    state = experiment.shapes
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    side = "×".join(str(n) for n in dataset.image_shape)
    lines = [
        f"recipe     {recipe.name} ({recipe.source})",
        *(f"           {key}: {why}" for key, why in recipe.inferred.items()),
        *(f"           changed: {change}" for change in changed),
        *([f"           note: {recipe.notes}"] if recipe.notes else []),
        f"network    {recipe.network}, {parameters:,} parameters in"
        f" {len(experiment.layer_names)} leaves,"
        f" {jnp.dtype(model.dtype)}, images of {side}",
        f"optimizer  {_optimizer(recipe)}",
        f"steps      {updates:,} = {recipe.epochs:g} epochs × {examples:,} images /"
        f" {recipe.batch_size:,}",
        f"batch      {recipe.batch_size:,} = {plan}",
        f"memory     {_memory(state, plan, model, dataset.image_shape)}",
        "",
        f"{'step':>9}  {'epoch':>7}  learning rate",
    ]
    for step in _knots(recipe, examples, updates):
        rate = float(schedule.rates[step])
        lines.append(f"{step:>9,}  {experiment.epoch(step):>7.2f}  {rate:.6g}")
    return "\n".join(lines)


def _optimizer(recipe: Recipe) -> str:
    nesterov = "Nesterov " if recipe.nesterov else ""
    inside = "inside" if recipe.momentum_order == "scaled" else "after"
    leaves = "all leaves" if recipe.mask is True else "all but biases and norms"
    lars = (
        f", trust coefficient {recipe.trust_coefficient:g}, fallback ratio"
        f" {recipe.fallback_ratio:g}"
    )
    return (
        f"{recipe.algorithm}, {nesterov}momentum {recipe.momentum:g} with the rate"
        f" {inside} it, weight decay {recipe.weight_decay:g} of {leaves}"
        f"{lars if recipe.algorithm == 'lars' else ''}, label smoothing"
        f" {recipe.label_smoothing:g}"
    )


def _knots(recipe: Recipe, examples: int, updates: int) -> list[int]:
    """Start, both sides of the end of warm-up and of each boundary, tenths, the end."""
    turns = [recipe.warmup_epochs or 0, *recipe.boundaries]
    steps = [epochs_to_steps(turn, examples, recipe.batch_size) for turn in turns]
    steps += [step - 1 for step in steps] + [updates - 1]
    steps += [updates * k // 10 for k in range(10)]
    return sorted({step for step in steps if 0 <= step < updates})


def _memory(
    state: TrainState, plan: Plan, model: Any, image_shape: tuple[int, ...]
) -> str:
    """An estimate for one device: what stays, and what a pass over its slots keeps."""
    images = plan.solvers * plan.images_per_slot
    # Beside the state its gradients, and a sum of them or the update they become.
    held = size(state) + 2 * size(state.params)
    kept = images * kept_per_image(model.clone(bn_axis_name=None), image_shape)
    unit, name = (2**30, "GiB") if held + kept >= 2**30 else (2**20, "MiB")
    return (
        f"about {(held + kept) / unit:,.1f} {name} on each device:"
        f" {held / unit:,.1f} of state and gradients, {kept / unit:,.1f} of activations"
        f" of {images:,} images (XLA on a CPU: within a third of it)"
    )


@lru_cache
def kept_per_image(model: Any, image_shape: tuple[int, ...]) -> int:
    """Bytes that reverse-mode differentiation keeps of an image's forward pass."""
    init = partial(init_state, 0, model, optax.identity(), image_shape)
    state = jax.eval_shape(init)
    # What does not grow with the images, weights above all, is held anyway.
    one, two = (_kept(model, state, (images, *image_shape)) for images in (1, 2))
    return two - one


def _kept(model: Any, state: TrainState, shape: tuple[int, ...]) -> int:
    def backward(state: TrainState, images: Any, key: Any) -> Any:
        def forward(params: Any) -> Any:
            return model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )[0]

        return jax.vjp(forward, state.params)[1]

    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return size(jax.eval_shape(backward, state, images, jax.random.key(0)))


def size(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in the tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
