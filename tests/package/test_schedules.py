"""Law: schedules equal tables computed by hand, at their knots and a step either side.

float32 holds a rate to 2⁻²⁴ of itself; a difference of two rates loses a few more bits.
"""

import re
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_refused

import lars_optax
from lars_optax import warmup_piecewise_constant_schedule as piecewise
from lars_optax import warmup_polynomial_decay_schedule as polynomial

# (schedule, {step: rate}), rates worked out by hand.
TABLES = {
    # init 1, peak 10, W 4, T 10: left = (10 − t)/6, rate 10·left².
    "continuous": (polynomial(1.0, 10.0, 4, 10),
        {-3: 1.0, 0: 1.0, 1: 3.25, 3: 7.75, 4: 10.0, 5: 250 / 36, 7: 2.5, 9: 10 / 36,
         10: 0.0, 11: 0.0, 1000: 0.0}),
    # The authors' solver: left = (10 − t)/10 from step 0; 10·0.36 at W, so ×0.36.
    "authors_drop": (polynomial(1.0, 10.0, 4, 10, transition_begin=0),
        {0: 1.0, 3: 7.75, 4: 3.6, 5: 2.5, 9: 0.1, 10: 0.0, 11: 0.0}),
    "begin_inside_warmup": (polynomial(1.0, 10.0, 4, 10, transition_begin=2),
        {3: 7.75, 4: 10 * (6 / 8) ** 2, 9: 10 / 64, 10: 0.0}),
    "constant_warmup": (polynomial(0.5, 10.0, 4, 10, warmup="constant"),
        {0: 0.5, 1: 0.5, 3: 0.5, 4: 10.0, 5: 250 / 36, 10: 0.0}),
    "no_warmup": (polynomial(7.0, 8.0, 0, 4), {0: 8.0, 1: 4.5, 2: 2.0, 3: 0.5, 4: 0.0}),
    "end_value_and_power": (polynomial(0.0, 9.0, 1, 5, end_value=1.0, power=3.0),
        {0: 0.0, 1: 9.0, 2: 1 + 8 * 27 / 64, 3: 2.0, 4: 1.125, 5: 1.0, 6: 1.0}),
    "linear_power": (polynomial(0.0, 8.0, 2, 6, power=1.0),
        {2: 8.0, 4: 4.0, 5: 2.0, 6: 0.0}),
    "cosine_sized_steps": (polynomial(0.0, 29.0, 704, 2346 + 1, end_value=1e-4),
        {703: 29 * 703 / 704, 704: 29.0, 705: 1e-4 + (29 - 1e-4) * (1642 / 1643) ** 2,
         2346: 1e-4 + (29 - 1e-4) * (1 / 1643) ** 2, 2347: 1e-4, 2348: 1e-4}),
    # Goyal et al.: 0.1 to 3.2 in 5 epochs, ÷10 at 30, 60, 80, of 10 steps each.
    "goyal": (piecewise(0.1, 3.2, 50, {300: 0.1, 600: 0.1, 800: 0.1}),
        {0: 0.1, 25: 1.65, 49: 0.1 + 3.1 * 49 / 50, 50: 3.2, 51: 3.2, 299: 3.2,
         300: 0.32, 301: 0.32, 599: 0.32, 600: 0.032, 799: 0.032, 800: 0.0032,
         801: 0.0032, 9000: 0.0032}),
    "piecewise_constant_warmup": (piecewise(0.1, 1.0, 2, {2: 0.5}, warmup="constant"),
        {-1: 0.1, 0: 0.1, 1: 0.1, 2: 0.5, 3: 0.5}),
    "piecewise_no_warmup": (piecewise(9.0, 1.0, 0, {}), {0: 1.0, 5: 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_equals_the_table(case):
    schedule, table = TABLES[case]
    counts = list(table)
    expected = np.asarray(list(table.values()))
    forms = {
        "int": [schedule(count) for count in counts],
        "numpy": [schedule(np.int64(count)) for count in counts],
        "int32": [schedule(jnp.asarray(count, jnp.int32)) for count in counts],
        "uint32": [schedule(jnp.asarray(max(c, 0), jnp.uint32)) for c in counts],
        "int8": [schedule(jnp.int8(c)) if c < 128 else schedule(c) for c in counts],
        "jit": [jax.jit(schedule)(count) for count in counts],
        "vmap": jax.vmap(schedule)(jnp.asarray(counts)),
    }
    for form, values in forms.items():
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7, err_msg=form)


@pytest.mark.parametrize("case", TABLES)
def test_works_in_float64(case, x64):
    schedule, table = TABLES[case]
    values = [schedule(count) for count in table]
    assert {value.dtype for value in values} == {np.dtype("float64")}
    np.testing.assert_allclose(values, list(table.values()), rtol=1e-12, atol=1e-15)


def test_joined_decay_equals_optax():
    rising = optax.linear_schedule(0.5, 6.0, 20)
    falling = optax.polynomial_schedule(6.0, 0.1, 2.0, 80)
    theirs = optax.join_schedules([rising, falling], [20])
    ours = polynomial(0.5, 6.0, 20, 100, 0.1)
    counts = jnp.arange(120)
    np.testing.assert_allclose(ours(counts), theirs(counts), rtol=1e-6)


def test_mlperf_decays_over_one_step_more():
    # MLPerf: end + (peak − end)·(1 − (t − W)/(T − W + 1))², T − W + 1 steps long.
    peak, end, warmup, total = 17.0, 1e-4, 782, 6881
    ours = polynomial(0.0, peak, warmup, total + 1, end)
    for step in (warmup - 1, warmup, warmup + 1, total - 1, total, total + 1):
        left = 1 - (step - warmup) / (total - warmup + 1)
        falling, rising = end + (peak - end) * left**2, peak * step / warmup
        expected = falling if step >= warmup else rising
        np.testing.assert_allclose(ours(step), expected, rtol=1e-6, atol=1e-9)
    # One step later than Optax's: not at the end value yet on the last step.
    assert float(ours(total)) > end


def test_authors_rate_drops_where_the_warmup_ends():
    # At 8 of 100 epochs ×0.846, 13 of 100 ×0.757, 5 of 90 ×0.892.
    for warmup, total, factor in [(8, 100, 0.8464), (13, 100, 0.7569), (5, 90, 0.8920)]:
        rate = polynomial(1.0, 10.0, 100 * warmup, 100 * total, transition_begin=0)
        before, after = float(rate(100 * warmup - 1)), float(rate(100 * warmup))
        np.testing.assert_allclose(after / 10.0, factor, atol=5e-5)
        assert before > 9.98 > after


def test_batch_size_rules():
    assert lars_optax.linear_scaling(0.1, 8192, 256) == 3.2
    assert lars_optax.sqrt_scaling(0.1, 1024, 256) == 0.2
    # 14.1, where the paper's tuned rate for AlexNet-BN (Table 5) is 10.
    assert lars_optax.sqrt_scaling(5.0, 4096, 512) == pytest.approx(14.14, abs=0.01)


def test_the_suggested_rate_is_a_power_of_a_quarter_up_to_its_bound():
    suggested = lars_optax.suggested_learning_rate
    assert suggested(1000, 1000) == pytest.approx(19.0)
    assert suggested(16, 10_000) == pytest.approx(19 * 0.2)  # 0.0016 is 0.2 to the 4th
    assert suggested(16_384, 101) == pytest.approx(40.0)
    assert suggested(1000, 1000, momentum=None) == pytest.approx(190.0)


def test_the_suggested_rate_is_sqrt_scaling_for_a_number_of_epochs():
    first, *others = (
        lars_optax.suggested_learning_rate(n, 2**20 // n) for n in (256, 512, 2048)
    )
    scaled = [lars_optax.sqrt_scaling(first, n, 256) for n in (512, 2048)]
    np.testing.assert_allclose(others, scaled)


@pytest.mark.parametrize(("eta", "mu"), [(0.02, 0.9), (0.001, 0.97), (1.0, 0.0)])
def test_the_suggested_rate_turns_a_layer_alike_for_every_eta_and_mu(eta, mu):
    rate = lars_optax.suggested_learning_rate(
        4096, 2000, trust_coefficient=eta, momentum=mu
    )
    plain = lars_optax.suggested_learning_rate(4096, 2000)
    assert rate * eta / (1 - mu) == pytest.approx(plain * 0.001 / (1 - 0.9))


def test_epochs_to_steps_rounds():
    assert lars_optax.epochs_to_steps(90, 1_281_167, 8192) == 14075
    assert lars_optax.epochs_to_steps(2.5, 1_281_167, 4096) == 782
    assert lars_optax.epochs_to_steps(0, 100, 10) == 0


@pytest.mark.parametrize(("epochs", "examples", "batch"), [
    (1000, np.int32(10_000_000), 4096),  # the product exceeds int32
    (90, np.uint16(60_000), np.uint8(128)),
    (np.float32(90), 1_281_167, 3),  # the product has more digits than float32
    (jnp.float32(0.5), 1001, 3),
])  # fmt: skip
def test_epochs_to_steps_does_not_overflow_the_types_of_its_arguments(
    epochs, examples, batch
):
    steps = lars_optax.epochs_to_steps(epochs, examples, batch)
    assert type(steps) is int
    assert steps == round(Fraction(float(epochs)) * int(examples) / int(batch))


@pytest.mark.parametrize(("epochs", "examples", "batch"), [
    (2**31, 1, 1), (1e308, 1000, 2), (1, 10**400, 2), (100, 10**12, 4096),
])  # fmt: skip
def test_more_steps_than_optax_counts_are_refused(epochs, examples, batch):
    message = f"epochs={re.escape(str(epochs))}.* more than 2147483647 steps.* larger"
    assert_refused(message, lars_optax.epochs_to_steps, epochs, examples, batch)
    assert lars_optax.epochs_to_steps(2**31 - 1, 1, 1) == 2**31 - 1


def test_fractions_are_numbers_of_a_schedule():
    schedule = polynomial(Fraction(1, 4), Fraction(1, 2), 2, 10, Fraction(1, 8))
    expected = polynomial(0.25, 0.5, 2, 10, 0.125)
    np.testing.assert_array_equal(*(f(jnp.arange(12)) for f in (schedule, expected)))
    third = Fraction(1, 3)
    assert lars_optax.linear_scaling(third, 512, 256) == float(third) * 2
    assert lars_optax.sqrt_scaling(third, 1024, 256) == float(third) * 2


@pytest.mark.parametrize(("make", "message"), [
    (partial(lars_optax.warmup_piecewise_constant_schedule, 0.0, 1.0, 2, [3, 4]),
     r"boundaries_and_scales must be a mapping .*, got \[3, 4\]"),
    (partial(polynomial, 0.0, 1.0, 0, 2**31), "decay_steps must be <= 2147483647"),
    (partial(polynomial, 0.0, 1.0, 2**31, 2**32), "warmup_steps must be <= 2147483647"),
    (partial(lars_optax.warmup_piecewise_constant_schedule, 0.0, 1.0, 0, {2**31: 0.1}),
     "a key of boundaries_and_scales must be <= 2147483647, got 2147483648"),
    (partial(polynomial, -1.0, 1.0, 1, 2), "init_value"),
    (partial(polynomial, 0.0, float("nan"), 1, 2), "peak_value"),
    (partial(polynomial, 0.0, 1.0, -1, 2), "warmup_steps"),
    (partial(polynomial, 0.0, 1.0, 1.5, 2), "warmup_steps.*epochs_to_steps"),
    (partial(polynomial, 0.0, 1.0, 2, 2), "decay_steps"),
    (partial(polynomial, 0.0, 1.0, 5, 2), "decay_steps"),
    (partial(polynomial, 0.0, 1.0, 1, 2, -1.0), "end_value"),
    (partial(polynomial, 0.0, 1.0, 1, 2, power=0), "power"),
    (partial(polynomial, 0.0, 1.0, 1, 2, warmup="cosine"), "warmup.*'cosine'"),
    (partial(polynomial, 0.0, 1.0, 1, 3, transition_begin=2), "transition_begin"),
    (partial(polynomial, 0.0, 1.0, 1, 3, transition_begin=-1), "transition_begin"),
    (partial(piecewise, 0.0, 1.0, 5, {4: 0.1}), "boundaries_and_scales.*4"),
    (partial(piecewise, 0.0, 1.0, 5, {6: -0.1}), r"boundaries_and_scales\[6\]"),
    (partial(piecewise, 0.0, 1.0, 5, {6.5: 0.1}), "boundaries_and_scales"),
    (partial(lars_optax.linear_scaling, 0.1, 0, 256), "batch_size"),
    (partial(lars_optax.sqrt_scaling, 0.1, 256, -1), "base_batch_size"),
    (partial(lars_optax.suggested_learning_rate, 0, 8), "batch_size"),
    (partial(lars_optax.suggested_learning_rate, 2**31, 8), "batch_size"),
    (partial(lars_optax.suggested_learning_rate, 8, 0), "steps"),
    (partial(lars_optax.suggested_learning_rate, 8, 7.5), "epochs_to_steps"),
    (partial(lars_optax.suggested_learning_rate, 8, 8, momentum=1), "momentum"),
    (partial(lars_optax.suggested_learning_rate, 8, 8, trust_coefficient=0),
     "trust_coefficient"),
    (partial(lars_optax.epochs_to_steps, 1, 0, 8), "num_examples"),
    (partial(lars_optax.epochs_to_steps, -1, 10, 8), "epochs"),
    (partial(lars_optax.epochs_to_steps, 1, 10, 0), "batch_size"),
])  # fmt: skip
def test_bad_arguments_are_named(make, message):
    assert_refused(message, make)
