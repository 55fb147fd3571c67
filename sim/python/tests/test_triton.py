"""`reel_sim.triton`: kernels of Triton, compiled without a GPU."""

import numpy as np
import pytest

triton = pytest.importorskip("triton")
import reel_sim  # noqa: E402
import triton.language as tl  # noqa: E402
from reel_sim import triton as door  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402


@triton.jit
def softmax(out, x, stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * stride + at, mask=at < columns, other=-float("inf"))
    values = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * stride + at, values / tl.sum(values, axis=0), mask=at < columns)


@triton.jit
def add_to_each_row(x, y, n, BLOCK: tl.constexpr):
    # All blocks add to the same row without atomics.
    at = tl.arange(0, BLOCK)
    values = tl.load(x + tl.program_id(0) * BLOCK + at, mask=at < n)
    tl.store(y + at, tl.load(y + at) + values)


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    da = tl.make_tensor_descriptor(a, shape=[M, K], strides=[K, 1], block_shape=[BM, BK])
    db = tl.make_tensor_descriptor(b, shape=[N, K], strides=[K, 1], block_shape=[BN, BK])
    i, j = tl.program_id(0), tl.program_id(1)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        acc = tl.dot(da.load([i * BM, k * BK]), db.load([j * BN, k * BK]).T, acc)
    rows, columns = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    tl.store(c + rows[:, None] * N + columns[None, :], acc)


@triton.jit
def copy_box(source, out, BM: tl.constexpr, BN: tl.constexpr):
    box = source.load([BM, 0])
    tl.store(out + tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :], box)


@triton.autotune(configs=[triton.Config({"BLOCK": size}) for size in (32, 256)], key=["n"])
@triton.jit
def increment(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


@triton.jit
def typed(out, f, i, flag, n: tl.constexpr):
    value = f * 2 + i
    if flag:
        value += n
    tl.store(out, value)


def test_results_equal_numpy():
    x = np.random.default_rng(0).standard_normal((5, 100)).astype(np.float32)
    out = np.zeros_like(x)
    assert door.check(softmax, (5,), out, x, 100, 100, BLOCK=128).ok
    wanted = np.exp(x - x.max(1, keepdims=True))
    assert np.allclose(out, wanted / wanted.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_race_between_blocks_names_python_lines(arch):
    x, y = np.ones(4 * 64, np.float32), np.zeros(64, np.float32)
    report = door.check(add_to_each_row, (4,), x, y, 64, BLOCK=64, sim=reel_sim.Settings(arch=arch))
    lines = open(__file__).read().splitlines()
    for finding in report.findings:
        assert finding.kind == "race" and finding.at.file == __file__ == finding.other.file
        for place in (finding.at, finding.other):
            assert "tl.store(y + at, tl.load(y + at) + values)" in lines[place.line - 1]
    assert {f.other.block != f.at.block for f in report.findings} == {True}


def test_tensor_descriptors_of_the_device_and_of_the_host():
    random = np.random.default_rng(1)
    a, b = (random.standard_normal((n, 128)).astype(np.float16) for n in (64, 128))
    c = np.zeros((64, 128), np.float32)
    assert door.check(matmul, (1, 2), a, b, c, 64, 128, 128, BM=64, BN=64, BK=64, num_warps=4).ok
    assert np.allclose(c, a.astype(np.float32) @ b.astype(np.float32).T, atol=1e-3)
    source, out = np.arange(64 * 32, dtype=np.float32).reshape(64, 32), np.zeros((16, 32), np.float32)
    for arch in ("sm_80", "sm_90a"):
        out[:] = 0
        descriptor = TensorDescriptor.from_tensor(door.Tensor(source), [16, 32])
        assert door.check(copy_box, (1,), descriptor, out, 16, 32, sim=reel_sim.Settings(arch=arch)).ok
        assert (out == source[16:32]).all()


def test_every_configuration_is_checked_and_the_last_result_counts():
    x = np.zeros(1000, np.int32)
    report = door.check(increment, lambda meta: (triton.cdiv(1000, meta["BLOCK"]),), x, 1000)
    assert report.ok and len(report.launches) == 3 and (x == 1).all()


def test_arguments_of_every_type():
    out = np.zeros(1, np.float32)
    assert door.check(typed, (1,), out, 1.5, 7, True, n=100).ok and out[0] == 110
    # 1 is specialised to a constant.
    assert door.check(typed, (1,), out, 1.5, 1, False, n=100).ok and out[0] == 4
    with pytest.raises(reel_sim.InputError, match="the launch has no blocks"):
        door.check(typed, (0,), out, 1.5, 7, True, n=100)


def test_an_access_past_the_end_names_the_argument():
    x, y = np.ones(64, np.float32), np.zeros(60, np.float32)
    report = door.check(add_to_each_row, (1,), x, y, 64, BLOCK=64)
    assert {f.kind for f in report.findings} == {"out-of-bounds"} and "of y, which has 240 bytes" in report.text


def host_code(x):
    for _ in range(3):
        increment.fn[(4,)](x, x.numel(), BLOCK=256)
    return x.array.sum()


def test_unchanged_host_code_runs_launch_after_launch():
    with door.launches() as recorder:
        assert host_code(door.Tensor(np.zeros(1000, np.int32))) == 3000
    assert recorder.report.ok and len(recorder.reports) == 3


@pytest.mark.reel_sim
def test_the_marker_runs_launches_on_the_simulator():
    assert host_code(door.Tensor(np.zeros(100, np.int32))) == 300
