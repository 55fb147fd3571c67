#!/usr/bin/env bash
# Checks and benchmarks reel on a GPU machine without Rust, FFmpeg and network. Run it in the folder that
# `./x gpu-bundle` makes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
# Exported, because functions below run in child shells.
export OUT=${OUT:-$PWD/results} XDG_CACHE_HOME=${XDG_CACHE_HOME:-/tmp/reel-cache}
export REEL_TEST_BIN=$PWD/reel REEL_TEST_GOLDEN=$PWD/golden
memory=/tmp
[ ! -w /dev/shm ] || memory=/dev/shm
models=${MODELS:-$memory/reel-models} device=${DEVICE:-cuda} python=${PYTHON:-python3}
raw=${RAW:-/tmp/reel-raw}
# In the order of importance: a call that ends early leaves out the last ones, and a second call goes on there. Seconds
# of each phase on an H200 with 16 cores, without peers + for peers, estimated from the times of 2026-11-27 (an item of
# `bench op` 2 to 4 s, of a 7B model 4 to 7 s, torch 20 s, transformers 27 s); phases of newer kernels are guesses:
#   machine 6, init 0 (24 beside the next two), hopper 66, drift 15, kernels 75+40, products 30+10, models 65+60,
#   training 16+20, tune 190, step 20, rollouts 30, check 20, video 30, profile 15, counters 200, sanitizer 5, seeds 45, compare 100
# So two calls on one machine, of 540 and of 300 s: `PEERS=0 SECONDS_LEFT=540 ./run.sh all` reaches `rollouts`, and
# `SECONDS_LEFT=300 ./run.sh all` then takes the peers and the rest up to `profile`.
phases=(machine init hopper drift kernels products models training tune step rollouts check video profile counters sanitizer seeds compare)

help() {
    cat <<'TEXT'
./run.sh all            runs every phase, the riskiest first, until SECONDS_LEFT are over; called again, it goes on where it stopped
./run.sh PHASE...       runs these phases only, in the same way:
  machine     describe the machine; exit at once if the device cannot be used
  init        begin to make models of the published sizes 3b and 7b with random weights, which later phases use
  hopper      compare the kernels of the four folders with code for Hopper with their formulas, and over many tiles, and what
              plans assume (resident blocks, tensor copies) with the GPU
  drift       run a GRPO step of 3b, and check that training and decoding compute equal log-probabilities
  check       compare the kernels of all other folders with their formulas, in parallel, seed 0
  step        run golden models and training steps through the whole device, in f32 and in bf16
  kernels     time kernels, beside torch's; attention again after torch
  products    time matrix products, reel's in turns with cuBLASLt's, beside torch's
  models      time decode, prefill, rollouts and the first token, beside transformers
  training    time SFT steps, with and without recomputation, beside transformers
  rollouts    time GRPO steps of all models, with the check of `drift`
  video       compare frames of H.264 and HEVC that the GPU decodes (--decoder nvdec) with the CPU's to the bit, and time both, if the
              machine has FFmpeg's libraries with NVDEC
  profile     measure where the time of a decode step and a training step goes: pages and traces
  tune        time the compiled-in variants of kernels, and print the fastest by shape
  counters    read the GPU's counters of the ten kernels that matter, if NVIDIA's ncu is installed
  sanitizer   run a training step of the tiny model under compute-sanitizer, if it is installed
  seeds       compare every kernel with its formula, seeds 1 to 3
  compare     compare every kernel with the simulator, and single PTX instructions bit by bit

At the end it writes to $OUT (default ./results) all.json, table.txt (reel beside its peers), failures.txt, and raw.tar.gz with all that
was printed, and prints the table and the failed items by name. Exit status: 0 all is done, 1 an item failed, 3 none failed and some
are not done yet. An item that ended is not repeated; RETRY=1 repeats the failed ones of these phases,
FRESH=1 repeats all.

Environment: OUT, MODELS (model folder), RAW (scratch folder), RESUME (raw.tar.gz of an earlier call on another machine), PRESETS ("7b
3b"), REEL_CUDA (an installation of CUDA 13; by default the packages of python3), JOBS (parallel processes, 7), SECONDS_LEFT (limit of
this call, 560), PEERS=0 (leave torch and transformers out of this call), PYTHON (for the peers and the table, python3), PROTOTYPES
(folder of programs that are run between two turns of attention). To try the script without a GPU: DEVICE=cpu TINY=1 PRESETS=tiny; with
ONE=1 it runs the first item of each phase only.
TEXT
}

# Unpacks the programs of the bundle, with Python if the machine has no xz. `reel` is moved last: if it is there, all are.
unpack() {
    [ -e programs.tar.xz ] && [ ! -e reel ] || return 0
    local program
    rm -rf programs.part && mkdir programs.part || exit 1
    decompressed programs.tar.xz | tar -x -C programs.part || exit 1
    for program in instructions cuda_device video_decoders reel; do
        mv "programs.part/$program" "$program" || exit 1
    done
    rmdir programs.part
}

# Writes the content of an .xz file to stdout.
decompressed() {
    if command -v xz >/dev/null; then
        xz -dc "$1"
    else
        "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"
    fi
}

# Lets reel search python3's packages for NVRTC and cuBLASLt, if no variable names a CUDA installation and /usr/local
# has none.
find_cuda() {
    [ -z "${REEL_CUDA:-}${CUDA_HOME:-}${CUDA_PATH:-}" ] || return 0
    compgen -G '/usr/local/cuda*/lib64/libcublasLt.so.13' >/dev/null && return 0
    local prefix
    prefix=$("$python" -c 'import sys; print(sys.prefix)' 2>/dev/null) || return 0
    compgen -G "$prefix/lib/python3*/site-packages/nvidia/cu13/lib/libcublasLt.so.13" >/dev/null && export REEL_CUDA=$prefix
    return 0
}

# `note NAME FILE RC SECONDS ERROR`: records that an item ended.
note() {
    local error
    error=$(head -c 300 <<<"$5" | tr -d '"\\\000-\011\013-\037' | tr '\n' ' ')
    printf '{"item":"%s","phase":"%s","file":"%s","rc":%d,"seconds":%d,"error":"%s"}\n' "$1" "$phase" "$2" "$3" "$4" "$error" >>"$raw/status.jsonl"
}

# `item NAME FILE LIMIT COMMAND...`: runs a command with a time limit in seconds, appends its output to $raw/FILE when
# it has ended, and prints one line of status. An item that ended before is not repeated. An item for which less than
# its limit is left, and that does not end in what is left, is not done.
item() {
    local name=$1 file=$2 limit=$3 begun=$SECONDS rc left=$((until - SECONDS)) said
    shift 3
    grep -qF "{\"item\":\"$name\"," "$raw/status.jsonl" && return 0
    [ -z "${ONE:-}" ] || ! grep -qF "\"phase\":\"$phase\"" "$raw/status.jsonl" || return 0
    if [ "$left" -lt 5 ] || [ "$((3 * left))" -lt "$limit" ]; then
        undone+=("$name")
        return 0
    fi
    timeout -k 5 "$((limit < left ? limit : left))" "$@" >"$raw/part" 2>"$raw/errors"
    rc=$?
    if [ "$rc" = 124 ] || [ "$rc" = 137 ]; then
        if [ "$left" -lt "$limit" ]; then
            undone+=("$name")
            return 0
        fi
        said="time limit of $limit s exceeded; $(tail -n 1 "$raw/errors")"
    else
        said=$(grep -m 1 . "$raw/errors")
    fi
    cat "$raw/part" >>"$raw/$file"
    [ "$rc" = 0 ] || cat "$raw/errors" >>"$raw/errors.txt"
    [ "$rc" != 0 ] || said=
    note "$name" "$file" "$rc" "$((SECONDS - begun))" "$said"
    printf '%-44s rc %d, %d s%s\n' "$name" "$rc" "$((SECONDS - begun))" "${said:+: ${said:0:200}}"
    return 0
}

# Records that an item cannot be done on this machine; that is no failure.
absent() {
    grep -qF "{\"item\":\"$1\"," "$raw/status.jsonl" && return 0
    note "$1" "" 0 0 "$2"
    echo "$1: $2"
}

# Checks the kernels of folder $1 with the options in $2...; prints JSON, with the output of failed checks.
folder() {
    local kernel=$1 said rc
    shift
    said=$(timeout 240 ./reel kernels check --device "$DEVICE" --kernel "$kernel" --json "$@" 2>&1)
    rc=$?
    printf '{"folder":"%s","options":"%s","rc":%d}\n%s\n' "$kernel" "$*" "$rc" "$said"
    return "$rc"
}

# The folders that have kernels for Hopper.
export HOPPER='attention|paged_attention|skinny|matmul'

# `folders WHICH OPTION...`: checks kernel folders, the slow ones first: those of Hopper (`hopper`), the other ones
# (`others`), or `all`.
folders() {
    local which=$1 all slow="rms_norm|layer_norm|patch_merge|$HOPPER"
    shift
    all=$(cat folders)
    # A try on a CPU checks two folders.
    [ -z "${TINY:-}" ] || all=$(grep -xE 'swiglu|matmul' <<<"$all")
    case $which in
    hopper) all=$(grep -xE "$HOPPER" <<<"$all") ;;
    others) all=$(grep -vxE "$HOPPER" <<<"$all") ;;
    esac
    # The variables are expanded by the inner shell.
    # shellcheck disable=SC2016
    { grep -xE "$slow" <<<"$all"; grep -vxE "$slow" <<<"$all"; } |
        xargs -P "${JOBS:-7}" -I{} bash -c 'out=$(folder {} '"$*"'); rc=$?; printf "%s\n" "$out"; exit $rc'
}
export DEVICE=$device
export -f folder folders

presets() { echo "${PRESETS:-7b 3b}"; }

# `begin_models PRESET...`: begins to make the models for benchmarks with random weights, one after the other beside
# other work, unless they exist.
begin_models() {
    local preset
    for preset in "$@"; do
        [ -e "$models/$preset/config.json" ] || [ -e "$models/$preset.begun" ] && continue
        # On a fresh machine the models are made again, also if an earlier call made them.
        sed -i "/{\"item\":\"model $preset\",/d" "$raw/status.jsonl"
        touch "$models/$preset.begun"
        missing+=("$preset")
    done
    [ "${#missing[@]}" = 0 ] && return 0
    (
        for preset in "${missing[@]}"; do
            rm -rf "$models/$preset.part"
            ./reel init --preset "$preset" --out "$models/$preset.part" --quiet 2>"$models/$preset.failed" &&
                mv "$models/$preset.part" "$models/$preset" && rm "$models/$preset.failed"
            rm -f "$models/$preset.begun"
        done
    ) >/dev/null &
    missing=()
}

# `make_models PRESET...`: waits until the models exist.
make_models() {
    local preset
    begin_models "$@"
    for preset in "$@"; do
        # The variables are expanded by the inner shell.
        # shellcheck disable=SC2016
        item "model $preset" models.txt 240 bash -c 'while [ -e "$1.begun" ]; do sleep 0.2; done
            [ -e "$1/config.json" ] || { cat "$1.failed" >&2; exit 1; }' make "$models/$preset"
    done
}

# `with_model PRESET ITEM...`: runs an item that needs the model of a preset. Without the model the item is not done.
with_model() {
    local preset=$1
    shift
    if [ -e "$models/$preset/config.json" ]; then item "$@"; else undone+=("$1"); fi
}

describe() {
    [ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit,temperature.gpu,memory.total --format=csv
    ./reel doctor
}
export -f describe

# `op NAME KERNEL SIZES...`: measures an op into ops.jsonl. A size is `key=value:tiny`, where `tiny` is used if TINY is
# set.
op() {
    local name=$1 kernel=$2
    shift 2
    sizes "$@"
    item "$name" ops.jsonl "${LIMIT:-60}" ./reel bench op "$kernel" "${given[@]}" --dtype bf16 --device "$device" --runs "${RUNS:-20}" --no-counters --json
}

# Sets `given` to the options for the sizes in $@.
sizes() {
    local size
    given=()
    for size in "$@"; do
        if [ -n "${TINY:-}" ]; then given+=(--size "${size%%=*}=${size##*:}"); else given+=(--size "${size%:*}"); fi
    done
}

peers() {
    has_peers || return 0
    item "peers: $1" peers.jsonl "$2" "$python" peers/torch_kernels.py --runs "${RUNS:-20}" --only "$3" --device "$device" ${TINY:+--tiny}
}

# `bench_model NAME PRESET COMMAND OPTIONS...`: measures a model into models.jsonl.
bench_model() {
    local name=$1 preset=$2 command=$3
    shift 3
    with_model "$preset" "$name" models.jsonl 90 ./reel bench "$command" --model "$models/$preset" --device "$device" --dtype bf16 --json "$@"
}

# Whether peers are measured in this call.
has_peers() { [ "${PEERS:-1}" != 0 ]; }

peer_model() {
    local name=$1 preset=$2
    has_peers || return 0
    shift 2
    with_model "$preset" "$name" qwen.jsonl "${LIMIT:-150}" "$python" peers/qwen.py "$models/$preset" --device "$device" --dtype bf16 --attention sdpa --rounds 3 "$@"
}

# Measures the seconds of a process that generates one token, with weight files in the page cache (`warm`) or not
# (`cold`).
first_token() {
    local files=$1 preset=$2 begun ended bytes rate=null
    bytes=$(cat "$MODELS/$preset"/*.safetensors | wc -c)
    if [ "$files" = cold ]; then
        for file in "$MODELS/$preset"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
        rate=$(disk_rate "$MODELS/$preset")
        for file in "$MODELS/$preset"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
    fi
    begun=$EPOCHREALTIME
    ./reel generate --model "$MODELS/$preset" --prompt Hello --max-new-tokens 1 --device "$DEVICE" --dtype bf16 --json >/dev/null || return 1
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

# Whether training, prefill and decoding have the same bits on this device: on Hopper and on a CPU.
has_equal_bits() {
    [ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=compute_cap --format=csv,noheader | grep -q '^9\.'
}

# Runs two GRPO steps of a model on text, each with 8 completions of $2 tokens, and prints the metrics of the second
# one.
grpo_step() {
    local preset=$1 tokens=$2 folder i
    folder=$(mktemp -d "$RAW/grpo.XXXXXX")
    for i in 1 2; do
        printf '{"prompt":[{"role":"user","content":[{"type":"text","text":"How many people wait? Think, then answer."}]}],"solution":"<answer>%d</answer>","problem_type":"numerical"}\n' "$i"
    done >"$folder/rows.jsonl"
    ./reel grpo --model "$MODELS/$preset" --data "$folder/rows.jsonl" --out "$folder/out" --num-generations 8 --per-device-train-batch-size 8 \
        --gradient-accumulation-steps 1 --max-completion-length "$tokens" --max-steps 2 --save-steps 0 --optim adamw-bf16 --device "$DEVICE" \
        --dtype bf16 --quiet >&2 &&
        tail -n 1 "$folder/out/metrics.jsonl" | sed "s/^{/{\"op\":\"grpo step\",\"model\":\"$preset\",\"completions\":8,\"completion_tokens\":$tokens,/"
    local rc=$?
    if [ "$rc" = 0 ] && has_equal_bits && ! grep -q '"rollout_drift":0.0[,}]' "$folder/out/metrics.jsonl"; then
        echo "log-probabilities of training and of decoding differ: rollout_drift is not 0" >&2
        rc=1
    fi
    rm -rf "$folder"
    return "$rc"
}
export MODELS=$models RAW=$raw
export -f first_token disk_rate has_equal_bits grpo_step

run_machine() {
    item "machine" machine.txt 20 bash -c describe
    item "device" device.json 60 ./reel bench op swiglu --size tokens=1 --size intermediate=1 --device "$device" --dtype bf16 --runs 1 --no-counters --json
}

run_init() { if [ -n "${TINY:-}" ]; then begin_models tiny; else begin_models 3b 7b; fi; }

run_hopper() {
    item "checks of Hopper's folders, seed 0" check.jsonl 240 bash -c 'folders hopper'
    item "what plans assume" hardware.txt 60 ./cuda_device gpu_is_as_kernels_and_plans_assume --exact --nocapture
}

run_drift() { grpo_item "$(presets | tr ' ' '\n' | tail -n 1)"; }

run_rollouts() {
    local preset
    for preset in $(presets); do grpo_item "$preset"; done
}

# Times GRPO steps of a model, and checks that training and decoding have the same bits.
grpo_item() {
    local made=256
    [ -z "${TINY:-}" ] || made=8
    make_models "$1"
    with_model "$1" "GRPO step $1, 8 completions" grpo.jsonl 150 bash -c "grpo_step $1 $made"
}

run_check() { item "checks, seed 0" check.jsonl 200 bash -c 'folders others'; }

run_video() {
    local said
    if [ "$device" = cpu ] || ! compgen -G 'clips/*' >/dev/null; then
        absent "video decoders" "not compared: there is no GPU, or the machine that made the bundle had no ffmpeg with libx264 and libx265"
        return 0
    fi
    # Exit status 3: this machine cannot decode videos on its GPU.
    said=$(./video_decoders 0 2>&1)
    if [ $? = 3 ]; then
        absent "video decoders" "not compared: $said"
        return 0
    fi
    item "video decoders" video.jsonl 120 ./video_decoders 0 clips/*
}

run_step() { item "golden models and steps" goldens.txt 200 bash -c golden_steps; }

# Runs the golden models and training steps on the GPU. Without a GPU the tests of this program are skipped.
golden_steps() {
    ./cuda_device gpu_ --skip gpu_is_as_kernels_and_plans_assume --nocapture >"$RAW/golden" 2>&1
    local rc=$?
    cat "$RAW/golden"
    [ "$DEVICE" = cpu ] || grep -q 'agrees with the reference' "$RAW/golden" || { echo "no golden step ran" >&2; rc=1; }
    rm -f "$RAW/golden"
    return "$rc"
}
export -f golden_steps

run_kernels() {
    local tokens program again
    for again in "" ", again"; do
        for tokens in 1024 4096 8192 16384; do
            op "attention, $tokens tokens$again" attention "tokens=$tokens:64" heads=28:4 kv_heads=4:2 head_dim=128:32 causal=1:1
        done
        # Programs of other projects are processes of their own: reel, peers and they run in turns of items.
        [ -z "$again" ] || break
        peers attention 90 attention
        [ -z "${PROTOTYPES:-}" ] || for program in "$PROTOTYPES"/*; do item "prototype ${program##*/}" prototypes.txt 30 "$program"; done
    done
    op "attention of the vision tower, full" attention tokens=8192:64 heads=16:4 kv_heads=16:4 head_dim=80:16 causal=0:0
    op "attention of the vision tower, windows" attention tokens=8192:64 heads=16:4 kv_heads=16:4 head_dim=80:16 causal=0:0 seqs=128:4
    op "attention with a prefix" attention tokens=8192:64 heads=28:4 kv_heads=4:2 head_dim=128:32 causal=1:1 seqs=8:4 prefix=1:1
    peers "vision" 60 vision
    op "paged attention, batch 1" paged_attention batch=1:1 context=1024:64 heads=28:4 kv_heads=4:2 head_dim=128:32
    op "paged attention, batch 16" paged_attention batch=16:2 context=8192:128 heads=28:4 kv_heads=4:2 head_dim=128:32
    op "paged attention, batch 64" paged_attention batch=64:3 context=2048:64 heads=28:4 kv_heads=4:2 head_dim=128:32
    op "skinny, 1 row" skinny batch=1:1 n=18944:192 k=3584:128
    op "skinny, 8 rows" skinny batch=8:3 n=18944:192 k=3584:128
    op "skinny, 16 rows" skinny batch=16:2 n=18944:192 k=3584:128
    peers decode 60 decode
    op "linear to log-prob" linear_log_prob_products tokens=8192:64 hidden=3584:128 vocab=152064:500
    peers "linear to log-prob" 120 head
    op "rms_norm" rms_norm tokens=8192:64 hidden=3584:128
    op "swiglu" swiglu tokens=8192:64 intermediate=18944:192
    op "adamw" adamw count=67895296:24576
    peers "memory-bound" 120 copy,norms,pointwise,optimizer
}

run_products() {
    local layer
    # n and k of the linear layers of a 7B decoder: fused qkv, output, gate or up, down; then of the vision tower's MLP.
    for layer in "n=4608:256 k=3584:128" "n=3584:128 k=3584:128" "n=18944:192 k=3584:128" "n=3584:128 k=18944:192"; do
        op "products $layer" matmul m=8192:64 "${layer% *}" "${layer#* }"
    done
    # The vision tower's MLP in the published size and filled up to the size that the program computes with.
    for layer in "n=3420:171 k=1280:64" "n=1280:64 k=3420:171" "n=3424:176 k=1280:64" "n=1280:64 k=3424:176"; do
        op "vision products $layer" matmul m=16384:64 "${layer% *}" "${layer#* }"
    done
    op "products at 64 rows" matmul m=64:8 n=18944:192 k=3584:128
    peers products 60 products
}

run_models() {
    local preset batch context=1024 prompt=4096 made=64
    [ -z "${TINY:-}" ] || { context=32 prompt=64 made=4; }
    for preset in $(presets); do
        make_models "$preset"
        for batch in 1 8 64; do
            bench_model "decode $preset, batch $batch, $context before" "$preset" decode --context "$context" --tokens "$made" --batch "$batch" --rounds 3
        done
        bench_model "prefill $preset, $prompt tokens" "$preset" prefill --tokens "$prompt" --rounds 5
        bench_model "rollout $preset, 8 completions" "$preset" rollout --context "$context" --tokens "$made" --batch 8 --rounds 3
        peer_model "peers: decode and prefill $preset" "$preset" --what decode,prefill --context "$context" --prompt-tokens "$prompt" --tokens "$made"
        LIMIT=300 peer_model "peers: compiled decode $preset" "$preset" --what compiled --context "$context" --tokens "$made"
    done
    preset=$(presets) preset=${preset%% *}
    for batch in 8 64; do
        peer_model "peers: decode $preset, batch $batch" "$preset" --what decode --batch "$batch" --context "$context" --tokens "$made"
    done
    with_model "$preset" "first token, files cached" cold.jsonl 60 bash -c "first_token warm $preset >/dev/null && first_token warm $preset"
    with_model "$preset" "first token, files cold" cold.jsonl 90 bash -c "first_token cold $preset"
}

run_training() {
    local first learned=8192
    [ -z "${TINY:-}" ] || learned=64
    first=$(presets) first=${first%% *}
    make_models "$first"
    bench_model "SFT step $first, $learned tokens" "$first" train --tokens "$learned" --rounds 3 --optim adamw-bf16
    bench_model "SFT step $first, without recomputation" "$first" train --tokens "$learned" --rounds 3 --optim adamw-bf16 --gradient-checkpointing none
    peer_model "peers: SFT step $first" "$first" --what train --train-tokens "$learned"
}

run_profile() {
    local preset context=1024 learned=8192
    [ -z "${TINY:-}" ] || { context=32 learned=64; }
    preset=$(presets) preset=${preset%% *}
    make_models "$preset"
    with_model "$preset" "profile of decode" decode.json 60 ./reel bench decode --model "$models/$preset" --context "$context" --tokens 8 --rounds 3 \
        --device "$device" --dtype bf16 --json --html "$raw/decode.html" --trace "$raw/decode-trace.json"
    with_model "$preset" "profile of training" train.json 90 ./reel bench train --model "$models/$preset" --tokens "$learned" --rounds 3 --optim adamw-bf16 \
        --device "$device" --dtype bf16 --json --html "$raw/train.html" --trace "$raw/train-trace.json"
}

run_tune() {
    local tokens shape rows m n k
    for tokens in 1024 2048 4096 8192 16384; do
        sizes "tokens=$tokens:64" heads=28:4 kv_heads=4:2 head_dim=128:64
        variants "attention forward, $tokens tokens" attention_fwd_bf16
        variants "attention backward, $tokens tokens" attention_bwd_bf16
    done
    for shape in seqs=1:1 seqs=128:4; do
        sizes tokens=8192:128 heads=16:4 kv_heads=16:4 head_dim=80:80 causal=0:0 "$shape"
        variants "attention forward of the vision tower, ${shape%:*}" attention_fwd_bf16
        variants "attention backward of the vision tower, ${shape%:*}" attention_bwd_bf16
    done
    for shape in "1:1 1024:64" "8:2 5120:128" "16:2 8192:128" "64:3 2048:64" "64:3 4096:64"; do
        sizes "batch=${shape% *}" "context=${shape#* }" heads=28:4 kv_heads=4:2 head_dim=128:64
        variants "paged attention, $shape" paged_attention_fwd_bf16
    done
    # Products of a layer of a 7B decoder, and of fewer rows, in turns with cuBLASLt's.
    for shape in "8192:64 4608:96 3584:128" "8192:64 3584:128 3584:128" "8192:64 18944:192 3584:128" "8192:64 3584:128 18944:192" \
        "512:32 18944:192 3584:128" "64:9 18944:192 3584:128"; do
        read -r m n k <<<"$shape"
        sizes "m=$m" "n=$n" "k=$k"
        variants "products, $shape" matmul
    done
    # Decode steps of a 7B decoder: the output projection, the matrices of the feed-forward layer, the output layer. Of
    # the latter, cuBLASLt's product beside the kernel's variants.
    for rows in 1:1 8:3 16:2 64:9; do
        for shape in "n=3584:128 k=3584:128" "n=18944:192 k=3584:128" "n=3584:128 k=18944:192"; do
            sizes "batch=$rows" "${shape% *}" "${shape#* }"
            variants "product of ${rows%:*} rows, $shape" skinny_linear_bf16
            variants "product of ${rows%:*} rows, int8, $shape" skinny_linear_int8_bf16
        done
        sizes "batch=$rows" n=18944:192 k=3584:128
        variants "swiglu of ${rows%:*} rows" skinny_swiglu_bf16
        variants "swiglu of ${rows%:*} rows, int8" skinny_swiglu_int8_bf16
        variants "queries, keys and values of ${rows%:*} rows" skinny_qkv_bf16
        variants "queries, keys and values of ${rows%:*} rows, int8" skinny_qkv_int8_bf16
        variants "output layer, ${rows%:*} rows" skinny_logits_bf16
        variants "output layer, ${rows%:*} rows, int8" skinny_logits_int8_bf16
        op "output layer as a product, ${rows%:*} rows" matmul "m=$rows" n=152064:500 k=3584:128
    done
    for tokens in 1024 8192; do
        op "log-probabilities, $tokens tokens" linear_log_prob_products "tokens=$tokens:64" hidden=3584:128 vocab=152064:500
    done
}

# `variants NAME KERNEL`: times the variants of a kernel at the sizes in `given`.
variants() {
    item "variants: $1" tune.jsonl 60 ./reel bench op "$2" "${given[@]}" --variants --dtype bf16 --device "$device" --runs "${RUNS:-20}" --no-counters --json
}

# The ten kernels that matter, with their sizes.
run_counters() {
    local line kernel
    if [ "$device" = cpu ] || ! { command -v ncu >/dev/null || compgen -G '/usr/local/cuda*/bin/ncu' >/dev/null; }; then
        absent "counters" "not read: ncu is not installed"
        return 0
    fi
    while read -r -a line; do
        kernel=${line[0]}
        sizes "${line[@]:1}"
        item "counters: ${line[*]}" counters.jsonl 100 ./reel bench op "$kernel" "${given[@]}" --dtype bf16 --device "$device" --runs 5 --json
    done <<'TEXT'
attention_bwd_bf16 tokens=8192:64
attention_fwd_bf16 tokens=8192:64
paged_attention_fwd_bf16 batch=16:2 context=8192:64
skinny_swiglu_bf16 batch=1:1
skinny_linear_bf16 batch=16:2
rms_norm_bwd_bf16 tokens=8192:64
rms_norm_add_fwd_bf16 tokens=8192:64
swiglu_bwd_bf16 tokens=8192:64
log_prob_fwd rows=110:10
adamw_bf16_moments_bf16 count=67895296:24576
TEXT
}

run_sanitizer() {
    local sanitizer
    sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda*/bin/compute-sanitizer' | tail -n 1)
    if [ "$device" = cpu ] || [ -z "$sanitizer" ]; then
        absent "memcheck of a training step" "not done: compute-sanitizer is not installed"
        return 0
    fi
    make_models tiny
    with_model tiny "memcheck of a training step" sanitizer.txt 240 "$sanitizer" --tool memcheck --error-exitcode 9 ./reel bench train --model "$models/tiny" \
        --tokens 64 --rounds 1 --optim adamw-bf16 --device "$device" --dtype bf16
}

run_seeds() {
    local seed
    for seed in 1 2 3; do item "checks, seed $seed" check.jsonl 120 bash -c "folders all --seed $seed"; done
}

run_compare() {
    if [ "$device" = cpu ]; then
        absent "compare" "not done: there is no GPU to compare with the simulator"
        return 0
    fi
    item "instructions" instructions.jsonl 150 ./instructions
    item "compare with the simulator" compare.jsonl 300 bash -c 'folders all --compare'
}

# Runs the phases in $@, then writes and prints the results.
run() {
    # A call as a whole ends before its limit: writing the results takes a few seconds.
    until=$((SECONDS + ${SECONDS_LEFT:-560} - 15)) undone=() missing=()
    mkdir -p "$OUT" "$models" || exit 1
    # An earlier call may have ended while it made a model.
    rm -f "$models"/*.begun
    unpack
    find_cuda
    [ -z "${FRESH:-}" ] || rm -rf "$raw" "$OUT/raw.tar.gz"
    if [ ! -e "$raw/status.jsonl" ]; then
        mkdir -p "$raw" || exit 1
        local from=${RESUME:-$OUT/raw.tar.gz}
        [ ! -e "$from" ] || tar -xzf "$from" -C "$raw" || exit 1
        touch "$raw/status.jsonl"
    fi
    if [ -n "${RETRY:-}" ]; then
        for phase in "$@"; do sed -i "/\"phase\":\"$phase\"/{/\"rc\":0,/!d}" "$raw/status.jsonl"; done
    fi
    # A device that could not be used before is tried again.
    sed -i '/{"item":"device",.*"rc":[1-9]/d' "$raw/status.jsonl"
    cp -f commit "$raw/" 2>/dev/null
    for phase in "$@"; do
        "run_$phase"
        if grep -q '{"item":"device",.*"rc":[^0]' "$raw/status.jsonl"; then
            echo "device $device cannot be used: $(tail -n 1 "$raw/errors.txt")"
            break
        fi
    done
    finish
}

# Writes all.json, table.txt, failures.txt and raw.tar.gz, and prints the table and the failures.
finish() {
    rm -f "$raw/part" "$raw/errors"
    printf '%s\n' "${undone[@]}" >"$raw/undone.txt"
    "$python" table.py "$raw" "$OUT"
    local rc=$?
    tar -czf "$OUT/raw.tar.gz" -C "$raw" . || exit 1
    exit "$rc"
}

[ $# -gt 0 ] || set -- help
case $1 in
help | --help | -h) help ;;
all) run "${phases[@]}" ;;
*)
    for name in "$@"; do
        if [[ " ${phases[*]} " != *" $name "* ]]; then
            echo "error: $name: unknown phase; ./run.sh help lists all" >&2
            exit 2
        fi
    done
    run "$@"
    ;;
esac
