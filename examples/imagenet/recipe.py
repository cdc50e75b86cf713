"""Between a published recipe and a configuration: what a run's optimizer is.

A recipe fills in the configuration, flags replace single values, and what results is
a recipe again, which makes schedule and optimizer. Refuses values left unstated.
"""

from dataclasses import fields
from typing import Any

from lars_optax import recipes

from .config import FACTS, Batching, Config, Data, Model, Optimizer, settings
from .flags import flag

# Fields of the same name and meaning in both.
_SHARED = [field.name for field in fields(Optimizer) if field.name != "layers"]


def configure(recipe_name: str | None) -> Config:
    """The defaults, or what the recipe of that name makes of them."""
    if recipe_name is None:
        return Config()
    try:
        recipe = recipes.get(recipe_name)
    except ValueError as error:
        raise ValueError(f"--recipe: {error}") from None
    network: Any = recipe.network
    by_scale = recipe.name.startswith(("goyal", "mlperf"))
    return Config(
        recipe=recipe.name,
        data=Data(augment="rrc" if by_scale else "caffe"),
        model=Model(network=network),
        optimizer=Optimizer(
            layers="all" if recipe.mask is True else "weights",
            **{name: getattr(recipe, name) for name in _SHARED},
        ),
        batching=Batching(batch_size=recipe.batch_size, epochs=recipe.epochs),
    )


def to_recipe(config: Config) -> recipes.Recipe:
    """The run's hyper-parameters; ValueError names each that nobody has stated."""
    source = recipes.get(config.recipe) if config.recipe else None
    optimizer = config.optimizer
    values: dict[str, Any] = {
        "network": config.model.network,
        "mask": True if optimizer.layers == "all" else "exclude_bias_and_norm",
        "batch_size": config.batching.batch_size,
        "epochs": config.batching.epochs,
    } | {name: getattr(optimizer, name) for name in _SHARED}
    if source is None:
        recipe = recipes.Recipe(name="flags", source="the command line", **values)
    else:
        changed = {k: v for k, v in values.items() if v != getattr(source, k)}
        recipe = source.replace(**changed)
    if gaps := recipe.missing():
        hints = {gap: recipe.hints.get(gap) for gap in gaps}
        known = (
            flag(gap) + (f" ({hint})" if hint else "") for gap, hint in hints.items()
        )
        raise ValueError(
            f"{flag(gaps[0])}: {recipe.name} ({recipe.source}) has no value for it;"
            f" give {', '.join(known)}"
        )
    return recipe


def changes(config: Config) -> list[str]:
    """The flags that depart from the recipe, with both values."""
    if config.recipe is None:
        return []
    before = settings(configure(config.recipe))
    return [
        f"{flag(FACTS[name].name)} {before[name]!r} → {value!r}"
        for name, value in settings(config).items()
        if FACTS[name].recipe and value != before[name]
    ]
