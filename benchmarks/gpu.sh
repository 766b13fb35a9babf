#!/usr/bin/env bash
# Everything that a GPU can tell, in two stages that each fit a short loan of one, and one before it.
#
#   benchmarks/gpu.sh prepare FOLDER     without a GPU, at the commit to be measured: compiles all kernels into FOLDER
#   benchmarks/gpu.sh check [FOLDER]     does it work: the tests, the demo, a DPS and a training step, tiles of kernels
#   benchmarks/gpu.sh measure [FOLDER]   what does it gain: steps, operators, a whole E-step, EM, ops, torch.compile
#
# Needs a python3 (or PYTHON) with torch >= 2.11 and triton >= 3.6, for `prepare` of the versions that the GPU's machine
# has. What else is missing is installed from the wheels in FOLDER, into an environment that goes away again. Kernels of
# another commit are refused before a second is spent. Writes a log of each part and a JSON line for each measurement, as
# they come, to OUT, or to benchmarks/results/gpu. The most wanted parts come first; one that fails or takes too long is
# named at the end, and the others go on.
#
# LIMIT: seconds for all parts. PARTS="step em": only these. CHECKED: these tests. DEVICE=cpu QUICK=1 rehearses.
set -u
cd "$(dirname "$0")/.." || exit 1
stage=${1:-} folder=${2:-}
if [ "$stage" != prepare ] && [ "$stage" != check ] && [ "$stage" != measure ] || [ "$stage$folder" = prepare ]; then
    echo "gpu.sh: expected prepare FOLDER, check or measure, got '$*'." >&2
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
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$OUT"
failed=() start=$SECONDS
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
configs=(examples/demo.yaml)
[ -e data/emoji32_train.npz ] && configs+=(benchmarks/rgb.yaml) # see there

if [ "$stage" = prepare ]; then # what Triton keeps for people to read is emptied: it is most of a cache
    export TRITON_CACHE_DIR=$scratch/kernels
    mkdir -p "$folder" && "$PYTHON" benchmarks/sweep.py compile "$one" --batch "$large" &&
        "$PYTHON" benchmarks/precompile.py "${all[@]}" "${configs[@]}" --batch "$training" "$large" "${batches[@]}" &&
        find "$TRITON_CACHE_DIR" -regex '.*\.\(ttir\|ttgir\|llir\|ptx\|source\)' -exec truncate -s 0 {} + &&
        tar cJf "$folder/kernels.txz" -C "$TRITON_CACHE_DIR" . && ls -l "$folder"
    exit
fi

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

if compgen -G "$folder/*.whl" >/dev/null; then # an environment that sees all of PYTHON's packages, and these besides
    "$PYTHON" -m venv --without-pip "$scratch/venv"
    parent=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    PYTHON=$scratch/venv/bin/python
    echo "$parent" >"$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
    part wheels 60 "$PYTHON" -m pip install --no-index --no-deps --no-compile "$folder"/*.whl
fi
if [ -e "$folder/kernels.txz" ]; then
    export TRITON_CACHE_DIR=$scratch/kernels
    mkdir -p "$TRITON_CACHE_DIR" && tar xJf "$folder/kernels.txz" -C "$TRITON_CACHE_DIR"
    "$PYTHON" -c "from pathlib import Path; from emfast.kernels import _manifest; _manifest.check(Path('$TRITON_CACHE_DIR'))" || exit 1
fi
backend=(-k "not cpp and not gpu")
[ "$DEVICE" = cuda ] && backend=(-k "not gpu" --backend triton)
native=("bf16 channels_last") ours=("emfast bf16") compiler="compile quickly bf16 channels_last"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}

if [ "$stage" = check ]; then
    part info 60 "$PYTHON" -m emfast info
    part precompile 60 "$PYTHON" benchmarks/precompile.py "$one" --batch "$training" "$large" --device "$DEVICE"
    # torch.compile fills its cache beside the tests: minutes of the CPUs, and none of these times are read.
    part compiling 280 "$PYTHON" benchmarks/e_step.py "$one" --batch "$large" \
        --training-batch "$training" --only "$compiler" --seconds 0.1 --device "$DEVICE" >"$OUT/compiling.txt" &
    tests tests 170 "${checked[@]}" "${backend[@]}" --ignore tests/ops/test_aot.py --ignore tests/ops/test_interpreter.py
    LINES_SHOWN=12 part demo 60 "$PYTHON" -m emfast train --config examples/demo.yaml --output "$scratch/demo" --device "$DEVICE" "${some[@]}"
    wait
    cat "$OUT/compiling.txt"
    # The steps behind it take the tiles that it finds faster.
    [ "$DEVICE" = cuda ] && LINES_SHOWN=40 part sweep 90 "$PYTHON" benchmarks/sweep.py measure "$one" --batch "$large" --save
    bench step 90 benchmarks/e_step.py "$one" --batch "$large" --training-batch "$training" --only fp32 "${native[@]}" \
        "graph bf16 channels_last" "$compiler" "emfast bf16" "graph emfast bf16" --seconds 1 --profile
    LINES_SHOWN=20 part search 40 "$PYTHON" benchmarks/e_step.py "$one" --batch "$large" --work dps \
        --only "graph emfast bf16" --search --seconds 1 --device "$DEVICE"
else
    part precompile 60 "$PYTHON" benchmarks/precompile.py "${all[@]}" --batch "$training" "$large" --device "$DEVICE"
    bench step 120 benchmarks/e_step.py "${all[@]}" --batch "$large" --training-batch "$training" \
        --only fp32 "${native[@]}" "graph bf16 channels_last" "${ours[@]}" "graph emfast bf16" --seconds 1 --profile
    [ -e data/emoji32_train.npz ] && LINES_SHOWN=12 part em 150 "$PYTHON" benchmarks/em.py --tasks rgb \
        --methods continuous "same images, clean" --runs "$scratch/em" --save
    for run in "$scratch"/em/*/*; do
        [ -e "$run/metrics.jsonl" ] && cp "$run/metrics.jsonl" "$OUT/em-$(basename "$run").jsonl"
    done
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
