"""Writes and prints what `run.sh` measured: reel beside its peers, the fastest variants, and the failures by name.

    python3 table.py FOLDER OUT

Reads the raw results in FOLDER (*.jsonl, status.jsonl, undone.txt) and writes to OUT: all.json (everything in one file, from which
shares.py derives the prices of `reel plan`), table.txt and failures.txt. A missing value of the table is printed as `-`. Exit status: 1 if
an item failed, 3 if none failed and some are not done, else 0.
"""

import datetime
import json
import os
import sys

FOLDER, OUT = sys.argv[1:]


def lines(name):
    path = os.path.join(FOLDER, name)
    for text in open(path, errors="replace") if os.path.exists(path) else []:
        try:
            value = json.loads(text)
        except ValueError:  # A line that is no JSON: an error message.
            continue
        if isinstance(value, dict):
            yield value


def text_of(name):
    path = os.path.join(FOLDER, name)
    return open(path, errors="replace").read() if os.path.exists(path) else ""


KERNELS = [kernel for result in lines("ops.jsonl") for kernel in result.get("kernels", [])]
CEILINGS = [result["ceilings"] for result in lines("ops.jsonl") if result.get("kernels")]
PEERS = [p for p in lines("peers.jsonl") if "seconds" in p]
MODELS, QWEN = list(lines("models.jsonl")), [q for q in lines("qwen.jsonl") if "seconds" in q]
COLD, GRPO, VIDEO = list(lines("cold.jsonl")), list(lines("grpo.jsonl")), list(lines("video.jsonl"))
TUNED = [kernel for result in lines("tune.jsonl") for kernel in result.get("kernels", [])]
COUNTERS = [counters for result in lines("counters.jsonl") for counters in result.get("counters", [])]
STATUS, UNDONE = list(lines("status.jsonl")), text_of("undone.txt").split("\n")
TABLE = []


def peer(kernel, size, words=""):
    """The fastest peer at this size whose name contains `words`: its seconds and name."""
    found = [(p["seconds"], p["peer"]) for p in PEERS if p["kernel"] == kernel and p["size"] == size and words in p["peer"]]
    return min(found, default=(None, ""))


def clocks(kernel):
    """Medians while a kernel was timed: the clock of the multiprocessors, power and temperature."""
    values = [((kernel.get("clocks") or {}).get(name) or {}).get("median") for name in ("sm_mhz", "power_watts", "temperature_celsius")]
    return "" if None in values else "{:.0f} MHz {:.0f} W {:.0f} C".format(*values)


def row(work, figure, unit, theirs=None, ratio=None, aim="", whose="", state=""):
    text = lambda x: "-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x)
    TABLE.append(f"{work:52} {text(figure):>10} {unit:9} {text(theirs):>10} {text(ratio):>7}  {aim:28} {state:20} {whose}".rstrip())


def cublaslt(kernel, among):
    """The seconds of cuBLASLt's product that was timed in turns with a product of reel's own."""
    name = kernel["kernel"].replace("gemm", "matmul")
    same = lambda k: k["kernel"].rsplit("_", 1)[0] == name.rsplit("_", 1)[0] and (k["size"], k["dtype"]) == (kernel["size"], kernel["dtype"])
    return next((k["seconds"] for k in among if same(k)), None)


def op_rows():
    for kernel in KERNELS:
        name, size, seconds = kernel["kernel"], kernel["size"], kernel["seconds"]
        # Skip kernels that are not optimizer steps: checkpoints use them to split and join master weights.
        if name in ("join_master", "split_master_bf16"):
            continue
        words = {"attention_bwd_bf16": "deterministic"}.get(name, "cross_entropy" if name.startswith("linear_log_prob") else "")
        short = size.replace(" heads=", " h=").replace(" kv_heads=", "/").replace(" head_dim=", " d=").replace(" causal=1", "").replace(" prefix=0", "")
        short = " ".join(part for part in short.split() if part != "seqs=1")
        theirs, whose = peer(name.replace("_products_fwd", "_fwd"), size, words)
        ratio = theirs / seconds if theirs else None
        rate, per = kernel["flops"] / 1e12, "TFLOP/s"
        if name.startswith("matmul"):
            aim = ""
        elif name.startswith("gemm"):
            aim, theirs, whose = ">= 0.97 x cuBLAS", cublaslt(kernel, KERNELS), "cuBLASLt, in turns"
            ratio = theirs and theirs / seconds
        elif name == "attention_fwd_bf16":
            aim = ">= 0.95 x flash, 310 at 4096"
        elif name == "attention_bwd_bf16":
            aim = ">= 1.1 x FA2 deterministic"
        elif name.startswith("linear_log_prob"):
            aim = {"linear_log_prob_products_fwd_bf16": "<= 16 ms"}.get(name, "")
            row(f"{name.removesuffix('_bf16')} {short}"[:52], seconds * 1e3, "ms", theirs and theirs * 1e3, ratio, aim, whose, clocks(kernel))
            continue
        else:
            rate, per = kernel["bytes"] / 1e12, "TB/s"
            aim = ">= 3.2" if "_bwd_" in name else ">= 3.5"
        row(f"{name.removesuffix('_bf16')} {short}"[:52], rate / seconds, per, theirs and rate / theirs, ratio, aim, whose, clocks(kernel))
    copies = {c["bytes"] / 1e12 for c in CEILINGS}
    if copies:
        row("copy, read and written (ceiling)", max(copies), "TB/s")
        row("bf16 product (ceiling)", max(c["bf16"] for c in CEILINGS) / 1e12, "TFLOP/s")


def model_rows():
    for m in MODELS:
        preset = os.path.basename(m["model"].rstrip("/"))
        like = lambda q: all(q[key] == m[key] for key in ("op", "tokens", "batch")) and os.path.basename(q["model"].rstrip("/")) == preset
        # The peers recompute activations.
        same = [q for q in QWEN if like(q) and m.get("recompute") != "nothing"]
        best = max(same, key=lambda q: q["tokens_per_second"], default=None)
        theirs = best and best["tokens_per_second"]
        ratio = theirs and m["tokens_per_second"] / theirs
        what = f"{m['op']} {preset}, {m['tokens']} tokens, context {m['context']}, batch {m['batch']}"
        aim = {"decode": {"7b": ">= 210, 70 % of copies", "3b": ">= 485, 70 % of copies"}.get(preset, "70 % of copies")}.get(m["op"], "")
        row(what, m["tokens_per_second"], "tokens/s", theirs, ratio, aim, best["peer"] if best else "")
        share = m["roofline"]["share"]  # None: an op is counted wrong.
        row("  of what this machine allows", share and 100 * share, "%")
        if m["op"] == "train":
            mfu = m["mfu"] and 100 * m["mfu"]
            row(f"  MFU, recompute: {m['recompute']}, {m['optim']}"[:52], mfu, "%", best and best["mfu"] and 100 * best["mfu"], None, ">= 40 %")
            row("  busy: launches' time over the step's", 100 * m["busy"], "%", None, None, ">= 98 %")
            row("  memory; planned beside it", m["peak_bytes"] / 1e9, "GB", m["planned_peak_bytes"] / 1e9, m["peak_bytes"] / m["planned_peak_bytes"], "as dry said", "dry")
            for part in m["parts"]:
                row(f"  {part['part']}", part["seconds"] * 1e3, "ms")


def video_rows():
    for v in VIDEO:
        gpu, cpu = v["nvdec"], v["cpu"]
        row(f"decode {v['frames']} of {v['of']} frames, {v['file']}", gpu["seconds"] * 1e3, "ms", cpu["seconds"] * 1e3, gpu["seconds"] / cpu["seconds"], "", f"CPU, {v['threads']} threads")
        row("  processor time", gpu["cpu_seconds"] * 1e3, "ms", cpu["cpu_seconds"] * 1e3)


def cold_rows():
    for c in COLD:
        cold = c["files"] == "cold"
        rate = c["disk_bytes_per_second"]
        allowed = 1.15 * c["bytes"] / rate + 2 if rate else None
        aim = "<= 1.15 x bytes / disk + 2 s" if cold else "< 5 s"
        row(f"first token {c['model']}, files {c['files']}", c["seconds"], "s", allowed, None, aim, "what the disk allows" if cold else "")


def grpo_rows():
    for g in GRPO:
        what = f"GRPO step {g['model']}, {g['completions']} completions of {g['completion_tokens']}"
        row(what, g["step_seconds"], "s")
        row("  of which rollout", g["rollout_seconds"], "s")


def tune_rows():
    """The fastest variant of each kernel and size, and how much longer the choice of the source takes."""
    for key in dict.fromkeys((k["kernel"], k["size"]) for k in TUNED):
        of_key = [k for k in TUNED if (k["kernel"], k["size"]) == key]
        fastest = min((k for k in of_key if k["variant"]), key=lambda k: k["seconds"], default=None)
        chosen = next((k for k in of_key if not k["variant"]), None)
        if fastest and chosen:
            ratio = chosen["seconds"] / fastest["seconds"]
            library = cublaslt(chosen, TUNED) if key[0].startswith("gemm") else None
            beside = f"; cuBLASLt, in turns, {library / fastest['seconds']:.3f}" if library else ""
            TABLE.append(f"{key[0]} {key[1]}: {fastest['variant']}, {fastest['seconds'] * 1e3:.3f} ms; the source's choice takes {ratio:.3f} times as long{beside}")


def failures():
    """Names of failed items, with their error, and of failed checks."""
    named = [f"{s['item']}: {s['error'] or 'exit status %d' % s['rc']}" for s in STATUS if s["rc"] != 0]
    checks = {}  # Of a check that was repeated, the last result counts.
    for name in ("check.jsonl", "compare.jsonl"):
        for result in lines(name):
            for c in result.get("checks", []):
                checks[name, c["folder"], c["check"], result.get("seed")] = c
    failed = [(key, c) for key, c in checks.items() if not c["ok"]]
    return named + [f"check {folder} {check}, seed {seed}: {str(c.get('error', c))[:200]}" for (_, folder, check, seed), c in failed]


def write(name, text):
    with open(os.path.join(OUT, name), "w") as file:
        file.write(text)


row("work", "reel", "", "peer", "ratio", "aim", "peer's name", "median state")
op_rows()
model_rows()
grpo_rows()
cold_rows()
video_rows()
if TUNED:
    TABLE.append("\nvariants: the fastest by shape (the table of choices: kernels/src/tuning.rs)")
    tune_rows()
if COUNTERS:
    TABLE.append("\ncounters: what explains the time of each kernel")
    TABLE += [f"{c['symbol']:44} {c['explanation']}" for c in COUNTERS]
FAILED, UNDONE = failures(), [name for name in dict.fromkeys(UNDONE) if name]
# Of the lines that tests print: what they compared. Of the checks: all that ran. Of the instructions: those that differ.
SAID = lambda name: [text for text in text_of(name).splitlines() if ": " in text and not text.startswith("test ")]
CHECKS = [{**c, "seed": result.get("seed")} for name in ("check.jsonl", "compare.jsonl") for result in lines(name) for c in result.get("checks", [])]
INSTRUCTIONS = [i for i in lines("instructions.jsonl") if "agree" in i]
ALL = {
    "date": datetime.date.today().isoformat(),
    "commit": text_of("commit").strip(),
    "machine": text_of("machine.txt"),
    "ceilings": next(iter(CEILINGS), None),
    "assumptions": SAID("hardware.txt"),
    "checks": CHECKS,
    "goldens": SAID("goldens.txt"),
    "instructions": {"forms": len(INSTRUCTIONS), "different": [i for i in INSTRUCTIONS if not i["agree"]]},
    "items": STATUS,
    "kernels": KERNELS,
    "models": MODELS,
    "grpo": GRPO,
    "first_token": COLD,
    "video_decoders": VIDEO,
    "peers": PEERS + QWEN,
    "variants": TUNED,
    "counters": COUNTERS,
    "prototypes": text_of("prototypes.txt").splitlines(),
    "memcheck": text_of("sanitizer.txt").splitlines()[-3:],
    "profile": {name: next(lines(f"{name}.json"), None) for name in ("decode", "train")},
    "failures": FAILED,
    "not_done": UNDONE,
}
write("all.json", json.dumps(ALL, indent=1) + "\n")
write("table.txt", "\n".join(TABLE) + "\n")
write("failures.txt", "".join(f"{name}\n" for name in FAILED))
print("\n" + "\n".join(TABLE))
if UNDONE:
    print(f"\n{len(UNDONE)} items are not done, for lack of time; call again:\n  " + "\n  ".join(UNDONE))
print(f"\n{len(FAILED)} failures" + "".join(f"\n  {name}" for name in FAILED))
sys.exit(1 if FAILED else 3 if UNDONE else 0)
