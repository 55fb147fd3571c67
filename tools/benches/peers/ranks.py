#!/usr/bin/env python3
"""Measures `reel sft` as 1 to 4 processes on one machine's CPU: step time, bytes that a rank sends, memory, and how soon a kill is noticed.

    python3 tools/benches/peers/ranks.py --reel target/release/reel [--steps 40] [--kills 3] [--note TEXT] [--out RECORD.json]

Needs only Python and Linux' `unshare`. Trains all weights of the tiny preset in f32, with 8 micro-batches in a step whatever the number
of processes. The runs have a network of their own, so the bytes of its loopback device are those of the ranks: payload, headers,
acknowledgements and heartbeats. The bytes of a short run are subtracted, which leaves those of steps.
"""
import argparse
import datetime
import fcntl
import json
import math
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import commit, cpu_name

MICRO_BATCHES = 8
SHORT = 2  # Steps of the run whose bytes are subtracted.
OWN_NETWORK = "REEL_RANKS_OWN_NETWORK"


def enter_own_network():
    """Starts this script again in a network namespace, and there turns on the loopback device."""
    if OWN_NETWORK not in os.environ:
        os.environ[OWN_NETWORK] = "1"
        os.execvp("unshare", ["unshare", "--map-root-user", "--net", sys.executable, *sys.argv])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        flags = struct.unpack("16sh", fcntl.ioctl(s, 0x8913, struct.pack("16sh", b"lo", 0)))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", flags | 1))  # SIOCSIFFLAGS with IFF_UP


def loopback_bytes():
    lines = (line.split(":") for line in open("/proc/net/dev", encoding="utf-8") if ":" in line)
    return next(int(fields.split()[8]) for name, fields in lines if name.strip() == "lo")


def command(reel, folder, out, ranks, steps):
    words = f"sft --model tiny --data rows.jsonl --device cpu --out {out} --max-steps {steps} --per-device-train-batch-size 1 " \
            f"--gradient-accumulation-steps {MICRO_BATCHES} --save-steps 0 --logging-steps 1 --quiet --gpus {ranks}"
    return subprocess.Popen([reel, *words.split()], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def train(reel, folder, out, ranks, steps):
    """Runs to the end. Returns the lines of metrics.jsonl, the bytes on the loopback device, and the memory of the largest process."""
    before = loopback_bytes()
    process = command(reel, folder, out, ranks, steps)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{ranks} processes: status {status}: {said}")
    lines = [json.loads(line) for line in open(folder / out / "metrics.jsonl", encoding="utf-8")]
    return lines, loopback_bytes() - before, usage.ru_maxrss * 1024


def children(pid):
    return [int(text) for text in open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8").read().split()]


def kill_one(reel, folder, out, ranks):
    """Kills a random rank after some steps. Returns the seconds until all processes have ended."""
    process = command(reel, folder, out, ranks, 100_000)
    metrics = folder / out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text(encoding="utf-8").count("\n") < 5:
        time.sleep(0.005)
    rank = random.randrange(ranks)
    os.kill(children(process.pid)[rank], signal.SIGKILL)
    begun = time.perf_counter()
    said = process.stderr.read()
    code = process.wait()
    seconds = time.perf_counter() - begun
    if code != 1 or f"error: rank {rank}: ended with signal: 9" not in said:
        sys.exit(f"{ranks} processes, rank {rank} killed: exit code {code}: {said}")
    return seconds


def trained_weights(model):
    """Number of weights in model.safetensors that get a gradient: rows without media do not reach the vision tower."""
    with open(model / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    sizes = (tensor["shape"] for name, tensor in header.items() if name != "__metadata__" and not name.startswith("visual."))
    return sum(math.prod(shape) for shape in sizes)


def measure(arguments, folder):
    reel = str(Path(arguments.reel).resolve())
    subprocess.run([reel, "init", "--preset", "tiny", "--out", "tiny", "--quiet"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    rows = ({"messages": [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"It is {2 * i}."}]}
            for i in range(64))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    weights = trained_weights(folder / "tiny")
    results, hashes = [], set()
    for ranks in range(1, 5):
        _, short, _ = train(reel, folder, f"short{ranks}", ranks, SHORT)
        lines, sent, memory = train(reel, folder, f"run{ranks}", ranks, arguments.steps)
        hashes.add(lines[-1]["hash"])
        rounds = -(-MICRO_BATCHES // ranks)
        seconds = [line["step_seconds"] for line in lines[2:]]
        kills = [kill_one(reel, folder, f"kill{ranks}-{i}", ranks) for i in range(arguments.kills)] if ranks > 1 else []
        results.append({
            "processes": ranks,
            "rounds": rounds,
            "step_seconds": {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds), "n": len(seconds)},
            "bytes_per_rank_and_step": round((sent - short) / (arguments.steps - SHORT) / ranks),
            "bytes_by_formula": round((MICRO_BATCHES / ranks * 4 * weights + 4 * weights) * (ranks - 1) / ranks),
            "device_peak_bytes_of_rank_0": lines[-1]["peak_bytes"],
            "largest_process_bytes": memory,
            "seconds_from_kill_to_end": kills,
        })
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": "python3 tools/benches/peers/ranks.py " + " ".join(f"--{k} {v}" for k, v in
                                                               [("steps", arguments.steps), ("kills", arguments.kills)]),
        "what": "`reel sft` of all weights of the tiny preset in f32 on the CPU: rows of about 30 tokens, 8 micro-batches of one row in a "
                "step. bytes_by_formula is (4 P M / N + 4 P) (N - 1) / N with P weights that get a gradient and M micro-batches: gradients to their owners, "
                "and weights to all.",
        "note": arguments.note,
        "weights": weights,
        "equal_weights_after_all_runs": len(hashes) == 1,
        "load_average": os.getloadavg(),
        "results": results,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--reel", default="target/release/reel")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--note", default="")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    enter_own_network()
    with tempfile.TemporaryDirectory() as folder:
        record = json.dumps(measure(arguments, Path(folder)), indent=1)
    if arguments.out:
        Path(arguments.out).write_text(record + "\n", encoding="utf-8")
    print(record)


if __name__ == "__main__":
    main()
