"""Runs the three examples of the package's README, which need no other package than it needs itself.

    python readme.py README.md

Files are written to the current folder.
"""

import re
import subprocess
import sys


def section(text):
    """Returns the blocks of the section "Three examples": pairs of language and text."""
    part = text.split("## Three examples", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def main(readme):
    with open(readme, encoding="utf-8") as file:
        (_, ptx), (_, command), (_, script), (_, test) = section(file.read())
    for name, text in (("shift.ptx", ptx), ("script.py", script), ("test_shift.py", test)):
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)

    def run(words, code, *shown):
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        missing = [line for line in shown if line not in done.stdout]
        if done.returncode != code or missing:
            sys.exit(f"{words}: exit code {done.returncode}, {missing} not shown\n{done.stdout}{done.stderr}")

    run(command.split(), 1, "race: shift.ptx:21: ", "shift.ptx: shift: 1 finding in 8 interleavings")
    run([sys.executable, "script.py"], 0, "race 21 18 separate the two accesses")
    try:
        import pytest  # noqa: F401
    except ImportError:
        # Without pytest: what the plugin does with the fixture.
        call = "import test_shift, reel_sim\ntry: test_shift.test_shift(reel_sim)\nexcept AssertionError: print('failed')"
        run([sys.executable, "-c", call], 0)
    else:
        run([sys.executable, "-m", "pytest", "-q", "test_shift.py"], 1, "race: shift.ptx:", "1 failed")


if __name__ == "__main__":
    main(sys.argv[1])
