#!/usr/bin/env python3
"""Compares the CPU seconds that programs take for the frames of a video, in turns: `reel` with an earlier build, or with the
readers of qwen-vl-utils and the floor of its own decoding plan.

    python3 tools/benches/peers/video_cpu.py --reel target/release/reel --before OLD/reel [--rounds 5] [--work DIR] [--out RECORD.json]
    python3 tools/benches/peers/video_cpu.py --reel target/release/reel --peers VENV/bin/python [--readers torchcodec,decord] ...
    python3 tools/benches/peers/video_cpu.py --clips --work DIR

Needs the command ffmpeg with libx264, libx265, libsvtav1 and libvpx-vp9, which makes clips of 10 s with a moving zoom, test
patterns and noise (30 frames/s, a key frame every 250 frames), kept in --work; the longer clips repeat the one of 10 s. `--clips`
only makes them, with those of 2 and 10 minutes that `reel bench video` is measured with. A round runs `reel preprocess` with a
tiny model on each clip and profile and counts user and system time of the whole process tree, start and writing included.
`steady`: what one video more in a process takes, (5 videos - 1 video) / 4.

Two builds must write equal inputs. A peer (pip install torch torchvision torchcodec decord qwen-vl-utils transformers) is a warm
process, whose imports and first video are not counted: it decodes, selects and resizes by qwen-vl-utils and makes patches by
transformers' processor. A reader with `+memory` is the same with a C library that keeps freed memory and uses large pages (`KEEP_MEMORY`
of common.py), which saves most page faults. Its patches are compared with those of `reel`: `differs` is the share of values that differ by more than one level of a
pixel. `floor` is `video_floor.c`, compiled with FFmpeg's headers: it only decodes what the selected frames need. It has no row where
it does not get all frames, and knows nothing of the frames inside AV1 packets.
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

from common import PeerProcess, commit, cpu_name

PROFILES = ["videorft-train", "videorft-eval", "qwen"]
# The profiles as qwen-vl-utils reads them.
KEYS = {
    "videorft-train": {"nframes": 16, "max_pixels": 128 * 28 * 28},
    "videorft-eval": {"nframes": 32, "max_pixels": 256 * 28 * 28},
    "qwen": {"fps": 2.0, "total_pixels": 24576 * 28 * 28},
}
SOURCE = ("mandelbrot=s={0}:r=30:start_scale=3:end_scale=0.01:end_pts=600[a];testsrc2=s={0}:r=30[b];"
          "[a][b]blend=all_mode=average,noise=alls=6:allf=t,format=yuv420p")
CLIPS = {
    "h264_360p.mp4": ("640x360", "-c:v libx264 -preset medium -crf 23 -g 250"),
    "h264_720p.mp4": ("1280x720", "-c:v libx264 -preset medium -crf 23 -g 250"),
    "h264_1080p.mp4": ("1920x1080", "-c:v libx264 -preset medium -crf 23 -g 250"),
    "hevc_720p.mp4": ("1280x720", "-c:v libx265 -preset veryfast -x265-params log-level=error"),
    "vp9_720p.webm": ("1280x720", "-c:v libvpx-vp9 -deadline realtime -cpu-used 6 -b:v 3M"),
    "av1_720p.mp4": ("1280x720", "-c:v libsvtav1 -preset 9 -crf 35"),
    "mpeg4_720p.mp4": ("1280x720", "-c:v mpeg4 -bf 2 -q:v 5 -g 250"),
}
# The time of a killed or orphaned worker counts, too: its parent becomes this process.
PR_SET_CHILD_SUBREAPER = 36


def ffmpeg(work, name, *arguments):
    if not (work / name).exists():
        subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments, str(work / ("part-" + name))], check=True)
        (work / ("part-" + name)).rename(work / name)
    return name


def make_clips(work, all_lengths):
    for name, (size, encoding) in CLIPS.items():
        ffmpeg(work, name, "-f", "lavfi", "-i", SOURCE.format(size), "-t", "10", *encoding.split())
    sizes = ["360p", "720p", "1080p"] if all_lengths else ["720p"]
    lengths = {"2min": 12, "10min": 60} if all_lengths else {"2min": 12}
    long = [ffmpeg(work, f"h264_{size}_{length}.mp4", "-stream_loop", str(n - 1), "-i", str(work / f"h264_{size}.mp4"), "-c", "copy")
            for size in sizes for length, n in lengths.items()]
    return [*CLIPS, *long]


def used(who):
    times = resource.getrusage(who)
    return times.ru_utime + times.ru_stime


def cpu_seconds(command, accepts=(0,)):
    """CPU seconds of the process tree of a command; None if it ends with another status than those accepted."""
    before, others = used(resource.RUSAGE_CHILDREN), children()
    process = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    while orphans := children() - others:
        os.waitpid(orphans.pop(), 0)
    if status not in accepts:
        sys.exit(f"{' '.join(command)}: ended with status {status}")
    return used(resource.RUSAGE_CHILDREN) - before if status == 0 else None


def children():
    return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}


def serve_peer(reader):
    """Answers each line, a job, with the CPU seconds of a video in this process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["FORCE_QWENVL_VIDEO_READER"] = reader
    import numpy
    import torch
    from qwen_vl_utils.vision_process import VIDEO_READER_BACKENDS, fetch_video
    from transformers import Qwen2VLVideoProcessor

    # qwen-vl-utils falls back to another reader where one fails; here a failure is a failure.
    VIDEO_READER_BACKENDS["torchvision"] = VIDEO_READER_BACKENDS[reader]
    processor = Qwen2VLVideoProcessor()
    for line in sys.stdin:
        job = json.loads(line)
        before = used(resource.RUSAGE_SELF)
        try:
            video = fetch_video({"type": "video", "video": job["video"], **KEYS[job["profile"]]})
            made = processor(videos=[video], do_resize=False, do_sample_frames=False, return_tensors="pt")
            answer = {"seconds": used(resource.RUSAGE_SELF) - before, "grid": made["video_grid_thw"][0].tolist()}
            if job["out"]:
                numpy.save(job["out"], made["pixel_values_videos"].to(torch.float32).numpy())
        except Exception as e:
            answer = {"error": str(e).split("\n")[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)


def compare_patches(python, reel_file, peer_file):
    """Share of the values that differ by more than one level of a pixel (the deviation of CLIP's pixels is at least 0.26)."""
    code = ("import sys, numpy; from safetensors.numpy import load_file; a = load_file(sys.argv[1])['pixel_values_videos'];"
            "b = numpy.load(sys.argv[2]); assert a.shape == b.shape, (a.shape, b.shape);"
            "print((numpy.abs(a - b) > 1.01 / 255 / 0.26).mean())")
    return float(subprocess.run([python, "-c", code, reel_file, peer_file], check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reel", type=Path)
    ap.add_argument("--before", type=Path, help="an earlier build")
    ap.add_argument("--peers", help="a Python with qwen-vl-utils, transformers and the readers")
    ap.add_argument("--readers", default="torchcodec,torchcodec+memory,decord")
    ap.add_argument("--clips", action="store_true", help="only make the clips, of all lengths")
    ap.add_argument("--only", default="", help="only clips and profiles whose name has this text")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "reel-video-cpu")
    ap.add_argument("--out", type=Path, help="write the record to this file")
    a = ap.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    a.work.mkdir(parents=True, exist_ok=True)
    clips = make_clips(a.work, a.clips)
    if a.clips:
        return
    if not a.reel or bool(a.before) == bool(a.peers):
        ap.error("give --reel, and one of --before and --peers")
    own = str(a.reel.resolve())
    builds = {"before": str(a.before.resolve()), "after": own} if a.before else {"reel": own}
    results, steady = {}, {}

    def write():
        record = {"bench": "CPU seconds of the frames of a video", "processor": cpu_name(), "cpus": os.cpu_count(), "date": str(datetime.date.today()),
                  "commit": commit(), "command": f"benches/peers/video_cpu.py --rounds {a.rounds}", "load": os.getloadavg()[1],
                  **({"inputs_equal": True} if a.before else {}), "steady_h264_720p": steady, "results": results}
        if a.out:
            a.out.write_text(json.dumps(record, indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as tmp:
        tmp = Path(tmp)
        subprocess.run([own, "init", "--preset", "tiny", "--out", str(tmp / "tiny"), "--quiet"], check=True)
        readers = a.readers.split(",") if a.peers else []
        peers = {reader: PeerProcess(reader, [a.peers, __file__, "--serve", reader.split("+")[0]], "+" in reader) for reader in readers}
        floor = tmp / "floor"
        if a.peers:
            libraries = subprocess.run(["pkg-config", "--cflags", "--libs", "libavformat", "libavcodec", "libavutil"], check=True,
                                       stdout=subprocess.PIPE, text=True).stdout.split()
            source = Path(__file__).with_name("video_floor.c")
            subprocess.run(["cc", "-O2", str(source), "-o", str(floor), *libraries], check=True)

        def run_reel(build, clip, profile, videos):
            # A process keeps the frames of a file that it has decoded, so each video is a file of its own.
            files = [tmp / f"{i}-{clip}" for i in range(videos)]
            for file in files:
                if not file.exists():
                    file.symlink_to((a.work / clip).resolve())
            content = [{"type": "video", "video": str(file)} for file in files] + [{"type": "text", "text": "?"}]
            (tmp / "m.json").write_text(json.dumps([{"role": "user", "content": content}]))
            return cpu_seconds([builds[build], "preprocess", "--model", str(tmp / "tiny"), "--messages", str(tmp / "m.json"),
                                "--profile", profile, "--out", str(tmp / f"{build}.safetensors"), "--quiet"])

        for peer in peers.values():
            peer.once(json.dumps({"video": str(a.work / clips[0]), "profile": PROFILES[0], "out": ""}))

        def selected(clip, profile):
            command = [own, "frames", "--video", str(a.work / clip), "--profile", profile, "--json"]
            return [str(i) for i in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["indices"]]

        def run(program, clip, profile, videos, facts):
            if program in builds:
                return run_reel(program, clip, profile, videos)
            if program == "floor":
                return cpu_seconds([str(floor), str(a.work / clip), *facts["indices"]], accepts=(0, 1))
            file = "" if program in facts["differs"] else str(tmp / f"{program}.npy")
            answer = json.loads(peers[program].once(json.dumps({"video": str(a.work / clip), "profile": profile, "out": file})))
            if "error" in answer:
                facts["errors"][program] = answer["error"]
                return None
            if file:
                facts["differs"][program] = compare_patches(a.peers, str(tmp / "reel.safetensors"), file)
            return answer["seconds"]

        cases = [(clip, profile, 1) for clip in clips for profile in PROFILES]
        cases += [("h264_720p.mp4", profile, 5) for profile in PROFILES]
        for clip, profile, videos in cases:
            name = f"{clip} {profile}" + (f" x{videos}" if videos > 1 else "")
            if a.only not in name:
                continue
            # Peers are warm already, so further videos in a process are measured of `reel` alone.
            programs = [*builds, *readers, "floor"] if a.peers and videos == 1 else [*builds]
            facts = {"differs": {}, "errors": {}, "indices": selected(clip, profile) if a.peers else []}
            seconds = {program: [] for program in programs}
            for i in range(a.rounds):
                for program in programs if i % 2 == 0 else programs[::-1]:
                    taken = run(program, clip, profile, videos, facts)
                    if taken is not None:
                        seconds[program].append(round(taken, 3))
                files = [tmp / f"{build}.safetensors" for build in builds]
                if a.before and i == 0 and files[0].read_bytes() != files[1].read_bytes():
                    sys.exit(f"{clip} {profile}: the two builds write other inputs")
            medians = {program: statistics.median(all) for program, all in seconds.items() if all}
            mine = medians[list(builds)[-1]]
            ratios = {f"ratio_to_{program}": round(mine / m, 3) for program, m in medians.items() if program != list(builds)[-1]}
            results[name] = {**{f"median_{program}": m for program, m in medians.items()}, **ratios, "seconds": seconds}
            results[name] |= {key: facts[key] for key in ("differs", "errors") if facts[key]}
            print(name, medians, ratios, facts["differs"], facts["errors"], flush=True)
            write()
        for peer in peers.values():
            peer.close()
    for profile in PROFILES:
        one, five = (results.get(f"h264_720p.mp4 {profile}{x}") for x in ("", " x5"))
        if not (one and five):
            continue
        further = {build: (five[f"median_{build}"] - one[f"median_{build}"]) / 4 for build in builds}
        mine = further[list(builds)[-1]]
        others = {**further, **{other: one[f"median_{other}"] for other in [*readers, "floor"] if f"median_{other}" in one}}
        ratios = {f"ratio_to_{other}": round(mine / s, 3) for other, s in others.items() if other != list(builds)[-1]}
        steady[profile] = {**{build: round(s, 3) for build, s in further.items()}, **ratios}
    print(steady)
    write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve_peer(sys.argv[2])
    else:
        main()
