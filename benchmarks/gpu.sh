#!/usr/bin/env bash
# Everything that a GPU can tell, in under 10 minutes: tests, op benchmarks, whole steps, memory, profiles.
#
#   benchmarks/gpu.sh [WHEELS]
#
# Needs a python3 (or PYTHON) with torch >= 2.11 and triton >= 3.6; what else is missing is installed from WHEELS, a
# folder of .whl files, into an environment that goes away again. Kernels compiled before are found through
# TRITON_CACHE_DIR (emfast precompile). Writes logs, ops.jsonl, e_step.jsonl and table.md to OUT, or to
# benchmarks/results/gpu. A part that fails or takes too long is named at the end, and the others go on.
# DEVICE=cpu QUICK=1 rehearses it.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-570} # seconds for all parts
PROCESSES=$(($(nproc) < 8 ? $(nproc) : 8)) # of the tests
export OUT=${OUT:-$PWD/benchmarks/results/gpu}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # what the tests' deterministic mode asks for
mkdir -p "$OUT"
failed=() start=$SECONDS

# part NAME SECONDS COMMAND...: runs a command under a time limit, its output in OUT/NAME.log.
part() {
    local name=$1 seconds=$2 rc=0 begin=$SECONDS
    shift 2
    local left=$((LIMIT - SECONDS + start))
    if [ "$left" -lt 5 ]; then
        failed+=("$name: no time left")
        return 1
    fi
    timeout -k 5 "$((seconds < left ? seconds : left))" "$@" >"$OUT/$name.log" 2>&1 || rc=$?
    [ "$rc" -ne 0 ] && failed+=("$name: exit status $rc after $((SECONDS - begin)) s")
    echo "--- $name: status $rc, $((SECONDS - begin)) s"
    tail -n "${LINES_SHOWN:-3}" "$OUT/$name.log"
    return "$rc"
}

bench() { # NAME SECONDS SCRIPT ARGUMENTS...: a benchmark; all lines of its log are worth reading
    local name=$1 seconds=$2
    shift 2
    LINES_SHOWN=60 part "$name" "$seconds" "$PYTHON" "$@" --device "$DEVICE" --save
}

tests() { # NAME SECONDS FILES...: in several processes, since most of the time goes to compiling kernels
    local name=$1 seconds=$2
    shift 2
    LINES_SHOWN=15 part "$name" "$seconds" "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider -n "$PROCESSES" \
        --dist worksteal --device "$DEVICE" "$@"
}

if [ $# -gt 0 ]; then # an environment that sees all of PYTHON's packages and has the missing ones besides
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m venv --without-pip "$site"
    parent=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    PYTHON=$site/bin/python
    echo "$parent" >"$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
    part wheels 60 "$PYTHON" -m pip install --no-index --find-links "$1" diffusers accelerate safetensors \
        "jsonargparse[signatures]" rich torchmetrics matplotlib pillow pytest pytest-xdist hypothesis
fi
part info 60 "$PYTHON" -m emfast info
if [ -n "${QUICK:-}" ]; then
    few=(--seconds 0.1) networks=(small-64) batches=(2) large=2 training=2 ops=(mask_misfit) quick=(tests/ops/test_mask_misfit.py)
else
    few=(--seconds 0.2) networks=(cifar-8 cifar-256) batches=(64 256) large=256 training=128 ops=() quick=(tests/ops)
fi
ours=("bf16 channels_last" "emfast fp32" "emfast bf16")

part precompile 90 "$PYTHON" benchmarks/precompile.py "${networks[@]}" --batch "${batches[@]}" --device "$DEVICE"
tests tests-ops 150 "${quick[@]}" --ignore tests/ops/test_aot.py --ignore tests/ops/test_interpreter.py -k "not cpp"
bench step 90 benchmarks/e_step.py "${networks[@]}" --batch "${batches[@]}" --work dps --only "${ours[@]}" --seconds 1 --profile
bench ops 90 benchmarks/run.py "${ops[@]}" --untested --only native emfast "${few[@]}"
tests tests-graph 60 tests/test_graph.py
tests tests-samplers 60 tests/samplers/test_samplers.py -k "contract or batch"
tests tests-adapters 60 tests/adapters -k "test_contract and not gpu"
bench train 60 benchmarks/e_step.py "${networks[@]}" --batch "$training" --work train --only "${ours[@]}" --seconds 1
if command -v compute-sanitizer >/dev/null && [ "$DEVICE" = cuda ]; then
    part sanitizer 60 compute-sanitizer --error-exitcode 9 --target-processes all "$PYTHON" -m pytest -q -p no:cacheprovider --device cuda \
        tests/ops/test_mask_misfit.py tests/ops/test_normal.py -k "triton and not compile"
fi
bench compiled 240 benchmarks/e_step.py "${networks[0]}" --batch "$large" --work dps train \
    --only "compile bf16 channels_last" "emfast bf16" --seconds 1
LIMIT=$((LIMIT + 20)) part table 20 "$PYTHON" benchmarks/run.py --table "$OUT/table.md"

echo "--- $((SECONDS - start)) s; $OUT"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
