"""Which devices run a step, how a batch is spread over them, how many are in flight.

`pmap` or `shard_map` over the local devices, the state replicated and without a leading
axis. On a CPU split into virtual devices at most one step runs at a time. Refuses more
devices than there are, and a state whose copies have drifted apart.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .config import Engine

AXIS = "batch"
VIRTUAL_CPU_DEVICES = 4


def start_devices(wanted: int | None) -> list[jax.Device]:
    """The devices to train on; call before anything else touches JAX.

    A CPU becomes `wanted` virtual devices (4 by default); GPUs are taken as they are.
    """
    # Refused once a backend runs: its devices are then counted as they are.
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted or VIRTUAL_CPU_DEVICES)
    devices: list[jax.Device] = jax.local_devices()
    if wanted is not None and wanted > len(devices):
        raise ValueError(
            f"--devices: got {wanted}; JAX has {len(devices)}"
            f" {devices[0].platform} devices here, give at most that"
        )
    return devices[:wanted]


@dataclass(frozen=True)
class Parallel:
    """A function of (state, batch) over devices: state whole, batch shared out."""

    mapped: Any  # what pmap or jit returned
    spread: Callable[[Any], Any]  # lays a batch out as `mapped` takes it
    devices: Sequence[jax.Device]

    def __call__(self, state: Any, batch: Any) -> Any:
        return one_in_flight(self.mapped(state, self.spread(batch)), self.devices)

    def compiled_text(self, state: Any, batch: Any) -> str:
        """The program XLA runs for arguments of these shapes."""
        text: str = self.mapped.lower(state, self.spread(batch)).compile().as_text()
        return text


def parallelize(
    fn: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    engine: Engine = "pmap",
    donate_state: bool = False,
) -> Parallel:
    """`fn(state, batch, *, axis_name)`, run by `jax.pmap` or by `jax.shard_map`.

    What `fn` returns must be equal on all of them; `assert_replicated` checks a state.
    """
    fn = partial(fn, axis_name=AXIS)
    donate = (0,) if donate_state else ()
    mesh, whole, shared = _layout(devices)
    if engine == "pmap":
        mapped = jax.pmap(
            fn,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=devices,
            donate_argnums=donate,
        )
        return Parallel(mapped, partial(shares, devices=len(devices)), devices)
    # Without check_vma: with it the gradient of replicated parameters is already a sum
    # over the devices, and a mean of it would be too large by their number.
    sharded = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(whole.spec, shared.spec),
        out_specs=whole.spec,
        check_vma=False,
    )
    mapped = jax.jit(sharded, donate_argnums=donate)
    return Parallel(mapped, partial(jax.device_put, device=shared), devices)


def _layout(
    devices: Sequence[jax.Device],
) -> tuple[Mesh, NamedSharding, NamedSharding]:
    """The devices in a row, an array whole on each of them, an array shared out."""
    mesh = Mesh(np.asarray(devices), (AXIS,))
    whole, shared = PartitionSpec(), PartitionSpec(AXIS)
    return mesh, NamedSharding(mesh, whole), NamedSharding(mesh, shared)


def one_in_flight(outputs: Any, devices: Sequence[jax.Device]) -> Any:
    """Waits for a step's outputs where a second step in flight could dead-lock.

    Collectives of two steps wait for each other when the virtual devices of one CPU
    share too few threads. GPUs queue their steps in order, and stay asynchronous.
    """
    if len(devices) > 1 and devices[0].platform == "cpu":
        jax.block_until_ready(outputs)
    return outputs


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of the state on every device, laid out as a step returns it."""
    _, whole, _ = _layout(devices)
    return jax.device_put(state, whole)


def shares(batch: Any, devices: int) -> Any:
    """[n, …] to [devices, n / devices, …] for every array of the batch."""
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def assert_replicated(state: Any) -> None:
    """Raises naming the first leaf whose copies differ in any bit between devices."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        first, *others = (np.asarray(s.data) for s in leaf.addressable_shards)
        if any(first.tobytes() != other.tobytes() for other in others):
            name = jax.tree_util.keystr(path)
            raise RuntimeError(f"state{name} differs between the devices")
