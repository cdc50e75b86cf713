"""What keeps several processes together, each part on its own."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from small_runs import command_line, free_port

from examples.imagenet.cli import main
from examples.imagenet.config import Batching, Cluster, Run
from examples.imagenet.plan import make_plan
from examples.imagenet.run import cluster
from examples.imagenet.run.cluster import (
    TRY_AGAIN,
    PeerLost,
    Watchdog,
    check_agreement,
    gather,
    join,
    raise_everywhere,
)
from examples.imagenet.step import devices as engine


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"processes": 2}, "--coordinator, --process: missing; give all three"),
        (
            {"coordinator": "a:1", "processes": 2, "process": 2},
            "--process: got 2; give 0 to 1",
        ),
        (
            {"coordinator": "here", "processes": 2, "process": 0},
            "--coordinator: got 'here'; give HOST:PORT",
        ),
        ({"heartbeat_timeout": 1}, "--heartbeat-timeout: got 1"),
        ({"step_timeout": -1}, "--step-timeout: got -1"),
    ],
)
def test_flags_that_make_no_cluster_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**flags)


@pytest.mark.parametrize("profile", ["5", "5:5", "7:5", "a:b", "-1:5"])
def test_a_profile_of_no_steps_is_refused(profile):
    with pytest.raises(ValueError, match="--profile: got"):
        Run(profile=profile)


SRUN = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "4099",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "1",
}


def met(monkeypatch, config, **environment):
    """What JAX is told of the cluster; None if it is not told to look for one."""
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: told.append(kw))
    for name in SRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join(config)
    return told[0] if told else None


def test_a_cluster_is_joined_by_flags_or_under_srun_alone(monkeypatch):
    assert met(monkeypatch, Cluster()) is None
    # In an allocation, or as srun's only task, there is nobody to meet.
    assert met(monkeypatch, Cluster(), SLURM_JOB_ID="7", SLURM_NTASKS="8") is None
    assert met(monkeypatch, Cluster(), SLURM_STEP_NUM_TASKS="1") is None
    slurm = met(monkeypatch, Cluster(heartbeat_timeout=9), **SRUN)
    assert slurm["coordinator_address"] == "localhost:61443"
    assert (slurm["num_processes"], slurm["process_id"]) == (2, 0)
    assert slurm["local_device_ids"] == 1
    assert slurm["heartbeat_timeout_seconds"] == 9
    address = f"localhost:{free_port()}"
    told = met(monkeypatch, Cluster(address, 4, 0), **SRUN)
    assert told["coordinator_address"] == address
    assert (told["num_processes"], told["process_id"]) == (4, 0)
    assert told["local_device_ids"] is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[03-05,9]", "gpu03"),
        ("a1,b[2-3]", "a1"),
        ("n-1[2,4],m5", "n-12"),
        ("10.0.0.[1-2]", "10.0.0.1"),
    ],
)
def test_the_first_of_slurms_nodes_is_the_coordinator(monkeypatch, nodes, first):
    told = met(monkeypatch, Cluster(), **SRUN | {"SLURM_STEP_NODELIST": nodes})
    assert told["coordinator_address"] == f"{first}:61443"


@pytest.mark.parametrize("name", SRUN)
@pytest.mark.parametrize("value", ["", "[two]"])
def test_an_odd_variable_of_slurm_is_named(monkeypatch, name, value):
    with pytest.raises(ValueError, match=rf"{name}='{re.escape(value)}', where Slurm"):
        met(monkeypatch, Cluster(), **SRUN | {name: value})


def test_a_port_in_use_is_told_with_the_status_to_try_again():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        words = ["--coordinator", address, "--processes", "2", "--process", "0"]
        ended = command_line(words, "unused")
    assert ended.returncode == TRY_AGAIN
    assert f"error: --coordinator: cannot listen at {address}: Address" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_coordinator_that_does_not_answer_is_told_in_time():
    address, start = f"127.0.0.1:{free_port()}", time.monotonic()
    words = ["--coordinator", address, "--processes", "2", "--process", "1"]
    ended = command_line([*words, "--heartbeat-timeout", "5"], "unused")
    assert ended.returncode == TRY_AGAIN
    assert f"error: --coordinator: nothing answers at {address} for 5 s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - start < 60  # with the start of Python


def test_what_a_collective_call_raises_is_a_lost_peer(monkeypatch):
    def gloo(array):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(multihost_utils, "process_allgather", gloo)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = r"^another process died or .*\(UNKNOWN: Gloo .*--existing resume"
    for act in (gather, lambda texts: raise_everywhere(lambda: texts)):
        with pytest.raises(PeerLost, match=expected):
            act(["text"])


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
    # The port follows from the job's number.
    job = free_port() % 4096
    shared = {
        "SLURM_JOB_ID": str(job),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "['1é\\n', 'a\\tb']"


def test_processes_that_differ_are_told_in_what(monkeypatch):
    settings = {"--seed": 1, "--out": "a\nb", "images": 10}
    check_agreement(settings)  # alone, with itself
    lines = {"other": "--seed 2\n--out 'a\\nb'\nimages 11"}
    monkeypatch.setattr(cluster, "gather", lambda mine: [*mine, lines["other"], *mine])
    with pytest.raises(ValueError, match="differ: --seed 1 and --seed 2; images 10"):
        check_agreement(settings)


def test_what_one_process_cannot_do_ends_all(monkeypatch):
    assert raise_everywhere(lambda: 3) == 3

    def fail():
        raise OSError("no such disk")

    with pytest.raises(ValueError, match="no such disk"):
        raise_everywhere(fail)
    monkeypatch.setattr(cluster, "gather", lambda mine: [*mine, "the other has none"])
    with pytest.raises(ValueError, match="the other has none"):
        raise_everywhere(lambda: 3)


def test_what_jax_cannot_join_is_told_by_its_flag(monkeypatch):
    def fail(**kwargs):
        raise RuntimeError("Failed to start RPC server")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match="--coordinator: Failed to start"):
        join(Cluster(f"a:{free_port()}", 2, 0))


def test_one_process_is_waited_for_without_end_several_are_not(monkeypatch):
    assert Cluster().patience == 0
    assert Cluster(step_timeout=7).patience == 7
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert Cluster().patience == 600
    assert Cluster(step_timeout=0).patience == 0


def test_alone_what_is_gathered_is_what_was_given():
    assert gather([]) == []
    assert gather(["a", ""]) == ["a", ""]


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
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == TRY_AGAIN
    assert process.stdout == "fed\n"
    assert "error: --step-timeout: no training step in 0.5 s" in process.stderr
    assert "line 9 in <module>" in process.stderr


def test_a_watchdog_that_is_closed_or_off_bites_nobody(monkeypatch):
    ended = []
    monkeypatch.setattr(cluster.os, "_exit", ended.append)
    before = threading.active_count()
    with Watchdog(0.05):
        watches = set(threading.enumerate())
        assert threading.active_count() == before + 1
    for thread in watches - {threading.current_thread()}:
        thread.join(timeout=1)
    with Watchdog(0):
        assert threading.active_count() == before
    assert ended == []


def test_processes_share_a_batch_and_the_plan_says_so():
    batching = Batching(batch_size=64, accumulate=2)
    plan = make_plan(batching, devices=4, examples=1000, processes=2)
    assert (plan.processes, plan.devices, plan.images_per_slot) == (2, 4, 4)
    with pytest.raises(ValueError, match=r"got 72; .*divisible by 16 = "):
        make_plan(Batching(batch_size=72, accumulate=2), 4, 1000, 2)


def fake_devices(counts):
    return [
        SimpleNamespace(process_index=i, platform="gpu", id=10 * i + k)
        for i, n in enumerate(counts)
        for k in range(n)
    ]


def test_every_process_brings_as_many_devices(monkeypatch):
    def started(counts, wanted=None):
        monkeypatch.setattr(jax, "devices", lambda: fake_devices(counts)[::-1])
        return [device.process_index for device in engine.start_devices(wanted)]

    assert started([2, 2]) == [0, 0, 1, 1]
    assert started([4, 2], 2) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="--devices: the processes have 4, 2 devices"):
        started([4, 2])
    with pytest.raises(ValueError, match="--devices: got 3; JAX has 2 gpu devices in"):
        started([4, 2], 3)


def test_copies_that_differ_between_processes_are_named(monkeypatch):
    state = {"a": np.zeros(3), "b": np.ones(2)}
    copies = engine.replicate(state, jax.local_devices()[:2])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    other = {}

    def both(mine):
        theirs = mine.copy()
        if other:
            theirs[list(state).index(other["leaf"])] ^= 1
        return np.stack([mine, theirs])

    monkeypatch.setattr(engine.multihost_utils, "process_allgather", both)
    engine.assert_replicated(copies)
    other["leaf"] = "b"
    with pytest.raises(engine.CopiesDiffer, match=r"state\['b'\] .* the processes"):
        engine.assert_replicated(copies)


def test_a_dry_run_of_many_processes_needs_none_of_them(capsys):
    flags = "--dry-run --coordinator a:1 --processes 4 --process 0 --devices 2"
    assert main([*flags.split(), "--batch-size", "64"]) is None
    said = capsys.readouterr().out
    split = "processes 4 × devices 2 × solvers 1 × accumulate 1 × images per slot 8"
    assert f"64 = {split}" in said
