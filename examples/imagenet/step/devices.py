"""Which devices run a step, how a batch is spread over them, how many are in flight.

`pmap` or `shard_map` over the devices of all processes, the state replicated and
without a leading axis; each process brings its own share of a batch. On a CPU split
into virtual devices at most one step runs at a time. Refuses more devices than there
are, and a state whose copies have drifted apart.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..config import Engine

AXIS = "batch"
VIRTUAL_CPU_DEVICES = 4
_SHARED = PartitionSpec(AXIS)


def start_devices(wanted: int | None) -> list[jax.Device]:
    """The devices to train on; call before anything else touches JAX.

    A CPU becomes `wanted` virtual devices (4 by default); GPUs are taken as they are.
    Of several processes each brings as many, in the processes' order.
    """
    # Refused once a backend runs: its devices are then counted as they are.
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted or VIRTUAL_CPU_DEVICES)
    owners: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        owners.setdefault(device.process_index, []).append(device)
    few = min(owners.values(), key=len)
    if wanted is not None and wanted > len(few):
        raise ValueError(
            f"--devices: got {wanted}; JAX has {len(few)} {few[0].platform} devices"
            f" {'here' if len(owners) == 1 else 'in a process'}, give at most that"
        )
    each = wanted or len(few)
    if max(map(len, owners.values())) > each and wanted is None:
        counts = ", ".join(str(len(owners[i])) for i in sorted(owners))
        raise ValueError(
            f"--devices: the processes have {counts} devices; give at most {each}"
        )
    return [device for i in sorted(owners) for device in owners[i][:each]]


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [d for d in devices if d.process_index == jax.process_index()]


@dataclass(frozen=True)
class Parallel:
    """A function of (state, batch) over devices: state whole, batch shared out.

    The batch is this process's share of it. `place` copies a state to every device, as
    the function takes and returns it.
    """

    mapped: Any  # what pmap or jit returned
    place: Callable[[Any], Any]
    spread: Callable[[Any], Any]  # lays a batch out as `mapped` takes it
    devices: Sequence[jax.Device]

    def __call__(self, state: Any, batch: Any) -> Any:
        return one_in_flight(self.mapped(state, self.spread(batch)), self.devices)


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
    if engine == "pmap":
        mapped = jax.pmap(
            fn,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=devices,
            donate_argnums=donate,
        )
        # Each process holds a state of its own, which pmap takes for the same.
        here = local(devices)
        place = partial(replicate, devices=here)
        return Parallel(mapped, place, partial(shares, devices=len(here)), devices)
    whole, shared = _layout(devices, PartitionSpec()), _layout(devices, _SHARED)
    # Without check_vma: with it the gradient of replicated parameters is already a sum
    # over the devices, and a mean of it would be too large by their number.
    sharded = jax.shard_map(
        fn,
        mesh=whole.mesh,
        in_specs=(whole.spec, shared.spec),
        out_specs=whole.spec,
        check_vma=False,
    )
    mapped = jax.jit(sharded, donate_argnums=donate)
    place = partial(replicate, devices=devices)
    return Parallel(mapped, place, partial(_join_shares, sharding=shared), devices)


def _layout(devices: Sequence[jax.Device], spec: PartitionSpec) -> NamedSharding:
    """An array over a row of devices."""
    return NamedSharding(Mesh(np.asarray(devices), (AXIS,)), spec)


def _join_shares(batch: Any, sharding: NamedSharding) -> Any:
    """The shares of all processes as one array, without moving them."""
    return jax.tree.map(
        partial(jax.make_array_from_process_local_data, sharding), batch
    )


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
    return jax.device_put(state, _layout(devices, PartitionSpec()))


def shares(batch: Any, devices: int) -> Any:
    """[n, …] to [devices, n / devices, …] for every array of the batch."""
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


class CopiesDiffer(RuntimeError):
    """A state that ought to be equal on all devices is not."""


def assert_replicated(state: Any) -> None:
    """Raises naming the first leaf whose copies differ in any bit between devices.

    Every process must call it, with as many leaves.
    """
    digests = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        first, *others = (np.asarray(s.data).tobytes() for s in leaf.addressable_shards)
        if any(first != other for other in others):
            name = jax.tree_util.keystr(path)
            raise CopiesDiffer(f"state{name} differs between the devices")
        digests.append(hashlib.blake2b(first, digest_size=8).digest())
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 2)
    every = multihost_utils.process_allgather(mine)
    lost = np.flatnonzero((every != every[0]).any(axis=(0, 2)))
    if lost.size:
        path, _ = jax.tree_util.tree_leaves_with_path(state)[lost[0]]
        name = jax.tree_util.keystr(path)
        raise CopiesDiffer(f"state{name} differs between the processes")
