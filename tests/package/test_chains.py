"""MLPerf's, BYOL's and SimCLR's chains against their published rules in float64."""

import numpy as np
import pytest
from reference import Lars
from trees import PARAMS as START
from trees import RECORDED, assert_equal, replay, update

import lars_optax
from examples import chains

BATCH = 1024
ROLES = {"conv": "kernel", "head": "kernel", "unseen": "kernel",
         "conv_bias": "bias", "last_norm_scale": "scale"}  # fmt: skip


def named(tree):
    return {f"{name}/{ROLES[name]}": leaf for name, leaf in tree.items()}


PARAMS, GRADS = named(START), [named(x) for x in RECORDED]
SMALL = [{k: np.float32(1e-6) * g for k, g in x.items()} for x in GRADS]  # as small as
# BYOL's and SimCLR's decay, so that the denominators differ.
KERNELS = [name for name in PARAMS if name.endswith("kernel")]


def assert_follows(tx, rate, history=GRADS, names=KERNELS, **rule):
    reference = Lars(PARAMS, decayed=names, adapted=names, fallback=1.0, **rule)
    found = replay(tx, PARAMS, history)
    for count, (ours, grads) in enumerate(zip(found, history, strict=True)):
        assert_equal(ours, reference.step(grads, rate(count)), 2e-6)


def warm_up_then_cosine(peak, warmup, total):
    def rate(step):
        if step < warmup:
            return peak * step / warmup
        part = min(step - warmup, total - warmup) / (total - warmup)
        return peak * 0.5 * (1 + np.cos(np.pi * part))

    return rate


def test_mlperf():
    def rate(step):
        if step < 5:
            return 29.0 * step / 5
        return (29.0 - 1e-4) * (1 - (step - 5) / (40 - 5 + 1)) ** 2 + 1e-4

    tx = chains.mlperf(29.0, 5, 40)
    assert_follows(tx, rate, beta=1e-4, mu=0.929)


def test_mlperf_is_the_recipe_of_that_name():
    recipe = lars_optax.recipes.get("mlperf-v1.0-resnet50-lars-32768")
    both = (chains.mlperf(), recipe.optimizer(chains.IMAGENET))
    assert_equal(*(replay(tx, PARAMS, GRADS[:9])[-1] for tx in both))


def test_byol():
    rate = warm_up_then_cosine(0.2 * BATCH / 256, 20, 2000)
    rule = {"beta": 1.5e-6, "denominator": "joint", "order": "unscaled"}
    assert_follows(chains.byol(BATCH, 2 * BATCH), rate, SMALL, **rule)


@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize(("classic", "order"), [(True, "scaled"), (False, "post")])
def test_simclr(classic, order, head):
    tx = chains.simclr(BATCH, 2 * BATCH, 15, head=head, classic_momentum=classic)
    rate = warm_up_then_cosine(0.3 * BATCH / 256, 20, 31)
    names = [name for name in KERNELS if not (head and head in name)]
    rule = {"beta": 1e-6, "denominator": "joint", "order": order}
    assert_follows(tx, rate, SMALL, names, **rule)


def test_simclr_refuses_a_head_that_is_not_there():
    tx = chains.simclr(BATCH, 2 * BATCH, 15, head="head_supervised")
    with pytest.raises(ValueError, match="head_supervised"):
        update(tx, GRADS[0], PARAMS)


def test_the_orders_part_when_the_rate_drops(capsys):
    chains.main()
    rows = [line.split()[-5:] for line in capsys.readouterr().out.splitlines()[2:]]
    before, after = np.array(rows, float)[:, :2].T
    # The scaled buffer holds steps of the old rate; post has no 1/(1 - μ).
    np.testing.assert_allclose(after / before, [0.92, 0.10, 0.10], atol=0.01)
    np.testing.assert_allclose(before / before[2], [10.3, 10.3, 1.0], rtol=0.01)
