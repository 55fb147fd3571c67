#!/usr/bin/env python3
"""Writes clips whose questions can be answered only with `crop_video`, and rows for `reel sft`, `grpo` and `eval`.

    python3 clips.py OUT [--seed N] [--boxes]

A clip has 12 seconds and 24 frames of 56 x 56 pixels, without compression (YUV4MPEG2). It is dark, except for a flash
of a random color around second 3, 5, 7 and 9, each of its own color. A prompt shows the first and the last frame, which
are dark, so it says nothing about the answer to "What color is shown at 7 s?": one of four colors, of which a guess
finds 25 %. A crop from 7 s to 8 s shows it.

    parts.jsonl      960 calls and 720 answers about a crop, in short rows that do not describe the tool
    sft.jsonl        240 whole examples: question, call, result and answer, with the column `tools`
    no-tools.jsonl   240 questions with their answers, for a model that learns without tools
    rl.jsonl         240 questions with their solutions
    held-out.jsonl   120 questions for `reel eval`; the clips of each file are its own

With --boxes a flash fills a quarter of the frame, and answers name it in tags as evidence (see tools-open-o3).

Needs Python 3.8 and nothing else. Equal seeds give equal files.
"""
import argparse
import json
import os
import random

SIDE, FPS, SECONDS = 56, 2, 12
COLORS = {"red": (222, 48, 44), "green": (46, 180, 78), "blue": (54, 98, 232), "yellow": (236, 200, 46)}
DARK = (24, 26, 32)
TIMES = (3, 5, 7, 9)
CORNERS = [(x, y) for y in (0, 28) for x in (0, 28)]

# What `--tools crop_video` describes to the model; a test of reel compares them.
TOOLS = [{"type": "function", "function": {
    "name": "crop_video", "description": "Shows a part of the video with more frames.",
    "parameters": {"type": "object", "properties": {
        "start": {"type": "number", "description": "Start in seconds."},
        "end": {"type": "number", "description": "End in seconds."},
        "fps": {"type": "number", "description": "Frames per second. Default 2."},
        "video": {"type": "integer", "description": "Index of the video, counted from 0. Default 0."}},
        "required": ["start", "end"]}}}]


def yuv(red, green, blue):
    """Converts a color of 8 bits to BT.601 in limited range."""
    return [round(16 + (65.738 * red + 129.057 * green + 25.064 * blue) / 256),
            round(128 + (-37.945 * red - 74.494 * green + 112.439 * blue) / 256),
            round(128 + (112.439 * red - 94.154 * green - 18.285 * blue) / 256)]


def frame(color, box):
    """A dark frame in which `box` (left, top, right, bottom) has the color, as three planes."""
    left, top, right, bottom = box
    planes = b""
    for dark, bright in zip(yuv(*DARK), yuv(*color)):
        row = bytes([dark]) * left + bytes([bright]) * (right - left) + bytes([dark]) * (SIDE - right)
        planes += bytes([dark]) * SIDE * top + row * (bottom - top) + bytes([dark]) * SIDE * (SIDE - bottom)
    return b"FRAME\n" + planes


class Clip:
    def __init__(self, out, split, i, seed, boxes):
        rng = random.Random(f"{split}-{seed}-{i}")
        self.path, self.asked = f"clips/{split}-{i:03}.y4m", TIMES[i % len(TIMES)]
        self.colors = {time: rng.choice(list(COLORS)) for time in TIMES}
        self.boxes = {}
        for time in TIMES:
            x, y = rng.choice(CORNERS)
            self.boxes[time] = [x, y, x + 28, y + 28] if boxes else [0, 0, SIDE, SIDE]
        self.tells_boxes = boxes
        with open(os.path.join(out, self.path), "wb") as file:
            file.write(b"YUV4MPEG2 W%d H%d F%d:1 Ip A1:1 C444\n" % (SIDE, SIDE, FPS))
            for second in (n / FPS for n in range(SECONDS * FPS)):
                time = next((time for time in TIMES if time - 0.5 <= second < time + 1.5), None)
                file.write(frame(COLORS[self.colors[time]], self.boxes[time]) if time else frame(DARK, [0, 0, 0, 0]))

    def question(self, time):
        return f"What color is shown at {time} s?"

    def ask(self, time):
        video = {"type": "video", "video": self.path, "nframes": 2}
        return {"role": "user", "content": [video, {"type": "text", "text": self.question(time)}]}

    def call(self, time):
        function = {"name": "crop_video", "arguments": {"start": time, "end": time + 1}}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    def crop(self, time):
        """The parts with which crop_video answers."""
        return [{"type": "text", "text": f"The video from {time} s to {time + 1} s:"},
                {"type": "video", "video": self.path, "video_start": time, "video_end": time + 1, "fps": 2.0,
                 "min_frames": 2, "max_frames": 8}]

    def answer(self, time):
        color, box = self.colors[time], self.boxes[time]
        place = f"<obj>flash</obj><box>{box}</box>at<t>{time}</t>s" if self.tells_boxes else "It"
        return {"role": "assistant", "content": f"<think>{place} is {color}.</think><answer>{color}</answer>"}


def write(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--boxes", action="store_true")
    options = parser.parse_args()
    os.makedirs(os.path.join(options.out, "clips"), exist_ok=True)

    def clips(split, count):
        return [Clip(options.out, split, i, options.seed, options.boxes) for i in range(count)]

    whole, calls, looks, plain = [], [], [], []
    for clip in clips("sft", 240):
        t = clip.asked
        result = {"role": "tool", "content": clip.crop(t)}
        whole.append({"messages": [clip.ask(t), clip.call(t), result, clip.answer(t)], "tools": TOOLS})
        plain.append({"messages": [clip.ask(t), clip.answer(t)]})
        calls += [{"messages": [clip.ask(time), clip.call(time)]} for time in TIMES]
        looks += [{"messages": [{"role": "user", "content": clip.crop(time)}, clip.answer(time)]}
                  for time in TIMES if time != t]
    rl = [{"prompt": [clip.ask(clip.asked)], "solution": f"<answer>{clip.colors[clip.asked]}</answer>",
           "problem_type": "multiple choice", "time": clip.asked, "box": clip.boxes[clip.asked]}
          for clip in clips("rl", 240)]
    held_out = [{"id": i, "video": clip.path, "question": clip.question(clip.asked), "candidates": list(COLORS),
                 "answer": clip.colors[clip.asked]} for i, clip in enumerate(clips("held-out", 120))]
    files = {"parts": calls + looks, "sft": whole, "no-tools": plain, "rl": rl, "held-out": held_out}
    for name, rows in files.items():
        write(os.path.join(options.out, f"{name}.jsonl"), rows)


if __name__ == "__main__":
    main()
