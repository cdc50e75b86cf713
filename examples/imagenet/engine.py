"""Which devices run a step, how a batch is spread over them, how many are in flight.

`pmap` over the local devices, the state replicated and without a leading axis. On a
CPU split into virtual devices at most one step runs at a time. Refuses more devices
than there are, and a state whose copies have drifted apart.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def parallelize(
    fn: Callable[..., Any], devices: Sequence[jax.Device], *, donate_state: bool = False
) -> Callable[[Any, Any], Any]:
    """`fn(state, batch, *, axis_name)` over the devices: state whole, batch shared out.

    What `fn` returns must be equal on all of them; `assert_replicated` checks a state.
    """
    mapped = jax.pmap(
        partial(fn, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate_state else (),
    )

    def call(state: Any, batch: Any) -> Any:
        return one_in_flight(mapped(state, shares(batch, len(devices))), devices)

    return call


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
    mesh = Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


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
