"""`reel_sim.check`: arguments, findings, results, and what cannot be checked."""

import json

import numpy as np
import pytest
import reel_sim
from kernels import AXPB, ENDLESS, HEAD, RACE, RIGHT, STRUCT, TENSOR_COPY


def arrays():
    return np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)


def test_a_race_has_both_instructions():
    x, y = arrays()
    report = reel_sim.check(RACE, "shift", 1, 32, [x, y])
    (finding,) = report.findings
    assert (finding.kind, finding.space, report.ok) == ("race", "shared", False)
    assert "ld.shared" in RACE.splitlines()[finding.at.ptx_line - 1]
    assert "st.shared" in RACE.splitlines()[finding.other.ptx_line - 1]
    assert (finding.at.block, finding.at.warp, finding.at.file) == ((0, 0, 0), 0, None)
    assert finding.other.thread != finding.at.thread
    assert "barrier" in finding.help and "race" in report.text
    with pytest.raises(reel_sim.FindingsError, match="is not ordered after the write"):
        report.raise_if_any()


def test_results_are_written_back():
    x, y = arrays()
    report = reel_sim.check(RIGHT, "shift", 1, 32, [x, y]).raise_if_any()
    assert (y == x ^ 1).all() and report.ok
    again = np.zeros(32, np.uint32)
    reel_sim.check(RIGHT, "shift", 1, 32, [x, again], write_back=False)
    assert not again.any()


def test_numbers_take_the_type_of_their_parameter():
    x, y = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    reel_sim.check(AXPB, "axpb", 1, 32, [x, y, 2, -3, 8]).raise_if_any()
    assert (y == 2 * x - 3).all()
    reel_sim.check(AXPB, "axpb", 1, 32, [x, y, np.float32(0.5), np.int16(7), np.uint32(4)]).raise_if_any()
    assert (y[:4] == x[:4] / 2 + 7).all() and y[4] == 5
    for args, message in [
        ([x, y, 1.5, 2.5, 8], r"args\[3\]: is a floating-point number, but parameter 3"),
        ([x, y, 1.5, 1 << 16, 8], r"args\[3\]: 65536 does not fit into parameter 3"),
        ([x, y, np.float64(1), 0, 8], r"args\[2\]: is a floating-point number of another type"),
        ([x, y, 1, 0, x], r"args\[4\]: is a pointer, but parameter 4"),
        ([x, y, 1, 0], r"args: got 4 arguments, but kernel axpb has 5 parameters"),
        ([x, y, 1, 0, 8, 9], r"args: got 6 arguments"),
        ([x, y, 1, 0, "8"], r"args\[4\]: str is not an argument of a kernel"),
    ]:
        with pytest.raises(reel_sim.InputError, match=message):
            reel_sim.check(AXPB, "axpb", 1, 32, args)


def test_arrays_that_share_memory_share_a_buffer():
    x = np.arange(64, dtype=np.uint32)
    # Each thread reads x[32 + i] and writes x[i ^ 1]: nothing overlaps.
    reel_sim.check(RIGHT, "shift", 1, 32, [x[32:], x[:32]]).raise_if_any()
    assert (x[:32] == (np.arange(32) ^ 1) + 32).all()
    # Here thread i writes x[i + 1], which thread i + 1 reads without a barrier between the load and the store.
    report = reel_sim.check(RIGHT.replace("bar.sync 0;", ""), "shift", 1, 32, [x[:32], x[1:33]], names=["x", "y"])
    assert {f.space for f in report.findings} == {"global", "shared"}


def test_strides_and_views_keep_their_addresses():
    whole = np.zeros((32, 2), np.uint32)
    with pytest.raises(reel_sim.InputError, match="read-only"):
        frozen = np.zeros(32, np.uint32)
        frozen.flags.writeable = False
        reel_sim.check(RIGHT, "shift", 1, 32, [np.arange(32, dtype=np.uint32), frozen])
    # A column has the memory from its first to its last element.
    report = reel_sim.check(RIGHT, "shift", 1, 32, [whole[:, 0], np.zeros(32, np.uint32)])
    assert report.ok
    report = reel_sim.check(RIGHT, "shift", 1, 32, [whole[:8, 1], np.zeros(32, np.uint32)])
    assert report.findings[0].kind == "out-of-bounds" and "args[0]" in report.findings[0].message


def test_bytes_that_nothing_wrote_are_found():
    y = np.zeros(32, np.uint32)
    report = reel_sim.check(RIGHT, "shift", 1, 32, [reel_sim.uninitialized(np.empty(32, np.uint32)), y])
    assert report.findings[0].kind == "uninitialized"


def test_structs_and_tensor_maps():
    y = np.zeros(2, np.uint32)
    fields = reel_sim.Struct(y, np.uint32(5), np.uint32(6))
    reel_sim.check(STRUCT, None, 1, 1, [fields]).raise_if_any()
    assert list(y) == [5, 6]
    x, y = np.arange(64, dtype=np.float32).reshape(8, 8), np.zeros(32, np.float32)
    report = reel_sim.check(TENSOR_COPY, "load", 1, 32, [reel_sim.TensorMap(x, (4, 8)), y])
    assert report.ok and (y == x[4:].ravel()).all()
    with pytest.raises(reel_sim.InputError, match="the tensor map covers 512 bytes, but its buffer has 256"):
        reel_sim.check(TENSOR_COPY, "load", 1, 32, [reel_sim.TensorMap(x, (4, 8), shape=(16, 8)), y])
    with pytest.raises(reel_sim.InputError, match="the last dimension is not contiguous"):
        reel_sim.check(TENSOR_COPY, "load", 1, 32, [reel_sim.TensorMap(x.T, (4, 8)), y])


def test_what_cannot_be_checked_is_one_line():
    x, y = arrays()
    big = HEAD + ".visible .entry k(.param .u64 x) { .reg .b64 %d; frobnicate.b32 %d; ret; }"
    sm_100 = RIGHT.replace("sm_80", "sm_100a").replace("8.0", "8.6")
    for source, options, message in [
        (RIGHT.replace("8.0", "99.0"), {}, "99.0"),
        (big, {"entry": "k", "args": [x]}, "frobnicate"),
        (RIGHT, {"grid": 3_000_000}, "grid: .* can be simulated; give fewer blocks"),
        (RIGHT, {"block": 2048}, "block: .* 1 to 1024 threads"),
        (RIGHT, {"shared": 1 << 30}, "shared: .* bytes of static and dynamic shared memory"),
        (RIGHT, {"entry": "other"}, "entry other: no such kernel; the file has shift"),
        (RIGHT, {"arch": "sm_70"}, "arch: sm_70: not simulated"),
        (sm_100, {"arch": "sm_90a"}, "arch: GPUs of sm_90a cannot run PTX for sm_100a"),
        (RIGHT, {"grid": (1, 1, 1, 1)}, "grid: .* one to three integers"),
        (RIGHT, {"args": [np.zeros(3, complex), y]}, r"args\[0\]: elements of type complex128"),
        (RIGHT, {"max_memory": 1, "args": [np.zeros(1 << 20, np.uint32), y]}, "raise max_memory"),
        ("no kernel\n", {}, "source"),
        ("nowhere.ptx", {}, "nowhere.ptx: cannot be read: there is no such file"),
    ]:
        given = {"entry": "shift", "grid": 1, "block": 32, "args": [x, y], **options}
        given = [given.pop(name) for name in ("entry", "grid", "block", "args")] + [given]
        with pytest.raises(reel_sim.InputError, match=message) as raised:
            reel_sim.check(source, *given[:4], **given[4])
        assert "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="frob"):
        reel_sim.check(RIGHT, "shift", 1, 32, [x, y], frob=1)


def test_endless_kernels_stop_and_say_where():
    with pytest.raises(reel_sim.InputError, match=r"stopped after 20000 instructions .* block \(0,0,0\) .*limit_instr"):
        reel_sim.check(ENDLESS, "forever", 1, 32, [np.zeros(1, np.uint32)], limit_instructions=20000)
    with pytest.raises(reel_sim.InputError, match="stopped after 0.2 s"):
        settings = {"limit_instructions": 1 << 60, "max_seconds": 0.2}
        reel_sim.check(ENDLESS, "forever", 1, 32, [np.zeros(1, np.uint32)], **settings)


def test_files_for_other_tools(tmp_path):
    x, y = arrays()
    source = tmp_path / "shift.ptx"
    source.write_text(RACE)
    report = reel_sim.check(source, "shift", 1, 32, [x, y])
    report.write_sarif(tmp_path / "out.sarif", root=tmp_path)
    (run,) = json.loads((tmp_path / "out.sarif").read_text())["runs"]
    (result,) = run["results"]
    location = result["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "shift.ptx", "uriBaseId": "SRCROOT"}
    assert location["region"]["startLine"] == report.findings[0].at.line
    assert result["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == report.findings[0].other.line
    report.write_speedscope(tmp_path / "out.json")
    graph = json.loads((tmp_path / "out.json").read_text())
    instructions = next(p for p in graph["profiles"] if p["name"] == "warp instructions")
    assert sum(instructions["weights"]) == report.counts["counted"]["warp_instructions"] == instructions["endValue"]
    assert all(frame < len(graph["shared"]["frames"]) for stack in instructions["samples"] for frame in stack)
    by_line = sum(line["global_bytes_read"] for line in report.counts["lines"])
    assert by_line == report.counts["counted"]["global_bytes_read"] == 128


def test_counts_are_the_same_on_any_number_of_threads():
    reports = [reel_sim.check(RACE, "shift", 1, 32, list(arrays()), threads=threads, seed=5) for threads in (1, 3)]
    assert reports[0].json == reports[1].json
