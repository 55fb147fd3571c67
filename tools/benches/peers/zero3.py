#!/usr/bin/env python3
"""Measures the memory of `reel sft` at the widths of a published model, with the weights on every process and divided among them.

    python3 tools/benches/peers/zero3.py --reel target/release/reel [--layers 4] [--steps 2] [--ranks 1 2 4] [--note TEXT] [--out RECORD.json]

Needs only Python. Makes a model of random weights with the 3B preset's widths, vocabulary and vision tower and fewer decoder layers, and
trains all weights but the tower's on rows of text, as 1 process, and as several with `--zero-stage 2` and `3`. All runs must end with
the same weights. For each run it notes the bytes of tensors that the program counted on rank 0, the resident memory of the largest
process, and, for one process, what `reel plan` says for the same options. Jobs of several processes can be planned for GPUs only,
whose memory differs from that of a CPU.
"""
import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import commit, cpu_name

MICRO_BATCHES = 4


def options(ranks, stage):
    words = f"--data rows.jsonl --freeze-vision --per-device-train-batch-size 1 --optim adamw-8bit " \
            f"--gradient-accumulation-steps {MICRO_BATCHES} --learning-rate 1e-5".split()
    return words + (["--zero-stage", str(stage)] if ranks > 1 else [])


def resident_bytes(pid):
    """Resident memory of a process and of each of its descendants, by process."""
    found, rest = {}, [pid]
    while rest:
        process = rest.pop()
        try:
            status = open(f"/proc/{process}/status", encoding="utf-8").read()
            rest += map(int, open(f"/proc/{process}/task/{process}/children", encoding="utf-8").read().split())
        except FileNotFoundError:
            continue  # It has ended.
        # Pages of the mapped model file are shared by all processes and can be dropped: only memory of its own counts.
        own = [line.split()[1] for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
        found[process] = 1024 * sum(map(int, own))
    return found


def train(reel, folder, out, ranks, stage, steps):
    command = [reel, "sft", "--model", "wide", "--out", out, "--max-steps", str(steps), "--save-steps", "0", "--logging-steps", "1",
               "--quiet", "--device", "cpu", "--gpus", str(ranks), *options(ranks, stage)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    largest, total, ended = 0, 0, threading.Event()

    def watch():
        nonlocal largest, total
        while not ended.wait(0.02):
            found = resident_bytes(process.pid)
            largest, total = max([largest, *found.values()]), max(total, sum(found.values()))

    watching = threading.Thread(target=watch)
    watching.start()
    said = process.stderr.read()
    code = process.wait()
    ended.set()
    watching.join()
    if code != 0:
        sys.exit(f"{ranks} processes: exit code {code}: {said}")
    lines = [json.loads(line) for line in open(folder / out / "metrics.jsonl", encoding="utf-8")]
    return {
        "processes": ranks,
        "zero_stage": stage if ranks > 1 else None,
        "counted_peak_bytes_of_rank_0": max(line["peak_bytes"] for line in lines),
        "resident_bytes_of_the_largest_process": largest,
        "resident_bytes_of_all": total,
        "step_seconds": [line["step_seconds"] for line in lines],
        "run_seconds": time.perf_counter() - begun,
    }, lines[-1]["hash"]


def planned_bytes(reel, folder):
    command = [reel, "plan", "sft", "--model", "wide", "--device", "cpu", "--json", "--max-steps", "1", *options(1, 2)]
    plan = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(plan.stdout)["peak_bytes"]


def measure(arguments, folder):
    reel = str(Path(arguments.reel).resolve())
    init = [reel, "init", "--preset", "3b", "--layers", str(arguments.layers), "--out", "wide", "--quiet"]
    subprocess.run(init, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    rows = ({"messages": [{"role": "user", "content": f"What is {i} + {i}?"}, {"role": "assistant", "content": f"It is {2 * i}."}]}
            for i in range(16))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    results, hashes = [], set()
    for ranks, stage in [(ranks, stage) for ranks in arguments.ranks for stage in ((2, 3) if ranks > 1 else (2,))]:
        result, weights = train(reel, folder, f"run{ranks}-{stage}", ranks, stage, arguments.steps)
        result["planned_peak_bytes"] = planned_bytes(reel, folder) if ranks == 1 else None
        results.append(result)
        hashes.add(weights)
        print(json.dumps(result), file=sys.stderr, flush=True)
    return {
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": f"python3 tools/benches/peers/zero3.py --layers {arguments.layers} --steps {arguments.steps} --ranks "
                   + " ".join(map(str, arguments.ranks)),
        "what": "`reel sft` of all weights but the vision tower's with 8-bit moments, on the CPU, of a model with the 3B preset's widths "
                f"and {arguments.layers} decoder layers in bf16: {MICRO_BATCHES} micro-batches of one row of about 30 tokens in a step. "
                "Resident bytes are anonymous and shared memory; pages of mapped files are left out.",
        "note": arguments.note,
        "weights_file_bytes": sum(path.stat().st_size for path in (folder / "wide").glob("*.safetensors")),
        "equal_weights_after_all_runs": len(hashes) == 1,
        "load_average": os.getloadavg(),
        "results": results,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--reel", default="target/release/reel")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--note", default="")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = json.dumps(measure(arguments, Path(folder)), indent=1)
    if arguments.out:
        Path(arguments.out).write_text(record + "\n", encoding="utf-8")
    print(record)


if __name__ == "__main__":
    main()
