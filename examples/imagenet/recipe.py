"""Conversions between a published recipe and the trainer's configuration.

A recipe fills in a configuration, and flags replace single values of it. The result
becomes a recipe again, which makes the learning rate schedule and the optimizer.
"""

from dataclasses import fields
from typing import Any

from lars_optax import recipes

from .config import FACTS, Batching, Config, Data, Model, Optimizer, settings
from .flags import flag

# Fields of the same name and meaning in a recipe and in `Optimizer`.
_SHARED = [field.name for field in fields(Optimizer) if field.name != "layers"]


def configure(recipe_name: str | None) -> Config:
    """Returns the configuration of the named recipe, or the default one for None.

    Raises ValueError if there is no recipe of that name, or if it is not a recipe for a
    classifier.
    """
    if recipe_name is None:
        return Config()
    try:
        recipe = recipes.get(recipe_name)
    except ValueError as error:
        raise ValueError(f"--recipe: {error}") from None
    if recipe.task != "classification":
        raise ValueError(
            f"--recipe: {recipe.name} is a recipe for "
            f"{recipe.task.replace('_', '-')} training, and this command trains a"
            " classifier; examples/barlow_twins.py shows self-supervised training with"
            " a linear probe"
        )
    network: Any = recipe.network
    return Config(
        recipe=recipe.name,
        data=Data(augment="caffe" if recipe.name in recipes.names("paper") else "rrc"),
        model=Model(network=network, zero_init_last_bn=recipe.zero_init_last_bn),
        optimizer=Optimizer(
            layers="all" if recipe.mask is True else "weights",
            **{name: getattr(recipe, name) for name in _SHARED},
        ),
        batching=Batching(batch_size=recipe.batch_size, epochs=recipe.epochs),
    )


def to_recipe(config: Config) -> recipes.Recipe:
    """Returns the run's hyperparameters as a recipe.

    Raises ValueError, naming the flags, if a value that the optimizer needs is None, or
    if the order of momentum is tf_contrib_1.14.
    """
    optimizer = config.optimizer
    values: dict[str, Any] = {
        "network": config.model.network,
        "zero_init_last_bn": config.model.zero_init_last_bn,
        "mask": True if optimizer.layers == "all" else "exclude_bias_and_norm",
        "batch_size": config.batching.batch_size,
        "epochs": config.batching.epochs,
    } | {name: getattr(optimizer, name) for name in _SHARED}
    if config.recipe is None:
        recipe = recipes.Recipe(name="flags", source="the command line", **values)
    else:
        source = recipes.get(config.recipe)
        changed = {k: v for k, v in values.items() if v != getattr(source, k)}
        recipe = source.replace(**changed)
    if gaps := recipe.missing():
        needed = [
            flag(gap) + (f" ({recipe.hints[gap]})" if gap in recipe.hints else "")
            for gap in gaps
        ]
        raise ValueError(
            f"{flag(gaps[0])}: {recipe.name} ({recipe.source}) has no value for it, and"
            f" training needs one; give {', '.join(needed)}"
        )
    if optimizer.momentum_order == "tf_contrib_1.14":
        raise ValueError(
            "--momentum-order: no optimizer of this package has tf_contrib_1.14; give"
            " --momentum-order scaled, as in MLPerf's later rounds, unscaled or post"
        )
    return recipe


def changes(config: Config) -> list[str]:
    """Returns a line for each flag whose value differs from that of the recipe."""
    if config.recipe is None:
        return []
    before = settings(configure(config.recipe))
    return [
        f"{flag(FACTS[name].name)} {before[name]!r} → {value!r}"
        for name, value in settings(config).items()
        if FACTS[name].recipe and value != before[name]
    ]
