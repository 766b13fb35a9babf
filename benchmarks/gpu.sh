#!/usr/bin/env bash
# Everything that a GPU can tell, in two stages that each fit a short loan of one.
#
#   benchmarks/gpu.sh check [WHEELS]     does it work: the tests, the demo, a DPS and a training step, tiles of kernels
#   benchmarks/gpu.sh measure [WHEELS]   what does it gain: steps, operators, a whole E-step, EM, ops, torch.compile
#
# Needs a python3 (or PYTHON) with torch >= 2.11 and triton >= 3.6; what else is missing is installed from WHEELS, a
# folder of .whl files, into an environment that goes away again. Kernels compiled before are found through
# TRITON_CACHE_DIR (emfast precompile). Writes a log of each part and a JSON line for each measurement, as they come, to
# OUT, or to benchmarks/results/gpu. The most wanted parts come first; one that fails or takes too long is named at the
# end, and the others go on. LIMIT: seconds for all parts. PARTS="step train": only these; CHECKED: these tests. DEVICE=cpu QUICK=1 rehearses.
set -u
cd "$(dirname "$0")/.." || exit 1
stage=${1:-}
if [ "$stage" != check ] && [ "$stage" != measure ]; then
    echo "gpu.sh: expected check or measure, got '$stage'." >&2
    exit 2
fi
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
LIMIT=${LIMIT:-$([ "$stage" = check ] && echo 240 || echo 420)}
PARTS=${PARTS:-}
PROCESSES=$(($(nproc) < 16 ? $(nproc) : 16)) # of the tests
export OUT=${OUT:-$PWD/benchmarks/results/gpu}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # what the tests' deterministic mode asks for
mkdir -p "$OUT"
failed=() start=$SECONDS

# part NAME SECONDS COMMAND...: runs a command under a time limit, its output in OUT/STAGE-NAME.log.
part() {
    local name=$1 seconds=$2 rc=0 begin=$SECONDS log=$OUT/$stage-$1.log
    shift 2
    [ -n "$PARTS" ] && [[ " $PARTS wheels " != *" $name "* ]] && return 0
    local left=$((LIMIT - SECONDS + start))
    if [ "$left" -lt 5 ]; then
        failed+=("$name: no time left")
        return 1
    fi
    timeout -k 5 "$((seconds < left ? seconds : left))" "$@" >"$log" 2>&1 || rc=$?
    [ "$rc" -ne 0 ] && failed+=("$name: exit status $rc after $((SECONDS - begin)) s")
    echo "--- $name: status $rc, $((SECONDS - begin)) s"
    grep -v -e USDT: -e "kept in float32" "$log" | tail -n "${LINES_SHOWN:-3}"
    return "$rc"
}

bench() { # NAME SECONDS SCRIPT ARGUMENTS...: a benchmark; all lines of its log are worth reading
    local name=$1 seconds=$2
    shift 2
    LINES_SHOWN=40 part "$name" "$seconds" "$PYTHON" "$@" --device "$DEVICE" --save
}

tests() { # NAME SECONDS FILES...: in several processes, since most of the time goes to compiling kernels; each test has
    # a line of its own as it ends, so that a run that is cut off names its failures too
    local name=$1 seconds=$2
    shift 2
    OMP_NUM_THREADS=1 LINES_SHOWN=40 part "$name" "$seconds" "$PYTHON" -m pytest -vv --tb=short -p no:cacheprovider -n "$PROCESSES" \
        --durations 8 --dist worksteal --device "$DEVICE" "$@"
}

if [ $# -gt 1 ]; then # an environment that sees all of PYTHON's packages and has the missing ones besides
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m venv --without-pip "$site"
    parent=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    PYTHON=$site/bin/python
    echo "$parent" >"$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
    part wheels 60 "$PYTHON" -m pip install --no-index --no-deps --no-compile "$2"/*.whl
fi
if [ -n "${QUICK:-}" ]; then
    few=(--seconds 0.1) all=(small-64) one=small-64 large=2 training=2 batches=(2) images=8 ops=(mask_misfit) some=(--rounds 1
        --m_step.initial_steps 2 --m_step.steps 2 --evaluation.samples 2 --data.limit 64) checked=(tests/ops/test_mask_misfit.py
        tests/test_graph.py tests/adapters/test_diffusers.py)
else
    few=(--seconds 0.1) all=(cifar-8 cifar-256) one=cifar-8 large=256 training=128 batches=(4 64) images=5000 ops=() some=()
    checked=(tests/ops/test_{attention,blur,separable_blur,normal,mask_misfit,sampler_update,residual_sum}.py tests/ops/test_group_norm*.py
        tests/test_graph.py tests/samplers tests/em tests/adapters tests/nn)
fi
[ -n "${CHECKED:-}" ] && read -ra checked <<<"$CHECKED"
backend=(-k "not cpp and not gpu")
[ "$DEVICE" = cuda ] && backend=(-k "not gpu" --backend triton)
native=("bf16 channels_last") ours=("emfast bf16") compiler="compile quickly bf16 channels_last"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$OUT/inductor}

if [ "$stage" = check ]; then
    part info 60 "$PYTHON" -m emfast info
    part precompile 60 "$PYTHON" benchmarks/precompile.py "$one" --batch "$training" "$large" --device "$DEVICE"
    # torch.compile fills its cache beside the tests: minutes of the CPUs, and none of these times are read.
    PARTS=${PARTS:+$PARTS compiling} part compiling 280 "$PYTHON" benchmarks/e_step.py "$one" --batch "$large" \
        --training-batch "$training" --only "$compiler" --seconds 0.1 --device "$DEVICE" >"$OUT/compiling.txt" &
    tests tests 170 "${checked[@]}" "${backend[@]}" --ignore tests/ops/test_aot.py --ignore tests/ops/test_interpreter.py
    LINES_SHOWN=12 part demo 60 "$PYTHON" -m emfast train --config examples/demo.yaml --output "$(mktemp -d)" --device "$DEVICE" "${some[@]}"
    wait
    cat "$OUT/compiling.txt"
    bench step 90 benchmarks/e_step.py "$one" --batch "$large" --training-batch "$training" --only fp32 "${native[@]}" \
        "graph bf16 channels_last" "$compiler" "emfast bf16" "graph emfast bf16" --seconds 1 --profile
    LINES_SHOWN=20 part search 40 "$PYTHON" benchmarks/e_step.py "$one" --batch "$large" --work dps \
        --only "graph emfast bf16" --search --seconds 1 --device "$DEVICE"
    [ "$DEVICE" = cuda ] && LINES_SHOWN=40 part sweep 90 "$PYTHON" benchmarks/sweep.py measure "$one" --batch "$large" --save
else
    part precompile 60 "$PYTHON" benchmarks/precompile.py "${all[@]}" --batch "$training" "$large" --device "$DEVICE"
    bench step 120 benchmarks/e_step.py "${all[@]}" --batch "$large" --training-batch "$training" \
        --only fp32 "${native[@]}" "graph bf16 channels_last" "${ours[@]}" "graph emfast bf16" --seconds 1 --profile
    [ -e data/emoji32_train.npz ] && LINES_SHOWN=12 part em 150 "$PYTHON" benchmarks/em.py --tasks rgb \
        --methods continuous "same images, clean" --runs "${RUNS:-$(mktemp -d)}" --save
    bench operators 40 benchmarks/operators.py "$one" --batch "$large"
    bench e-step 60 benchmarks/whole_e_step.py "$one" --batch "$large" --images "$images"
    bench small 60 benchmarks/e_step.py "${all[@]}" --batch "${batches[@]}" --work dps \
        --only fp32 "${native[@]}" "graph bf16 channels_last" "emfast bf16" --seconds 0.5
    bench ops 90 benchmarks/run.py "${ops[@]}" --untested --only native emfast "${few[@]}"
    bench compiled 300 benchmarks/e_step.py "${all[@]}" --batch "$large" --training-batch "$training" \
        --only "$compiler" "graph emfast bf16" --seconds 1 --profile
    bench autotuned 400 benchmarks/e_step.py "$one" --batch "$large" --work dps \
        --only "compile bf16 channels_last" "emfast bf16" --seconds 1 --profile
    if command -v compute-sanitizer >/dev/null && [ "$DEVICE" = cuda ]; then
        part sanitizer 60 compute-sanitizer --error-exitcode 9 --target-processes all "$PYTHON" -m pytest -q -p no:cacheprovider \
            --device cuda tests/ops/test_mask_misfit.py tests/ops/test_normal.py -k "triton and not compile"
    fi
fi
[ -s "$OUT/ops.jsonl" ] && LIMIT=$((LIMIT + 20)) part table 20 "$PYTHON" benchmarks/run.py --table "$OUT/table.md"

echo "--- $stage: $((SECONDS - start)) s; $OUT"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
