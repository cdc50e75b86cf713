"""Law: the variants of an ablation are as many different optimizers."""

from dataclasses import replace
from itertools import combinations

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from trees import each_step

from benchmarks.study.ablations import ABLATIONS
from benchmarks.study.protocol import ABLATION, Cell
from examples.imagenet.recipe import to_recipe


def test_every_variant_trains_with_an_optimizer_of_its_own():
    params = {"kernel": jnp.full((3, 3), 0.5), "bias": jnp.full(3, 0.1)}
    cell = Cell("digits", "alexnet_small", 1600, "lars")
    config = cell.config("mnist", 1.0, ABLATION, 1)
    grown = [0.01 * i for i in range(1, 13)]  # small, so that the decay is to be seen
    # Two more than the study's warm-up.
    grads = [{"kernel": jnp.eye(3) * x, "bias": jnp.arange(3.0) * x} for x in grown]
    seen = {}
    for variants in ABLATIONS.values():
        for variant in variants:
            optimizer = replace(variant.optimizer, learning_rate=50.0)
            recipe = to_recipe(replace(config, optimizer=optimizer))
            steps = each_step(variant.make(recipe, 3200), grads, params)
            found = ravel_pytree([updates for updates, _ in steps])
            seen[*variant.key.values()] = found[0]
    assert len(seen) == 1 + sum(len(variants) - 1 for variants in ABLATIONS.values())
    for mine, yours in combinations(seen.values(), 2):
        assert np.abs(mine - yours).max() > 1e-5 * np.abs(mine).max()
