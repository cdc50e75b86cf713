"""What keeps several processes together, each part on its own."""

import re
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from cases import cases
from jax.experimental import multihost_utils
from small_runs import begin_python, command_line, end, free_port, python
from trees import assert_refused

from examples.imagenet.cli import main
from examples.imagenet.config import Batching, Cluster, Run
from examples.imagenet.plan import make_plan
from examples.imagenet.run import cluster
from examples.imagenet.run.cluster import TRY_AGAIN, PeerLost, Watchdog, gather, join
from examples.imagenet.step import devices as engine

MISSING = "--coordinator, --process: missing; give all three"


@cases(
    "make, message",
    incomplete=(partial(Cluster, processes=2), MISSING),
    number_too_high=(partial(Cluster, "a:1", 2, 2), "--process: got 2; give 0 to 1"),
    no_port=(partial(Cluster, "a", 2, 0), "--coordinator: got 'a'; give HOST:PORT"),
    heartbeat=(partial(Cluster, heartbeat_timeout=1), "--heartbeat-timeout: got 1"),
    negative_timeout=(partial(Cluster, step_timeout=-1), "--step-timeout: got -1"),
)
def test_flags_that_make_no_cluster_are_refused(make, message):
    assert_refused(message, make)


@pytest.mark.parametrize("profile", ["5", "5:5", "7:5", "a:b", "-1:5"])
def test_a_profile_of_no_steps_is_refused(profile):
    assert_refused("--profile: got", Run, profile=profile)


SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def told(monkeypatch):
    """Joins a cluster; what JAX is told of it, {} if it is not told to look for one."""
    for name in SRUN:
        monkeypatch.delenv(name, raising=False)

    def run(config, **slurm):
        found = {}
        monkeypatch.setattr(jax.distributed, "initialize", found.update)
        for name, value in slurm.items():
            monkeypatch.setenv(name, value)
        join(config)
        return found

    return run


def test_a_cluster_is_joined_by_flags_or_under_srun_alone(told):
    assert told(Cluster()) == {}
    # In an allocation, or as srun's only task, there is nobody to meet.
    assert told(Cluster(), SLURM_JOB_ID="7", SLURM_NTASKS="8") == {}
    assert told(Cluster(), SLURM_STEP_NUM_TASKS="1") == {}
    slurm = told(Cluster(heartbeat_timeout=9), **SRUN)
    assert slurm["coordinator_address"] == "localhost:61443"
    assert (slurm["num_processes"], slurm["process_id"]) == (2, 0)
    assert slurm["local_device_ids"] == 1
    assert slurm["heartbeat_timeout_seconds"] == 9
    flags = told(Cluster(f"localhost:{free_port()}", 4, 0), **SRUN)
    assert (flags["num_processes"], flags["process_id"]) == (4, 0)
    assert flags["coordinator_address"] != slurm["coordinator_address"]
    assert flags["local_device_ids"] is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[03-05,9]", "gpu03"),
        ("a1,b[2-3]", "a1"),
        ("n-1[2,4],m5", "n-12"),
        ("10.0.0.[1-2]", "10.0.0.1"),
        ("n[1-2]-ib", "n1-ib"),
        ("rack[00-01]node[5-6],z", "rack00node5"),
        ("[1-3]", "1"),
    ],
)
def test_the_first_of_slurms_nodes_is_the_coordinator(told, nodes, first):
    found = told(Cluster(), **SRUN | {"SLURM_STEP_NODELIST": nodes})
    assert found["coordinator_address"] == f"{first}:61443"


@pytest.mark.parametrize("name", SRUN)
@pytest.mark.parametrize("value", ["", "[,]"])
def test_an_odd_variable_of_slurm_is_named(told, name, value):
    expected = rf"{name}='{re.escape(value)}', where Slurm"
    assert_refused(expected, told, Cluster(), **SRUN | {name: value})


def test_what_jax_cannot_join_is_told_by_its_flag(monkeypatch):
    fail = Mock(side_effect=RuntimeError("Failed to start RPC server"))
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    cluster = Cluster(f"a:{free_port()}", 2, 0)
    assert_refused("--coordinator: Failed to start", join, cluster)


def test_a_port_in_use_is_told_with_the_status_to_try_again():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        words = ["--coordinator", address, "--processes", "2", "--process", "0"]
        ended = command_line(words, "unused", status=TRY_AGAIN)
    assert f"error: --coordinator: cannot listen at {address}: Address" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_coordinator_that_does_not_answer_is_told_in_time():
    address, start = f"127.0.0.1:{free_port()}", time.monotonic()
    words = ["--coordinator", address, "--processes", "2", "--process", "1"]
    words += ["--heartbeat-timeout", "5"]
    ended = command_line(words, "unused", status=TRY_AGAIN)
    assert f"error: --coordinator: nothing answers at {address} for 5 s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - start < 60  # with the start of Python


def test_what_a_collective_call_raises_is_a_lost_peer(monkeypatch):
    gloo = Mock(side_effect=ValueError("UNKNOWN: Gloo AllGather failed: Connection"))
    monkeypatch.setattr(multihost_utils, "process_allgather", gloo)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = r"^another process died or .*\(UNKNOWN: Gloo .*--existing resume"
    for act in (gather, lambda texts: cluster.raise_everywhere(lambda: texts)):
        with pytest.raises(PeerLost, match=expected):
            act(["text"])
    bug = engine.CopiesDiffer("the copies differ")
    with pytest.raises(engine.CopiesDiffer), cluster.collective("comparing"):
        raise bug


def test_srun_tasks_find_each_other_by_slurms_variables():
    """The real JAX, in two processes that srun might have started."""
    code = """
import jax
from examples.imagenet.run.cluster import gather, join
from examples.imagenet.config import Cluster
join(Cluster())
jax.config.update("jax_num_cpu_devices", 1)
print(gather([f"{jax.process_index()}é\\n", "a\\tb"] if jax.process_index() else []))
"""
    # JAX derives the port from the job's number.
    job = {"SLURM_JOB_ID": str(free_port() % 4096)}
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    job |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    tasks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    for process in [begin_python("-c", code, **job, **task) for task in tasks]:
        process = end(process)
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[-1] == "['1é\\n', 'a\\tb']"


def test_processes_that_differ_are_told_in_what(monkeypatch):
    settings = {"--seed": 1, "--out": "a\nb", "images": 10}
    cluster.check_agreement(settings)  # alone, with itself
    other = "--seed 2\n--out 'a\\nb'\nimages 11"
    monkeypatch.setattr(cluster, "gather", lambda mine: [*mine, other, *mine])
    message = "differ: --seed 1 and --seed 2; images 10"
    assert_refused(message, cluster.check_agreement, settings)


def test_what_one_process_cannot_do_ends_all(monkeypatch):
    assert cluster.raise_everywhere(lambda: 3) == 3
    for kind in (ValueError, OSError, cluster.TryAgain):
        fail = Mock(side_effect=kind("no such disk"))
        with pytest.raises(kind, match=r"^no such disk$"):
            cluster.raise_everywhere(fail)
    monkeypatch.setattr(cluster, "gather", lambda mine: [*mine, "1 EIO: the other's"])
    with pytest.raises(OSError, match=r"^EIO: the other's$"):
        cluster.raise_everywhere(lambda: 3)


def test_one_process_is_waited_for_without_end_several_are_not(monkeypatch):
    assert Cluster().patience == 0
    assert Cluster(step_timeout=7).patience == 7
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert Cluster().patience == 600
    assert Cluster(step_timeout=0).patience == 0


@pytest.mark.parametrize("texts", [[], ["a", ""]])
def test_alone_what_is_gathered_is_what_was_given(texts):
    assert gather(texts) == texts


def test_a_process_that_makes_no_step_says_so_and_ends():
    code = """
import threading
from examples.imagenet.run.cluster import Watchdog
with Watchdog(0.5) as dog:
    for _ in range(4):
        threading.Event().wait(0.25)
        dog.feed()
    print("fed", flush=True)
    threading.Event().wait(60)
"""
    process = python("-c", code)
    assert process.returncode == TRY_AGAIN
    assert process.stdout == "fed\n"
    assert "error: --step-timeout: no training step in 0.5 s" in process.stderr
    assert "line 9 in <module>" in process.stderr


def test_a_watchdog_that_is_closed_or_off_bites_nobody(monkeypatch):
    monkeypatch.setattr(cluster.os, "_exit", Mock())
    before = threading.active_count()
    with Watchdog(0.05):
        watches = set(threading.enumerate())
        assert threading.active_count() == before + 1
    for thread in watches - {threading.current_thread()}:
        thread.join(timeout=1)
    with Watchdog(0):
        assert threading.active_count() == before
    cluster.os._exit.assert_not_called()


def test_processes_share_a_batch_and_the_plan_says_so():
    shared = {"devices": 4, "examples": 1000, "processes": 2}
    plan = make_plan(Batching(batch_size=64, accumulate=2), **shared)
    assert (plan.processes, plan.devices, plan.images_per_slot) == (2, 4, 4)
    uneven = Batching(batch_size=72, accumulate=2)
    assert_refused("got 72; .*divisible by 16 = ", make_plan, uneven, **shared)


def test_every_process_brings_as_many_devices(monkeypatch):
    def started(counts, wanted=None):
        owners = [i for i, count in enumerate(counts) for _ in range(count)]
        gpus = [SimpleNamespace(process_index=i, platform="gpu") for i in owners[::-1]]
        monkeypatch.setattr(jax, "devices", lambda: gpus)
        return [device.process_index for device in engine.start_devices(wanted)]

    assert started([2, 2]) == [0, 0, 1, 1]
    assert started([4, 2], 2) == [0, 0, 1, 1]
    assert_refused("--devices: the processes have 4, 2 devices", started, [4, 2])
    assert_refused(
        "--devices: got 3; a process has only 2 gpu devices", started, [4, 2], 3
    )


def test_copies_that_differ_between_processes_are_named(monkeypatch):
    state = {"a": np.zeros(3), "b": np.ones(2)}
    copies = engine.replicate(state, jax.local_devices()[:2])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    flips = np.zeros((2, 2, 1), np.uint32)  # of the digests of each process's leaves
    gather = "process_allgather"
    monkeypatch.setattr(engine.multihost_utils, gather, lambda mine: mine ^ flips)
    engine.assert_replicated(copies)
    flips[1, 1] = 1
    with pytest.raises(engine.CopiesDiffer, match=r"state\['b'\] .* the processes"):
        engine.assert_replicated(copies)


def test_a_dry_run_of_many_processes_needs_none_of_them(capsys):
    flags = "--dry-run --coordinator a:1 --processes 4 --process 0 --devices 2"
    assert main([*flags.split(), "--batch-size", "64"]) is None
    said = capsys.readouterr().out
    split = "processes 4 × devices 2 × solvers 1 × accumulate 1 × images per slot 8"
    assert f"64 = {split}" in said
