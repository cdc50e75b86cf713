#!/bin/sh
# test_package.sh floor|newest: the package's own tests, without the trainer's and other
# frameworks', on the oldest jax and optax it supports, or on the newest that are locked
# (which need Python 3.12). Each in a virtual environment of its own; says why it skips.
set -eu
cd "$(dirname "$0")/.."
case $1 in
    floor) pythons="python3.11 python3.12 python3" newest_of=11 ;;
    newest) pythons="python3.13 python3.12 python3" newest_of=12 ;;
    *) echo "give floor or newest, not $1" >&2; exit 2 ;;
esac
python=
for candidate in $pythons; do
    if "$candidate" -c "import sys, venv
sys.exit(not (3, $newest_of) <= sys.version_info < (3, 14))" 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "make $1: skipped, no Python 3.$newest_of to 3.13 with venv was found"
    exit 0
fi

venv=.venv-$1
if [ ! -e "$venv/ready" ] || [ requirements-floor.lock -nt "$venv/ready" ] ||
    [ requirements.lock -nt "$venv/ready" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    if [ "$1" = floor ]; then set -- floor -r requirements-floor.lock
    else set -- newest -c requirements.lock jax optax numpy pytest; fi
    name=$1
    shift
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
    touch ".venv-$name/ready"
fi
"$venv/bin/python" - <<'PY'
import platform, jax, numpy, optax
print(f"Python {platform.python_version()}, jax {jax.__version__},"
      f" optax {optax.__version__}, numpy {numpy.__version__}")
PY
tests=
for law in against_reference chains contracts diagnostics equivalence errors larc layers \
    precision published recipe_optimizers recipes record schedules sharding transform \
    wrappers; do
    tests="$tests tests/test_$law.py"
done
# shellcheck disable=SC2086
"$venv/bin/python" -m pytest -p no:cacheprovider -o addopts="-q -rs --doctest-modules" \
    lars_optax $tests
