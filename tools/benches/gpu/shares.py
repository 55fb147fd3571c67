"""Derives the table by which `reel plan` prices kernels from records of measured kernels.

    of=tools/benches/results/h200
    python3 tools/benches/gpu/shares.py $of/2026-11-20-kernels.json $of/2026-11-27-kernels.json $of/2026-11-27-models.json >$of/shares.json

A record is `all.json` of run.sh, or one of November 2026. Of a kernel that is in several days' records only the last day counts. Within
a record, the fastest of several plans of a launch counts, because the table of choices (kernels/src/*/choices.rs) follows it; kernels in
`other_choice` were timed with a plan that the table chooses no more, so only their variants count. Rows of `models` are launches within
a decode step, a prefill or a training step: they come before the same launch alone. Each row of the table has a kernel's name, dtype and size,
its operations, bytes and median seconds, and a hash of the CUDA source of its folder at the record's commit, as
`Source::code_hash` in kernels/device/src/launch/source.rs computes it: FNV-1a of sm80.cu and the folder's headers in the order of their names,
without comments and whitespace. A record whose rows have no hash needs the repository's history.
"""

import json
import os
import re
import subprocess
import sys


# Hashes of measured texts that were written in another way since, by the hash of the present text: NVRTC makes the same PTX of both.
SAME_PTX = {
    "fcf85b05f45d5416": "42b40c3d9babaec1",  # elementwise
    "8406766fb381a26a": "42b40c3d9babaec1",  # elementwise
    "377c4d5134039902": "6c3c53e07cb50da8",  # embedding
    "8d9a4df5bd721d81": "1c65d80c3224b867",  # rms_norm
    "341f71da7b463033": "1c65d80c3224b867",  # rms_norm
}


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def code_hash(texts):
    value = 0xCBF29CE484222325
    for text in texts:
        for byte in re.sub(r"\s", "", re.sub(r"//[^\n]*", "", text)).encode():
            value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def hash_at(commit, kernel):
    """The hash of the folder that declares the kernel at a commit."""
    modules = git("grep", "-lF", f'"{kernel}"', commit, "--", "kernels/src/*/mod.rs").split()
    assert len(modules) == 1, (kernel, modules)
    folder = os.path.dirname(modules[0].split(":", 1)[1])
    names = git("ls-tree", "--name-only", commit, folder + "/").split()
    files = sorted(n for n in names if n.endswith(".cuh"))
    value = code_hash([git("show", f"{commit}:{name}") for name in [f"{folder}/sm80.cu", *files]])
    return SAME_PTX.get(value, value)


def dtype_of(kernel):
    """A kernel's name ends with the dtype that it computes in; those without one compute in f32."""
    return "bf16" if kernel.endswith("bf16") else "f32"


def row(kernel, size, dtype, flops, bytes, seconds, source):
    return {"kernel": kernel, "size": size, "dtype": dtype, "flops": flops, "bytes": bytes, "seconds": seconds, "source": source}


def rows(record):
    if "copy_bytes_per_second" not in record:
        for k in record["kernels"]:
            yield row(k["kernel"], k["size"], k["dtype"], k["flops"], k["bytes"], k["seconds"], k.get("source"))
        return
    for k in record["kernels"]:
        name = k["kernel"]
        yield row(name, k["size"], dtype_of(name), k["flops"], k["bytes"], round(k["median_us"] * 1e-6, 12), hash_at(record["commit"], name))
    # The record has no products of reel's own. They are cuBLASLt's, and torch's product is cuBLAS's.
    for p in record["peers"]:
        if p["kernel"] == "matmul_bf16_8192":
            n = 8192
            yield row("matmul_fwd_bf16", "m=8192 n=8192 k=8192, torch's cuBLAS", "bf16", 2.0 * n**3, 6.0 * n**2, round(p["median_us"] * 1e-6, 12), None)


def in_models(record):
    """The launches of each op of a model, by their mean."""
    for m in record.get("models", []) + record.get("models_by_blocks_of_columns", []):
        # A rollout has launches of a prefill and of decode steps under one name.
        if m["op"] == "rollout":
            continue
        words = {"decode": f"a step of {m['batch']} after {m['context']} tokens", "prefill": f"a prefill of {m['tokens']} tokens"}
        size = f"{m['model']}, {words.get(m['op'], 'a training step of %d tokens' % m['tokens'])}"
        for o in m["ops"]:
            flops, bytes, seconds = (o[key] / o["launches"] for key in ("flops", "bytes", "seconds"))
            source = None if o["op"].startswith("matmul") else hash_at(record["commit"], o["op"])
            yield row(o["op"], size, m["dtype"], flops, bytes, round(seconds, 12), source)


def alone(record):
    """The launches that were timed by themselves."""
    other_choice = record.get("other_choice", [])
    return [r for r in rows(record) if r["kernel"] not in other_choice] + list(rows({"kernels": record.get("variants", [])}))


def same(a, b, within=0.01):
    near = lambda x, y: abs(x - y) <= within * max(x, y)
    return a["kernel"] == b["kernel"] and near(a["flops"], b["flops"]) and near(a["bytes"], b["bytes"])


def fastest(found):
    kept = []
    for r in sorted(found, key=lambda r: r["seconds"]):
        if not any(same(r, k) for k in kept):
            kept.append(r)
    return kept


by_day = {}
for path in sys.argv[1:]:
    by_day.setdefault(json.load(open(path))["date"], []).append(path)
table = []
for date, paths in sorted(by_day.items()):
    records = [json.load(open(path)) for path in paths]
    of_models = fastest(r for record in records for r in in_models(record))
    of_kernels = fastest(r for record in records if "kernels" in record for r in alone(record))
    today = of_models + [r for r in of_kernels if not any(same(r, m, 0.1) for m in of_models)]
    names = {r["kernel"] for r in today}
    table = [r for r in table if r["kernel"] not in names] + [{**r, "date": date} for r in today]
table.sort(key=lambda r: (r["kernel"], r["size"]))
print('{\n "records": %s,\n "kernels": [' % json.dumps([os.path.basename(path) for path in sys.argv[1:]]))
print(",\n".join("  " + json.dumps(r) for r in table))
print(" ]\n}")
