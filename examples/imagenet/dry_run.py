"""Describes a run for --dry-run, without training or allocating parameters."""

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
from .step.step import TrainState, forward, init_state


def describe(experiment: Experiment, changed: Sequence[str] = ()) -> list[str]:
    """Returns a list of lines: network, optimizer, steps, batch, memory, rates.

    `changed` are lines that say where the run departs from its recipe.
    """
    recipe, plan, model = experiment.recipe, experiment.plan, experiment.model
    dataset, state = experiment.dataset, experiment.shapes
    examples, updates = dataset.train.size, experiment.schedule.updates
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
        f"steps      {_steps(recipe, examples, updates)}",
        f"batch      {recipe.batch_size:,} = {plan}",
        f"memory     {_memory(state, plan, model, dataset.image_shape)}",
        "",
        f"{'step':>9}  {'epoch':>7}  learning rate",
    ]
    for step in _knots(recipe, examples, updates):
        epoch, rate = experiment.epoch(step), experiment.schedule.rates[step]
        lines.append(f"{step:>9,}  {epoch:>7.2f}  {rate:.6g}")
    return lines


def _steps(recipe: Recipe, examples: int, updates: int) -> str:
    if updates == epochs_to_steps(recipe.epochs, examples, recipe.batch_size):
        return (
            f"{updates:,} = {recipe.epochs:g} epochs × {examples:,} images /"
            f" {recipe.batch_size:,}"
        )
    return (
        f"{updates:,}, as its source has it, are"
        f" {updates * recipe.batch_size / examples:.2f} epochs of {examples:,} images"
    )


def _optimizer(recipe: Recipe) -> str:
    nesterov = "Nesterov " if recipe.nesterov else ""
    order = "before" if recipe.momentum_order == "scaled" else "after"
    post = recipe.momentum_order == "post" and recipe.algorithm == "lars"
    rate = "learning rate and trust ratio" if post else "the learning rate"
    decayed = "all parameters" if recipe.mask is True else "all but biases and norms"
    text = (
        f"{recipe.algorithm}, {nesterov}momentum {recipe.momentum:g} with {rate}"
        f" applied {order} it, weight decay {recipe.weight_decay:g} on {decayed}"
    )
    if recipe.algorithm == "lars":
        text += f", trust coefficient {recipe.trust_coefficient:g}"
        denominator = "joint" if post else recipe.denominator
        text += f", {denominator} denominator, ε {recipe.eps:g}"
        text += f", fallback ratio {recipe.fallback_ratio:g}"
    return f"{text}, label smoothing {recipe.label_smoothing:g}"


def _knots(recipe: Recipe, examples: int, updates: int) -> list[int]:
    """Returns the steps whose learning rate is printed.

    They are each tenth of the run, its last step, and the two steps around the end of
    the warm-up and around each drop of a piecewise constant rate.
    """
    steps = [recipe.step_counts(examples)[0]]
    for boundary in recipe.boundaries:
        steps.append(epochs_to_steps(boundary, examples, recipe.batch_size))
    steps += [step - 1 for step in steps] + [updates - 1]
    steps += [updates * k // 10 for k in range(10)]
    return sorted({step for step in steps if 0 <= step < updates})


def _memory(
    state: TrainState, plan: Plan, model: Any, image_shape: tuple[int, ...]
) -> str:
    """Estimates the memory of one device: state, gradients and activations."""
    images = plan.solvers * plan.images_per_slot
    # Besides the state: the gradients, and either their sum or the update.
    held = size(state) + 2 * size(state.params)
    kept = images * _kept_per_image(model.clone(bn_axis_name=None), image_shape)
    unit, name = (2**30, "GiB") if held + kept >= 2**30 else (2**20, "MiB")
    return (
        f"about {(held + kept) / unit:,.1f} {name} on each device:"
        f" {held / unit:,.1f} of state and gradients, {kept / unit:,.1f} of activations"
        f" of {images:,} images (within a third of what XLA allocates on a CPU; for a"
        " GPU, where it allocates less, give --compile-for h100)"
    )


@lru_cache
def _kept_per_image(model: Any, image_shape: tuple[int, ...]) -> int:
    """Returns how many bytes of activations one image keeps for the backward pass."""
    init = partial(init_state, 0, model, optax.identity(), image_shape)
    state = jax.eval_shape(init)

    def backward(images: Any, state: TrainState) -> Any:
        def logits(params: Any) -> Any:
            key = jax.random.key(0)
            return forward(model, params, state.batch_stats, images, key)[0]

        return jax.vjp(logits, state.params)[1]

    def kept(images: int) -> int:
        shape = jax.ShapeDtypeStruct((images, *image_shape), jnp.uint8)
        return size(jax.eval_shape(backward, shape, state))

    # The difference leaves out what does not grow with the images, such as weights.
    return kept(2) - kept(1)


def size(tree: Any) -> int:
    """Returns the total size in bytes of the arrays, or shapes of arrays, in a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
