#!/usr/bin/env python3
"""Compares the time of `reel frames` and decord on one long video, in alternation, including process start.

    python3 tools/benches/peers/decord_video.py --reel target/release/reel [--video FILE] [--rounds 7] [--out RECORD.json]

Needs decord, numpy and safetensors. Without --video it creates a 2-minute 1080p video at 30 frames/s with the command ffmpeg
(libx264 with default settings: a key frame every 250 frames) and keeps it in --work. Both sides decode the 32 frames of the
profile videorft-eval. decord keeps them in its memory; `reel` writes them to a safetensors file in shared memory. The record has
the median of each side and of the ratios of the rounds (reel / decord; below 1, `reel` is faster). The frames are compared once.
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

PROFILE = "videorft-eval"

DECORD = """
import json, sys
import decord
reader = decord.VideoReader(sys.argv[1])
frames = reader.get_batch(json.loads(sys.argv[2])).asnumpy()
assert frames.shape[0] == len(json.loads(sys.argv[2]))
if len(sys.argv) > 3:
    import numpy
    numpy.save(sys.argv[3], frames)
"""


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def make_video(path):
    """Creates a video of moving test patterns with noise: flat areas, edges, motion, and detail in every block."""
    print(f"making {path.name} (some minutes) ...", flush=True)
    aside = path.with_name("unfinished-" + path.name)
    source = "testsrc2=size=1920x1080:rate=30:duration=120,noise=alls=6:allf=t"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(aside)], check=True)
    aside.rename(path)


def timed(command):
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def compare(frames_file, decord_file):
    import numpy
    from safetensors.numpy import load_file

    ours, theirs = load_file(str(frames_file))["frames"], numpy.load(decord_file)
    if ours.shape != theirs.shape:
        sys.exit(f"frames are {ours.shape} and {theirs.shape}")
    off = [int(numpy.abs(a.astype(numpy.int16) - b).max()) for a, b in zip(ours, theirs)]
    return max(off)


def commit():
    """The short hash of the commit of this repository, or None outside of git."""
    p = subprocess.run(["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return p.stdout.strip() or None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reel", type=Path, required=True)
    ap.add_argument("--video", type=Path, help="use this video instead of the generated one")
    ap.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder of the generated video")
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--out", type=Path, help="write the record to this file")
    a = ap.parse_args()
    video = a.video or a.work / "reel-bench-1080p-120s.mp4"
    if not video.exists():
        if a.video:
            sys.exit(f"{video}: no such video; give the path of a file")
        make_video(video)
    reel = str(a.reel.resolve())
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shm) as tmp:
        frames = Path(tmp) / "frames.safetensors"
        ours = [reel, "frames", f"--video={video}", f"--profile={PROFILE}"]
        choice = json.loads(subprocess.run([*ours, "--json"], check=True, capture_output=True, text=True).stdout)
        theirs = [sys.executable, "-c", DECORD, str(video), json.dumps(choice["indices"])]
        ours.append(f"--out={frames}")
        subprocess.run(ours, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*theirs, str(Path(tmp) / "theirs.npy")], check=True)
        differ = compare(frames, Path(tmp) / "theirs.npy")
        (Path(tmp) / "theirs.npy").unlink()
        rounds = []
        for i in range(a.rounds):
            # The two sides take turns in going first.
            if i % 2 == 0:
                x, y = timed(ours), timed(theirs)
            else:
                y, x = timed(theirs), timed(ours)
            rounds.append({"reel_seconds": x, "decord_seconds": y, "ratio": x / y})
            print(f"round {i + 1}: reel {x:.2f} s, decord {y:.2f} s, ratio {x / y:.3f}", flush=True)
    median = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
    import decord

    record = {
        "bench": "video frames", "peer": f"decord {decord.__version__}", "processor": processor(), "cpus": len(os.sched_getaffinity(0)),
        "date": datetime.date.today().isoformat(), "commit": commit(), "command": f"tools/benches/peers/decord_video.py --rounds {a.rounds}", "film": {"seconds": 120, "bytes": video.stat().st_size, "made": a.video is None},
        "profile": PROFILE, "frames": len(choice["indices"]), "largest_difference_in_levels": differ, "median": median, "rounds": rounds,
    }
    if a.video:
        del record["film"]["seconds"]
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"median: reel {median['reel_seconds']:.2f} s, decord {median['decord_seconds']:.2f} s, ratio {median['ratio']:.3f}; "
          f"frames differ by at most {differ} levels")


if __name__ == "__main__":
    main()
