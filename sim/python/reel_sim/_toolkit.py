"""Tells the simulator where NVIDIA's compilers are that pip has installed."""

import glob
import importlib.util
import os


def find():
    """Sets REEL_CUDA to the folder of packages that has NVRTC, unless the variable is set."""
    if os.environ.get("REEL_CUDA"):
        return
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        if glob.glob(os.path.join(glob.escape(folder), "*", "lib", "libnvrtc.so*")):
            os.environ["REEL_CUDA"] = os.path.dirname(folder)
            return
