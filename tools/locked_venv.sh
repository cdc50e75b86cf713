#!/bin/sh
# Defines locked_venv; source this file in the root of the repository to use it.
# locked_venv NAME LOWEST HIGHEST PYTHONS LOCK [PACKAGE…]: makes the virtual environment
# .venv-NAME with the versions in the file LOCK, and sets $python to its Python. It adds
# each PACKAGE without its dependencies, in the version of requirements-cuda.lock. An
# environment that is newer than these files is kept. If no command in the list PYTHONS is
# a Python from 3.LOWEST to 3.HIGHEST, it says so and ends the script with success.
. tools/find_python.sh

locked_venv() {
    venv=.venv-$1 pythons=$4 lock=$5
    # shellcheck disable=SC2086
    if ! base=$(find_python "$2" "$3" $pythons); then
        echo "skipped, because no Python 3.$2 or 3.$3 with the venv module was found on the" \
            "PATH or in pyenv; install one to run this"
        exit 0
    fi
    shift 5
    python=$venv/bin/python
    if [ -e "$venv/ready" ] && [ -z "$(find "$lock" requirements-cuda.lock \
        tools/locked_venv.sh -newer "$venv/ready")" ]; then return; fi
    rm -rf "$venv"
    "$base" -m venv "$venv"
    "$python" -m pip install -qq --disable-pip-version-check -r "$lock"
    for package; do
        grep "^$package==" requirements-cuda.lock >"$venv/package"
        "$python" -m pip install -qq --disable-pip-version-check --no-deps \
            -r "$venv/package"
    done
    touch "$venv/ready"
}
