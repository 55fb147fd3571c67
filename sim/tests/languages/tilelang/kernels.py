"""TileLang kernels in the style of what people write, with one small launch each. make.py compiles them to PTX.

The kernels of public issues, and each kernel with `finding`, are wrong: `finding` is the kind, and a regular expression
for the line of the generated CUDA that a run must name. `version` is the TileLang version that compiles a kernel so.
"""

import tilelang
import tilelang.language as T
from make import launch

PLAIN = {tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True, tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True}
# The loop has fence.proxy.async between the copies by threads and wgmma; the steps after the loop don't.
MISSING_FENCE = {"sm_90a": r"async-proxy: desc_a_1 \+ \(\(ki_1"}
NO_WARPS = {tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True}


@launch
def vector_add(n=1000, block=256):
    @T.prim_func
    def main(a: T.Tensor((n,), "float32"), b: T.Tensor((n,), "float32"), c: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, block), threads=128) as bx:
            for i in T.Parallel(block):
                if bx * block + i < n:
                    c[bx * block + i] = a[bx * block + i] + b[bx * block + i]

    return main


def gemm(m, n, k, bm, bn, bk, stages, dtype="float16", out="float16", threads=128, transposed=False):
    shape_b = (n, k) if transposed else (k, n)
    tile_b = (bn, bk) if transposed else (bk, bn)

    @T.prim_func
    def main(a: T.Tensor((m, k), dtype), b: T.Tensor(shape_b, dtype), c: T.Tensor((m, n), out)):
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm), threads=threads) as (bx, by):
            a_shared = T.alloc_shared((bm, bk), dtype)
            b_shared = T.alloc_shared(tile_b, dtype)
            acc = T.alloc_fragment((bm, bn), "float32")
            T.clear(acc)
            for step in T.Pipelined(T.ceildiv(k, bk), num_stages=stages):
                T.copy(a[by * bm, step * bk], a_shared)
                if transposed:
                    T.copy(b[bx * bn, step * bk], b_shared)
                else:
                    T.copy(b[step * bk, bx * bn], b_shared)
                T.gemm(a_shared, b_shared, acc, transpose_B=transposed)
            T.copy(acc, c[by * bm, bx * bn])

    return main


# On sm_90a: TMA, wgmma and warp specialisation; on sm_80: cp.async and mma.
launch(name="gemm_f16")(lambda: gemm(128, 64, 256, 64, 32, 32, 3))
launch(name="gemm_bf16_transposed")(lambda: gemm(64, 64, 320, 64, 64, 64, 2, "bfloat16", "float32", transposed=True))
launch(
    name="gemm_f8",
    archs=["sm_90a"])(
        lambda: gemm(
            64,
            64,
            320,
            64,
            64,
            64,
            2,
            "float8_e4m3fn",
            "float32",
             transposed=True))
launch(name="gemm_256_threads")(lambda: gemm(128, 64, 192, 128, 64, 32, 3, threads=256))
launch(name="gemm_plain_hopper", archs=["sm_90a"], finding=MISSING_FENCE, pass_configs=PLAIN)(
    lambda: gemm(64, 64, 192, 64, 64, 32, 3))
launch(name="gemm_one_role", archs=["sm_90a"], finding=MISSING_FENCE, pass_configs=NO_WARPS)(
    lambda: gemm(64, 64, 192, 64, 64, 32, 2))


@launch
def gemm_split_k(m=64, n=32, k=256, split=2):
    bm, bn, bk = 64, 32, 32

    @T.prim_func
    def main(a: T.Tensor((m, k), "float16"), b: T.Tensor((k, n), "float16"), c: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm), split, threads=128) as (bx, by, bz):
            a_shared = T.alloc_shared((bm, bk), "float16")
            b_shared = T.alloc_shared((bk, bn), "float16")
            acc = T.alloc_fragment((bm, bn), "float32")
            T.clear(acc)
            for step in T.Pipelined(k // split // bk, num_stages=2):
                T.copy(a[by * bm, bz * (k // split) + step * bk], a_shared)
                T.copy(b[bz * (k // split) + step * bk, bx * bn], b_shared)
                T.gemm(a_shared, b_shared, acc)
            for i, j in T.Parallel(bm, bn):
                T.atomic_add(c[by * bm + i, bx * bn + j], acc[i, j])

    return main


@launch
def gemm_persistent(m=128, n=64, k=128, blocks=2):
    bm, bn, bk = 64, 32, 32

    @T.prim_func
    def main(a: T.Tensor((m, k), "float16"), b: T.Tensor((k, n), "float16"), c: T.Tensor((m, n), "float16")):
        with T.Kernel(blocks, threads=128) as block:
            a_shared = T.alloc_shared((bm, bk), "float16")
            b_shared = T.alloc_shared((bk, bn), "float16")
            acc = T.alloc_fragment((bm, bn), "float32")
            for bx, by in T.Persistent([m // bm, n // bn], blocks, block):
                T.clear(acc)
                for step in T.Pipelined(k // bk, num_stages=2):
                    T.copy(a[bx * bm, step * bk], a_shared)
                    T.copy(b[step * bk, by * bn], b_shared)
                    T.gemm(a_shared, b_shared, acc)
                T.copy(acc, c[bx * bm, by * bn])

    return main


@launch
def gemm_int4(m=16, n=64, k=128):
    bn, bk = 32, 32

    @T.prim_func
    def main(a: T.Tensor((m, k), "float16"), packed: T.Tensor((n, k // 2), "uint8"), c: T.Tensor((m, n), "float32")):
        with T.Kernel(n // bn, threads=128) as bx:
            a_shared = T.alloc_shared((m, bk), "float16")
            packed_shared = T.alloc_shared((bn, bk // 2), "uint8")
            b_shared = T.alloc_shared((bn, bk), "float16")
            acc = T.alloc_fragment((m, bn), "float32")
            T.clear(acc)
            for step in T.Pipelined(k // bk, num_stages=2):
                T.copy(a[0, step * bk], a_shared)
                T.copy(packed[bx * bn, step * bk // 2], packed_shared)
                for i, j in T.Parallel(bn, bk):
                    b_shared[i, j] = T.cast((packed_shared[i, j // 2] >> T.cast(j %
                                            2 * 4, "uint8")) & T.uint8(15), "float16")
                T.gemm(a_shared, b_shared, acc, transpose_B=True)
            T.copy(acc, c[0, bx * bn])

    return main


@launch
def gemv(n=64, k=512):
    bn, tk, vec = 4, 32, 4

    @T.prim_func
    def main(a: T.Tensor((k,), "float16"), b: T.Tensor((n, k), "float16"), c: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, bn), threads=(bn, tk)) as bx:
            tn = T.get_thread_binding(0)
            t = T.get_thread_binding(1)
            acc = T.alloc_local((1,), "float32")
            T.clear(acc)
            for step in T.serial(k // (tk * vec)):
                for v in T.serial(vec):
                    i = step * tk * vec + t * vec + v
                    acc[0] += T.cast(a[i], "float32") * T.cast(b[bx * bn + tn, i], "float32")
            total = T.alloc_local((1,), "float32")
            with T.attr(T.comm_reducer(lambda x, y: x + y, [T.Cast("float32", 0)]), "reduce_scope",
                        T.reinterpret(T.uint64(0), dtype="handle")):
                T.evaluate(T.tvm_thread_allreduce(T.uint32(1), acc[0], True, total[0], t, dtype="handle"))
            c[bx * bn + tn] = total[0]

    return main


@launch
def softmax(m=8, n=512, bm=4, bn=128):
    @T.prim_func
    def main(x: T.Tensor((m, n), "float32"), y: T.Tensor((m, n), "float32")):
        with T.Kernel(m // bm, threads=128) as bx:
            tile = T.alloc_fragment((bm, bn), "float32")
            row_max = T.alloc_fragment((bm,), "float32")
            block_max = T.alloc_fragment((bm,), "float32")
            block_sum = T.alloc_fragment((bm,), "float32")
            total = T.alloc_fragment((bm,), "float32")
            T.fill(row_max, -T.infinity("float32"))
            T.clear(total)
            for step in T.Pipelined(n // bn, num_stages=2):
                T.copy(x[bx * bm, step * bn], tile)
                T.reduce_max(tile, block_max, dim=1, clear=True)
                for i in T.Parallel(bm):
                    block_max[i] = T.max(block_max[i], row_max[i])
                for i, j in T.Parallel(bm, bn):
                    tile[i, j] = T.exp(tile[i, j] - block_max[i])
                T.reduce_sum(tile, block_sum, dim=1, clear=True)
                for i in T.Parallel(bm):
                    total[i] = total[i] * T.exp(row_max[i] - block_max[i]) + block_sum[i]
                    row_max[i] = block_max[i]
            for step in T.serial(n // bn):
                T.copy(x[bx * bm, step * bn], tile)
                for i, j in T.Parallel(bm, bn):
                    tile[i, j] = T.exp(tile[i, j] - row_max[i]) / total[i]
                T.copy(tile, y[bx * bm, step * bn])

    return main


@launch
def rms_norm(m=8, n=256, bm=2):
    @T.prim_func
    def main(x: T.Tensor((m, n), "float32"), w: T.Tensor((n,), "float32"), y: T.Tensor((m, n), "float32")):
        with T.Kernel(m // bm, threads=128) as bx:
            shared = T.alloc_shared((bm, n), "float32")
            local = T.alloc_fragment((bm, n), "float32")
            squares = T.alloc_fragment((bm, n), "float32")
            total = T.alloc_fragment((bm,), "float32")
            T.copy(x[bx * bm, 0], shared)
            T.copy(shared, local)
            for i, j in T.Parallel(bm, n):
                squares[i, j] = local[i, j] * local[i, j]
            T.reduce_sum(squares, total, dim=1)
            for i, j in T.Parallel(bm, n):
                local[i, j] *= T.rsqrt(total[i] / n + 1e-6) * w[j]
            T.copy(local, y[bx * bm, 0])

    return main


@launch
def transpose(m=64, n=96, block=32):
    @T.prim_func
    def main(x: T.Tensor((m, n), "float16"), y: T.Tensor((n, m), "float16")):
        with T.Kernel(m // block, n // block, threads=128) as (bx, by):
            tile = T.alloc_shared((block, block), "float16")
            T.copy(x[bx * block, by * block], tile)
            for i, j in T.Parallel(block, block):
                y[by * block + i, bx * block + j] = tile[j, i]

    return main


@launch
def cumulative_sum(m=4, n=256):
    @T.prim_func
    def main(x: T.Tensor((m, n), "float32"), y: T.Tensor((m, n), "float32")):
        with T.Kernel(m // 2, threads=64) as bx:
            tile = T.alloc_shared((2, n), "float32")
            T.copy(x[bx * 2, 0], tile)
            T.cumsum(tile, dim=1)
            T.copy(tile, y[bx * 2, 0])

    return main


def attention(length, dim, bm, bn, causal, stages=2):
    @T.prim_func
    def main(q: T.Tensor((length, dim), "float16"), k: T.Tensor((length, dim), "float16"),
             v: T.Tensor((length, dim), "float16"),
             out: T.Tensor((length, dim), "float16")):
        with T.Kernel(T.ceildiv(length, bm), threads=128) as bx:
            q_shared = T.alloc_shared((bm, dim), "float16")
            k_shared = T.alloc_shared((bn, dim), "float16")
            v_shared = T.alloc_shared((bn, dim), "float16")
            s = T.alloc_fragment((bm, bn), "float32")
            p = T.alloc_fragment((bm, bn), "float16")
            acc = T.alloc_fragment((bm, dim), "float32")
            row_max = T.alloc_fragment((bm,), "float32")
            old_max = T.alloc_fragment((bm,), "float32")
            scale = T.alloc_fragment((bm,), "float32")
            block_sum = T.alloc_fragment((bm,), "float32")
            total = T.alloc_fragment((bm,), "float32")
            T.copy(q[bx * bm, 0], q_shared)
            T.clear(acc)
            T.clear(total)
            T.fill(row_max, -T.infinity("float32"))
            steps = T.ceildiv((bx + 1) * bm, bn) if causal else T.ceildiv(length, bn)
            for step in T.Pipelined(steps, num_stages=stages):
                T.copy(k[step * bn, 0], k_shared)
                if causal:
                    for i, j in T.Parallel(bm, bn):
                        s[i, j] = T.if_then_else(bx * bm + i >= step * bn + j, 0, -T.infinity("float32"))
                else:
                    T.clear(s)
                T.gemm(q_shared, k_shared, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(row_max, old_max)
                T.reduce_max(s, row_max, dim=1, clear=False)
                for i in T.Parallel(bm):
                    scale[i] = T.exp2((old_max[i] - row_max[i]) * 0.25)
                for i, j in T.Parallel(bm, bn):
                    s[i, j] = T.exp2((s[i, j] - row_max[i]) * 0.25)
                T.reduce_sum(s, block_sum, dim=1)
                for i in T.Parallel(bm):
                    total[i] = total[i] * scale[i] + block_sum[i]
                T.copy(s, p)
                for i, j in T.Parallel(bm, dim):
                    acc[i, j] *= scale[i]
                T.copy(v[step * bn, 0], v_shared)
                T.gemm(p, v_shared, acc, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(bm, dim):
                acc[i, j] /= total[i]
            T.copy(acc, out[bx * bm, 0])

    return main


launch(name="attention_causal", archs=["sm_90a"])(lambda: attention(192, 32, 64, 32, True))
launch(name="attention")(lambda: attention(128, 64, 64, 32, False, 3))


@launch
def linear_attention(length=128, dim=32, chunk=32):
    @T.prim_func
    def main(q: T.Tensor((length, dim), "float16"), k: T.Tensor((length, dim), "float16"),
             v: T.Tensor((length, dim), "float16"),
             out: T.Tensor((length, dim), "float32")):
        with T.Kernel(1, threads=128):
            q_shared = T.alloc_shared((chunk, dim), "float16")
            k_shared = T.alloc_shared((chunk, dim), "float16")
            v_shared = T.alloc_shared((chunk, dim), "float16")
            s = T.alloc_fragment((chunk, chunk), "float32")
            s_shared = T.alloc_shared((chunk, chunk), "float16")
            state = T.alloc_fragment((dim, dim), "float32")
            state_shared = T.alloc_shared((dim, dim), "float16")
            acc = T.alloc_fragment((chunk, dim), "float32")
            T.clear(state)
            for step in T.Pipelined(length // chunk, num_stages=1):
                T.copy(q[step * chunk, 0], q_shared)
                T.copy(k[step * chunk, 0], k_shared)
                T.copy(v[step * chunk, 0], v_shared)
                T.clear(s)
                T.gemm(q_shared, k_shared, s, transpose_B=True)
                for i, j in T.Parallel(chunk, chunk):
                    s_shared[i, j] = T.if_then_else(i >= j, s[i, j], 0)
                T.clear(acc)
                T.gemm(s_shared, v_shared, acc)
                T.copy(state, state_shared)
                T.gemm(q_shared, state_shared, acc)
                T.gemm(k_shared, v_shared, state, transpose_A=True)
                T.copy(acc, out[step * chunk, 0])

    return main


@launch
def convolution(height=8, width=8, channels=32, filters=32):
    """A 3 × 3 convolution of one image in NHWC by an explicit im2col."""
    bm, bn, bk = 32, 32, 32

    @T.prim_func
    def main(x: T.Tensor((height, width, channels), "float16"), w: T.Tensor((9 * channels, filters), "float16"),
             y: T.Tensor((height * width, filters), "float32")):
        with T.Kernel(height * width // bm, threads=128) as bx:
            x_shared = T.alloc_shared((bm, bk), "float16")
            w_shared = T.alloc_shared((bk, bn), "float16")
            acc = T.alloc_fragment((bm, bn), "float32")
            T.clear(acc)
            for tap in T.Pipelined(9, num_stages=2):
                for i, j in T.Parallel(bm, bk):
                    r = (bx * bm + i) // width + tap // 3 - 1
                    s = (bx * bm + i) % width + tap % 3 - 1
                    inside = (r >= 0) and (r < height) and (s >= 0) and (s < width)
                    x_shared[i, j] = T.if_then_else(inside, x[r, s, j], 0)
                T.copy(w[tap * bk, 0], w_shared)
                T.gemm(x_shared, w_shared, acc)
            T.copy(acc, y[bx * bm, 0])

    return main


@launch
def histogram(n=1024, bins=64):
    @T.prim_func
    def main(x: T.Tensor((n,), "int32"), counts: T.Tensor((bins,), "int32")):
        with T.Kernel(n // 256, threads=128) as bx:
            shared = T.alloc_shared((bins,), "int32")
            t = T.get_thread_binding()
            if t < bins:
                shared[t] = 0
            T.sync_threads()
            for i in T.serial(2):
                T.atomic_add(shared[(x[bx * 256 + i * 128 + t] % bins + bins) % bins], 1)
            T.sync_threads()
            if t < bins:
                T.atomic_add(counts[t], shared[t])

    return main


@launch(archs=["sm_90a"])
def copy_by_mbarrier(n=512):
    """Two roles with barriers of the source: the first warpgroup copies, the second doubles."""

    @T.prim_func
    def main(x: T.Tensor((n, 64), "float16"), y: T.Tensor((n, 64), "float16")):
        with T.Kernel(1, threads=256):
            tile = T.alloc_shared((64, 64), "float16")
            full = T.alloc_barrier(128)
            empty = T.alloc_barrier(128)
            t = T.get_thread_binding()
            for step in T.serial(n // 64):
                if t < 128:
                    T.mbarrier_wait_parity(empty, (step + 1) % 2)
                    for i in T.serial(32):
                        tile[(i * 128 + t) // 64, (i * 128 + t) %
                             64] = x[step * 64 + (i * 128 + t) // 64, (i * 128 + t) % 64]
                    T.mbarrier_arrive(full)
                else:
                    T.mbarrier_wait_parity(full, step % 2)
                    for i in T.serial(32):
                        y[step * 64 + (i * 128 + t - 128) // 64, (i * 128 + t) %
                          64] = tile[63 - (i * 128 + t - 128) // 64, (i * 128 + t) % 64]
                    T.mbarrier_arrive(empty)

    return main


# Public issues: the wrong form, and a right form that differs in one number


def exchange_in_part_of_a_block(active):
    """Issue 2556: the barrier between the store and the load is missing if `active` is not a multiple of 32."""

    @T.prim_func
    def main(out: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            s = T.alloc_shared((64,), "float32")
            acc = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            acc[0] = 0
            if t < active:
                for k in T.serial(3):
                    s[t] = T.cast(t + k, "float32")
                    acc[0] += s[active - 1 - t]
                out[t] = acc[0]

    return main


OLD = {"version": "0.1.11", "archs": ["sm_90a"]}
launch(name="issue_2556_right", **OLD)(lambda: exchange_in_part_of_a_block(32))
launch(name="issue_2556_wrong",
       finding={"sm_90a": r"race: acc\[0\] = \(acc\[0\] \+"},
       **OLD)(lambda: exchange_in_part_of_a_block(48))


def exchange_under_a_mask(masked):
    """Issue 2612: a barrier that belongs into a branch whose condition depends on data moves ahead of the branch."""

    @T.prim_func
    def main(mask: T.Tensor((64,), "int32"), out: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            s = T.alloc_shared((64,), "float32")
            acc = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            acc[0] = T.cast(mask[t], "float32")
            if mask[t if masked else 0] != 0:
                for k in T.serial(3):
                    s[t] = T.cast(t + k, "float32")
                    acc[0] += s[63 - t]
            out[t] = acc[0]

    return main


launch(name="issue_2612_right", archs=["sm_90a"], fills={0: "fill=1"})(lambda: exchange_under_a_mask(False))
launch(name="issue_2612_wrong", archs=["sm_90a"], fills={0: "fill=1"},
       finding={"sm_90a": r"race: \[\(\(int\)threadIdx\.x\)\] = \(\(float\)"})(
    lambda: exchange_under_a_mask(True))


def pipeline_of(steps):
    """Issue 2566: with one step the producer expects bytes, but does not arrive at the mbarrier."""

    @T.prim_func
    def main(a: T.Tensor((steps, 64, 128), "float16"), c: T.Tensor((64, 128), "float32")):
        with T.Kernel(1, threads=128):
            a_shared = T.alloc_shared((64, 128), "float16")
            acc = T.alloc_fragment((64, 128), "float32")
            T.clear(acc)
            for k in T.Pipelined(steps, num_stages=2):
                T.copy(a[k, 0, 0], a_shared)
                for i, j in T.Parallel(64, 128):
                    acc[i, j] += a_shared[i, j]
            T.copy(acc, c)

    return main


launch(name="issue_2566_right", **OLD)(lambda: pipeline_of(2))
launch(name="issue_2566_wrong",
       finding={"sm_90a": r"deadlock: mbarrier\[0\]\.wait\(0\)"},
       **OLD)(lambda: pipeline_of(1))


def fill_after_copy(start):
    """Issue 2698: the barrier between the copy and a fill of other threads is missing unless the fill begins at 0."""

    @T.prim_func
    def main(a: T.Tensor((64,), "float32"), c: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            s = T.alloc_shared((64,), "float32")
            T.copy(a, s)
            T.fill(s[start:start + 6], 7.0)
            for i in T.Parallel(64):
                c[i] = s[63 - i]

    return main


launch(name="issue_2698_right", archs=["sm_90a"])(lambda: fill_after_copy(0))
launch(name="issue_2698_wrong", archs=["sm_90a"], finding={
       "sm_90a": r"race: \+ 10\)\] = 0x1\.cp\+2f"})(lambda: fill_after_copy(10))


def exchange_in_else(threads):
    """Issue 3042: the barrier of the else branch moves ahead of the branch."""

    @T.prim_func
    def main(out: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            s = T.alloc_shared((128,), "float32")
            acc = T.alloc_local((1,), "float32")
            t = T.get_thread_binding()
            if (t == 0) | (t >= threads):
                acc[0] = 0
            else:
                s[t] = T.cast(t, "float32")
                acc[0] = s[threads - t]
            out[t] = acc[0]

    return main


launch(name="issue_3042_wrong",
       finding={"sm_90a": r"race: = \(\(float\)\(\(int\)threadIdx\.x\)\)"},
       **OLD)(lambda: exchange_in_else(33))
