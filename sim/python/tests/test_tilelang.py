"""`reel_sim.tilelang`: kernels of TileLang, compiled without a GPU."""

import numpy as np
import pytest

tilelang = pytest.importorskip("tilelang")
import reel_sim  # noqa: E402
import tilelang.language as T  # noqa: E402
from reel_sim import tilelang as door  # noqa: E402


def gemm(m, n, k, stages):
    @T.prim_func
    def main(A: T.Tensor((m, k), "float16"), B: T.Tensor((k, n), "float16"), C: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(n, 64), T.ceildiv(m, 64), threads=128) as (x, y):
            a, b = T.alloc_shared((64, 32), "float16"), T.alloc_shared((32, 64), "float16")
            c = T.alloc_fragment((64, 64), "float32")
            T.clear(c)
            for step in T.Pipelined(T.ceildiv(k, 32), num_stages=stages):
                T.copy(A[y * 64, step * 32], a)
                T.copy(B[step * 32, x * 64], b)
                T.gemm(a, b, c)
            T.copy(c, C[y * 64, x * 64])

    return main


def matrices(m, n, k):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float16) for shape in ((m, k), (k, n))]


@pytest.mark.parametrize("arch, stages", [("sm_80", 2), ("sm_90a", 1)])
def test_products_equal_numpy(arch, stages):
    a, b = matrices(64, 128, 96)
    c = np.zeros((64, 128), np.float32)
    # What is left out here has defects in TileLang 0.1.15: see docs/found.md.
    options = {
        "sim": reel_sim.Settings(arch=arch),
        "pass_configs": {tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True},
    }
    assert door.check(gemm(64, 128, 96, stages), a, b, c, **options).ok
    wanted = a.astype(np.float32) @ b.astype(np.float32)
    assert np.allclose(c, wanted, atol=1e-2)
    report = door.check(gemm(64, 128, 96, stages), a, b, out_idx=[-1], **options)
    assert report.ok and np.allclose(report.result.numpy(), wanted, atol=1e-2)


def test_findings_quote_the_generated_source():
    @T.prim_func
    def main(A: T.Tensor((128,), "float32"), B: T.Tensor((64,), "float32")):
        # Both blocks add to the same elements.
        with T.Kernel(2, threads=64) as x:
            for i in T.Parallel(64):
                B[i] = B[i] + A[x * 64 + i]

    report = door.check(main, np.ones(128, np.float32), np.ones(64, np.float32))
    for finding in report.findings:
        assert finding.kind == "race" and finding.space == "global"
        for place in (finding.at, finding.other):
            assert "B[" in open(place.file).read().splitlines()[place.line - 1]
    assert report.findings


@tilelang.jit
def scale(A, B, block: int = 64):
    N = T.const("N")
    A: T.Tensor[[N], "float32"]
    B: T.Tensor[[N], "float32"]
    with T.Kernel(T.ceildiv(N, block), threads=64) as x:
        for i in T.Parallel(block):
            B[x * block + i] = A[x * block + i] * 3


def test_functions_of_jit_run_when_they_are_called():
    a, b = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    assert door.check(scale, a, b).ok and (b == 3 * a).all()
