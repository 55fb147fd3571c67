#!/usr/bin/env python3
"""Compares the speed of a 0.5 B decoder on the CPU: `reel` beside transformers, and beside OpenVINO GenAI, in alternation.

    python3 tools/benches/peers/cpu.py --reel target/release/reel [--only WORK,WORK] [--rounds 5] [--threads N] [--folder DIR]
                                 [--openvino PYTHON] [--out RECORD.json]

Needs numpy, torch 2.7.1, transformers 4.51.3 and safetensors. With --openvino, PYTHON is the interpreter of an environment that also has
openvino-genai and optimum-intel. The script creates the model from a seed: hidden 896, 24 layers, 14 heads, 2 KV heads, intermediate
4864, vocabulary 151936, tied embeddings, bf16, and a vision tower of 8 layers of the published width (1280, intermediate 3420).

Works: prefill_f32, prefill_bf16 (a prompt of 512 tokens), decode_bf16_1, _8, _32 (sequences with 64 tokens before), video_f32, video_bf16
(16 frames of 224 x 224 and 64 tokens of text: vision tower and prefill), train_f32, train_bf16 (steps of 512 tokens with AdamW, no
gradient checkpointing; reel's bf16 has f32 masters; the peers are autocast of an f32 model, and a bf16 model without masters).

Each round of a work measures every peer and reel, one after the other, with the same number of threads. Results are medians of the
ratios of the rounds, so that slow periods of the machine affect both sides. Each peer runs in a process of its own, which loads the
model once (for training, once a round, because two training processes need 23 GB); a first round does not count.
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

from common import PeerProcess, commit, cpu_name
from decoder import SHAPE, VISION, export_to_openvino, make_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A library of transformers has the name of a file in this folder, so the folder must not be on the import path.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]

PREFILL, CONTEXT, STEPS, FRAMES, SIDE, TEXT = 512, 64, 8, 16, 224, 64
# Each work: reel's dtype, what `reel bench` measures with which options, and the peers.
# reel copies its weights into memory, as `reel serve` and every peer do.
COPIED = ["--weights", "copied"]
WORKS = {
    **{f"prefill_{d}": (d, ["prefill", "--tokens", str(PREFILL), *COPIED], ["transformers", "openvino"])
       for d in ("f32", "bf16")},
    **{f"decode_bf16_{b}": ("bf16", ["decode", "--batch", str(b), "--tokens", str(STEPS), "--context", str(CONTEXT),
                                     *COPIED], ["transformers", "openvino"]) for b in (1, 8, 32)},
    **{f"video_{d}": (d, ["prefill", "--tokens", str(TEXT), "--frames", str(FRAMES), "--frame-size", f"{SIDE}x{SIDE}",
                          *COPIED], ["transformers"]) for d in ("f32", "bf16")},
    "train_f32": ("f32", ["train", "--tokens", str(PREFILL), "--gradient-checkpointing", "none"], ["transformers"]),
    "train_bf16": ("bf16", ["train", "--tokens", str(PREFILL), "--gradient-checkpointing", "none"],
                   ["transformers_autocast", "transformers_bf16"]),
}


class Transformers:
    """Does a work with transformers; each call of `once` returns tokens per second."""

    def __init__(self, kind, work, folder, threads):
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration as Model
        torch.set_num_threads(threads)
        self.torch, self.work, self.kind = torch, work, kind
        bf16 = kind != "transformers_autocast" and "bf16" in work
        self.model = Model.from_pretrained(folder, torch_dtype=torch.bfloat16 if bf16 else torch.float32).eval()
        self.ids = (torch.arange(PREFILL)[None] * 37) % 97
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6) if work.startswith("train") else None

    def once(self):
        with self.torch.inference_mode(mode=not self.optimizer):
            return getattr(self, self.work.split("_")[0])()

    def prefill(self):
        start = time.perf_counter()
        hidden = self.model.model(input_ids=self.ids, use_cache=True).last_hidden_state
        self.model.lm_head(hidden[:, -1:])
        return PREFILL / (time.perf_counter() - start)

    def decode(self):
        batch = int(self.work.rsplit("_", 1)[1])
        ids = self.ids[:, :CONTEXT].expand(batch, -1)
        cache = self.model.model(input_ids=ids, use_cache=True).past_key_values
        times = []
        for i in range(STEPS):
            one, at = ids[:, :1], self.torch.full((3, batch, 1), CONTEXT + i)
            start = time.perf_counter()
            hidden = self.model.model(input_ids=one, position_ids=at, past_key_values=cache, use_cache=True).last_hidden_state
            self.model.lm_head(hidden[:, -1:])
            times.append(time.perf_counter() - start)
        return batch / statistics.median(times)

    def video(self):
        torch, config = self.torch, self.model.config
        grid = torch.tensor([[FRAMES // 2, SIDE // 14, SIDE // 14]])
        patches, pads = int(grid.prod()), int(grid.prod()) // 4
        ids = torch.cat([torch.tensor([config.vision_start_token_id]), torch.full((pads,), config.video_token_id),
                         torch.tensor([config.vision_end_token_id]), self.ids[0, :TEXT]])[None]
        if not hasattr(self, "pixels"):
            torch.manual_seed(0)
            self.pixels = torch.randn(patches, 3 * 2 * 14 * 14)
        start = time.perf_counter()
        # `num_logits_to_keep` does not exist in every version, and all logits would be unfair: embed, then run the decoder.
        embeds = self.model.model.embed_tokens(ids)
        features = self.model.visual(self.pixels.to(self.model.visual.dtype), grid_thw=grid)
        embeds = embeds.masked_scatter((ids == config.video_token_id)[..., None], features.to(embeds.dtype))
        at, _ = self.model.get_rope_index(ids, None, grid, torch.ones(1))
        hidden = self.model.model(inputs_embeds=embeds, position_ids=at, use_cache=True).last_hidden_state
        self.model.lm_head(hidden[:, -1:])
        return ids.shape[1] / (time.perf_counter() - start)

    def train(self):
        self.model.train()
        start = time.perf_counter()
        with self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.kind == "transformers_autocast"):
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return PREFILL / (time.perf_counter() - start)


class OpenVino:
    """Does a work with OpenVINO GenAI: LLMPipeline with continuous batching, random weights of the decoder's shape."""

    def __init__(self, kind, work, folder, threads):
        import numpy
        import openvino
        import openvino_genai as genai
        self.work, self.genai, self.numpy, self.ov = work, genai, numpy, openvino
        exported = folder + "-openvino"
        if not os.path.exists(os.path.join(exported, "openvino_model.xml")):
            export_to_openvino(folder, exported)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = 2, False
        # All prompts in one pass. With the default of 256 tokens, early sequences decode while later prompts are computed.
        scheduler.max_num_batched_tokens = 2048
        hint = "bf16" if "bf16" in work else "f32"
        self.pipe = genai.LLMPipeline(exported, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads,
                                      INFERENCE_PRECISION_HINT=hint)

    def generate(self, batch, tokens, new):
        """Samples `new` tokens for each of `batch` prompts of `tokens` tokens. Returns the seconds, and those of each token after
        the first one: the time of its step, divided by the batch."""
        ids = self.numpy.array([[(i * 37 + 11 * row) % 97 for i in range(tokens)] for row in range(batch)], dtype="int64")
        options = self.genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        start = time.perf_counter()
        result = self.pipe.generate(self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(self.numpy.ones_like(ids))), options)
        return time.perf_counter() - start, [us / 1e6 for us in result.perf_metrics.raw_metrics.m_durations]

    def once(self):
        if self.work.startswith("prefill"):
            return PREFILL / self.generate(1, PREFILL, 1)[0]
        batch = int(self.work.rsplit("_", 1)[1])
        _, seconds = self.generate(batch, CONTEXT, 1 + 2 * STEPS)
        if len(seconds) != batch * 2 * STEPS:
            raise RuntimeError(f"{len(seconds)} durations for {2 * STEPS} steps of {batch} sequences: the prompts were not one pass")
        return 1 / statistics.median(seconds)


def serve_peer(kind, work, folder, threads):
    peer = (OpenVino if kind == "openvino" else Transformers)(kind, work, folder, int(threads))
    for _ in sys.stdin:
        print(peer.once(), flush=True)


def bench(reel, folder, dtype, options, threads):
    command = [reel, "bench", *options, "--model", folder, "--dtype", dtype, "--device", "cpu", "--threads", str(threads), "--rounds", "2", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(work, a, folder):
    """Measures one work in rounds. Returns its medians, its ratios by peer, and the rounds."""
    dtype, options, kinds = WORKS[work]
    kinds = [k for k in kinds if k != "openvino" or a.openvino]
    python = lambda k: a.openvino if k == "openvino" else sys.executable
    start = lambda k: PeerProcess(k, [python(k), os.path.abspath(__file__), "--peer", k, work, folder, str(a.threads)])
    # Two training processes do not fit into memory together, so these peers are started anew for each round.
    is_training = work.startswith("train")
    peers = {} if is_training else {k: start(k) for k in kinds}
    rounds = []
    try:
        for n in range(a.rounds + 1):
            row = {}
            for k in kinds:
                if is_training:
                    peers[k] = start(k)
                    float(peers[k].once())
                row[k] = float(peers[k].once())
                if is_training:
                    peers.pop(k).close()
            ours = bench(a.reel, folder, dtype, options, a.threads)
            row["reel"], row["roofline_share"] = ours["tokens_per_second"], ours["roofline"]["share"]
            row["handover_nanoseconds"] = ours["handover_nanoseconds"]
            if n > 0:
                rounds.append(row)
                print(work, json.dumps(row), file=sys.stderr, flush=True)
    finally:
        for peer in peers.values():
            peer.close()
    spread = lambda values: {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"tokens_per_second": {k: statistics.median(r[k] for r in rounds) for k in [*kinds, "reel"]},
            "roofline_share": statistics.median(r["roofline_share"] for r in rounds),
            "ratios": {k: spread([r["reel"] / r[k] for r in rounds]) for k in kinds}, "rounds": rounds}


def main():
    if sys.argv[1:2] == ["--peer"]:
        return serve_peer(*sys.argv[2:])
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--reel", required=True)
    p.add_argument("--only", help="works, separated by commas [default: all]")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--folder", help="model folder, created if absent [default: a temporary folder]")
    p.add_argument("--openvino", metavar="PYTHON", help="also measure OpenVINO GenAI, with this Python interpreter")
    p.add_argument("--out")
    a = p.parse_args()
    a.reel = os.path.abspath(a.reel)
    folder = os.path.abspath(a.folder) if a.folder else os.path.join(tempfile.mkdtemp(), "model")
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        make_model(a.reel, folder)
    try:
        works = {work: measure(work, a, folder) for work in (a.only.split(",") if a.only else WORKS)}
    finally:
        if not a.folder:
            shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    result = {"machine": cpu_name(), "threads": a.threads, "command": "tools/benches/peers/cpu.py", "date": time.strftime("%Y-%m-%d"),
              "commit": commit(), "decoder": SHAPE, "vision": VISION, "works": works}
    print(json.dumps({w: {k: v for k, v in r.items() if k != "rounds"} for w, r in works.items()}, indent=2))
    if a.out:
        with open(a.out, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
