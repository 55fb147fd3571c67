"""Helpers of the peer benchmarks: imports, timing with a cold cache, peers in processes of their own, records."""

import importlib
import json
import os
import platform
import subprocess
import sys
import time

# The C library keeps freed memory, and torch asks for large pages. Otherwise a training step of torch spends much of its time on
# page faults: every large tensor is mapped and zeroed anew.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20),
               "THP_MEM_ALLOC_ENABLE": "1"}


def need(*modules):
    """Imports modules. If one is not installed, prints a record that says so and exits with status 0."""
    loaded = []
    for name in modules:
        try:
            loaded.append(importlib.import_module(name))
        except Exception as e:  # A broken installation is as absent as none.
            say({"peer": name.split(".")[0], "absent": first_line(e)})
            sys.exit(0)
    return loaded


def first_line(e):
    return (str(e) or type(e).__name__).split("\n")[0]


def say(record):
    print(json.dumps(record), flush=True)


class Clock:
    """Measures seconds of runs: with GPU events, after overwriting 256 MiB to clear the cache, or with the host's clock on a CPU."""

    def __init__(self, torch, device):
        self.torch, self.device = torch, device
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if device == "cuda" else None

    def once(self, f, flush=True):
        torch = self.torch
        if self.device != "cuda":
            begun = time.perf_counter()
            f()
            return time.perf_counter() - begun
        if flush:
            self.flush.add_(1)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        f()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def runs(self, f, runs, warm=2, flush=True):
        for _ in range(warm):
            f()
        return [self.once(f, flush) for _ in range(runs)]


def spread(seconds):
    ordered = sorted(seconds)
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return {"seconds": median, "least": ordered[0], "most": ordered[-1], "n": n, "samples": seconds}


class PeerProcess:
    """A peer in a process of its own: measures once for each line that it is sent, and answers with a line."""

    def __init__(self, kind, command, keeps_memory=True):
        self.kind = kind
        environment = {**os.environ, **(KEEP_MEMORY if keeps_memory else {})}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def once(self, line=""):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.kind} ended without a result; its message is above")
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()


def cpu_name():
    """Name, family and model of the processor: some names, such as "AMD EPYC", say nothing of the generation."""
    fields = dict(map(str.strip, line.split(":", 1)) for line in open("/proc/cpuinfo", encoding="utf-8") if ":" in line)
    if "model name" not in fields:
        return platform.processor()
    return f"{fields['model name']}, family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"


def commit():
    here = os.path.dirname(os.path.abspath(__file__))
    p = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True)
    return p.stdout.strip() or None
