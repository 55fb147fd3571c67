#!/usr/bin/env python3
"""Measures how well `reel eval` overlaps decoding with the model: the time of an evaluation, of the model alone and of the media alone.

    python3 tools/benches/peers/eval_overlap.py --reel target/release/reel --model MODEL [--rows 8] [--rounds 3] [--out RECORD.json]

Needs numpy, Pillow and safetensors. Makes one video for each question. A round runs, in this order,
  evaluation    `reel eval` over the videos
  model         the same questions about the same frames, read from uncompressed image files
  media         `reel data check` over the videos: decoding, resizing and patches
The record has the seconds of each and, for each round, evaluation / max(model, media): 1 is a complete overlap.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from clip import write_clip
from common import commit, cpu_name

MEDIA = ["--profile", "videorft-eval", "--nframes", "16"]

TASK = """name = "clips"
title = "Clips"
version = 1
source = "https://example.org"
[[layout]]
name = "own"
files = ["questions.json"]
columns = ["video", "question", "candidates", "answer"]
[layout.row]
id = "{row.number}"
question = "{question}"
kind = "multiple choice"
options = "candidates"
answer = "{answer}"
answer-form = "option-text"
video = ["videos/{video}"]
"""


def make_questions(reel, folder, rows):
    """Writes the folders `videos` and `images`, each with a task file, and the list for `reel data check`."""
    from PIL import Image
    from safetensors.numpy import load_file
    for kind, more in [("videos", ""), ("images", 'fps = "2"\n')]:
        (folder / kind / "videos").mkdir(parents=True)
        (folder / f"{kind}.toml").write_text(TASK + more)
        name = (lambda i: f"v{i}.avi") if kind == "videos" else (lambda i: f"v{i}")
        questions = [{"video": name(i), "question": f"What moves in clip {i}?", "candidates": ["a", "b"], "answer": "a"} for i in range(rows)]
        (folder / kind / "questions.json").write_text(json.dumps(questions))
    lines = []
    for i in range(rows):
        video = folder / f"videos/videos/v{i}.avi"
        write_clip(video, i)
        frames = folder / "frames.safetensors"
        subprocess.run([reel, "frames", "--video", video, *MEDIA, "--out", frames, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        images = folder / f"images/videos/v{i}"
        images.mkdir()
        for j, frame in enumerate(load_file(frames)["frames"]):
            Image.fromarray(frame).save(images / f"{j:03}.bmp")
        asked = [{"type": "video", "video": str(video)}, {"type": "text", "text": "What moves?"}]
        lines.append(json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "a"}]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def timed(command):
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--reel", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--dtype", default="bf16")
    p.add_argument("--rows", type=int, default=8)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--out")
    args = p.parse_args()
    reel = str(Path(args.reel).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_questions(reel, folder, args.rows)

        def evaluation(kind):
            return timed([reel, "eval", "--model", args.model, "--benchmark", folder / f"{kind}.toml", "--data", folder / kind, "--out", folder / f"out-{kind}",
                          "--overwrite", *MEDIA, "--max-new-tokens", "4", "--frames-mib", "0", "--dtype", args.dtype, "--device", "cpu", "--quiet"])

        def prompt_tokens(kind):
            lines = (folder / f"out-{kind}/clips.jsonl").read_text().splitlines()
            return [json.loads(line)["generation"]["prompt_tokens"] for line in lines]

        rounds = []
        for _ in range(args.rounds):
            seconds = {"evaluation": evaluation("videos"), "model": evaluation("images"), "media": timed([reel, "data", "check", folder / "rows.jsonl", *MEDIA])}
            seconds["ratio"] = seconds["evaluation"] / max(seconds["model"], seconds["media"])
            rounds.append(seconds)
            print(json.dumps(seconds), flush=True)
        tokens = prompt_tokens("videos")
        if tokens != prompt_tokens("images"):
            sys.exit("the prompts of videos and images differ in length")
    record = {"bench": "eval overlap", "date": datetime.date.today().isoformat(), "commit": commit(), "cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)),
              "dtype": args.dtype, "rows": args.rows, "prompt_tokens": tokens, "rounds": rounds, "median_ratio": statistics.median(r["ratio"] for r in rounds)}
    print(f"median ratio {record['median_ratio']:.3f}")
    if args.out:
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
