"""Laws that tie LARS to Optax's own transforms, over 40 steps and a changing rate.

Both sides do the same float32 arithmetic in a different order, so they agree to a few
roundings of the largest value: 2e-6 as against the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import (
    assert_same_history,
    learning_rate,
    params_tree,
    recorded_grads,
    replay,
    train,
)

import lars_optax


def run(tx):
    return replay(tx, params_tree(), recorded_grads())


def none_of(params):
    return jax.tree.map(lambda _: False, params)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(
    "weight_decay", [0.0, 0.003, optax.linear_schedule(0, 0.01, 40)]
)
def test_equals_optax_lars_with_all_masks_true_and_joint_denominator(
    weight_decay, eps, nesterov
):
    arguments = (learning_rate, weight_decay, True, 0.01, eps, True, 0.9, nesterov)
    ours = lars_optax.lars(*arguments, denominator="joint", fallback_ratio=1.0)
    assert_same_history(run(ours), run(optax.lars(*arguments)))


def test_equals_optax_lars_with_the_same_masks():
    mask = {"conv": True, "head": True, "unseen": False, "conv_bias": False,
            "last_norm_scale": True}  # fmt: skip
    arguments = (learning_rate, 0.003, mask, 0.01, 0.0, mask)
    ours = lars_optax.lars(*arguments, denominator="joint", fallback_ratio=1.0)
    assert_same_history(run(ours), run(optax.lars(*arguments)))


def test_denominators_are_equal_without_weight_decay():
    # Also with a traced zero decay, which cannot be left out at trace time.
    for decay in (0.0, jnp.zeros(())):
        options = (learning_rate, decay, True, 0.01, 0.0, True)
        separate = lars_optax.lars(*options, denominator="separate")
        joint = lars_optax.lars(*options, denominator="joint")
        assert_same_history(run(separate), run(joint))


def test_separate_step_is_never_longer_than_joint():
    params, grads = params_tree(), recorded_grads()[10]
    steps = {}
    for name in ("separate", "joint"):
        tx = lars_optax.scale_by_lars(0.5, True, 1.0, 0.0, True, denominator=name)
        steps[name], _ = tx.update(grads, tx.init(params), params)
    for leaf in params:
        if not params[leaf].any():
            continue  # the fallback ratio in both
        separate, joint = (
            np.linalg.norm(steps[x][leaf]) for x in ("separate", "joint")
        )
        assert separate <= joint * (1 + 1e-6)
        # Triangle inequality, strict for gradients not parallel to the weights.
        assert separate < 0.999 * joint


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_ratio_and_decay_it_is_sgd_with_the_rate_inside_the_momentum(nesterov):
    masks = {"weight_decay_mask": none_of, "trust_ratio_mask": none_of}
    ours = lars_optax.lars(
        learning_rate, **masks, nesterov=nesterov, fallback_ratio=1.0
    )
    theirs = optax.chain(
        optax.scale_by_learning_rate(learning_rate), optax.trace(0.9, nesterov)
    )
    assert_same_history(run(ours), run(theirs), tolerance=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_unscaled_chain_without_ratio_is_optax_sgd(nesterov):
    ours = optax.chain(
        lars_optax.scale_by_lars(trust_ratio_mask=none_of, fallback_ratio=1.0),
        optax.trace(0.9, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )
    theirs = optax.sgd(learning_rate, 0.9, nesterov)
    assert_same_history(run(ours), run(theirs), tolerance=0)


def test_decay_without_ratio_is_add_decayed_weights():
    ours = lars_optax.lars(
        learning_rate, 0.003, True, trust_ratio_mask=none_of, fallback_ratio=1.0
    )
    theirs = optax.chain(
        optax.add_decayed_weights(0.003),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(0.9),
    )
    assert_same_history(run(ours), run(theirs))


def test_momentum_orders_part_only_when_the_rate_changes():
    def chains(rate):
        scale = lars_optax.scale_by_lars(0.003, True, 0.01, trust_ratio_mask=True)
        rate = optax.scale_by_learning_rate(rate)
        return (
            run(optax.chain(scale, rate, optax.trace(0.9))),
            run(optax.chain(scale, optax.trace(0.9), rate)),
        )

    assert_same_history(*chains(0.5))
    # After a tenfold drop at step 20 the scaled buffer still holds steps of the old
    # rate: its next step is 0.9 of the last one and more, the unscaled one's about 0.1.
    scaled, unscaled = chains(optax.piecewise_constant_schedule(0.5, {20: 0.1}))
    ratios = [
        np.linalg.norm(h[20]["head"] - h[19]["head"])
        / np.linalg.norm(h[19]["head"] - h[18]["head"])
        for h in (scaled, unscaled)
    ]
    assert 0.8 < ratios[0] < 1.0
    assert 0.08 < ratios[1] < 0.12


def test_a_layer_moves_the_same_whatever_the_scale_of_its_gradient():
    tx = lars_optax.lars(1.0, 0.0, True, 0.01, 0.0, True)
    scaled = [jax.tree.map(lambda g: 1000.0 * g, grads) for grads in recorded_grads()]
    params = {k: w for k, w in params_tree().items() if k != "last_norm_scale"}
    histories = [
        train(tx, params, lambda _, g: {k: g[k] for k in params}, grads)
        for grads in (recorded_grads(), scaled)
    ]
    assert_same_history(*histories)


def test_step_length_is_rate_times_coefficient_times_norm():
    params, grads = params_tree(), recorded_grads()[10]
    tx = lars_optax.lars(7.0, 0.0, True, 0.01, 0.0, True, momentum=None)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name in ("conv", "conv_bias", "head", "unseen"):
        np.testing.assert_allclose(
            np.linalg.norm(updates[name]),
            0.07 * np.linalg.norm(params[name]),
            rtol=1e-6,
        )
