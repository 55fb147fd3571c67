"""`reel_sim.cute`: kernels of CuTe DSL, compiled without a GPU."""

import numpy as np
import pytest

cutlass = pytest.importorskip("cutlass")
import cutlass.cute as cute  # noqa: E402
import reel_sim  # noqa: E402
from cutlass.cute.nvgpu import cpasync  # noqa: E402
from cutlass.cute.runtime import from_dlpack  # noqa: E402
from reel_sim import cute as door  # noqa: E402


@cute.kernel
def add_kernel(a: cute.Tensor, b: cute.Tensor, n: cutlass.Int32):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    i = block * 128 + thread
    if i < n:
        b[i] = a[i] + b[i]


@cute.jit
def add(a: cute.Tensor, b: cute.Tensor, n: cutlass.Int32):
    add_kernel(a, b, n).launch(grid=[cute.ceil_div(n, 128), 1, 1], block=[128, 1, 1])


@cute.jit
def add_twice(a: cute.Tensor, b: cute.Tensor, n: cutlass.Int32):
    add_kernel(a, b, n).launch(grid=[cute.ceil_div(n, 128), 1, 1], block=[128, 1, 1])
    add_kernel(a, b, n).launch(grid=[cute.ceil_div(n, 128), 1, 1], block=[128, 1, 1])


@cute.kernel
def reverse_kernel(a: cute.Tensor, b: cute.Tensor, wait: cutlass.Constexpr):
    thread, _, _ = cute.arch.thread_idx()
    tile = cutlass.memory.SmemAllocator().allocate_tensor(cutlass.Float32, cute.make_layout(128))
    tile[thread] = a[thread]
    if cutlass.const_expr(wait):
        cute.arch.sync_threads()
    b[thread] = tile[127 - thread]


@cute.jit
def reverse(a: cute.Tensor, b: cute.Tensor, wait: cutlass.Constexpr):
    reverse_kernel(a, b, wait).launch(grid=[1, 1, 1], block=[128, 1, 1])


def arrays(n=512):
    return np.arange(n, dtype=np.float32), np.ones(n, np.float32)


def test_results_and_bounds():
    a, b = arrays()
    assert door.check(add, a, b, cutlass.Int32(512)).ok and (b == a + 1).all()
    report = door.check(add, a, b, cutlass.Int32(600))
    assert {f.kind for f in report.findings} == {"out-of-bounds"} and report.findings[0].at.file == __file__
    a, b = arrays()
    report = door.check(add_twice, from_dlpack(a), from_dlpack(b).mark_layout_dynamic(), cutlass.Int32(512))
    assert report.ok and len(report.launches) == 2 and (b == 2 * a + 1).all()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_missing_barrier_names_python_lines(arch):
    a, b = arrays(128)
    settings = reel_sim.Settings(arch=arch)
    assert door.check(reverse, a, b, True, sim=settings).ok and (b == a[::-1]).all()
    (race,) = door.check(reverse, a, b, False, sim=settings).findings
    lines = open(__file__).read().splitlines()
    found = {lines[place.line - 1].strip() for place in (race.at, race.other)}
    assert found == {"b[thread] = tile[127 - thread]", "tile[thread] = a[thread]"}


@cute.kernel
def tma_kernel(atom: cute.CopyAtom, source: cute.Tensor, out: cute.Tensor):
    thread, _, _ = cute.arch.thread_idx()
    memory = cutlass.memory.SmemAllocator()
    tile = memory.allocate_tensor(cutlass.Float32, cute.make_layout((32, 32), stride=(32, 1)), byte_alignment=128)
    barrier = memory.allocate_array(cutlass.Int64)
    if thread == 0:
        cute.arch.mbarrier_init(barrier, 1)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    to, of = cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(tile, 0, 2), cute.group_modes(source, 0, 2)
    )
    if thread < 32:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, 32 * 32 * 4)
        cute.copy(atom, of, to, tma_bar_ptr=barrier)
    cute.arch.mbarrier_wait(barrier, 0)
    for row in cutlass.range_constexpr(32):
        if thread < 32:
            out[row, thread] = tile[row, thread]


@cute.jit
def tma(source: cute.Tensor, out: cute.Tensor):
    layout = cute.make_layout((32, 32), stride=(32, 1))
    atom, tensor = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), source, layout, (32, 32))
    tma_kernel(atom, tensor, out).launch(grid=[1, 1, 1], block=[128, 1, 1])


def test_tensor_maps_of_the_host():
    source, out = np.arange(1024, dtype=np.float32).reshape(32, 32), np.zeros((32, 32), np.float32)
    assert door.check(tma, source, out).ok and (out == source).all()


def test_a_function_without_launches_is_refused():
    @cute.jit
    def nothing(a: cute.Tensor):
        pass

    with pytest.raises(reel_sim.InputError, match="launched no kernel"):
        door.check(nothing, arrays()[0])
