"""Law: recipes hold what their sources print."""

import pytest

from lars_optax import recipes


def test_every_row_of_every_table_is_there():
    tables = {"paper-t1": 2, "paper-t2": 13, "paper-t3": 11, "paper-t5": 3,
              "paper-t6": 3, "paper-t7": 4 + 3, "goyal": 1, "mlperf-v0.6": 4,
              "mlperf-v0.7": 6, "mlperf-v1.0": 3, "mlperf-rcp": 10, "barlow-twins": 1,
              "vicreg": 2, "byol": 4, "simclr": 2, "moco-v3": 3, "swav": 1,
              "mae": 1}  # fmt: skip
    for table, rows in tables.items():
        found = [name for name in recipes.names() if name.startswith(f"{table}-")]
        assert len(found) == rows, table
        assert recipes.names(table) == tuple(found)
    assert len(recipes.names()) == sum(tables.values())
    assert all(recipes.get(name).name == name for name in recipes.names())


# name → batch, γ, warm-up epochs, μ, β, epochs, printed accuracy; None is not printed.
PRINTED = {
    "paper-t1-resnet50-sgd-256": (256, 0.2, 0, 0.9, 1e-4, 90, 0.730),
    "paper-t1-resnet50-sgd-8192": (8192, 6.4, None, 0.9, 1e-4, 90, 0.727),
    "paper-t2-alexnet-sgd-512": (512, 0.02, 0, None, None, 100, 0.588),
    "paper-t2-alexnet-sgd-4096-0.01-no-warmup": (4096, 0.01, 0, None, None, 100, 0.001),
    "paper-t2-alexnet-sgd-4096-0.05": (4096, 0.05, 2.5, None, None, 100, 0.531),
    "paper-t2-alexnet-sgd-8192-0.03": (8192, 0.03, 6, None, None, 100, 0.448),
    "paper-t3-alexnet_bn-sgd-512": (512, 0.02, None, 0.9, 5e-4, 128, 0.602),
    "paper-t3-alexnet_bn-sgd-4096-0.18": (4096, 0.18, None, 0.9, 5e-4, 128, 0.589),
    "paper-t3-alexnet_bn-sgd-8192-0.30": (8192, 0.30, None, 0.9, 5e-4, 128, 0.580),
    "paper-t5-alexnet_bn-lars-512": (512, 5.0, 2, 0.9, 5e-4, 100, 0.602),
    "paper-t5-alexnet_bn-lars-8192": (8192, 14.0, 2, 0.9, 5e-4, 100, 0.601),
    "paper-t6-alexnet-sgd-512": (512, None, 0, 0.9, 5e-4, 100, 0.588),
    "paper-t6-alexnet-lars-4096": (4096, None, 13, 0.9, 5e-4, 100, 0.584),
    "paper-t6-alexnet-lars-8192": (8192, None, 8, 0.9, 5e-4, 100, 0.583),
    "paper-t7-resnet50-sgd-256": (256, 0.2, 0, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-8192": (8192, 6.4, 5, None, None, 90, 0.727),
    "paper-t7-resnet50-lars-16384": (16384, 2.5, 5, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-32768": (32768, 2.9, 5, None, None, 90, 0.726),
    "paper-t7-resnet50-lars-8192-corrected": (8192, 12.8, 5, None, None, 90, 0.727),
    "paper-t7-resnet50-lars-16384-corrected": (16384, 25, 5, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-32768-corrected": (32768, 29, 5, None, None, 90, 0.726),
    "goyal-resnet50-sgd-8192": (8192, 3.2, 5, 0.9, 1e-4, 90, 0.7626),
    "mlperf-v0.6-resnet50-lars-4096": (4096, 10, 5, 0.9, 2e-4, 72, 0.76090),
    "mlperf-v0.6-resnet50-lars-16384": (16384, 25, 5, 0.9, 2e-4, 72, 0.76136),
    "mlperf-v0.6-resnet50-lars-32768": (32768, 31.2, 25, 0.9, 1e-4, 76, 0.76065),
    "mlperf-v0.6-resnet50-lars-32768-33": (32768, 33, 25, 0.9, 2e-4, 76, 0.76036),
    "mlperf-v0.7-resnet50-lars-2048": (2048, 8.5, 5, 0.9, 2e-4, 41, 0.76048),
    "mlperf-v0.7-resnet50-lars-2496": (2496, 9.5, 5, 0.9, 2e-4, 40, 0.75952),
    "mlperf-v0.7-resnet50-lars-4096": (4096, 13, 2, 0.9, 2e-4, 41, 0.75956),
    "mlperf-v0.7-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 48, 0.76198),
    "mlperf-v0.7-resnet50-lars-65536": (
        65536, 24.699, 31, 0.951807, 1e-4, 89, 0.76064,
    ),
    "mlperf-v0.7-resnet50-lars-65536-jax": (
        65536, 23.080977304670448, 33, 0.9537213777059405, 1e-4, 92, 0.76074,
    ),
    "mlperf-v1.0-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 44, 0.7602),
    "mlperf-v1.0-resnet50-lars-32768": (32768, 29, 18, 0.929, 1e-4, 60, 0.75944),
    "mlperf-v1.0-resnet50-lars-55296": (55296, 25.67, 29, 0.94053, 1e-4, 80, 0.7596),
    "mlperf-rcp-resnet50-lars-1632": (1632, 7.4, 2, 0.9, 5e-5, 37, None),
    "mlperf-rcp-resnet50-lars-3264": (3264, 10.5, 2, 0.9, 5e-5, 37, None),
    "mlperf-rcp-resnet50-lars-4096": (4096, 10, 5, 0.9, 2e-4, 47, None),
    "mlperf-rcp-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 44, None),
    "mlperf-rcp-resnet50-lars-13056": (13056, 12.8, 9, 0.9, 2.5e-5, 48, None),
    "mlperf-rcp-resnet50-lars-32768": (32768, 21.2, 16, 0.94, 2.5e-5, 58, None),
    "mlperf-rcp-resnet50-lars-49152": (49152, 19.405, 24, 0.951807, 1e-4, 71, None),
    "mlperf-rcp-resnet50-lars-58880": (58880, 23.246, 29, 0.951807, 1e-4, 82, None),
    "mlperf-rcp-resnet50-lars-65536": (65536, 24.699, 31, 0.951807, 1e-4, 89, None),
    "mlperf-rcp-resnet50-lars-67840": (67840, 24.699, 31, 0.951807, 1e-4, 91, None),
    "barlow-twins-resnet50-lars-2048": (2048, 1.6, 10, 0.9, 1e-6, 1000, 0.735),
    "vicreg-resnet50-lars-512": (512, 0.6, 10, 0.9, 1e-6, 100, None),
    "vicreg-resnet50-lars-2048": (2048, 1.6, 10, 0.9, 1e-6, 1000, 0.732),
    "byol-resnet50-lars-4096-40-epochs": (4096, 7.2, 10, 0.9, 1e-6, 40, None),
    "byol-resnet50-lars-4096-100-epochs": (4096, 7.2, 10, 0.9, 1e-6, 100, None),
    "byol-resnet50-lars-4096-300-epochs": (4096, 4.8, 10, 0.9, 1e-6, 300, None),
    "byol-resnet50-lars-4096-1000-epochs": (4096, 3.2, 10, 0.9, 1.5e-6, 1000, None),
    "simclr-resnet50-lars-4096-linear": (4096, 4.8, 10, 0.9, 1e-6, 100, None),
    "simclr-resnet50-lars-4096-sqrt": (4096, 4.8, 10, 0.9, 1e-4, 100, 0.645),
    "moco-v3-resnet50-lars-4096-100-epochs": (4096, 9.6, 10, 0.9, 1e-6, 100, 0.689),
    "moco-v3-resnet50-lars-4096-300-epochs": (4096, 4.8, 10, 0.9, 1e-6, 300, 0.728),
    "moco-v3-resnet50-lars-4096-1000-epochs": (
        4096, 4.8, 10, 0.9, 1.5e-6, 1000, 0.746,
    ),
    "swav-resnet50-lars-4096": (4096, 4.8, 10, 0.9, 1e-6, 800, 0.753),
    "mae-vit_base_patch16-lars-16384": (16384, 6.4, 10, 0.9, 0.0, 90, 0.678),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_printed_values(name):
    r = recipes.get(name)
    assert PRINTED[name] == (
        r.batch_size, r.learning_rate, r.warmup_epochs, r.momentum, r.weight_decay,
        r.epochs, r.top1,
    )  # fmt: skip


def test_the_printed_values_are_those_of_all_recipes_but_some_of_the_papers():
    others = {*recipes.names()} - PRINTED.keys()
    assert {name[:8] for name in others} == {"paper-t2", "paper-t3", "paper-t5"}


def test_every_value_is_printed_inferred_or_hinted():
    for name in recipes.names():
        recipe = recipes.get(name)
        for field in recipe.missing():
            # A gap names what is known, but for Table 2's warm-up, which is printed.
            assert field in recipe.hints, (name, field)
        for field in (*recipe.inferred, *recipe.hints):
            assert hasattr(recipe, field), (name, field)
        assert not {f for f in recipe.inferred if getattr(recipe, f) is None}
    corrected = recipes.get("paper-t7-resnet50-lars-32768-corrected")
    assert "29" in corrected.inferred["learning_rate"]
