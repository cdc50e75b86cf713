"""Law: wrong names and fields of recipes are refused by name, with what is allowed."""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_refused

from lars_optax import recipes

BYOL = recipes.get("byol-resnet50-lars-4096-300-epochs")


@pytest.mark.parametrize(("field", "value", "allowed"), [
    *((field, value, "must be True or False")
      for field in ("nesterov", "decay_from_start", "zero_init_last_bn")
      for value in ("False", 0, None)),
    *((field, value, "must be a str")
      for field in ("name", "source", "network", "notes") for value in (None, 3)),
    *((field, value, "must be a mapping")
      for field in ("inferred", "hints") for value in (None, ("eps", "why"))),
    ("learning_rate", 10**400, "must be finite"),
    ("top1", 75.0, "must be a fraction, at most 1,"),
    ("top1", "seventy", "must be a number"),
])  # fmt: skip
def test_a_value_of_a_wrong_kind_is_refused_by_name(field, value, allowed):
    message = f"{field} {allowed}.* got {re.escape(repr(value))}"
    assert_refused(message, BYOL.replace, **{field: value})


@pytest.mark.parametrize("warmup", [50, 100])
def test_steps_whose_warm_up_does_not_end_before_the_run_are_refused(warmup):
    steps = recipes.Steps(warmup, 50, BYOL.batch_size, 1000)
    message = f"steps.warmup must be less than steps.total=50, got {warmup}"
    assert_refused(message, BYOL.replace, steps=steps)
    fits = steps._replace(warmup=49)
    assert BYOL.replace(steps=fits).step_counts(1000) == (49, 50)


@pytest.mark.parametrize(("name", "rule"), [
    (BYOL.name, "linear_scaling, the rule of its source, or"),
    ("simclr-resnet50-lars-4096-sqrt", "sqrt_scaling, the rule of its source, or"),
    ("swav-resnet50-lars-4096", "linear_scaling for SGD or sqrt_scaling for LARS, or"),
])  # fmt: skip
def test_the_note_of_a_batch_size_names_the_rule_of_the_source(name, rule):
    recipe = recipes.get(name)
    changed = recipe.replace(batch_size=1024)
    assert f"scale the learning rate too, with {rule} tune it." in changed.notes
    assert changed.replace(batch_size=4096) == recipe
    assert changed.replace(learning_rate=1.0).notes == recipe.notes


def test_a_wrong_family_is_answered_with_each_family_once():
    with pytest.raises(ValueError, match="begins with 'vic'") as error:
        recipes.names("vic")
    families = str(error.value).rpartition(" with ")[2].rstrip(".").split(", ")
    assert len(set(families)) == len(families) < 20
    found = [name for family in families for name in recipes.names(family)]
    assert sorted(found) == sorted(recipes.names())
    assert recipes.names(BYOL.name) == (BYOL.name,)


def test_a_wrong_name_is_answered_with_near_names_whatever_its_case():
    for wrong in ("byol", "BYOL", "BYOL-ResNet50-LARS-1024-300-epochs"):
        message = rf"called '{wrong}'; the nearest names are {BYOL.name[:14]}.*at_batch"
        assert_refused(message, recipes.get, wrong)


def test_a_mask_that_selects_no_leaf_is_answered_with_the_field_of_a_recipe():
    biases = {"bias": jnp.ones(3)}
    message = r"selects no leaf of 'bias'.* call recipe\.replace\(mask=True\)\."
    assert_refused(message, BYOL.optimizer(1000).init, biases)
    BYOL.replace(mask=True).optimizer(1000).init(biases)


@pytest.mark.parametrize(("change", "factor"), [
    (lambda recipe: recipe.at_batch(64), 1 / 64),
    (lambda recipe: recipe.replace(batch_size=64), 1),
    (lambda recipe: recipe.replace(batch_size=64).replace(epochs=300).at_batch(64),
     1 / 64),
])  # fmt: skip
def test_a_recipe_with_a_traced_rate_can_change_its_batch_size(change, factor):
    def rate(peak):
        return change(BYOL.replace(learning_rate=peak)).schedule(1000)(50)

    peaks, done = jnp.array([0.5, 2.0]), 50 / 156  # of the warm-up
    expected = factor * done * peaks
    np.testing.assert_allclose(jax.vmap(rate)(peaks), expected, rtol=1e-6)


def test_a_fraction_is_a_learning_rate():
    third = BYOL.replace(learning_rate=Fraction(1, 3)).at_batch(2048)
    assert third.learning_rate == 1 / 6
    assert third.inferred["learning_rate"].startswith("0.333333 at batch_size=4096")
