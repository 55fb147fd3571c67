"""The program reel-sim."""

import signal
import sys

from . import _native, _toolkit


def main():
    # Python's own handler would wait until the simulator returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _toolkit.find()
    sys.exit(_native.program(["reel-sim", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
