#!/usr/bin/env python3
"""Compares the matrix products of device `cpu` with torch, in alternation, with the same number of threads.

Needs torch and `cargo build --release -p reel-kernels --example matmul_limits`.
Each round measures the limits of the machine, then torch and reel in turns for each shape, a few calls at a time. Several copies of
the weight are used so that it is read from memory. The minimum time of each side counts, because other work on the machine can only
add time. The record has the medians over the rounds of the ratio torch / reel and of reel's fraction of the limit (arithmetic or
memory, measured in the same round). Copies of small weights stay partly in the cache, so their fraction can exceed 1.
"""
import argparse, json, os, pathlib, platform, statistics, subprocess, time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
HIDDEN, KV, MLP, VOCAB = 896, 128, 4864, 151936
SHAPES = [(m, n, k) for m in (512, 1) for n, k in ((HIDDEN, HIDDEN), (KV, HIDDEN), (MLP, HIDDEN), (HIDDEN, MLP))]
SHAPES += [(1, VOCAB, HIDDEN), (8, MLP, HIDDEN)]
# Types of A, B and C in reel. torch cannot multiply f32 by bf16, so this case is compared with its bf16 product.
KINDS = [("f32", "f32", "f32"), ("bf16", "bf16", "bf16"), ("f32", "bf16", "f32")]


class Reel:
    def __init__(self, binary, threads):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdin.write(f"threads {threads}\n")

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        median, least = self.process.stdout.readline().split()
        return float(least)


def torch_inputs(kind, m, n, k, copies):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[kind]
    return torch.randn(m, k).to(dtype), [torch.randn(n, k).to(dtype) for _ in range(copies)]


def torch_seconds(x, weights, calls):
    times = []
    with torch.inference_mode():
        for i in range(calls + 2):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weights[i % len(weights)])
            times.append(time.perf_counter() - start)
    return min(times[2:])


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", default=ROOT / "target/release/examples/matmul_limits")
    parser.add_argument("--out", help="write the record to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reel = Reel(args.binary, args.threads)
    rows = {}
    for _ in range(args.rounds):
        limits = {"limit f32": 0.0, "limit bf16": 0.0, "read": 0.0}
        measured = []
        for a, b, c in KINDS:
            for m, n, k in SHAPES:
                size = n * k * (4 if b == "f32" else 2)
                copies = max(1, min(20, (64 << 20) // size))
                calls = max(2, min(40, int(2e10 / (2 * m * n * k)), (512 << 20) // size))
                inputs = torch_inputs(b, m, n, k, copies)
                peer = ours = float("inf")
                for _ in range(args.turns):
                    # Wait, because the threads of the other side keep spinning for a moment after each call.
                    time.sleep(0.01)
                    peer = min(peer, torch_seconds(*inputs, calls))
                    time.sleep(0.01)
                    ours = min(ours, reel.ask(f"product {a} {b} {c} {m} {n} {k} {copies} {calls}"))
                    for name in limits:
                        if name != "read" or n == VOCAB:  # the read takes longest
                            limits[name] = max(limits[name], 1e9 / reel.ask(name))
                measured.append((f"{a}x{b}", m, n, k, peer, ours, 2 * m * n * k / ours, size / ours, f"limit {a}"))
        for kind, m, n, k, peer, ours, flops, read, limit in measured:
            share = max(flops / limits[limit], read / limits["read"])
            rows.setdefault((kind, m, n, k), []).append((peer, ours, peer / ours, share))
    record = {
        "what": "matrix products, torch.nn.functional.linear against reel",
        "machine": cpu_model(),
        "threads": args.threads,
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "torch": torch.__version__,
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "command": f"tools/benches/peers/cpu_matmul.py --rounds {args.rounds} --turns {args.turns} --threads {args.threads}",
        "rows": [],
    }
    for (kind, m, n, k), runs in rows.items():
        peer, ours, ratio, share = (statistics.median(column) for column in zip(*runs))
        spread = [round(min(r[2] for r in runs), 2), round(max(r[2] for r in runs), 2)]
        record["rows"].append({"kind": kind, "m": m, "n": n, "k": k, "torch_us": round(peer * 1e6, 1),
                               "reel_us": round(ours * 1e6, 1), "times_faster": round(ratio, 2), "spread": spread,
                               "reel_gflops": round(2 * m * n * k / ours / 1e9, 1), "share_of_limit": round(share, 2)})
        print(json.dumps(record["rows"][-1]))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
