"""Prints the table at the end of `run.sh bench`: the result of reel, that of the best peer in the same run, their ratio, the target.

    python3 table.py FOLDER

Reads ops.jsonl, models.jsonl, peers.jsonl, qwen.jsonl and cold.jsonl in FOLDER; missing values are printed as `-`.
"""

import json
import os
import sys

FOLDER = sys.argv[1]


def lines(name):
    path = os.path.join(FOLDER, name)
    for text in open(path) if os.path.exists(path) else []:
        try:
            yield json.loads(text)
        except ValueError:  # An incomplete line of a run that was stopped.
            pass


OPS = [(kernel, result["ceilings"]) for result in lines("ops.jsonl") for kernel in result.get("kernels", [])]
PEERS = [p for p in lines("peers.jsonl") if "seconds" in p]
MODELS, QWEN = list(lines("models.jsonl")), [q for q in lines("qwen.jsonl") if "seconds" in q]
COLD = list(lines("cold.jsonl"))


def peer(kernel, size, words=""):
    """The fastest peer at this size whose name contains `words`: its seconds and name."""
    found = [(p["seconds"], p["peer"]) for p in PEERS if p["kernel"] == kernel and p["size"] == size and words in p["peer"]]
    return min(found, default=(None, ""))


def row(work, figure, unit, theirs=None, ratio=None, aim="", whose=""):
    text = lambda x: "-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x)
    print(f"{work:52} {text(figure):>10} {unit:9} {text(theirs):>10} {text(ratio):>7}  {aim:28} {whose}")


def op_rows():
    for kernel, ceilings in OPS:
        name, size, seconds = kernel["kernel"], kernel["size"], kernel["seconds"]
        # Skip kernels that are not optimizer steps: checkpoints use them to split and join master weights.
        if name in ("join_master", "split_master_bf16"):
            continue
        words = {"attention_bwd_bf16": "deterministic"}.get(name, "cross_entropy" if name.startswith("linear_log_prob") else "")
        short = size.replace(" heads=", " h=").replace(" kv_heads=", "/").replace(" head_dim=", " d=").replace(" causal=1", "")
        theirs, whose = peer(name.replace("_fused_fwd", "_fwd").replace("_products_fwd", "_fwd"), size, words)
        ratio = theirs / seconds if theirs else None
        rate, per = kernel["flops"] / 1e12, "TFLOP/s"
        if name.startswith("matmul"):
            aim = ">= 0.97 x cuBLAS"
        elif name == "attention_fwd_bf16":
            aim = ">= 0.95 x flash, 310 at 4096"
        elif name == "attention_bwd_bf16":
            aim = ">= 1.1 x FA2 deterministic"
        elif name.startswith("linear_log_prob"):
            aim = {"linear_log_prob_fused_fwd_bf16": "<= 30 ms", "linear_log_prob_products_fwd_bf16": "<= 16 ms"}.get(name, "")
            row(f"{name.removesuffix('_bf16')} {short}"[:52], seconds * 1e3, "ms", theirs and theirs * 1e3, ratio, aim, whose)
            continue
        else:
            rate, per = kernel["bytes"] / 1e12, "TB/s"
            aim = ">= 3.2" if "_bwd_" in name else ">= 3.5"
        row(f"{name.removesuffix('_bf16')} {short}"[:52], rate / seconds, per, theirs and rate / theirs, ratio, aim, whose)
    copies = {c["bytes"] / 1e12 for _, c in OPS}
    if copies:
        row("copy, read and written (ceiling)", max(copies), "TB/s")
        row("bf16 product (ceiling)", max(c["bf16"] for _, c in OPS) / 1e12, "TFLOP/s")


def model_rows():
    for m in MODELS:
        preset = os.path.basename(m["model"].rstrip("/"))
        same = [q for q in QWEN if q["op"] == m["op"] and q["tokens"] == m["tokens"] and os.path.basename(q["model"].rstrip("/")) == preset]
        best = max(same, key=lambda q: q["tokens_per_second"], default=None)
        theirs = best and best["tokens_per_second"]
        ratio = theirs and m["tokens_per_second"] / theirs
        what = f"{m['op']} {preset}, {m['tokens']} tokens, context {m['context']}, batch {m['batch']}"
        aim = {"decode": {"7b": ">= 210, 70 % of copies", "3b": ">= 485, 70 % of copies"}.get(preset, "70 % of copies")}.get(m["op"], "")
        row(what, m["tokens_per_second"], "tokens/s", theirs, ratio, aim, best["peer"] if best else "")
        row("  of what this machine allows", 100 * m["roofline"]["share"], "%")
        if m["op"] == "train":
            mfu = m["mfu"] and 100 * m["mfu"]
            row(f"  MFU, recompute: {m['recompute']}, {m['optim']}"[:52], mfu, "%", best and best["mfu"] and 100 * best["mfu"], None, ">= 40 %")
            row("  busy: launches' time over the step's", 100 * m["busy"], "%", None, None, ">= 98 %")
            row("  memory; planned beside it", m["peak_bytes"] / 1e9, "GB", m["planned_peak_bytes"] / 1e9, m["peak_bytes"] / m["planned_peak_bytes"], "as dry said", "dry")
            for part in m["parts"]:
                row(f"  {part['part']}", part["seconds"] * 1e3, "ms")


def cold_rows():
    for c in COLD:
        cold = c["files"] == "cold"
        rate = c["disk_bytes_per_second"]
        allowed = 1.15 * c["bytes"] / rate + 2 if rate else None
        aim = "<= 1.15 x bytes / disk + 2 s" if cold else "< 5 s"
        row(f"first token {c['model']}, files {c['files']}", c["seconds"], "s", allowed, None, aim, "what the disk allows" if cold else "")


row("work", "reel", "", "peer", "ratio", "aim", "peer's name")
op_rows()
model_rows()
cold_rows()
