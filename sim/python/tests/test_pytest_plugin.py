"""The pytest plugin: the fixture, the marker and the options."""

import json

import pytest
from kernels import RACE, RIGHT



@pytest.fixture
def kernels(pytester):
    pytester.makepyfile(kernels=f"RACE = {RACE!r}\nRIGHT = {RIGHT!r}")
    return pytester


TEST = """
    import numpy as np, pytest
    from kernels import RACE, RIGHT
    def arrays(): return [np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)]
    def test_right(reel_sim):
        x, y = arrays()
        assert reel_sim.check(RIGHT, "shift", 1, 32, [x, y]).ok and (y == x ^ 1).all()
    def test_race(reel_sim):
        reel_sim.check(RACE, "shift", 1, 32, arrays())
    @pytest.mark.reel_sim(expect="race", interleavings=3)
    def test_expected(reel_sim):
        assert reel_sim.check(RACE, "shift", 1, 32, arrays()).json["interleavings"] == 3
    @pytest.mark.reel_sim(expect="deadlock")
    def test_other(reel_sim):
        reel_sim.check(RACE, "shift", 1, 32, arrays())
    @pytest.mark.reel_sim
    def test_nothing():
        pass
"""


def run(kernels, *options):
    return kernels.runpytest_subprocess(*options)


def test_findings_fail_a_test(kernels):
    kernels.makepyfile(TEST)
    result = run(kernels, "--sim-sarif", "all.sarif")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*race: source:*",
            "*the simulator was to find deadlock, and found:*",
            "*the test launched no kernel on the simulator*",
            "reel-sim: 4 launches on the simulator, 3 findings",
        ]
    )
    (sarif,) = json.loads((kernels.path / "all.sarif").read_text())["runs"]
    assert [result["ruleId"] for result in sarif["results"]] == ["race"] * 3


def test_the_number_of_interleavings_is_an_option(kernels):
    kernels.makepyfile(
        """
        import numpy as np
        from kernels import RIGHT
        def test_right(reel_sim):
            report = reel_sim.check(RIGHT, "shift", 1, 32, [np.zeros(32, np.uint32), np.zeros(32, np.uint32)])
            assert report.json["interleavings"] == 2
        """
    )
    run(kernels, "--sim-interleavings", "2").assert_outcomes(passed=1)
    assert "--sim-interleavings" in run(kernels, "--sim-interleavings", "0").stderr.str()


def test_an_unknown_setting_is_an_error(kernels):
    kernels.makepyfile("import pytest\n@pytest.mark.reel_sim(arhc='sm_80')\ndef test_k(reel_sim): pass")
    result = run(kernels)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*marker reel_sim: *arhc*"])
