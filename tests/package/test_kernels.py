"""Law: a GPU has one reduction for each layer, others one for each of its arrays."""

import re

import jax
import jax.numpy as jnp
import pytest
from trees import train_step

import lars_optax

PARAMS = {"kernel": jnp.ones((64, 64)), "other": jnp.ones((32, 64))}
STACK = {"stacks": jnp.ones((3, 8, 8)), "kernel": jnp.ones((64, 64))}
REASON = "before 0.6.1 jax lowers the forms of all platforms, and XLA chooses one"


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason=REASON)
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("denominator", ["separate", "joint"])
@pytest.mark.parametrize(
    ("platform", "reductions"), [("cuda", 1), ("rocm", 1), ("cpu", 2), ("tpu", 2)]
)
@pytest.mark.parametrize(
    ("params", "stacked"), [(PARAMS, None), (STACK, {"stacks": 0, "kernel": None})]
)
def test_a_gpu_sums_all_arrays_of_a_layer_by_one_reduction(
    params, stacked, platform, reductions, denominator, keeps
):
    options = {"denominator": denominator, "stacked_axes": stacked}
    tx = lars_optax.lars(0.1, 0.01, **options, keep_layer_stats=keeps)
    traced = jax.jit(train_step(tx)).trace(params, tx.init(params), params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    third = keeps and denominator == "joint" and reductions == 2  # ‖g‖ too
    found = re.findall(r"stablehlo\.reduce\(", text)
    assert len(found) == (reductions + third) * len(params)
