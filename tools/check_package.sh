#!/bin/sh
# check_package.sh: checks what a release consists of. It builds the wheel and the source
# distribution, checks them and CITATION.cff, and installs the wheel in bare environments
# of Python 3.11 and 3.13. There it runs the code of the README, outside of this folder.
# It names each of these two Pythons that it does not find.
set -eu
cd "$(dirname "$0")/.."
. tools/locked_venv.sh
locked_venv package 11 13 "python3.13 python3.12 python3.11 python3" requirements-package.lock
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m build --no-isolation --outdir "$folder" . >"$folder/build.log" 2>&1 ||
    { cat "$folder/build.log"; exit 1; }
"$python" -m twine check --strict "$folder"/*.whl "$folder"/*.tar.gz
.venv-package/bin/cffconvert --validate
grep -qx "version: $(sed -n 's/^__version__ = "\(.*\)"$/\1/p' lars_optax/__init__.py)" \
    CITATION.cff || { echo "CITATION.cff has another version than lars_optax" >&2; exit 1; }
sed -n '/^```python$/,/^```$/p' README.md | grep -v '^```' >"$folder/readme.py"
for minor in 11 13; do
    if ! base=$(find_python "$minor" "$minor" "python3.$minor" python3); then
        echo "skipped Python 3.$minor, which was not found"
        continue
    fi
    "$base" -m venv "$folder/$minor"
    "$folder/$minor/bin/python" -m pip install -qq --disable-pip-version-check "$folder"/*.whl
    (cd "$folder" && "$folder/$minor/bin/python" -W error readme.py)
    echo "Python 3.$minor: the wheel is installed, and the code of the README runs"
done
