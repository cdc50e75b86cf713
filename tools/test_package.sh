#!/bin/sh
# test_package.sh floor|newest: runs tests in a virtual environment made for them alone.
# floor: runs the package's own tests with the oldest jax and optax that it supports.
# newest: runs the same tests, those with Flax, Haiku and Equinox, and a short training
# run, with the newest versions, which requirements.lock has for Python 3.12 and 3.13.
# Every warning is an error. If no suitable Python is found, it says so and succeeds.
set -eu
cd "$(dirname "$0")/.."
. tools/locked_venv.sh
name=${1:-nothing}
case $name in
    floor) locked_venv floor 11 12 "python3.11 python3.12 python3" requirements-floor.lock ;;
    newest) locked_venv newest 12 13 "python3.13 python3.12 python3" requirements.lock ;;
    *) echo "got $name; give floor or newest" >&2; exit 2 ;;
esac
"$python" - <<'PY'
import platform, jax, numpy, optax
print(f"Python {platform.python_version()}, jax {jax.__version__},"
      f" optax {optax.__version__}, numpy {numpy.__version__}")
PY

tests="against_reference chains contracts data_parallel diagnostics equivalence errors
    keep_layer_stats kernels larc noise_scale precision published recipe_errors recipes
    recipes_optimizers recipes_schedules recipes_values schedules sharding transform
    wrappers"
processes=
if [ "$name" = newest ]; then
    tests="$tests frameworks masks optax_suite properties roles stacked"
    processes="-n auto --maxprocesses 4 --dist worksteal"
fi
# shellcheck disable=SC2046,SC2086
"$python" -m pytest -p no:cacheprovider -o addopts="-q -rs --doctest-modules" $processes \
    lars_optax $(printf 'tests/package/test_%s.py ' $tests)
if [ "$name" = floor ]; then exit; fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
train() {
    JAX_PLATFORMS=cpu "$python" -W error -m examples.imagenet \
        --network alexnet_bn_small --width 0.25 --batch-size 64 --devices 4 \
        --epochs 0.12 --warmup-epochs 0.04 --checkpoint-every 2 --out "$folder/run" "$@"
}
train
cp "$folder/run/log.jsonl" "$folder/whole.jsonl"
# Without its last checkpoint the run resumes from the one before, after update 4.
rm -r "$folder/run/checkpoints/6"
train --existing resume
"$python" - "$folder" <<'PY'
import json, pathlib, sys

def read(name):
    lines = pathlib.Path(sys.argv[1], name).read_text().splitlines()
    return [json.loads(line) for line in lines]

def computed(log):
    records = [record for record in log if record["kind"] in ("step", "result")]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

whole, resumed = read("whole.jsonl"), read("run/log.jsonl")
assert [r["step"] for r in resumed if r["kind"] == "resume"] == [4], resumed
assert [r.get("step") for r in computed(whole)] == [0, 1, 2, 3, 4, 5, None], whole
assert computed(resumed) == computed(whole), (resumed, whole)
print("trainer: 6 updates on 4 virtual devices; resumed after update 4, the same losses"
      " and scores")
PY
