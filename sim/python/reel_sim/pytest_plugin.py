"""The pytest plugin: runs tests of kernels on the simulator, and fails them with what it finds.

The fixture `reel_sim` has the functions `check`, `triton`, `tilelang`, `cute` and `cuda`; the test fails at its end if a
report of one of them has findings. With the marker `@pytest.mark.reel_sim`, the Triton launches of an unchanged test run
on the simulator; its keywords are those of `Settings`.
"""

import contextlib

import pytest

from . import _check
from ._report import write_sarif


def pytest_addoption(parser):
    group = parser.getgroup("reel-sim", "kernels on the simulator")
    group.addoption(
        "--sim-interleavings",
        type=_positive,
        metavar="N",
        help="run each kernel in N orders of its warps, blocks and asynchronous copies (default: 8)",
    )
    group.addoption("--sim-sarif", metavar="FILE", help="write the findings of all tests as SARIF 2.1.0")


def _positive(text):
    number = int(text)
    if number < 1:
        raise ValueError("give a positive integer")
    return number


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "reel_sim(arch='sm_90a', interleavings=8, expect=None, ...): run the Triton launches of the test on the "
        "simulator, and fail with its findings; with expect='race' fail unless it finds exactly this kind",
    )
    config._reel_sim_reports = []
    interleavings = config.getoption("--sim-interleavings")
    if interleavings is not None:
        _check._default_interleavings = interleavings


def pytest_unconfigure(config):
    _check._default_interleavings = 8


class Simulator:
    """What the fixture `reel_sim` gives a test."""

    def __init__(self, settings):
        self.settings = settings
        self.reports = []

    def _keep(self, report):
        self.reports.append(report)
        return report

    def check(self, *args, **options):
        """`reel_sim.check`."""
        own = {name: value for name, value in vars(self.settings).items() if name not in ("arch", "interleavings")}
        options.setdefault("arch", self.settings.arch)
        options.setdefault("interleavings", self.settings.interleavings)
        return self._keep(_check.check(*args, **{**own, **options}))

    def triton(self, kernel, grid, *args, **constexprs):
        """`reel_sim.triton.check`."""
        from . import triton

        constexprs.setdefault("sim", self.settings)
        return self._keep(triton.check(kernel, grid, *args, **constexprs))

    def tilelang(self, func, *args, **options):
        """`reel_sim.tilelang.check`."""
        from . import tilelang

        options.setdefault("sim", self.settings)
        return self._keep(tilelang.check(func, *args, **options))

    def cute(self, fn, *args, **options):
        """`reel_sim.cute.check`."""
        from . import cute

        options.setdefault("sim", self.settings)
        return self._keep(cute.check(fn, *args, **options))

    def cuda(self, source, entry, grid, block, args, **options):
        """`reel_sim.cuda.check`."""
        return self.check(source, entry, grid, block, args, **options)


def _marker(item):
    marker = item.get_closest_marker("reel_sim")
    options = dict(marker.kwargs) if marker else {}
    expected = options.pop("expect", None)
    try:
        return marker, _check.Settings(**options), expected
    except TypeError as e:
        raise pytest.UsageError(f"{item.nodeid}: marker reel_sim: {e}") from None


@pytest.fixture
def reel_sim(request):
    """Runs kernels on the simulator; the test fails if one of their reports has findings."""
    simulator = Simulator(_marker(request.node)[1])
    request.node._reel_sim_reports = simulator.reports
    yield simulator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    marker, settings, expected = _marker(item)
    launches = contextlib.nullcontext()
    if marker and _uses_triton(item):
        from . import triton

        launches = triton.launches(settings)
    reports = []
    try:
        with launches as recorder:
            result = yield
    finally:
        reports += getattr(item, "_reel_sim_reports", ())
        reports += recorder.reports if recorder else ()
        item.config._reel_sim_reports += reports
        # If the test itself has failed, this says why its results may be wrong.
        shown = "".join(report.text for report in reports if report.findings)
        if shown:
            item.add_report_section("call", "reel-sim", shown)
    if marker and not reports:
        pytest.fail("marker reel_sim: the test launched no kernel on the simulator", pytrace=False)
    findings = [finding for report in reports for finding in report.findings]
    if expected is not None:
        if {finding.kind for finding in findings if not finding.may_follow} != {expected}:
            pytest.fail(f"the simulator was to find {expected}, and found:\n{shown or 'nothing'}", pytrace=False)
    elif findings:
        pytest.fail(shown, pytrace=False)
    return result


def _uses_triton(item):
    """Whether the test's module has imported Triton: else nothing of it needs to run on the simulator."""
    import sys

    return "triton" in sys.modules


def pytest_terminal_summary(terminalreporter, config):
    reports = config._reel_sim_reports
    if reports:
        launches = sum(len(report.launches) for report in reports)
        findings = sum(len(report.findings) for report in reports)
        terminalreporter.write_line(f"reel-sim: {launches} launches on the simulator, {findings} findings")


def pytest_sessionfinish(session):
    path = session.config.getoption("--sim-sarif")
    if path:
        write_sarif(session.config._reel_sim_reports, path, session.config.rootpath)
