"""The LARS variants of MLPerf, BYOL and SimCLR, as chains of Optax transformations.

    python -m examples.chains

Each is one `optax.chain` of `lars_optax.scale_by_lars` and Optax's own parts, to copy
and to change. They differ in the denominator of the trust ratio, in the place of the
momentum, and in the learning rate schedule. In all of them the biases and the
parameters of normalisation layers have no weight decay and a trust ratio of 1.

In the formulas w are the parameters of a layer, g is their gradient, a the momentum
buffer, η the trust coefficient, γ the learning rate, β the weight decay, λ the trust
ratio and μ the momentum coefficient.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import lars_optax

IMAGENET = 1_281_167  # training images


def mlperf(
    peak: float = 29.0,
    warmup_steps: int = 703,
    steps: int = 2355,
    weight_decay: float = 1e-4,
    momentum: float = 0.929,
) -> optax.GradientTransformationExtraArgs:
    """MLPerf's LARS: a ← μa + γλ(g + βw), w ← w − a, with λ = η‖w‖/(‖g‖ + β‖w‖).

    The defaults are those of Google for ImageNet with batch size 32,768 in 60 epochs,
    of which 18 are warm-up (MLPerf training results v1.0). `lars_optax.recipes` has
    them, and those of other batch sizes.
    """
    # MLPerf's polynomial decay ends one step after the run.
    rate = lars_optax.warmup_polynomial_decay_schedule(
        0.0, peak, warmup_steps, steps + 1, end_value=1e-4, power=2.0
    )
    return optax.chain(
        lars_optax.scale_by_lars(weight_decay, fallback_ratio=1.0),
        optax.scale_by_learning_rate(rate),
        optax.trace(momentum),
    )


def byol(
    batch_size: int = 4096, num_examples: int = IMAGENET
) -> optax.GradientTransformationExtraArgs:
    """BYOL's LARS: a ← μa + λ(g + βw), w ← w − γa, with λ = η‖w‖/‖g + βw‖.

    It trains for 1000 epochs: 10 of warm-up, then cosine decay. The peak learning rate
    is 0.2 for each 256 images of a batch. Source: Grill et al. 2020, arXiv:2006.07733,
    and deepmind-research/byol/configs/byol.py.
    """
    peak = lars_optax.linear_scaling(0.2, batch_size, 256)
    warmup, steps = (epochs * num_examples // batch_size for epochs in (10, 1000))
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
    return optax.chain(
        lars_optax.scale_by_lars(1.5e-6, denominator="joint", fallback_ratio=1.0),
        optax.trace(0.9),
        optax.scale_by_learning_rate(rate),
    )


def simclr(
    batch_size: int = 4096,
    num_examples: int = IMAGENET,
    epochs: int = 100,
    *,
    head: str | None = None,
    classic_momentum: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """SimCLR's LARS: a ← μa + γλ(g + βw), w ← w − a, with λ = η‖w‖/‖g + βw‖.

    SimCLR trains with this rule. With `classic_momentum=False`, an option of its
    optimizer, the rule is a ← μa + g + βw, w ← w − γ(η‖w‖/‖a‖)a. There are 10 epochs of
    warm-up, then cosine decay; the peak learning rate is 0.3 for each 256 images of a
    batch. `head` is a regular expression for the paths of a supervised head, which gets
    neither trust ratio nor weight decay; None if there is no such head. Source: Chen et
    al. 2020, arXiv:2002.05709, and google-research/simclr.
    """
    peak = lars_optax.linear_scaling(0.3, batch_size, 256)
    warmup, steps = (n * num_examples // batch_size for n in (10, epochs))
    # SimCLR's own code has one step more, too.
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps + 1)

    def mask(params: Any) -> Any:
        adapted = lars_optax.exclude_bias_and_norm(params)
        if head is None:
            return adapted
        elsewhere = lars_optax.match_paths(head, invert=True)(params)
        return jax.tree.map(lambda a, b: a and b, adapted, elsewhere)

    rule: dict[str, Any] = {
        "trust_ratio_mask": mask,
        "denominator": "joint",
        "fallback_ratio": 1.0,
    }
    if classic_momentum:
        return optax.chain(
            lars_optax.scale_by_lars(1e-6, mask, **rule),
            optax.scale_by_learning_rate(rate),
            optax.trace(0.9),
        )
    return optax.chain(
        optax.add_decayed_weights(1e-6, mask),
        optax.trace(0.9),
        lars_optax.scale_by_lars(**rule),
        optax.scale_by_learning_rate(rate),
    )


def main() -> None:
    """Prints how the size of the updates reacts to a tenfold drop of the learning rate.

    It compares chains that apply the momentum at three places: after the learning rate,
    before it, and before the trust ratio.
    """
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    rate = optax.scale_by_learning_rate(
        optax.piecewise_constant_schedule(1.0, {30: 0.1})
    )
    ratio = lars_optax.scale_by_lars(denominator="joint")
    chains = {
        "scaled (paper, MLPerf, SimCLR)": (ratio, rate, optax.trace(0.9)),
        "unscaled (BYOL, PyTorch)": (ratio, optax.trace(0.9), rate),
        "post (SimCLR, not classic)": (optax.trace(0.9), ratio, rate),
    }
    print("The learning rate falls tenfold at step 30.")
    print("1000 ‖update‖/‖w‖ at step    29      30      31      40      60")
    for name, parts in chains.items():
        steps = 1000 * relative_steps(optax.chain(*parts), params, grads=params)
        shown = "".join(f"{steps[n]:8.3f}" for n in (29, 30, 31, 40, 60))
        print(f"{name:31}{shown.removeprefix('  ')}")


def relative_steps(tx: Any, params: Any, grads: Any) -> Any:
    """Applies `tx` 61 times to the same gradients; returns each step's ‖Δw‖/‖w‖."""

    def step(carry: Any, _: None) -> Any:
        old, state = carry
        updates, state = tx.update(grads, state, old)
        length, norm = (jnp.linalg.norm(x["kernel"]) for x in (updates, old))
        return (optax.apply_updates(old, updates), state), length / norm

    return jax.lax.scan(step, (params, tx.init(params)), length=61)[1]


if __name__ == "__main__":
    main()
