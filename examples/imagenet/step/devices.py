"""Runs a step on all devices, with `pmap` or `shard_map`.

Every device holds a copy of the state, without a leading axis, and each process brings
its own share of a batch. On virtual devices of one CPU only one step runs at a time.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..config import Engine

AXIS = "batch"
VIRTUAL_CPU_DEVICES = 4
_SHARED = PartitionSpec(AXIS)
_BUG = ", although training keeps them equal; a device may be faulty: resume without it"


def start_devices(wanted: int | None) -> list[jax.Device]:
    """Returns the devices to train on: `wanted` of each process, or all if None.

    A CPU becomes `wanted` virtual devices, 4 if None; this needs a call before anything
    else uses JAX. Raises ValueError if a process has fewer devices than needed.
    """
    # Without effect once JAX has looked for devices.
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted or VIRTUAL_CPU_DEVICES)
    owner = attrgetter("process_index")
    devices = sorted(jax.devices(), key=owner)
    groups = [list(group) for _, group in groupby(devices, owner)]
    counts = [len(group) for group in groups]
    fewest = min(counts)
    if wanted is not None and wanted > fewest:
        kind = devices[0].platform
        raise ValueError(
            f"--devices: got {wanted}; a process has only {fewest} {kind} devices;"
            f" give at most {fewest}"
        )
    if wanted is None and max(counts) > fewest:
        raise ValueError(
            f"--devices: the processes have {', '.join(map(str, counts))} devices,"
            f" but must use the same number; give {fewest} or fewer"
        )
    return [device for group in groups for device in group[: wanted or fewest]]


@dataclass(frozen=True)
class Parallel:
    """A function of a state and this process's share of a batch, run on all devices.

    Each device gets the whole state, and an equal part of the batch.
    """

    mapped: Any  # the function that pmap or jit returned
    place: Callable[[Any], Any]  # copies a state to every device, as `mapped` takes it
    spread: Callable[[Any], Any]  # cuts a batch into parts, as `mapped` takes it
    spread_shapes: Callable[[Any], Any]  # does the same with a batch of shapes
    devices: Sequence[jax.Device]

    def lower(self, state: Any, batch: Any) -> Any:
        """Returns the function lowered for the shapes of a state and of a batch."""
        return self.mapped.lower(state, self.spread_shapes(batch))

    def __call__(self, state: Any, batch: Any) -> Any:
        return one_in_flight(self.mapped(state, self.spread(batch)), self.devices)


def parallelize(
    fn: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    engine: Engine = "pmap",
    donate_state: bool = False,
) -> Parallel:
    """Returns `fn(state, batch, *, axis_name)` run by `jax.pmap` or `jax.shard_map`.

    `fn` must return the same on all devices, which `assert_replicated` can check.
    `donate_state` lets the new state take the memory of the old one.
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
        # pmap takes the copies of this process, and assumes all others to be equal.
        here = [d for d in devices if d.process_index == jax.process_index()]
        n = len(here)
        # Each array [images, …] becomes [devices, images / devices, …].
        spread = partial(jax.tree.map, lambda x: x.reshape(n, -1, *x.shape[1:]))
        place = partial(replicate, devices=here)
        spread_shapes: Callable[[Any], Any] = partial(jax.eval_shape, spread)
    else:
        whole, shared = _layout(devices, PartitionSpec()), _layout(devices, _SHARED)
        # With check_vma the gradient of replicated parameters is already summed over
        # the devices, and its mean would be too large by their number.
        sharded = jax.shard_map(
            fn,
            mesh=whole.mesh,
            in_specs=(whole.spec, shared.spec),
            out_specs=whole.spec,
            check_vma=False,
        )
        mapped = jax.jit(sharded, donate_argnums=donate)
        # The shares of all processes become one array, and stay where they are.
        join = partial(jax.make_array_from_process_local_data, shared)
        spread = partial(jax.tree.map, join)
        spread_shapes = _unchanged  # `mapped` takes whole arrays
        place = partial(replicate, devices=devices)
    return Parallel(mapped, place, spread, spread_shapes, devices)


def _unchanged(batch: Any) -> Any:
    return batch


def _layout(devices: Sequence[jax.Device], spec: PartitionSpec) -> NamedSharding:
    """Returns the sharding `spec` of an array on a mesh with one axis of devices."""
    return NamedSharding(Mesh(np.asarray(devices), (AXIS,)), spec)


def one_in_flight(outputs: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns a step's outputs; on virtual CPU devices, only once they are computed.

    Two steps at once could deadlock there: their collectives wait for each other when
    the devices share too few threads. GPUs run their steps in order, asynchronously.
    """
    if len(devices) > 1 and devices[0].platform == "cpu":
        jax.block_until_ready(outputs)
    return outputs


def replicate(state: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns the state with a copy on every device, as a step takes and returns it."""
    return jax.device_put(state, _layout(devices, PartitionSpec()))


class CopiesDiffer(RuntimeError):
    """Raised when the copies of a state on the devices are not equal."""


def assert_replicated(state: Any) -> None:
    """Raises CopiesDiffer if a leaf's copies on the devices differ in any bit.

    Every process must call it, with equally many leaves.
    """
    names, digests = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names.append(f"state{jax.tree_util.keystr(path)}")
        first, *others = (np.asarray(s.data).tobytes() for s in leaf.addressable_shards)
        if any(first != other for other in others):
            raise CopiesDiffer(f"the copies of {names[-1]} on the devices differ{_BUG}")
        digests.append(hashlib.blake2b(first, digest_size=8).digest())
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 2)
    every = multihost_utils.process_allgather(mine)
    for i in np.flatnonzero((every != every[0]).any(axis=(0, 2))):
        raise CopiesDiffer(f"the copies of {names[i]} in the processes differ{_BUG}")
