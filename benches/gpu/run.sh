#!/usr/bin/env bash
# Checks and measures reel on a GPU machine that has neither Rust nor FFmpeg nor a network: run it from the folder that `./x gpu-bundle` made.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# `export` and not only `set`: the functions below run in other shells.
export OUT=${OUT:-$PWD/results} XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/reel-cache}
export REEL_TEST_BIN=$PWD/reel REEL_TEST_GOLDEN=$PWD/golden
models=${MODELS:-/tmp/reel-models}
mkdir -p "$OUT" "$models"

help() {
    cat <<'TEXT'
./run.sh COMMAND        results go to $OUT (./results), each as soon as it is there

  check      every kernel against its formula, in parallel, seeds 0 to 3; the golden models and a training step on the GPU (2 minutes)
  compare    every kernel against the simulator, and single PTX instructions bit by bit (5 minutes)
  bench      kernels, prefill and decode of models made here, and the peers in the same run (4 minutes)
  profile    where the time of a decode step goes (2 minutes)

Environment: OUT, MODELS (folder for made models), PRESETS ("3b 7b"), REEL_CUDA (an installation of CUDA 13), JOBS (processes at a time, 7).
TEXT
}

# `step NAME LIMIT COMMAND...`: a command with a time limit; its output in $OUT/NAME, one line on how it went.
step() {
    local name=$1 limit=$2 begun=$SECONDS rc
    shift 2
    timeout "$limit" "$@" >"$OUT/$name" 2>"/tmp/reel-step.err"
    rc=$?
    printf '%-24s rc %d, %d s\n' "$name" "$rc" "$((SECONDS - begun))"
    [ "$rc" = 0 ] || head -c 400 /tmp/reel-step.err
    return "$rc"
}

# One folder's checks, as JSON, with what they said if they failed. `$1`: folder, others: options.
folder() {
    local kernel=$1 said rc
    shift
    said=$(timeout 240 ./reel kernels check --device cuda --kernel "$kernel" --json "$@" 2>&1)
    rc=$?
    printf '{"folder":"%s","options":"%s","rc":%d}\n%s\n' "$kernel" "$*" "$rc" "$said"
    return "$rc"
}
export -f folder

# All folders, the slow ones first. `$@`: options.
folders() {
    local all slow='attention|rms_norm|paged_attention|layer_norm|merger_norm|skinny'
    all=$(cat folders)
    { grep -xE "$slow" <<<"$all"; grep -vxE "$slow" <<<"$all"; } |
        xargs -P "${JOBS:-7}" -I{} bash -c 'out=$(folder {} '"$*"'); rc=$?; printf "%s\n" "$out"; exit $rc'
}
export -f folders

# The models that are measured, with random weights.
make_models() {
    local preset
    for preset in ${PRESETS:-3b 7b}; do
        [ -e "$models/$preset/config.json" ] || ./reel init --preset "$preset" --out "$models/$preset" --quiet >&2 || return 1
    done
}

measure() {
    local preset
    for preset in ${PRESETS:-3b 7b}; do
        ./reel bench decode --model "$models/$preset" --device cuda --context 1024 --tokens 64 --rounds 5 --json
        ./reel bench prefill --model "$models/$preset" --device cuda --tokens 4096 --rounds 5 --json
    done
}
export -f measure
export models

machine() {
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit,temperature.gpu --format=csv
    ./reel doctor
}
export -f machine

case ${1:-help} in
check)
    step machine.txt 20 bash -c machine
    step goldens.txt 100 ./cuda_device --nocapture
    step check.jsonl 110 bash -c folders
    for seed in 1 2 3; do step "check-$seed.jsonl" 60 bash -c "folders --seed $seed"; done
    grep -h '"ok":false\|"rc":[1-9]' "$OUT"/check*.jsonl | cut -c1-300
    ;;
compare)
    step instructions.jsonl 120 ./instructions
    step compare.jsonl 280 bash -c 'folders --compare'
    grep -h '"ok":false\|"rc":[1-9]' "$OUT/compare.jsonl" | cut -c1-300
    ;;
bench)
    step machine.txt 20 bash -c machine
    step kernels.json 100 ./reel kernels bench --device cuda --json
    step peers.jsonl 60 python3 peers/kernels.py 30
    step models.txt 120 bash -c "$(declare -f make_models); make_models"
    step models.jsonl 200 bash -c measure
    ;;
profile)
    make_models || exit 1
    preset=${PRESETS:-3b}
    step profile.json 100 ./reel bench decode --model "$models/${preset%% *}" --device cuda --context 1024 --tokens 8 --rounds 2 --json --trace "$OUT/trace.json"
    ;;
*) help ;;
esac
