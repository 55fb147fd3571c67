"""Derives the table by which `reel plan` prices kernels from a record of measured kernels.

    python3 benches/gpu/shares.py benches/results/h200/2026-11-20-kernels.json >benches/results/h200/shares.json

RECORD is `all.json` of run.sh, or a record of November 2026. Each row of the table has a kernel's name, dtype and size,
its operations, bytes and median seconds, and a hash of the CUDA source of its folder at the record's commit, as
`Source::code_hash` in kernels/src/launch/source.rs computes it: FNV-1a of sm80.cu and the folder's headers in the order of their names,
without comments and whitespace. A record whose rows have no hash needs the repository's history.
"""

import json
import os
import re
import subprocess
import sys


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
    return code_hash([git("show", f"{commit}:{name}") for name in [f"{folder}/sm80.cu", *files]])


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


path = sys.argv[1]
record = json.load(open(path))
table = sorted(rows(record), key=lambda r: (r["kernel"], r["size"]))
print('{\n "record": "%s",\n "date": "%s",\n "kernels": [' % (os.path.basename(path), record["date"]))
print(",\n".join("  " + json.dumps(r) for r in table))
print(" ]\n}")
