#!/usr/bin/env bash
# Checks and measures reel on a GPU machine that has neither Rust nor FFmpeg nor a network: run it from the folder that `./x gpu-bundle` made.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# `export` and not only `set`: the functions below run in other shells.
export OUT=${OUT:-$PWD/results} XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/reel-cache}
export REEL_TEST_BIN=$PWD/reel REEL_TEST_GOLDEN=$PWD/golden
models=${MODELS:-/tmp/reel-models} device=${DEVICE:-cuda}
mkdir -p "$OUT" "$models" || exit 1

# Programs that travel compressed.
for program in instructions cuda_device; do
    [ -e "$program" ] || [ ! -e "$program.gz" ] && continue
    gzip -dc "$program.gz" >"$program.part" && chmod +x "$program.part" && mv "$program.part" "$program" || exit 1
done

help() {
    cat <<'TEXT'
./run.sh COMMAND        results go to $OUT (./results), each as soon as it is there

  check      every kernel against its formula, in parallel, seeds 0 to 3; the golden models and training steps on the GPU (2 minutes)
  compare    every kernel against the simulator, and single PTX instructions bit by bit (5 minutes)
  models     makes the models that bench and profile measure, with random weights (7b: 17 GB); they do it too where there are none
  bench      an item for each row of the table at the end, and the peer's in the same run; ends with that table (4 minutes)
  profile    where the time of a decode step and of a training step goes: tables, pages, time lines (2 minutes)

Environment: OUT, MODELS (folder for made models), PRESETS ("7b 3b"), REEL_CUDA (an installation of CUDA 13), JOBS (processes at a time,
7), SECONDS_LEFT (for bench 240, for profile 120: what does not fit is left out and named), PYTHON (of the peers, python3); to try the
script without a GPU: DEVICE=cpu TINY=1 PRESETS=tiny.
TEXT
}

# `step NAME LIMIT COMMAND...`: a command with a time limit; its output in $OUT/NAME, one line on how it went.
step() {
    : >"$OUT/$1"
    item "$1" "$1" "${@:2}"
}

# `item WHAT NAME LIMIT COMMAND...`: the same, added to what $OUT/NAME has.
item() {
    local what=$1 name=$2 limit=$3 begun=$SECONDS rc left=$((${until:-9999} - SECONDS))
    shift 3
    if [ "$left" -lt 3 ]; then
        printf '%-34s left out: no time\n' "$what"
        return 1
    fi
    timeout "$((limit < left ? limit : left))" "$@" >>"$OUT/$name" 2>"/tmp/reel-step.err.$$"
    rc=$?
    printf '%-34s rc %d, %d s\n' "$what" "$rc" "$((SECONDS - begun))"
    [ "$rc" = 124 ] && echo "  longer than its limit"
    [ "$rc" = 0 ] || { head -c 400 "/tmp/reel-step.err.$$"; echo; }
    rm -f "/tmp/reel-step.err.$$"
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
    # The inner shell is to expand it.
    # shellcheck disable=SC2016
    { grep -xE "$slow" <<<"$all"; grep -vxE "$slow" <<<"$all"; } |
        xargs -P "${JOBS:-7}" -I{} bash -c 'out=$(folder {} '"$*"'); rc=$?; printf "%s\n" "$out"; exit $rc'
}
export -f folders

# What failed in the checks of the files $@, in few words.
failures() {
    grep -h '"ok":false\|"rc":[1-9]' "$@" | cut -c1-300
}

presets() { echo "${PRESETS:-7b 3b}"; }

# The models that are measured, with random weights; names those that are there.
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

# Ends with one line where there is nothing to measure on.
need_device() {
    local said
    said=$(./reel bench op swiglu --size tokens=1 --size intermediate=1 --device "$device" --dtype bf16 --runs 1 2>&1) && return 0
    echo "$1: nothing can be measured on $device: $(tail -n 1 <<<"$said")"
    exit 1
}

# `op WHAT NAME SIZES...`: a line of ops.jsonl; a size is `key=value` at full size, `:value` what it is when the script is tried.
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

# `bench_model WHAT PRESET COMMAND OPTIONS...`: a line of models.jsonl.
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

# Seconds from the start of the process to its end with one token made, and how the weights' files lay before it.
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

# Bytes a second of reading one of a folder's files past the page cache, up to 4 GB of it; null where the file system refuses.
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
    # n and k of the linear layers of a 7B decoder: q, k and v together, output, gate or up, down.
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
    echo "error: $1: no such command; ./run.sh help lists them" >&2
    exit 2
    ;;
esac
