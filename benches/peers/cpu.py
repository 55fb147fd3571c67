#!/usr/bin/env python3
"""Compares prefill and decode speed of a 0.5 B decoder on the CPU: `reel` and transformers in alternation, in one run.

    python3 benches/peers/cpu.py --reel target/release/reel [--rounds 7] [--threads N] [--folder DIR] [--out RECORD.json]

Needs numpy, torch 2.7.1, transformers 4.51.3 and safetensors. Each round measures the limits of the CPU, transformers and reel
one after the other with the same number of threads. Results are medians of the ratios of the rounds, so that slow periods of
the machine affect both sides. The script creates the model from a seed: hidden 896, 24 layers, 14 heads, 2 KV heads,
intermediate 4864, vocabulary 151936, tied embeddings, bf16.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PREFILL, CONTEXT, STEPS = 512, 512, 8
SHAPE = dict(hidden_size=896, num_hidden_layers=24, max_window_layers=24, num_attention_heads=14, num_key_value_heads=2,
             intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True, torch_dtype="bfloat16",
             rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]})


def make_model(reel, folder):
    """Writes a model folder: tokenizer and vision tower of the preset `tiny`, the decoder described above, normal random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    subprocess.run([reel, "init", "--preset", "tiny", "--seed", "0", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    text = config["text_config"] if "text_config" in config else config
    text.update(SHAPE)
    config["tie_word_embeddings"], config["torch_dtype"] = True, "bfloat16"
    config["vision_config"]["out_hidden_size"] = SHAPE["hidden_size"]
    json.dump(config, open(path, "w"), indent=2)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig.from_pretrained(folder)).named_parameters() if n != "lm_head.weight"}
    torch.manual_seed(0)
    weights = {n: (torch.ones(s) if len(s) == 1 and "bias" not in n else torch.randn(s) * 0.02).bfloat16() for n, s in shapes.items()}
    for f in os.listdir(folder):
        if f.endswith(".safetensors") or f.endswith(".index.json"):
            os.remove(os.path.join(folder, f))
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


class Peer:
    """Prefill and decode with transformers."""

    def __init__(self, folder, threads):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration as Model
        torch.set_num_threads(threads)
        self.torch = torch
        self.models = {"f32": Model.from_pretrained(folder, torch_dtype=torch.float32).eval(),
                       "bf16": Model.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()}
        self.ids = (torch.arange(PREFILL)[None] * 37) % 97

    def prefill(self, dtype):
        model = self.models[dtype]
        with self.torch.inference_mode():
            start = time.perf_counter()
            hidden = model.model(input_ids=self.ids, use_cache=True).last_hidden_state
            model.lm_head(hidden[:, -1:])
            return time.perf_counter() - start

    def decode(self, dtype):
        model = self.models[dtype]
        with self.torch.inference_mode():
            cache = model.model(input_ids=self.ids[:, :CONTEXT], use_cache=True).past_key_values
            times = []
            for i in range(STEPS):
                one, at = self.ids[:, :1], self.torch.full((3, 1, 1), CONTEXT + i)
                start = time.perf_counter()
                hidden = model.model(input_ids=one, position_ids=at, past_key_values=cache, use_cache=True).last_hidden_state
                model.lm_head(hidden[:, -1:])
                times.append(time.perf_counter() - start)
        return statistics.median(times)


def limits(torch):
    """Measures with torch what the machine can do in this round: GFLOP/s of square matrix products, GB/s of a long read."""
    out = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
        best = 1e9
        for _ in range(4):
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
        out[f"torch_product_{name}_gflops"] = 2 * 1024**3 / best / 1e9
    x = torch.ones(64 * 1024 * 1024)
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - start)
    out["torch_read_gb_s"] = x.numel() * 4 / best / 1e9
    return out


def bench(reel, what, folder, dtype, threads):
    cmd = [reel, "bench", what, "--model", folder, "--dtype", dtype, "--device", "cpu", "--threads", str(threads), "--json"]
    cmd += ["--tokens", str(PREFILL), "--rounds", "2"] if what == "prefill" else [
        "--tokens", str(STEPS), "--context", str(CONTEXT), "--batch", "1", "--rounds", "2"]
    return json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE).stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--reel", required=True)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--folder", help="model folder, created if absent [default: a temporary folder]")
    p.add_argument("--out")
    a = p.parse_args()
    a.reel = os.path.abspath(a.reel)
    tmp = None
    folder = a.folder
    if folder is None:
        tmp = folder = os.path.join(tempfile.mkdtemp(), "model")
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        make_model(a.reel, folder)
    try:
        peer = Peer(folder, a.threads)
        rounds = []
        for n in range(a.rounds + 1):
            row = limits(peer.torch)
            for dtype in ("f32", "bf16"):
                row[f"peer_prefill_{dtype}"] = PREFILL / peer.prefill(dtype)
                ours = bench(a.reel, "prefill", folder, dtype, a.threads)
                row[f"reel_prefill_{dtype}"] = ours["tokens_per_second"]
                row[f"roofline_{dtype}"] = ours.get("roofline")
            row["peer_decode_bf16"] = 1 / peer.decode("bf16")
            ours = bench(a.reel, "decode", folder, "bf16", a.threads)
            row["reel_decode_bf16"], row["roofline_decode"] = ours["tokens_per_second"], ours.get("roofline")
            if n == 0:
                continue  # caches, pages and thread pools of both sides are warm from here on
            rounds.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    finally:
        if tmp:
            shutil.rmtree(os.path.dirname(tmp), ignore_errors=True)
    result = {"machine": cpu_name(), "threads": a.threads, "command": "benches/peers/cpu.py", "date": time.strftime("%Y-%m-%d"),
              "commit": commit(), "model": SHAPE, "prefill_tokens": PREFILL, "decode_context": CONTEXT,
              "ratios": {}, "medians": {}, "rounds": rounds}
    for what in ("prefill_f32", "prefill_bf16", "decode_bf16"):
        ratios = [r[f"reel_{what}"] / r[f"peer_{what}"] for r in rounds]
        result["ratios"][what] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        for side in ("peer", "reel"):
            result["medians"][f"{side}_{what}"] = statistics.median(r[f"{side}_{what}"] for r in rounds)
    text = json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2)
    print(text)
    if a.out:
        with open(a.out, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)
            f.write("\n")


def cpu_name():
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit():
    here = os.path.dirname(os.path.abspath(__file__))
    p = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True)
    return p.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
