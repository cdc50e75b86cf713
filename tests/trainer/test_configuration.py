"""Law: recipes and flags reach the optimizer, which moves all of every network."""

import ast
import inspect
import os
import re
from dataclasses import asdict, fields, is_dataclass, replace
from typing import get_args

import jax
import numpy as np
import pytest
from cases import assert_line, cases
from networks import make, random_inputs
from steps import make_setup, state_of, step_of

import examples.imagenet.report.__main__ as report
import lars_optax
from examples.imagenet import prepare
from examples.imagenet.cli import bind, parse
from examples.imagenet.config import FACTS, Config, Network, Optimizer
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import networks
from examples.imagenet.recipe import changes, configure, to_recipe
from lars_optax import recipes

CLASSIFIERS = [
    name for name in recipes.names() if recipes.get(name).task == "classification"
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_recipe_survives_the_way_through_the_configuration(name):
    recipe, config = recipes.get(name), configure(name)
    assert parse(["--recipe", name]) == config
    for field in {f.name for f in fields(Optimizer)} - {"layers"}:
        assert getattr(config.optimizer, field) == getattr(recipe, field), field
    assert config.optimizer.layers == ("all" if recipe.mask is True else "weights")
    assert config.model.network == recipe.network
    assert config.batching.batch_size == recipe.batch_size
    assert config.batching.epochs == recipe.epochs
    assert config.model.zero_init_last_bn == recipe.zero_init_last_bn
    if name.startswith("mlperf-v0.6"):
        flags = f"--recipe {name} --batch-size 80 --dry-run"
        assert_line("--momentum-order: .*give .* scaled", flags)
        config = parse(["--recipe", name, "--momentum-order", "scaled"])
        recipe = recipe.replace(momentum_order="scaled")
    assert recipe.missing() or to_recipe(config) == recipe


@pytest.mark.parametrize("name", sorted({*recipes.names()} - {*CLASSIFIERS}))
def test_a_recipe_of_another_task_is_refused_with_an_example(name):
    task = "linear-probe" if name.startswith("mae") else "self-supervised"
    line = assert_line(f"--recipe: {name} .* for {task}", f"--recipe {name} --dry-run")
    assert "examples/barlow_twins.py" in line


# Every flag of these groups, with a value that Goyal's recipe does not have.
CHANGES = {
    "data": "--data synthetic --validation-images 7 --evaluate-on test --pixels 32"
    " --augment center --broken blank --workers 3",
    "model": "--network resnet50 --width 0.5 --dtype bfloat16 --dropout 0.3"
    " --no-zero-init-last-bn --bn sync",
    "optimizer": "--optimizer lars --learning-rate 1.25 --warmup constant"
    " --warmup-epochs 0 --eps 1e-8 --denominator joint --warmup-start 0"
    " --decay polynomial --power 1 --end-learning-rate 0.01"
    " --boundaries 10 20.5 --decay-from-start --extra-decay-steps 1 --momentum 0.95"
    " --no-nesterov --momentum-order scaled --weight-decay 0 --trust-coefficient 0.02"
    " --fallback-ratio 0.5 --layers all --label-smoothing 0.1",
    "batching": "--batch-size 512 --epochs 100 --devices 2 --engine shard_map"
    " --accumulate 256 --solvers-per-device 2 --noise-scale --eval-batch-size 7",
    "run": "--seed 3 --out here",  # A recipe has nothing to do with the others.
}
# The fields that have another name than their flag.
FIELDS = {"data": "source", "optimizer": "algorithm"}


def field_and_value(flag, *values):
    """What a flag sets, as the name of the field and its value."""
    if not values:
        flag, values = flag.removeprefix("no-"), [str(not flag.startswith("no-"))]
    field = FIELDS.get(flag, flag.replace("-", "_"))
    numbers = [ast.literal_eval(v) if v[0] in "0123456789TF" else v for v in values]
    return field, tuple(numbers) if field == "boundaries" else numbers[0]


@pytest.mark.parametrize("group", CHANGES)
def test_a_flag_changes_its_value_of_a_recipe_and_no_other(group):
    name = "goyal-resnet50-sgd-8192"
    source, base = recipes.get(name), configure(name)
    before, changed = getattr(base, group), set()
    for flag in f" {CHANGES[group]}".split(" --")[1:]:
        field, value = field_and_value(*flag.split())
        changed.add(field)
        assert getattr(before, field) != value
        config = parse(["--recipe", name, *f"--{flag}".split()])
        assert config == replace(base, **{group: replace(before, **{field: value})})
        # A recipe has a mask for what the configuration calls layers.
        key, value = ("mask", True) if field == "layers" else (field, value)
        known = key in {f.name for f in fields(source)} - {"source"}
        expected = source.replace(**{key: value}) if known else source
        assert to_recipe(config) == expected, flag
    assert changed == asdict(before).keys() or group == "run"


def test_images_are_augmented_as_the_recipes_source_did_or_as_a_flag_says():
    for recipe, expected in (
        ("", "caffe"),
        ("--recipe paper-t7-resnet50-lars-32768", "caffe"),
        ("--recipe goyal-resnet50-sgd-8192", "rrc"),
        ("--recipe mlperf-v1.0-resnet50-lars-32768", "rrc"),
    ):
        assert parse(recipe.split()).data.augment == expected
        assert parse(f"{recipe} --augment center".split()).data.augment == "center"


def test_the_paper_decays_from_the_start_unless_told_otherwise():
    name = "paper-t5-alexnet_bn-lars-8192"
    flags = ["--recipe", name, "--warmup-start", "1", "--no-decay-from-start"]
    recipe = to_recipe(parse(flags))
    at = round(2 * 1_281_167 / 8192)  # the end of the warm-up
    np.testing.assert_allclose(recipe.schedule(1_281_167)(at), 14.0, rtol=1e-6)
    assert recipe == recipes.get(name).replace(warmup_start=1, decay_from_start=False)


def test_the_fallback_ratio_is_the_packages_or_that_of_the_published_run():
    default = inspect.signature(lars_optax.lars).parameters["fallback_ratio"].default
    assert parse([]).optimizer.fallback_ratio == default
    for name in CLASSIFIERS:
        if recipes.get(name).algorithm == "lars":
            assert configure(name).optimizer.fallback_ratio == 1.0


def test_help_shows_a_recipes_values_as_defaults(capsys):
    for recipe, rate in ("", 10.0), ("--recipe goyal-resnet50-sgd-8192", 3.2):
        with pytest.raises(SystemExit) as end:
            parse(f"{recipe} --help".split())
        assert end.value.code == 0
        text = capsys.readouterr().out
        shown = re.search(r"--learning-rate.*?\(default: (.*?)\)", text, re.DOTALL)
        assert shown[1] == str(rate)


def test_networks_on_the_command_line_are_those_there_are():
    assert sorted(get_args(Network)) == sorted(networks())
    assert {recipes.get(name).network for name in CLASSIFIERS} <= set(networks())


@cases(
    "flags, message",
    recipe=("--recipe paper-t7-resnet50-lars-32k", "nearest.*-t7-resnet50-lars-32768,"),
    half_precision=("--dtype float16", "float16.*6e-8.*bfloat16"),
    no_dtype=("--dtype half-a-float", "half-a-float.*float32 or bfloat16"),
    no_batch_norm=(
        "--bn sync",
        "alexnet_small.*not have this.*alexnet_bn_small",
    ),
    drop=("--dropout 0.5 --network resnet_small", "resnet_small.*not have.*alexnet_bn"),
    no_block=(
        "--zero-init-last-bn",
        "alexnet_small.*not have this.*resnet_small",
    ),
    no_rate=("--learning-rate None", "flags .*no value.*give --learning-rate$"),
)
def test_what_does_not_fit_ends_with_one_line_that_names_the_flag(flags, message):
    assert_line(f"{flags.split()[0]}: .*{message}", f"{flags} --dry-run")


RULES = {"sgd": 0.1, "lars": 10.0}  # rates that move float32 weights in one step


def one_step(network, dtype="float32"):
    """State before, and by rule (state, metrics) after; one program, one backward."""
    # The fewest pixels at which dropout and BatchNorm are there. Two stages of one
    # block have all kinds of leaves.
    side, short = (16, {"blocks": (1, 1)}) if "resnet" in network else (39, {})
    model = make(network, classes=10, width=0.05, dtype=dtype).clone(**short)
    variables, images = random_inputs(model, 8, side)
    start = state_of(variables)
    labels = np.random.default_rng(0).integers(0, 10, 8, np.int32)
    batch = Batch(images, labels)

    @jax.jit
    def step(start, batch):
        results = {}
        for name, rate in RULES.items():
            rule = {"algorithm": name, "learning_rate": rate, "warmup_epochs": 0}
            _, tx, _ = setup = make_setup(model, **rule)
            state = start._replace(opt_state=tx.init(start.params))
            results[name] = step_of(setup)(state, batch)
        return results

    return start, jax.device_get(step(start, batch))


def takes_bn_axis_name(network):
    try:
        return make(network, bn_axis_name="batch") is not None
    except ValueError:
        return False


@pytest.mark.parametrize("network", networks())
def test_every_rule_moves_every_parameter_of_every_network(network):
    start, results = one_step(network)
    for rule, (state, metrics) in results.items():
        assert np.isfinite(metrics["loss"])
        assert (metrics["layers"].grad_norm > 0).all(), "the test could not tell"
        flat = jax.tree_util.tree_leaves_with_path(state.params)
        before = jax.tree.leaves(start.params)
        for (path, leaf), old in zip(flat, before, strict=True):
            assert np.isfinite(leaf).all(), (rule, path)
            assert not np.array_equal(leaf, old), (rule, path)
        stats = jax.tree.leaves(state.batch_stats)
        assert bool(stats) == takes_bn_axis_name(network)
        for new, old in zip(stats, jax.tree.leaves(start.batch_stats), strict=True):
            assert not np.array_equal(new, old)
        assert state.step == 1
    first, second = (jax.tree.leaves(state.params) for state, _ in results.values())
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_bfloat16_keeps_parameters_statistics_and_loss_in_float32():
    start, results = one_step("alexnet_bn_small", "bfloat16")
    for state, metrics in results.values():
        numbers = (state.params, state.batch_stats, metrics["loss"], metrics["layers"])
        leaves = jax.tree.leaves(numbers)
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        moved = jax.tree.map(np.array_equal, state.params, start.params)
        assert not any(jax.tree.leaves(moved))


def test_defaults_are_a_whole_run():
    assert to_recipe(Config()).missing() == ()


def test_every_flag_has_facts_and_no_two_groups_a_field_of_one_name():
    groups = [f.type for f in fields(Config) if is_dataclass(f.type)]
    names = [f.name for group in groups for f in fields(group)]
    own = [f.name for f in fields(Config) if not is_dataclass(f.type)]
    assert sorted(names + own) == sorted(FACTS)
    shown = {FACTS[name].name for name in FACTS}
    assert {"optimizer", "data", "batch-size", "process"} <= shown
    assert not shown & {"algorithm", "source"}  # the fields, not the flags


def test_a_flag_is_named_as_it_is_typed_where_it_departs_from_the_recipe():
    flags = "--recipe mlperf-v1.0-resnet50-lars-8192 --optimizer sgd --epochs 8"
    found = changes(parse(flags.split()))
    assert found == ["--optimizer 'lars' → 'sgd'", "--epochs 44 → 8.0"]


def numeric_flags():
    """Each field that holds numbers, with the group that it is in."""
    for group in fields(Config):
        for one in fields(group.type) if is_dataclass(group.type) else ():
            if re.search(r"\b(int|float)\b", str(one.type)):
                yield group.type, one


@cases("field", **{one.name: one for _, one in numeric_flags()})
def test_every_number_has_a_lower_and_an_upper_bound(field):
    facts = FACTS[field.name]
    assert max(facts.low, facts.above) >= 0
    assert min(facts.below, facts.high) < np.inf


NUMBERS = ["0", "-1", "1e-300", "1e300", f"{10**30}", "nan", "inf", "-inf"]


def refusal(words, capsys):
    """Why a command line, read as far as to a plan of the run, is refused; or ""."""
    try:
        bind(parse(words))
    except SystemExit:
        shown = capsys.readouterr().err.split("For full helptext")[0]
        return " ".join(re.sub("[─│╭╮╰╯]", " ", shown).split())
    except ValueError as error:
        return str(error)
    return ""


@cases("field", **{one.name: one.name for _, one in numeric_flags()})
def test_any_number_works_or_is_refused_by_its_flag(field, capsys):
    facts = FACTS[field]
    more = {
        "boundaries": "--decay piecewise_constant --warmup-epochs 0",
        "dropout": "--network alexnet --pixels 67 --data synthetic",
        "epochs": "--warmup-epochs 0",
        "process": "--coordinator a:1 --processes 2",
        "processes": "--coordinator a:1 --process 0",
        "pixels": "--data synthetic --network resnet50",
    }.get(field, "")
    bounds = [facts.low, facts.above, facts.below, facts.high]
    for number in [*NUMBERS, *map(str, bounds)]:
        words = [*more.split(), "--dry-run", f"--{facts.name}", number]
        why = refusal(words, capsys)
        assert not why or re.search(rf"--{facts.name}\b", why), why


@pytest.mark.parametrize("number", NUMBERS)
@cases(
    "command, flag", prepare=(prepare.main, "workers"), report=(report.main, "epochs")
)
def test_the_other_commands_refuse_a_number_by_flag_too(command, flag, number, capsys):
    with pytest.raises(SystemExit) as end:
        command(["absent", f"--{flag}", number])
    shown = f"{capsys.readouterr().err} {end.value.code}"
    absent = number == "1e-300" and flag == "epochs"  # a number that is allowed
    assert ("absent" if absent else f"--{flag}: ") in shown


@pytest.mark.parametrize("width", [1, 2, 3, 9, 10, 40, 1000])
@cases("command", trainer=parse, prepare=prepare.main, report=report.main)
def test_help_ends_on_a_terminal_of_any_width(command, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == str(width)
