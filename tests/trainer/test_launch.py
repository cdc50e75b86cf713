"""Law: what starts the trainer on several machines says what Slurm, Kubernetes and the
trainer know, and the same thing everywhere. None of it was run on a cluster."""

import re
import shlex
import signal
import subprocess
import time

import kubernetes_validate
import pytest
import yaml
from cases import cases
from small_runs import ROOT, python

from examples.imagenet.__main__ import DIVERGED, REFUSED
from examples.imagenet.cli import parse
from examples.imagenet.run.cluster import TRY_AGAIN

ABORTED = 128 + signal.SIGABRT
LAUNCH = ROOT / "examples" / "imagenet" / "launch"
SLURM = LAUNCH / "slurm.sh"
SCRIPT = SLURM.read_text()
# Of the options of sbatch, by their names in its manual page.
SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem",
    "time", "output", "open-mode", "requeue", "signal", "partition", "account",
}  # fmt: skip


def trainer_flags(words):
    at = words.index("-m")
    assert words[at + 1] == "examples.imagenet"
    return words[at + 2 :]


def run_slurm(folder, status=0, left=3600, failures=None, said=""):
    """The script with an srun that ends so: its status, and each command's words."""
    calls = folder / "calls"
    calls.touch()
    for name, end in (("srun", status), ("scontrol", 0)):
        text = f'#!/bin/sh\necho "{name} $*" >> {shlex.quote(str(calls))}\nexit {end}\n'
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"PATH": f"{folder}:/usr/bin:/bin", "DATA": "/data", "SLURM_JOB_ID": "7"}
    slurm["SLURM_JOB_END_TIME"] = str(int(time.time()) + left)
    slurm["SLURM_CPUS_PER_TASK"] = "12"
    if failures is not None:
        slurm["OUT"] = str(folder / "out")
    if failures:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out" / "failures").write_text(f"{failures}\n")
    command = ["bash", str(SLURM)]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True)
    assert said in done.stderr if said else not done.stderr
    return done.returncode, [line.split() for line in calls.read_text().splitlines()]


@pytest.fixture(scope="module")
def options():
    """Those that sbatch reads in the script, with their values."""
    lines = re.findall(r"^#SBATCH (.*)$", SCRIPT, re.MULTILINE)
    found = [re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] for match in found}


def test_sbatch_knows_the_options_and_reads_them_all(options):
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    assert options.keys() <= SBATCH
    assert {"requeue", "signal", "open-mode"} <= options.keys()
    # sbatch stops reading at the first command.
    before, _, _ = SCRIPT.partition("\nset -u\n")
    assert before.count("#SBATCH") == SCRIPT.count("#SBATCH")
    assert all(line.startswith("#") for line in before.splitlines())


def test_a_task_of_slurm_is_one_gpu_and_sees_all_of_its_node(options):
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options


def test_slurm_resumes_the_trainer_in_a_folder_that_a_requeue_keeps(tmp_path, options):
    status, (srun,) = run_slurm(tmp_path)
    assert status == 0
    assert srun[:3] == ["srun", "--cpus-per-task=12", "--kill-on-bad-exit=1"]
    config = parse(trainer_flags(srun))
    assert (config.run.existing, config.run.out) == ("resume", "runs/7")
    assert config.run.checkpoint_every > 0
    assert config.cluster.coordinator is None  # JAX finds the cluster
    gpus = int(options["nodes"]) * int(options["gpus-per-node"])
    assert config.batching.batch_size % gpus == 0


@cases(
    "status, left, failures, requeued",
    finished=(0, 100, 0, False),
    time_limit_after_failures=(143, 60, 3, True),
    time_limit_signalled_early=(143, 175, 3, True),
    failed_and_killed_the_others=(143, 3600, 0, True),
    failed_too_often=(143, 3600, 3, False),
    lost_a_process=(1, 60, 2, True),
    lost_another_process=(TRY_AGAIN, 3600, 0, True),
    aborted_by_jax_for_a_lost_process=(ABORTED, 3600, 0, True),
    aborted_too_often=(ABORTED, 3600, 3, False),
    lost_processes_too_often=(1, 60, 3, False),
    wrong_flag=(REFUSED, 3600, 0, False),
    diverged=(DIVERGED, 3600, 0, False),
)
def test_which_ends_of_a_job_requeue_it(tmp_path, status, left, failures, requeued):
    ended, calls = run_slurm(tmp_path, status, left, failures)
    assert calls[1:] == ([["scontrol", "requeue", "7"]] if requeued else [])
    assert ended == (0 if requeued else status)


def test_slurm_counts_failures_and_no_time_limits(tmp_path):
    count = tmp_path / "out" / "failures"
    for number in (1, 2):
        assert run_slurm(tmp_path, TRY_AGAIN, 3600, 0)[0] == 0
        assert count.read_text() == f"{number}\n"
    assert run_slurm(tmp_path, 143, 60, 0)[0] == 0
    assert not count.exists()
    for status, failures in ((TRY_AGAIN, 3), (0, 2), (DIVERGED, 1)):
        assert run_slurm(tmp_path, status, 3600, failures)[0] == status
        assert not count.exists()  # another job in this folder begins anew


def test_slurm_requeues_no_job_whose_failures_it_cannot_count(tmp_path):
    (tmp_path / "out").touch()
    ended, calls = run_slurm(tmp_path, TRY_AGAIN, 3600, 0, said="File exists")
    assert (ended, len(calls)) == (TRY_AGAIN, 1)


def test_the_signal_at_the_time_limit_reaches_tasks_and_is_known_by_the_clock(options):
    number, seconds = options["signal"].split("@")
    assert number == "TERM"  # "B:" before it would signal the batch shell alone
    # sbatch's manual page: up to 60 seconds earlier than asked for.
    assert f"left <= {int(seconds) + 60}))" in SCRIPT


@pytest.fixture(scope="module")
def documents():
    found = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    kinds = [document["kind"] for document in found]
    assert sorted(set(kinds)) == ["Job", "PersistentVolumeClaim", "Service"]
    assert kinds.count("Job") == kinds.count("Service") == 1
    return found


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


@pytest.fixture(scope="module")
def job(documents):
    (job,) = of_kind(documents, "Job")
    return job


@pytest.fixture(scope="module")
def pod(job):
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def trainer(pod):
    (container,) = pod["containers"]
    return container


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_field(documents, job, version):
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    wrong = job | {"spec": job["spec"] | {"paralelism": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_pods_find_process_0_by_names_of_job_and_service(documents, job, pod, trainer):
    (service,), spec = of_kind(documents, "Service"), job["spec"]
    name, peers = job["metadata"]["name"], service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == peers
    (port,), (open_port,) = service["spec"]["ports"], trainer["ports"]
    assert port["port"] == open_port["containerPort"]

    index = "$(JOB_COMPLETION_INDEX)"  # set in every pod of an Indexed Job
    assert spec["completionMode"] == "Indexed"
    flags = trainer_flags(trainer["command"])
    assert f"--process={index}" in flags
    config = parse([flag.replace(index, "1") for flag in flags])
    assert config.cluster.coordinator == f"{name}-0.{peers}:{port['port']}"
    assert config.cluster.processes == spec["completions"] == spec["parallelism"]
    gpus = trainer["resources"]["limits"]["nvidia.com/gpu"] * spec["completions"]
    assert config.batching.batch_size % gpus == 0
    assert config.run.existing == "resume"


def test_pods_have_the_folders_of_flags_and_memory_for_nccl(documents, pod, trainer):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in trainer["volumeMounts"]}
    assert volumes.keys() == set(mounts.values())
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claims = of_kind(documents, "PersistentVolumeClaim")
    modes = {c["metadata"]["name"]: c["spec"]["accessModes"] for c in claims}
    flags = dict(flag.split("=") for flag in trainer_flags(trainer["command"]))
    for flag, mode in (("--data", "ReadOnlyMany"), ("--out", "ReadWriteMany")):
        root = "/" + flags[flag].split("/")[1]
        claim = volumes[mounts[root]]["persistentVolumeClaim"]["claimName"]
        assert modes[claim] == [mode]


def test_a_pod_that_fails_is_made_again_and_one_told_to_stop_does_not_count(job, pod):
    assert pod["restartPolicy"] == "Never"  # a failure policy demands it
    assert pod["terminationGracePeriodSeconds"] == 120
    codes = {}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        known = rule.get("onExitCodes", {"values": []})["values"]
        codes |= dict.fromkeys(known, rule["action"])
    assert codes == {143: "Ignore", REFUSED: "FailJob", DIVERGED: "FailJob"}
    # Any other status is tried again, also that of a process that lost another one.
    assert not codes.keys() & {TRY_AGAIN, ABORTED}
    # Each pod of an accident counts.
    assert job["spec"]["backoffLimit"] >= 2 * job["spec"]["completions"]


def test_the_readmes_commands_start_processes_of_one_cluster():
    text = (LAUNCH / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    config = parse(trainer_flags(shlex.split(block.replace("\\\n", ""))))
    assert config.cluster.process == 0
    assert config.run.existing == "resume"
    for name in ("slurm.sh", "kubernetes.yaml"):
        assert f"examples/imagenet/launch/{name}" in text
        assert "NOT RUN" in (LAUNCH / name).read_text().partition("\n\n")[0]
    assert "**Not run.**" in text
    for status in (TRY_AGAIN, ABORTED):
        assert f"\n| {status} |" in text


def test_what_is_refused_says_so_by_its_status():
    done = python("-m", "examples.imagenet", "--recipe", "none")
    assert done.returncode == REFUSED, done.stderr
    assert done.stderr.startswith("error: --recipe: no recipe is called 'none'")
