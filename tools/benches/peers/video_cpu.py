#!/usr/bin/env python3
"""Compares the CPU seconds that two builds of `reel` take for the frames of a video, in turns.

    python3 tools/benches/peers/video_cpu.py --before OLD/reel --reel target/release/reel [--rounds 5] [--work DIR] [--out RECORD.json]

Needs the command ffmpeg with libx264, libx265, libsvtav1 and libvpx-vp9, which makes clips of 10 s with a moving zoom, test
patterns and noise (30 frames/s, a key frame every 250 frames), kept in --work. A round runs `reel preprocess` with a tiny model
on each clip and profile, first with one build and then with the other, and counts user and system time of the whole process
tree, start and writing included. `steady`: what one video more in a process takes, (5 videos - 1 video) / 4. The inputs that
both builds write must be equal.
"""
import argparse
import ctypes
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import commit, cpu_name

PROFILES = ["videorft-train", "videorft-eval", "qwen"]
SOURCE = ("mandelbrot=s={0}:r=30:start_scale=3:end_scale=0.01:end_pts=600[a];testsrc2=s={0}:r=30[b];"
          "[a][b]blend=all_mode=average,noise=alls=6:allf=t,format=yuv420p")
CLIPS = {
    "h264_360p.mp4": ("640x360", "-c:v libx264 -preset medium -crf 23 -g 250"),
    "h264_720p.mp4": ("1280x720", "-c:v libx264 -preset medium -crf 23 -g 250"),
    "hevc_720p.mp4": ("1280x720", "-c:v libx265 -preset veryfast -x265-params log-level=error"),
    "vp9_720p.webm": ("1280x720", "-c:v libvpx-vp9 -deadline realtime -cpu-used 6 -b:v 3M"),
    "av1_720p.mp4": ("1280x720", "-c:v libsvtav1 -preset 9 -crf 35"),
    "mpeg4_720p.mp4": ("1280x720", "-c:v mpeg4 -bf 2 -q:v 5 -g 250"),
}
# The time of a killed or orphaned worker counts, too: its parent becomes this process.
PR_SET_CHILD_SUBREAPER = 36


def make_clips(work):
    for name, (size, encoding) in CLIPS.items():
        if not (work / name).exists():
            source = ["-f", "lavfi", "-i", SOURCE.format(size), "-t", "10"]
            subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *encoding.split(), str(work / ("part-" + name))], check=True)
            (work / ("part-" + name)).rename(work / name)
    long = work / "h264_720p_2min.mp4"
    if not long.exists():
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-stream_loop", "11", "-i", str(work / "h264_720p.mp4"), "-c", "copy", str(long)], check=True)
    return [*CLIPS, long.name]


def cpu_seconds(command):
    def used():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    begun, process = used(), os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return used() - begun
        if ended == process and status != 0:
            sys.exit(f"{' '.join(command)}: ended with status {status}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--before", type=Path, required=True)
    ap.add_argument("--reel", type=Path, required=True)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "reel-video-cpu")
    ap.add_argument("--out", type=Path, help="write the record to this file")
    a = ap.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    a.work.mkdir(parents=True, exist_ok=True)
    clips = make_clips(a.work)
    builds = {"before": str(a.before.resolve()), "after": str(a.reel.resolve())}
    results = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as tmp:
        tmp = Path(tmp)
        subprocess.run([builds["before"], "init", "--preset", "tiny", "--out", str(tmp / "tiny"), "--quiet"], check=True)

        def run(build, clip, profile, videos):
            # A process keeps the frames of a file that it has decoded, so each video is a file of its own.
            files = [tmp / f"{i}-{clip}" for i in range(videos)]
            for file in files:
                if not file.exists():
                    file.symlink_to((a.work / clip).resolve())
            content = [{"type": "video", "video": str(file)} for file in files] + [{"type": "text", "text": "?"}]
            (tmp / "m.json").write_text(json.dumps([{"role": "user", "content": content}]))
            out = tmp / f"{build}.safetensors"
            seconds = cpu_seconds([builds[build], "preprocess", "--model", str(tmp / "tiny"), "--messages", str(tmp / "m.json"),
                                   "--profile", profile, "--out", str(out), "--quiet"])
            return seconds, out

        cases = [(clip, profile, 1) for clip in clips for profile in PROFILES]
        cases += [("h264_720p.mp4", profile, 5) for profile in PROFILES[:2]]
        for clip, profile, videos in cases:
            seconds = {build: [] for build in builds}
            for i in range(a.rounds):
                files = []
                for build in list(builds)[:: 1 if i % 2 == 0 else -1]:
                    taken, file = run(build, clip, profile, videos)
                    seconds[build].append(round(taken, 3))
                    files.append(file)
                if i == 0 and files[0].read_bytes() != files[1].read_bytes():
                    sys.exit(f"{clip} {profile}: the two builds write other inputs")
            medians = {build: statistics.median(all) for build, all in seconds.items()}
            name = f"{clip} {profile}" + (f" x{videos}" if videos > 1 else "")
            results[name] = {**{f"median_{build}": m for build, m in medians.items()}, "ratio": round(medians["after"] / medians["before"], 3), "seconds": seconds}
            print(name, results[name]["median_before"], results[name]["median_after"], results[name]["ratio"], flush=True)
    steady = {}
    for profile in PROFILES[:2]:
        one, five = (results[f"h264_720p.mp4 {profile}{x}"] for x in ("", " x5"))
        further = {build: (five[f"median_{build}"] - one[f"median_{build}"]) / 4 for build in builds}
        steady[profile] = {**{build: round(s, 3) for build, s in further.items()}, "ratio": round(further["after"] / further["before"], 3)}
    print(steady)
    record = {"bench": "CPU seconds of the frames of a video", "processor": cpu_name(), "cpus": os.cpu_count(), "date": str(datetime.date.today()),
              "commit": commit(), "command": f"benches/peers/video_cpu.py --rounds {a.rounds}", "load": os.getloadavg()[1],
              "inputs_equal": True, "steady_h264_720p": steady, "results": results}
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
