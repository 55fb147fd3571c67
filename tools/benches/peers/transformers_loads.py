#!/usr/bin/env python3
"""Checks that transformers loads a model folder written by `reel` and computes the same results.

  transformers_loads.py MODEL REEL [--limit 2e-4]

MODEL is a model folder (from `reel init`, or OUT of `reel sft`), REEL the binary. Prints one line per check:

  keys     no missing keys (except a tied lm_head), no unexpected keys, equal shapes
  ids      transformers' tokenizer and `reel tokenize` agree on some hundred strings with special tokens and unusual Unicode
  prompt   transformers' chat template and processor give the token ids of `reel preprocess`
  text     logits of `reel score` for a text; relative L2 error, f32 arithmetic on both sides
  image    logits for an image, preprocessed by transformers' processor for both sides
  video    logits for a video of six frames, preprocessed by transformers' processor for both sides

Exit status 0 if all checks pass. Needs torch, transformers 4.51.3, torchvision, pillow, safetensors and numpy.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

STRINGS = [
    "", " ", "  ", "\n", "\n\n", " \n ", "\t", "a", "Hello world", "Hello  world", "don't can't I'll we've they'd I'm it's",
    "'S 'T 'RE", "123 4567 3.14159", "x2 y3z", "Which way does the circle move?", "<think>It goes up.</think>\n<answer>up</answer>",
    "<|im_start|>user\nhi<|im_end|>\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|><|endoftext|>", "<tool_call>{}</tool_call>",
    "<|im_start", "你好，世界！", "안녕하세요", "Ünïcödé ñ", "e\u0301 cafe\u0301", "ﬁ ½ ²", "😀👍🏽 👨‍👩‍👧", "\u00a0\u3000\u200b\u2028", "\r\n\r\n", "\u0000\u0001\x7f",
    "snake_case CamelCase kebab-case", "a" * 300, " " * 40, "!?.,;:" * 5, "http://example.org/a?b=c&d=%20",
]


def random_strings(n):
    rng = random.Random(0)
    pools = ["abcdefghij klmnop,.'\n", "éèüßñçå", "αβγδ абвг", "你我他是不", "0123456789 .,", "\t\n\r  ", "😀🎉✨", "<|im_end|>"]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40))) for _ in range(n)]


class Report:
    def __init__(self):
        self.failed = 0

    def line(self, name, ok, text):
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {text}", flush=True)


def reel(binary, *args):
    p = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(f"`reel {args[0]}` exited with status {p.returncode}: {p.stderr.strip()[:300]}")
    return p.stdout


def check_keys(report, folder):
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    allowed = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = sorted(set(info["missing_keys"]) - allowed)
    bad = {"missing": missing, "unexpected": info["unexpected_keys"], "mismatched": info["mismatched_keys"]}
    bad = {k: v for k, v in bad.items() if v}
    n = sum(p.numel() for p in model.parameters())
    report.line("keys", not bad, str(bad)[:500] if bad else f"{n / 1e6:.1f} M parameters, all found")
    return model.eval()


def check_ids(report, binary, folder, tokenizer, tmp):
    texts = STRINGS + random_strings(300)
    src = tmp / "texts.jsonl"
    src.write_text("".join(json.dumps(t) + "\n" for t in texts), encoding="utf-8")
    got = [json.loads(x) for x in reel(binary, "tokenize", "--model", folder, "--file", src, "--json").splitlines()]
    wrong = [(t, w, g) for t, w, g in zip(texts, [tokenizer(t)["input_ids"] for t in texts], got) if w != g]
    ok = len(got) == len(texts) and not wrong
    report.line("ids", ok, f"{len(texts)} strings" if ok else f"{len(got)} lines; first difference {wrong[:1]}")


def random_image(seed, height=84, width=112):
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 2 % 256, y * 3 % 256, (x + y + 20 * seed) % 256], -1)
    return np.clip(base + rng.normal(0, 9, base.shape), 0, 255).astype(np.uint8)


def conversations(tmp):
    text = [{"role": "user", "content": "Which way does the circle move?"}, {"role": "assistant", "content": "It goes to the left."},
            {"role": "user", "content": [{"type": "text", "text": "Why? "}, {"type": "text", "text": "Say it in one word."}]}]
    files = []
    for i in range(6):
        files.append(str(tmp / f"{i}.png"))
        Image.fromarray(random_image(i)).save(files[-1])
    image = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
        {"type": "text", "text": "Look:"}, {"type": "image", "image": files[0]}, {"type": "text", "text": "What is it?"}]}]
    video = [{"role": "user", "content": [{"type": "video", "video": files, "fps": 3.0}, {"type": "text", "text": "How many shapes?"}]}]
    return {"text": (text, {}), "image": (image, {"images": [Image.open(files[0])]}),
            "video": (video, {"videos": [[Image.open(f) for f in files]], "fps": [3.0]})}


def check_logits(report, a, name, model, processor, messages, media, tmp):
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = dict(processor(text=[prompt], return_tensors="pt", **media))
    src, out = tmp / f"{name}.json", tmp / f"{name}.safetensors"
    src.write_text(json.dumps(messages), encoding="utf-8")
    reel(a.reel, "preprocess", "--model", a.model, "--messages", src, "--out", out)
    got, want = load_file(out)["input_ids"].tolist(), inputs["input_ids"][0].tolist()
    report.line(f"prompt {name}", got == want, f"{len(want)} ids" if got == want else f"{got[:20]}..., want {want[:20]}...")
    with torch.no_grad():
        want = model(**{k: torch.tensor(v) if isinstance(v, list) else v for k, v in inputs.items()}).logits[0].double().numpy()
    tensors = {"input_ids": inputs["input_ids"][0].numpy()}
    for k in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if k in inputs:
            tensors[k] = np.ascontiguousarray(inputs[k].numpy())
    if "second_per_grid_ts" in inputs:
        tensors["second_per_grid_ts"] = np.array(inputs["second_per_grid_ts"], np.float32)
    save_file(tensors, tmp / "inputs.safetensors")
    reel(a.reel, "score", "--model", a.model, "--inputs", tmp / "inputs.safetensors", "--out", out, "--device", "cpu", "--dtype", "f32")
    got = load_file(out)["logits"].astype(np.float64)
    if got.shape != want.shape:
        report.line(name, False, f"logits are {got.shape}, not {want.shape}")
        return
    off = np.linalg.norm(got - want) / np.linalg.norm(want)
    report.line(name, bool(off <= a.limit), f"logits off by {off:.1e} (relative L2, limit {a.limit:.0e})")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("reel", type=os.path.abspath)
    ap.add_argument("--limit", type=float, default=2e-4)
    a = ap.parse_args()
    from transformers import AutoProcessor, AutoTokenizer

    report = Report()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        try:
            model = check_keys(report, a.model)
            check_ids(report, a.reel, a.model, AutoTokenizer.from_pretrained(a.model), tmp)
            processor = AutoProcessor.from_pretrained(a.model, use_fast=False)
            for name, (messages, media) in conversations(tmp).items():
                check_logits(report, a, name, model, processor, messages, media, tmp)
        except Exception as e:
            report.line("broke off", False, f"{type(e).__name__}: {e}")
    print("passed" if not report.failed else f"{report.failed} failed")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
