"""The program reel-sim of the package, and its exit codes."""

import os
import pathlib
import subprocess
import sys

from kernels import ENDLESS, HEAD, RACE, RIGHT


def run(folder, text, *options, block="32"):
    (folder / "k.ptx").write_text(text)
    words = [sys.executable, "-m", "reel_sim.program", "run", "k.ptx", "--grid", "1", "--block", block, *options]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)


ARGUMENTS = ["--arg", "buf:u32:32:arange", "--arg", "buf:u32:32:zeros"]


def test_exit_codes(tmp_path):
    done = run(tmp_path, RIGHT, *ARGUMENTS)
    assert (done.returncode, done.stderr) == (0, "") and "no defects found" in done.stdout
    done = run(tmp_path, RACE, *ARGUMENTS, "--sarif", "out.sarif", "--speedscope", "out.json")
    assert done.returncode == 1 and "race: k.ptx:" in done.stdout
    assert (tmp_path / "out.sarif").exists() and (tmp_path / "out.json").exists()
    unknown = HEAD + ".visible .entry k() { .reg .b32 %r; frobnicate.b32 %r; ret; }"
    for text, options in [
        (RIGHT, ["--arg", "i32:1"]),
        (RIGHT.replace(".version 8.0", ".version 99.0"), ARGUMENTS),
        (unknown, []),
        (ENDLESS, ["--arg", "buf:u32:1", "--limit-instructions", "20000"]),
        (RIGHT, ["--arg", "buf:u8:10000000000", "--arg", "buf:u32:32"]),
    ]:
        done = run(tmp_path, text, *options)
        assert done.returncode == 2, (text, done)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert run(tmp_path, RIGHT, *ARGUMENTS, block="2000").returncode == 2


def test_an_unknown_instruction_is_named_with_its_line(tmp_path):
    text = HEAD + ".visible .entry k() {\n.reg .b32 %r;\nfrobnicate.b32 %r;\nret; }"
    done = run(tmp_path, text)
    assert "k.ptx:6: " in done.stderr and "frobnicate.b32" in done.stderr


def test_the_examples_of_the_readme_run(tmp_path):
    # pip makes this program.
    program = tmp_path / "reel-sim"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m reel_sim.program "$@"\n')
    program.chmod(0o755)
    here = pathlib.Path(__file__).parent
    words = [sys.executable, str(here / "readme.py"), str(here.parent / "README.md")]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
