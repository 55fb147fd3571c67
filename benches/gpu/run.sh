#!/usr/bin/env bash
# Checks and benchmarks reel on a GPU machine without Rust, FFmpeg and network. Run it in the folder that
# `./x gpu-bundle` makes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# Exported, because functions below run in child shells.
export OUT=${OUT:-$PWD/results} XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/reel-cache}
export REEL_TEST_BIN=$PWD/reel REEL_TEST_GOLDEN=$PWD/golden
models=${MODELS:-/tmp/reel-models} device=${DEVICE:-cuda}
mkdir -p "$OUT" "$models" || exit 1

# Decompress programs that the bundle contains as .gz files.
for program in instructions cuda_device; do
    [ -e "$program" ] || [ ! -e "$program.gz" ] && continue
    gzip -dc "$program.gz" >"$program.part" && chmod +x "$program.part" && mv "$program.part" "$program" || exit 1
done

help() {
    cat <<'TEXT'
./run.sh COMMAND        writes results to $OUT (default ./results) as they are measured

  check      compare every kernel with its formula, in parallel, seeds 0 to 3; run golden models and training steps (2 minutes)
  compare    compare every kernel with the simulator, and single PTX instructions bit by bit (5 minutes)
  models     make the models for bench and profile, with random weights (7b: 17 GB); bench and profile do this if needed
  bench      measure reel and its peers in the same run; print a table at the end (4 minutes)
  profile    measure where the time of a decode step and a training step goes: tables, pages, traces (2 minutes)

Environment: OUT, MODELS (model folder), PRESETS ("7b 3b"), REEL_CUDA (an installation of CUDA 13), JOBS (parallel processes, 7),
SECONDS_LEFT (time limit: bench 240, profile 120; what does not fit is skipped and named), PYTHON (for the peers, python3). To try
the script without a GPU: DEVICE=cpu TINY=1 PRESETS=tiny.
TEXT
}

# `step NAME LIMIT COMMAND...`: runs a command with a time limit in seconds, writes its output to $OUT/NAME, and prints
# one line of status.
step() {
    : >"$OUT/$1"
    item "$1" "$1" "${@:2}"
}

# `item WHAT NAME LIMIT COMMAND...`: runs a command as `step` does, but appends its output to $OUT/NAME.
item() {
    local what=$1 name=$2 limit=$3 begun=$SECONDS rc left=$((${until:-9999} - SECONDS))
    shift 3
    if [ "$left" -lt 3 ]; then
        printf '%-34s skipped: no time left\n' "$what"
        return 1
    fi
    timeout "$((limit < left ? limit : left))" "$@" >>"$OUT/$name" 2>"/tmp/reel-step.err.$$"
    rc=$?
    printf '%-34s rc %d, %d s\n' "$what" "$rc" "$((SECONDS - begun))"
    [ "$rc" = 124 ] && echo "  time limit exceeded"
    [ "$rc" = 0 ] || { head -c 400 "/tmp/reel-step.err.$$"; echo; }
    rm -f "/tmp/reel-step.err.$$"
    return "$rc"
}

# Checks the kernels of folder $1 with the options in $2...; prints JSON, with the output of failed checks.
folder() {
    local kernel=$1 said rc
    shift
    said=$(timeout 240 ./reel kernels check --device cuda --kernel "$kernel" --json "$@" 2>&1)
    rc=$?
    printf '{"folder":"%s","options":"%s","rc":%d}\n%s\n' "$kernel" "$*" "$rc" "$said"
    return "$rc"
}
export -f folder

# Checks all kernel folders, the slow ones first, with the options in $@.
folders() {
    local all slow='attention|rms_norm|paged_attention|layer_norm|patch_merge|skinny'
    all=$(cat folders)
    # The variables are expanded by the inner shell.
    # shellcheck disable=SC2016
    { grep -xE "$slow" <<<"$all"; grep -vxE "$slow" <<<"$all"; } |
        xargs -P "${JOBS:-7}" -I{} bash -c 'out=$(folder {} '"$*"'); rc=$?; printf "%s\n" "$out"; exit $rc'
}
export -f folders

# Prints failed checks of the files $@, each shortened to 300 characters.
failures() {
    grep -h '"ok":false\|"rc":[1-9]' "$@" | cut -c1-300
}

presets() { echo "${PRESETS:-7b 3b}"; }

# Makes the models for benchmarks with random weights, unless they exist.
make_models() {
    local preset
    for preset in $(presets); do
        [ -e "$models/$preset/config.json" ] && continue
        item "model $preset" models.txt 200 ./reel init --preset "$preset" --out "$models/$preset" --quiet || return 1
    done
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit,temperature.gpu --format=csv
    ./reel doctor
}
export -f machine

# Exits with an error if the device cannot be used.
need_device() {
    local said
    said=$(./reel bench op swiglu --size tokens=1 --size intermediate=1 --device "$device" --dtype bf16 --runs 1 2>&1) && return 0
    echo "$1: device $device cannot be used: $(tail -n 1 <<<"$said")"
    exit 1
}

# `op WHAT NAME SIZES...`: measures an op into ops.jsonl. A size is `key=value:tiny`, where `tiny` is used if TINY is
# set.
op() {
    local what=$1 name=$2 size sizes=()
    shift 2
    for size in "$@"; do
        if [ -n "${TINY:-}" ]; then sizes+=(--size "${size%%=*}=${size##*:}"); else sizes+=(--size "${size%:*}"); fi
    done
    item "$what" ops.jsonl 60 ./reel bench op "$name" "${sizes[@]}" --dtype bf16 --device "$device" --runs "${RUNS:-20}" --json
}

peers() {
    item "peers: $1" peers.jsonl "$2" "${PYTHON:-python3}" peers/torch_kernels.py --runs "${RUNS:-20}" --only "$3" --device "$device" ${TINY:+--tiny}
}

# `bench_model WHAT PRESET COMMAND OPTIONS...`: measures a model into models.jsonl.
bench_model() {
    local what=$1 preset=$2 command=$3
    shift 3
    item "$what" models.jsonl 90 ./reel bench "$command" --model "$models/$preset" --device "$device" --dtype bf16 --json "$@"
}

peer_model() {
    local preset=$1 what=$2
    shift 2
    item "peers: $what $preset" qwen.jsonl 90 "${PYTHON:-python3}" peers/qwen.py "$models/$preset" --what "$what" --device "$device" \
        --dtype bf16 --attention sdpa --rounds 3 "$@"
}

# Measures the seconds of a process that generates one token, with weight files in the page cache (`warm`) or not
# (`cold`).
first_token() {
    local files=$1 preset=$2 begun ended bytes rate=null
    bytes=$(cat "$models/$preset"/*.safetensors | wc -c)
    if [ "$files" = cold ]; then
        for file in "$models/$preset"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
        rate=$(disk_rate "$models/$preset")
        for file in "$models/$preset"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
    fi
    begun=$EPOCHREALTIME
    ./reel generate --model "$models/$preset" --prompt Hello --max-new-tokens 1 --device "$device" --dtype bf16 --json >/dev/null || return 1
    ended=$EPOCHREALTIME
    awk -v a="$begun" -v b="$ended" -v files="$files" -v preset="$preset" -v bytes="$bytes" -v rate="$rate" 'BEGIN {
        printf "{\"op\":\"first token\",\"model\":\"%s\",\"files\":\"%s\",\"seconds\":%.3f,\"bytes\":%d,\"disk_bytes_per_second\":%s}\n", preset, files, b - a, bytes, rate }'
}

# Measures bytes per second of reading up to 4 GB of a weight file without the page cache; null if direct I/O is not
# supported.
disk_rate() {
    local file begun ended bytes
    file=$(find "$1" -name '*.safetensors' | sort | head -n 1)
    begun=$EPOCHREALTIME
    bytes=$(dd if="$file" iflag=direct bs=16M count=256 status=none 2>/dev/null | wc -c)
    ended=$EPOCHREALTIME
    awk -v a="$begun" -v b="$ended" -v n="$bytes" 'BEGIN { if (n > 0 && b > a) printf "%.0f", n / (b - a); else printf "null" }'
}
export -f first_token disk_rate
export models device

bench() {
    local layer preset context=1024 prompt=4096 learned=8192 made=64
    [ -z "${TINY:-}" ] || { context=32 prompt=64 learned=64 made=4; }
    until=$((SECONDS + ${SECONDS_LEFT:-240}))
    rm -f "$OUT"/{ops,peers,models,qwen,cold}.jsonl
    step machine.txt 20 bash -c machine
    need_device bench
    # n and k of the linear layers of a 7B decoder: fused qkv, output, gate or up, down.
    for layer in "n=4608:256 k=3584:128" "n=3584:128 k=3584:128" "n=18944:192 k=3584:128" "n=3584:128 k=18944:192"; do
        op "products $layer" matmul m=8192:64 "${layer% *}" "${layer#* }"
    done
    peers products 30 products
    op "attention, 4096 tokens" attention tokens=4096:64 heads=28:4 kv_heads=4:2 head_dim=128:32 causal=1:1
    op "attention, 8192 tokens" attention tokens=8192:64 heads=28:4 kv_heads=4:2 head_dim=128:32 causal=1:1
    peers attention 30 attention
    op "rms_norm" rms_norm tokens=8192:64 hidden=3584:128
    op "swiglu" swiglu tokens=8192:64 intermediate=18944:192
    op "adamw" adamw count=67895296:24576
    peers "memory-bound" 50 copy,norms,pointwise,optimizer
    op "linear to log-prob, fused" linear_log_prob_fused tokens=8192:64 hidden=3584:128 vocab=152064:500
    op "linear to log-prob, products" linear_log_prob_products tokens=8192:64 hidden=3584:128 vocab=152064:500
    peers "linear to log-prob" 60 head
    make_models || return 1
    for preset in $(presets); do
        bench_model "decode $preset, $context before" "$preset" decode --context "$context" --tokens "$made" --rounds 5
        bench_model "prefill $preset, $prompt tokens" "$preset" prefill --tokens "$prompt" --rounds 5
    done
    preset=$(presets)
    preset=${preset%% *}
    bench_model "SFT step $preset, $learned tokens" "$preset" train --tokens "$learned" --rounds 3 --optim adamw-bf16
    item "first token, files cached" cold.jsonl 60 bash -c "first_token warm $preset >/dev/null && first_token warm $preset"
    item "first token, files cold" cold.jsonl 90 bash -c "first_token cold $preset"
    for preset in $(presets); do
        peer_model "$preset" decode,prefill --context "$context" --prompt-tokens "$prompt" --tokens "$made"
    done
    preset=$(presets)
    peer_model "${preset%% *}" train --train-tokens "$learned"
    "${PYTHON:-python3}" table.py "$OUT" | tee "$OUT/table.txt"
}

profile() {
    local preset context=1024 learned=8192 device_options=(--device "$device" --dtype bf16 --json)
    [ -z "${TINY:-}" ] || { context=32 learned=64; }
    until=$((SECONDS + ${SECONDS_LEFT:-120}))
    need_device profile
    make_models || return 1
    preset=$(presets)
    preset=$models/${preset%% *}
    step decode.json 60 ./reel bench decode --model "$preset" --context "$context" --tokens 8 --rounds 3 "${device_options[@]}" \
        --html "$OUT/decode.html" --trace "$OUT/decode-trace.json"
    step train.json 90 ./reel bench train --model "$preset" --tokens "$learned" --rounds 3 --optim adamw-bf16 "${device_options[@]}" \
        --html "$OUT/train.html" --trace "$OUT/train-trace.json"
}

case ${1:-help} in
check)
    step machine.txt 20 bash -c machine
    need_device check
    step goldens.txt 100 ./cuda_device the_gpus --nocapture
    step check.jsonl 110 bash -c folders
    for seed in 1 2 3; do step "check-$seed.jsonl" 60 bash -c "folders --seed $seed"; done
    failures "$OUT"/check*.jsonl
    ;;
compare)
    need_device compare
    step instructions.jsonl 120 ./instructions
    step compare.jsonl 280 bash -c 'folders --compare'
    failures "$OUT/compare.jsonl"
    ;;
models) make_models ;;
bench) bench ;;
profile) profile ;;
help | --help | -h) help ;;
*)
    echo "error: $1: unknown command; ./run.sh help lists all commands" >&2
    exit 2
    ;;
esac
