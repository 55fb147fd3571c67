#!/usr/bin/env python3
"""Compares serving on a CPU: `reel serve` beside OpenVINO GenAI and llama.cpp, with 1, 8 and 32 concurrent requests.

    python3 tools/benches/peers/serving.py --reel target/release/reel [--openvino PYTHON] [--llama-cpp PYTHON]
                                     [--only WORK,WORK] [--rounds 5] [--threads 2] [--folder DIR] [--out RECORD.json]

Needs numpy, torch 2.7.1, transformers 4.51.3, safetensors and pillow. --openvino and --llama-cpp name the interpreters
of environments with openvino-genai, optimum-intel and torch, and with llama-cpp-python, gguf and numpy; a peer without
its option is left out. The model is that of cpu.py (decoder.py); llama.cpp and reel have the same weights, OpenVINO has
others of the same shape. All use bf16; llama.cpp is also measured with weights in f16.

Works:
  clients_1, _8, _32  Output tokens per second with so many requests at any time, prompts of 64 tokens and answers of
                      64, from the first request to the last token (prefill included). reel: by HTTP with streaming,
                      measured by `reel bench serve`. Peers: in process, by their own continuous batching, without HTTP
                      (serving_peers.py).
  batch               reel bench decode: tokens/s at batch 8 over batch 1.
  overhead            Time of a decode step with 32 clients of the server, beside reel bench decode at batch 32 and the
                      same context. A step of the server is the difference of the times of a long and a short run by the
                      difference of their tokens, so that prefill cancels out.
  completions         Eight completions (n = 8) of a prompt of 1000 tokens, beside one prefill of such a prompt.
  clip                The first token for a clip of 16 frames (640 x 360, 4 s), and for another question about the clip.

Each round of a work measures everything once, one after the other; results are medians over the rounds. A first round
does not count.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from clip import write_clip
from common import PeerProcess, commit, cpu_name
from decoder import SHAPE, VISION, make_model

# A library of transformers has the name of a file in this folder, so it must not be on the import path.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

PROMPT, TOKENS, LONG_PROMPT = 64, 64, 1000
# Tokens of the two runs of `overhead`. The short one is longer than the server takes to admit 32 requests one after the
# other, so that in both runs all of them decode together for a while and the further steps are steps of the full batch.
SHORT_RUN, LONG_RUN = 40, 104
CLIENTS = (1, 8, 32)
NOTES = {
    "reel": "HTTP, streamed, prompts through the chat template; client and server share the machine",
    "openvino": "in process: ContinuousBatchingPipeline.add_request and step; no HTTP, no tokenizer",
    **{kind: f"in process: llama_decode over all sequences, weights in {dtype}; no HTTP, no tokenizer. The server of llama-cpp-python "
             "computes one request at a time, and the package has no program llama-server"
       for kind, dtype in (("llama_cpp", "bf16"), ("llama_cpp_f16", "f16"))},
}


class Server:
    """`reel serve` with the model; requests come from `reel bench serve`."""

    def __init__(self, a, folder):
        self.reel = a.reel
        command = [a.reel, "serve", "--model", folder, "--dtype", "bf16", "--device", "cpu", "--threads", str(a.threads), "--port", "0",
                   "--batch-size", "32", "--nframes", "16"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if "http://" not in line:
            sys.exit(f"{' '.join(command)}: does not listen; its message is above")
        self.url = "http://" + line.strip().rsplit("http://", 1)[1]
        self.seed = 0
        # For a server that does not know ignore_eos: with random weights, greedy decoding meets no end token. `bench`
        # checks that.
        self.options = ["--ignore-eos", "--extra-body", '{"temperature": 0}']
        if not self.succeeds(*self.options):
            self.options = self.options[1:]
        self.tokens_by_words = {}

    def command(self, *options):
        self.seed += 1
        return [self.reel, "bench", "serve", "--url", self.url, "--seed", str(self.seed), "--json", *map(str, options)]

    def succeeds(self, *options):
        command = self.command("--num-prompts", 1, "--prompt-tokens", 1, "--output-tokens", 1, "--warmup", 0, *options)
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def bench(self, words, tokens, *options):
        """Measures answers of `tokens` tokens to prompts of `words` words; all must have all their tokens."""
        command = self.command("--prompt-tokens", words, "--output-tokens", tokens, "--warmup", 0, *options)
        if "--extra-body" not in options:
            command += self.options
        record = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if record["failed"] or record["short_answers"]:
            sys.exit(f"{' '.join(command)}: {record['failed']} requests failed, {record['short_answers']} ended early")
        return record

    def words_for(self, tokens):
        """Number of words of prompts that have about so many tokens, chat template included."""
        if not self.tokens_by_words:
            for words in (1, 65):
                self.tokens_by_words[words] = mean_prompt(self.bench(words, 1, "--num-prompts", 4))
        one, many = self.tokens_by_words.values()
        return 1 + max(0, round((tokens - one) / ((many - one) / 64)))

    def close(self):
        self.process.terminate()
        self.process.wait()


def mean_prompt(record):
    return record["total_input_tokens"] / record["completed"]


def decode_bench(a, folder, batch, context, tokens):
    command = [a.reel, "bench", "decode", "--model", folder, "--dtype", "bf16", "--device", "cpu", "--threads", str(a.threads), "--weights", "copied", "--batch",
               str(batch), "--context", str(context), "--tokens", str(tokens), "--rounds", "2", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def clients(n):
    """A round with n concurrent requests: tokens per second of each program."""
    def once(a, server, peers, folder):
        requests = n * a.requests_per_client
        record = server.bench(server.words_for(PROMPT), TOKENS, "--num-prompts", requests, "--max-concurrency", n)
        # The peers get prompts of as many tokens as reel's have on average.
        work = json.dumps({"clients": n, "requests": requests, "prompt": round(mean_prompt(record)), "tokens": TOKENS})
        row = {kind: json.loads(peer.once(work))["output_throughput"] for kind, peer in peers.items()}
        ratios = {f"reel_over_{kind}": record["output_throughput"] / row[kind] for kind in peers}
        return {**row, "reel": record["output_throughput"], **ratios, "prompt_tokens": mean_prompt(record),
                "reel_median_ttft_ms": record["median_ttft_ms"], "reel_median_tpot_ms": record["median_tpot_ms"]}
    return once


def batch(a, server, peers, folder):
    one, eight = (decode_bench(a, folder, n, PROMPT, TOKENS)["tokens_per_second"] for n in (1, 8))
    return {"batch_1": one, "batch_8": eight, "ratio": eight / one}


def overhead(a, server, peers, folder):
    steps = LONG_RUN - SHORT_RUN
    run = lambda tokens: server.bench(server.words_for(PROMPT), tokens, "--num-prompts", 32, "--max-concurrency", 32)
    short, long = run(SHORT_RUN), run(LONG_RUN)
    served = (long["duration"] - short["duration"]) / steps
    step = decode_bench(a, folder, 32, round(mean_prompt(long)) + SHORT_RUN, steps)["seconds"] / steps
    return {"served_step_ms": 1e3 * served, "bench_step_ms": 1e3 * step, "overhead_ms": 1e3 * (served - step), "ratio": served / step}


def completions(a, server, peers, folder):
    words = server.words_for(LONG_PROMPT)
    body = lambda n: ["--num-prompts", 1, "--extra-body", json.dumps({"temperature": 1, "n": n})]
    # Each request has a prompt of its own, so a cache of earlier prompts has nothing.
    prefill, first = (server.bench(words, 1, *body(n))["mean_e2el_ms"] / 1e3 for n in (1, 8))
    record = server.bench(words, TOKENS, *body(8), *server.options[:-2])
    whole = record["mean_e2el_ms"] / 1e3
    return {"prompt_tokens": mean_prompt(record), "prefill_seconds": prefill, "first_of_8_seconds": first, "all_of_8_seconds": whole,
            "first_of_8_over_prefill": first / prefill, "all_of_8_over_prefill": whole / prefill}


def clip(a, server, peers, folder):
    path = os.path.join(tempfile.gettempdir(), f"serving-clip-{os.getpid()}.avi")
    try:
        # Each round has a clip of its own, which no cache knows.
        write_clip(path, seed=time.time_ns() % (1 << 31))
        # The answer has one token, so its latency is the time to the first token.
        first, again = (server.bench(8, 1, "--num-prompts", 1, "--video", path) for _ in range(2))
    finally:
        os.remove(path)
    seconds = lambda record: record["mean_e2el_ms"] / 1e3
    return {"prompt_tokens": first["total_input_tokens"], "first_seconds": seconds(first), "again_seconds": seconds(again),
            "again_over_first": seconds(again) / seconds(first)}


WORKS = {**{f"clients_{n}": clients(n) for n in CLIENTS}, "batch": batch, "overhead": overhead, "completions": completions, "clip": clip}


def measure(work, a, server, peers, folder):
    """Measures one work in rounds. Returns the medians, the smallest and largest values, and the rounds."""
    rounds = []
    for n in range(-a.warm_rounds, a.rounds):
        row = WORKS[work](a, server, peers if work.startswith("clients") else {}, folder)
        print(work, "warm" if n < 0 else n, json.dumps(row), file=sys.stderr, flush=True)
        if n >= 0:
            rounds.append(row)
    column = lambda key: [row[key] for row in rounds]
    return {"median": {key: statistics.median(column(key)) for key in rounds[0]},
            "min": {key: min(column(key)) for key in rounds[0]}, "max": {key: max(column(key)) for key in rounds[0]}, "rounds": rounds}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--reel", required=True)
    p.add_argument("--openvino", metavar="PYTHON", help="also measure OpenVINO GenAI, with this Python interpreter")
    p.add_argument("--llama-cpp", metavar="PYTHON", help="also measure llama.cpp, with this Python interpreter")
    p.add_argument("--only", help="works, separated by commas [default: all]")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--warm-rounds", type=int, default=1, help="rounds before, which do not count")
    p.add_argument("--requests-per-client", type=int, default=2)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--folder", help="model folder, created if absent [default: a temporary folder]")
    p.add_argument("--out")
    a = p.parse_args()
    works = a.only.split(",") if a.only else list(WORKS)
    for work in works:
        if work not in WORKS:
            p.error(f"--only: {work} is not a work; give some of {', '.join(WORKS)}")
    a.reel = os.path.abspath(a.reel)
    folder = os.path.abspath(a.folder) if a.folder else os.path.join(tempfile.mkdtemp(), "model")
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        make_model(a.reel, folder)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serving_peers.py")
    pythons = {"openvino": a.openvino, "llama_cpp": a.llama_cpp, "llama_cpp_f16": a.llama_cpp}
    pythons = {kind: python for kind, python in pythons.items() if python}
    needs_peers = any(work.startswith("clients") for work in works)
    peers = {k: PeerProcess(k, [python, script, k, folder, str(a.threads)]) for k, python in pythons.items() if needs_peers}
    server = None
    try:
        server = Server(a, folder)
        results = {work: measure(work, a, server, peers, folder) for work in works}
    finally:
        for process in [*peers.values(), *([server] if server else [])]:
            process.close()
        if not a.folder:
            shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    record = {"machine": cpu_name(), "threads": a.threads, "command": "tools/benches/peers/serving.py", "date": time.strftime("%Y-%m-%d"),
              "commit": commit(), "decoder": SHAPE, "vision": VISION, "prompt_tokens": PROMPT, "output_tokens": TOKENS,
              "requests_per_client": a.requests_per_client, "ignore_eos": "--ignore-eos" in server.options,
              "how": {kind: NOTES[kind] for kind in ("reel", *peers)}, "versions": versions(a.reel, pythons), "works": results}
    print(json.dumps({work: result["median"] for work, result in results.items()}, indent=2))
    if a.out:
        with open(a.out, "w", encoding="utf-8") as f:
            json.dump(record, f, indent=1)
            f.write("\n")


def versions(reel, pythons):
    text = lambda command: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    packages = {"openvino": "openvino-genai", "llama_cpp": "llama-cpp-python", "llama_cpp_f16": "llama-cpp-python"}
    of = lambda package: f"import importlib.metadata as m; print(m.version({package!r}))"
    return {"reel": text([reel, "--version"]), **{k: text([python, "-c", of(packages[k])]) for k, python in pythons.items()}}


if __name__ == "__main__":
    sys.exit(main())
