"""Writes the table of the model by which `reel plan` prices kernels without a measured time.

    reel kernels check --arch sm_90a --json >registers.json
    cargo test -p reel-kernels --lib inputs_of_the_model -- --ignored --nocapture | grep symbol >counts.txt
    python3 tools/benches/gpu/model_inputs.py registers.json counts.txt >tools/src/measure/kernel_model/inputs.json

A symbol that was counted at several sizes gets its first row. Of the rows of sample the second one counts: the
greedy token with its log-probability, which every decode step asks for.
"""

import json
import sys

# Kernels that request their operands by asynchronous copies into dynamic shared memory: the part of it that is in
# flight at a time, from the number of its stages. Source: sm80.cu, sm90.cuh or decode_mma.cuh of the
# folder. Skinny products by tiles (their symbols end in the tiles of x) have at least three stages, most have five.
# Those in clusters have at least four stages, of which two are in flight; half of a stage is what other blocks read.
TILES, CLUSTERS = 4 / 5, 1 / 4
RING = {"skinny": 3 / 4, "paged_attention_fwd_bf16_decode": 4 / 5, "paged_attention_fwd_bf16_decode_256": 1 / 2}

registers = {f["symbol"]: f["registers"] for f in json.load(open(sys.argv[1]))["functions"] if f["entry"]}
rows = {}
for line in open(sys.argv[2]):
    row = json.loads(line[line.index("{"):])
    symbol = row["symbol"]
    seen = rows.setdefault(symbol, [])
    seen.append(row)
out = []
for symbol, seen in sorted(rows.items()):
    row = seen[1] if symbol == "sample" else seen[0]
    rings = [share for prefix, share in sorted(RING.items()) if symbol.startswith(prefix)]
    row["registers"] = registers[symbol]
    if rings:
        by_tiles = "skinny" in symbol and symbol[-3:-1] == "_x"
        row["ring_in_flight"] = TILES if by_tiles else CLUSTERS if "_clusters_" in symbol else rings[-1]
    out.append("  " + json.dumps(row))
print("[\n" + ",\n".join(out) + "\n]")
