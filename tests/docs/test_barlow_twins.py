"""Laws of examples/barlow_twins.py: devices share one batch, and only one loss."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from image_trees import write_classes, write_idx_folder
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from trees import assert_equal

from examples import barlow_twins as example
from examples.imagenet.data.arrays import Split

if not hasattr(jax, "shard_map"):
    reason = "the example uses jax.shard_map, which jax has since 0.6.1"
    pytest.skip(reason, allow_module_level=True)

N, SIDE = 16, 12
WIDTHS = {"projections": 6, "channels": (4,)}
COUNTS = [1, 2, 4, 8]
# The order of sums over images differs; BatchNorm divides by small deviations.
assert_close = partial(assert_equal, rtol=1e-4)


def numpy_loss(a, b, off_diagonal):
    """Zbontar et al. 2021, equations 1 and 2, with BatchNorm's epsilon."""
    a, b = (
        (z - z.mean(0)) / np.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5) for z in (a, b)
    )
    loss = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = np.mean(a[:, i] * b[:, j])
            loss += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return loss


@pytest.mark.parametrize("count", COUNTS)
def test_loss_is_that_of_the_paper_in_float64(x64, eight_devices, count):
    random = np.random.default_rng(count)
    a, b = random.normal(size=(2, N, 5)) * [1, 10, 0.1, 1, 1] + 3
    loss = jax.shard_map(
        partial(example.barlow_loss, off_diagonal=0.3),
        mesh=Mesh(np.array(eight_devices[:count]), (example.AXIS,)),
        in_specs=P(example.AXIS),
        out_specs=P(),
    )
    np.testing.assert_allclose(jax.jit(loss)(a, b), numpy_loss(a, b, 0.3), rtol=1e-12)


def whole_batch_loss(params, batch_stats, images, keys):
    """The loss without any device axis, as one would write it for one device."""
    network = example.Network(**WIDTHS, axis=None)
    standard = []
    for view in range(2):
        views = jax.vmap(example.random_view)(keys[:, view], images)
        variables = {"params": params, "batch_stats": batch_stats}
        (_, z), new = network.apply(variables, views, True, mutable=["batch_stats"])
        batch_stats = new["batch_stats"]
        standard.append((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5))
    c = standard[0].T @ standard[1] / len(images)
    weights = jnp.where(jnp.eye(len(c), dtype=bool), 1.0, 0.0051)
    return (weights * (jnp.eye(len(c)) - c) ** 2).sum(), batch_stats


@pytest.fixture(scope="module")
def inputs():
    """Variables, a batch, and what one device computes from them on its own."""
    network = example.Network(**WIDTHS)
    images = np.random.default_rng(0).random((N, SIDE, SIDE, 1), np.float32)
    variables = network.init(jax.random.key(1), images[:1], train=False)
    keys = jax.random.split(jax.random.key(2), (N, 2))
    given = variables["params"], variables["batch_stats"], images, keys
    compute = jax.value_and_grad(whole_batch_loss, has_aux=True)
    return network, given, jax.jit(compute)(*given)


@pytest.mark.parametrize("count", COUNTS)
def test_gradient_and_sgd_step_are_those_of_the_whole_batch(
    inputs, eight_devices, count
):
    network, given, expected = inputs
    loss = example.make_loss(network, eight_devices[:count])
    found = jax.jit(jax.value_and_grad(loss, has_aux=True))(*given)
    assert_close(found, expected)
    # LARS would hide a wrong factor of the gradient. SGD does not.
    params, tx = given[0], optax.sgd(0.1)
    steps = [tx.update(grads, tx.init(params))[0] for _, grads in (found, expected)]
    assert_close(*(optax.apply_updates(params, step) for step in steps))
    assert_close(*steps)


def test_a_device_of_pmap_finds_as_many_times_its_share_as_there_are_devices(
    inputs, eight_devices
):
    network, given, (_, expected) = inputs
    n = len(eight_devices)

    def grads(params, batch_stats, images, keys):
        def loss(params):
            projections = []
            for key in keys.T:
                views = jax.vmap(example.random_view)(key, images)
                variables = {"params": params, "batch_stats": batch_stats}
                (_, z), _ = network.apply(
                    variables, views, True, mutable=["batch_stats"]
                )
                projections.append(z)
            return example.barlow_loss(*projections)

        found = jax.grad(loss)(params)
        mean, total = (f(found, example.AXIS) for f in (jax.lax.pmean, jax.lax.psum))
        return mean, total

    apart = [x.reshape(n, N // n, *x.shape[1:]) for x in given[2:]]
    run = jax.pmap(grads, example.AXIS, in_axes=(None, None, 0, 0), out_axes=None)
    mean, total = run(*given[:2], *apart)
    assert_close(mean, expected)
    assert_close(total, jax.tree.map(lambda g: n * g, expected))


def test_views_depend_on_key_and_image_alone():
    images = np.random.default_rng(0).random((3, SIDE, SIDE, 2), np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    view = jax.jit(jax.vmap(example.random_view))
    once = view(keys, images)
    assert once.shape == images.shape
    np.testing.assert_array_equal(once, view(keys, images))
    np.testing.assert_array_equal(once[::-1], view(keys[::-1], images[::-1]))
    others = view(jax.random.split(jax.random.key(1), 3), images)
    assert (np.abs(once - others).max((1, 2, 3)) > 0.1).all()


def test_probe_separates_what_is_separable_and_guesses_noise():
    random = np.random.default_rng(0)
    labels = [random.integers(0, 4, n) for n in (400, 200, 200)]
    noise = [random.normal(size=(len(y), 6)).astype(np.float32) for y in labels]
    signal = [
        x + 8 * np.eye(6, dtype=np.float32)[y]
        for x, y in zip(noise, labels, strict=True)
    ]
    assert min(example.probe(signal, labels)) > 0.99
    assert max(example.probe(noise, labels)) < 0.45  # chance is 25 %


@pytest.mark.parametrize(("flags", "message"), [
    ("--seeds", r"--seeds: got \(\); give one or more"),
    ("--seeds 0 1 0", r"--seeds: got \(0, 1, 0\); .* all different"),
    ("--seeds 0 -1", r"--seeds: got -1; give 0 ≤ seeds < 4,294,967,296"),
    ("--seeds 4294967296", r"--seeds: got 4294967296; give"),
    ("--epochs 0", r"--epochs: got 0; give 1 ≤ epochs"),
    ("--batch-size -8", r"--batch-size: got -8; give 1 ≤ batch-size"),
    ("--lars-rate -1", r"--lars-rate: got -1.0; give 0 ≤ lars-rate"),
    ("--lars-rate nan", r"--lars-rate: got nan; give 0 ≤ lars-rate"),
    ("--sgd-rate inf", r"--sgd-rate: got inf; give 0 ≤ sgd-rate"),
    ("--validation-images 0", r"--validation-images: got 0; give 1 ≤"),
    ("--data synthetic", r"--data: got 'synthetic'; give mnist or a folder"),
    ("--data=", r"--data: got ''; give mnist or a folder"),
    ("--data nowhere", r"--data: 'nowhere' is not a folder; give mnist"),
    ("--batch-size 3208", r"--batch-size: got 3208; .* at most 3200, .* give 3200$"),
    ("--batch-size 3204", r"--batch-size: got 3204; .* multiple of 8, .* give 3200$"),
    ("--batch-size 4", r"--batch-size: got 4; .* multiple of 8, .* give 8$"),
])  # fmt: skip
def test_a_wrong_flag_is_refused_with_its_value_and_a_remedy(flags, message, capsys):
    with pytest.raises(SystemExit) as ended:
        example.main(flags.split())
    printed = capsys.readouterr()
    text = " ".join(f"{printed.out} {printed.err}".split())
    if ended.value.code != 2:  # the status of tyro's own errors
        text = str(ended.value)
    assert re.search(message, text)


def test_wrong_folders_are_refused(tmp_path):
    def split(n, side=SIDE):
        return Split(np.zeros((n, side, side, 1), np.uint8), np.arange(n) % 2)

    def refused(flags, message):
        with pytest.raises(SystemExit, match=message):
            example.main(["--batch-size", "8", *flags])

    flags = ["--data", str(write_idx_folder(tmp_path / "a", train=split(24)))]
    refused(flags, "--data: .*has no images.* missing: t10k-images-idx3-ubyte")
    write_idx_folder(tmp_path / "a", t10k=split(8, side=SIDE + 1))
    refused([*flags, "--validation-images", "8"], "--data: .* files of one data set")
    write_idx_folder(tmp_path / "a", t10k=split(8))
    refused(flags, r"--validation-images: got 5000, .* give at most 23")
    refused([*flags, "--validation-images", "20"], "at most 4, the number of training")
    (tmp_path / "a" / "t10k-images-idx3-ubyte").write_bytes(b"no images")
    refused([*flags, "--validation-images", "8"], "it starts with 6e6f20")
    write_classes(tmp_path / "b", {"cat": 16, "dog": 16})
    refused(["--data", str(tmp_path / "b")], "--data: .*; give mnist or a folder with")
    write_idx_folder(tmp_path / "a", t10k=split(0))
    refused([*flags, "--validation-images", "8"], "t10k.* give images of .* n > 0")


def test_command_line_trains_and_prints_a_table(monkeypatch, tmp_path, capsys):
    """On images of 12 × 12 pixels that are bright in one of two halves."""
    random = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 2
        images = random.integers(0, 100, (n, SIDE, SIDE, 1))
        images[labels == 1, :6] += 100
        return Split(np.uint8(images), np.int32(labels))

    folder = write_idx_folder(tmp_path, train=split(96), t10k=split(32))
    monkeypatch.setattr(example, "Network", partial(example.Network, **WIDTHS))
    flags = ["--data", str(folder), "--validation-images", "32", "--seeds", "0", "1"]
    with pytest.raises(SystemExit, match="multiple of 8"):
        example.main(["--batch-size", "100", *flags])
    rows = example.main(["--batch-size", "32", "--epochs", "3", "--compare", *flags])
    assert list(rows) == ["raw pixels", "untrained encoder", "LARS", "SGD"]
    assert [len(row) for row in rows.values()] == [1, 2, 2, 2]
    assert min(rows["raw pixels"][0]) > 0.95
    losses, table = capsys.readouterr().out.split("Updates: 6. Devices: 8.")
    assert losses.count("last loss") == 4
    assert "nan" not in losses
    assert len(table.splitlines()) == 6
