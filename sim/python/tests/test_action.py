"""The GitHub action: its steps, run here as a runner runs them, without those that use other actions."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from kernels import RACE, RIGHT

yaml = pytest.importorskip("yaml")
ACTION = pathlib.Path(__file__).parents[2] / "action" / "action.yml"
WORKFLOW = pathlib.Path(__file__).parents[1] / "GITHUB.md"


def steps(inputs):
    """Returns the shell steps of the action with the values of its inputs, and the arguments of the upload."""
    action = yaml.safe_load(ACTION.read_text())
    values = {name: of["default"] for name, of in action["inputs"].items()}
    assert set(inputs) <= set(values)
    values.update(inputs)

    def filled(text):
        for name, value in values.items():
            text = text.replace("${{ inputs." + name + " }}", value)
        assert "${{" not in text
        return text

    shell, upload = [], None
    for step in action["runs"]["steps"]:
        if "run" in step:
            # The values reach the shell as variables, never as code.
            assert "${{" not in step["run"]
            shell.append((step["run"], {name: filled(value) for name, value in step["env"].items()}))
        else:
            upload = {name: filled(value) for name, value in step["with"].items()}
    return shell, upload


@pytest.mark.parametrize("kernel, code", [(RIGHT, 0), (RACE, 1)])
def test_the_steps_run(tmp_path, kernel, code):
    (tmp_path / "k.ptx").write_text(kernel)
    (tmp_path / "test_k.py").write_text(
        "import numpy as np\ndef test_k(reel_sim):\n"
        "    reel_sim.check('k.ptx', 'shift', 1, 32, [np.zeros(32, np.uint32), np.zeros(32, np.uint32)])\n"
    )
    # The package is here already: pip only has to say that it has nothing to do.
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && exec echo "$@"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shell, upload = steps({"arguments": "test_k.py", "packages": "triton numpy", "version": "==0.1.0"})
    codes = []
    for script, variables in shell:
        environment = {**os.environ, **variables, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True)
        codes.append(done.returncode)
    assert b"install reel-sim==0.1.0 pytest triton numpy" in subprocess.run(
        ["bash", "-c", shell[0][0]], env={**os.environ, **shell[0][1], "PATH": environment["PATH"]}, capture_output=True
    ).stdout
    assert codes == [0, code]
    results = json.loads((tmp_path / upload["sarif_file"]).read_text())["runs"][0]["results"]
    assert [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results] == (
        ["k.ptx"] * code
    )


def test_the_workflow_of_the_documentation_uses_inputs_that_the_action_has():
    text = WORKFLOW.read_text().split("```yaml\n")[1].split("```")[0]
    used = yaml.safe_load(text)["jobs"]["simulate"]["steps"][-1]
    assert used["uses"].endswith("sim/action@main")
    assert set(used["with"]) <= set(yaml.safe_load(ACTION.read_text())["inputs"])
