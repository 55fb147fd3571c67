"""Triton kernels in the style of what people write, with one small launch each. make.py compiles them to PTX.

A kernel under "Wrong kernels" has one defect; the comment `# finding: KIND` is on the line that a run must name.
"""

import triton
import triton.language as tl
from make import Buffer, Descriptor, bf16, f16, f32, i8, i32, i64, launch, u8

# Elementwise


@triton.jit
def vector_add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask) + tl.load(y_ptr + i, mask=mask), mask=mask)


@launch
def _():
    n = 1000
    vector_add[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](
        f32(n), f32(n), f32(n, "uninit"), n, BLOCK=256)


@triton.jit
def dropout(x_ptr, out_ptr, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + i, mask=mask)
    keep = tl.rand(seed, i) > p
    tl.store(out_ptr + i, tl.where(keep, x / (1 - p), 0.0), mask=mask)


@launch
def _():
    dropout[(4,)](f32(500), f32(500, "uninit"), 500, 0.5, 42, BLOCK=128)


@triton.jit
def swiglu(gate_ptr, up_ptr, out_ptr, stride, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < n_cols
    gate = tl.load(gate_ptr + row * stride + cols, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + row * stride + cols, mask=mask, other=0)
    silu = gate * tl.sigmoid(gate)
    tl.store(out_ptr + row * stride + cols, silu.to(up.dtype) * up, mask=mask)


@launch
def _():
    swiglu[(3,)](bf16(600), bf16(600),
                 bf16(600, "zeros"), 200, 200, BLOCK=256)


@triton.jit
def rope(q_ptr, cos_ptr, sin_ptr, stride_token, stride_head, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Rotates each head's halves in place."""
    token = tl.program_id(0)
    d = tl.arange(0, HALF)
    heads = tl.arange(0, HEADS)[:, None]
    cos = tl.load(cos_ptr + token * HALF + d)[None, :]
    sin = tl.load(sin_ptr + token * HALF + d)[None, :]
    first = q_ptr + token * stride_token + heads * stride_head + d[None, :]
    x0 = tl.load(first).to(tl.float32)
    x1 = tl.load(first + HALF).to(tl.float32)
    tl.store(first, x0 * cos - x1 * sin)
    tl.store(first + HALF, x1 * cos + x0 * sin)


@launch
def _():
    tokens, heads, dim = 5, 4, 64
    rope[(tokens,)](f16((tokens, heads, dim)), f32((tokens, dim // 2)),
                    f32((tokens, dim // 2)), heads * dim, dim, HEADS=heads, HALF=dim // 2)


@triton.jit
def embedding(ids_ptr, table_ptr, out_ptr, dim, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    row = tl.load(ids_ptr + token).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < dim
    tl.store(out_ptr + token * dim + cols, tl.load(table_ptr + row * dim + cols, mask=mask), mask=mask)


@launch
def _():
    embedding[(6, 2)](i32(6, "arange"), f16((8, 100)), f16((6, 100), "uninit"),
                      100, BLOCK=64)


@triton.jit
def embedding_backward(ids_ptr, grad_ptr, table_grad_ptr, dim, BLOCK: tl.constexpr):
    """Several tokens have the same row, so the sums are atomic."""
    token = tl.program_id(0)
    row = tl.load(ids_ptr + token)
    cols = tl.arange(0, BLOCK)
    mask = cols < dim
    tl.atomic_add(table_grad_ptr + row * dim + cols, tl.load(grad_ptr + token * dim + cols, mask=mask), mask=mask)


@launch
def _():
    embedding_backward[(6,)](i32(6, "fill=1"), f32((6, 100)),
                             f32((2, 100), "zeros"), 100, BLOCK=128)


@triton.jit
def transpose(x_ptr, out_ptr, rows, cols, BLOCK: tl.constexpr):
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x_ptr + r[:, None] * cols + c[None, :], mask=(r[:, None] < rows) & (c[None, :] < cols))
    tl.store(out_ptr + c[:, None] * rows + r[None, :], tl.trans(tile), mask=(c[:, None] < cols) & (r[None, :] < rows))


@launch
def _():
    transpose[(2, 3)](f32((48, 80)), f32((80, 48), "uninit"), 48, 80, BLOCK=32)


@triton.jit
def quantize_rows(x_ptr, q_ptr, scale_ptr, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n_cols + cols, mask=cols < n_cols, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x)), 1e-8) / 127.0
    tl.store(scale_ptr + row, scale)
    tl.store(q_ptr + row * n_cols + cols, tl.extra.cuda.libdevice.rint(x / scale).to(tl.int8), mask=cols < n_cols)


@launch
def _():
    quantize_rows[(4,)](f16((4, 300)), i8((4, 300), "uninit"), f32(4, "uninit"),
                        300, BLOCK=512)


# Rows


@triton.jit
def softmax(out_ptr, in_ptr, in_stride, out_stride, n_rows, n_cols, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    first = tl.program_id(0)
    for row in tl.range(first, n_rows, tl.num_programs(0), num_stages=STAGES):
        cols = tl.arange(0, BLOCK)
        mask = cols < n_cols
        x = tl.load(in_ptr + row * in_stride + cols, mask=mask, other=-float("inf"))
        e = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * out_stride + cols, e / tl.sum(e, axis=0), mask=mask)


@launch
def _():
    softmax[(2,)](f32((11, 200), "uninit"), f32((11, 200)), 200, 200, 11, 200, BLOCK=256,
                  STAGES=4)


@triton.jit
def layer_norm(x_ptr, y_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    x_ptr += row * stride
    y_ptr += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + cols, mask=cols < n, other=0.0).to(tl.float32)
    mean = tl.sum(total) / n
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + cols, mask=cols < n, other=0.0).to(tl.float32)
        x = tl.where(cols < n, x - mean, 0.0)
        total += x * x
    rstd = 1 / tl.sqrt(tl.sum(total) / n + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n
        x = tl.load(x_ptr + cols, mask=mask, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + cols, mask=mask)
        b = tl.load(b_ptr + cols, mask=mask)
        tl.store(y_ptr + cols, (x - mean) * rstd * w + b, mask=mask)


@launch
def _():
    layer_norm[(3,)](f16((3, 300)), f16((3, 300), "uninit"), f16(300),
                     f16(300), f32(3, "uninit"), f32(3, "uninit"), 300, 300,
                     1e-5, BLOCK=128)


@triton.jit
def layer_norm_backward_dx(dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, lock_ptr, n,
                           GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the partial sums for the weights to one of GROUP buffers, under a lock. The first row stores."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < n
    group = row % GROUP
    lock_ptr += group
    count_ptr = lock_ptr + GROUP
    x = tl.load(x_ptr + row * n + cols, mask=mask, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + row * n + cols, mask=mask, other=0).to(tl.float32)
    w = tl.load(w_ptr + cols, mask=mask).to(tl.float32)
    rstd = tl.load(rstd_ptr + row)
    xhat = tl.where(mask, (x - tl.load(mean_ptr + row)) * rstd, 0.0)
    wdy = tl.where(mask, w * dy, 0.0)
    c1 = tl.sum(xhat * wdy, axis=0) / n
    c2 = tl.sum(wdy, axis=0) / n
    tl.store(dx_ptr + row * n + cols, (wdy - (xhat * c1 + c2)) * rstd, mask=mask)
    partial_dw = dy * xhat
    partial_db = dy
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    count = tl.load(count_ptr)
    if count == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        partial_dw += tl.load(dw_ptr + group * n + cols, mask=mask)
        partial_db += tl.load(db_ptr + group * n + cols, mask=mask)
    tl.store(dw_ptr + group * n + cols, partial_dw, mask=mask)
    tl.store(db_ptr + group * n + cols, partial_db, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@launch
def _():
    rows, n = 6, 100
    layer_norm_backward_dx[(rows,)](
        f32((rows, n), "uninit"), f32((rows, n)), f32((2, n), "uninit"),
        Buffer(
    "float32", (2, n), "uninit"), Buffer(
        "float32", (rows, n)), Buffer(
            "float32", n), Buffer(
                "float32", rows),
        f32(rows, "fill=1"), i32(4, "zeros"), n, GROUP=2, BLOCK=128)


@triton.jit
def layer_norm_backward_dw(dw_ptr, db_ptr, final_dw_ptr, final_db_ptr, m, n, BM: tl.constexpr, BN: tl.constexpr):
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    dw = tl.zeros((BM, BN), dtype=tl.float32)
    db = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, m, BM):
        rows = start + tl.arange(0, BM)
        mask = (rows[:, None] < m) & (cols[None, :] < n)
        i = rows[:, None] * n + cols[None, :]
        dw += tl.load(dw_ptr + i, mask=mask, other=0.0)
        db += tl.load(db_ptr + i, mask=mask, other=0.0)
    tl.store(final_dw_ptr + cols, tl.sum(dw, axis=0), mask=cols < n)
    tl.store(final_db_ptr + cols, tl.sum(db, axis=0), mask=cols < n)


@launch
def _():
    layer_norm_backward_dw[(4,)](f32((40, 100)), f32((40, 100)),
                                 f32(100, "uninit"), f32(100, "uninit"), 40, 100, BM=16, BN=32)


@triton.jit
def rms_norm_add(x_ptr, residual_ptr, w_ptr, y_ptr, n, eps, BLOCK: tl.constexpr):
    """Adds x to the residual stream in place, and normalises the sum."""
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    mask = cols < n
    x = tl.load(x_ptr + row * n + cols, mask=mask, other=0).to(tl.float32)
    x += tl.load(residual_ptr + row * n + cols, mask=mask, other=0).to(tl.float32)
    tl.store(residual_ptr + row * n + cols, x, mask=mask)
    rstd = tl.rsqrt(tl.sum(x * x) / n + eps)
    tl.store(y_ptr + row * n + cols, x * rstd * tl.load(w_ptr + cols, mask=mask), mask=mask)


@launch
def _():
    rms_norm_add[(4,)](bf16((4, 500)), bf16((4, 500)), bf16(500),
                       bf16((4, 500), "uninit"), 500, 1e-6, BLOCK=512, num_warps=8)


@triton.jit
def cross_entropy(logits_ptr, labels_ptr, loss_ptr, stride, n, BLOCK: tl.constexpr):
    """Replaces the logits by their gradients, with an online maximum and sum."""
    row = tl.program_id(0)
    logits_ptr += row * stride
    label = tl.load(labels_ptr + row)
    m = -float("inf")
    d = 0.0
    at_label = tl.load(logits_ptr + label).to(tl.float32)
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + cols, mask=cols < n, other=-float("inf")).to(tl.float32)
        new = tl.maximum(m, tl.max(x))
        d = d * tl.exp(m - new) + tl.sum(tl.exp(x - new))
        m = new
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + cols, mask=cols < n, other=-float("inf")).to(tl.float32)
        grad = tl.exp(x - m) / d - tl.where(cols == label, 1.0, 0.0)
        tl.store(logits_ptr + cols, grad, mask=cols < n)
    tl.debug_barrier()
    tl.store(loss_ptr + row, m + tl.log(d) - at_label)


@launch
def _():
    cross_entropy[(3,)](f16((3, 600)), i64(3, "arange"), f32(3, "uninit"), 600, 600,
                        BLOCK=256)


# Reductions, scans, sorts


@triton.jit
def welford(mean_a, m2_a, n_a, mean_b, m2_b, n_b):
    n = n_a + n_b
    share = tl.where(n == 0, 0.0, n_b / n)
    delta = mean_b - mean_a
    return mean_a + delta * share, m2_a + m2_b + delta * delta * n_a * share, n


@triton.jit
def batch_norm_stats(x_ptr, mean_ptr, var_ptr, rows, cols, BR: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    r = tl.arange(0, BR)
    mask = (r[:, None] < rows) & (c[None, :] < cols)
    x = tl.load(x_ptr + r[:, None] * cols + c[None, :], mask=mask, other=0.0)
    mean, m2, n = tl.reduce((x, tl.zeros_like(x), mask.to(tl.float32)), 0, welford)
    tl.store(mean_ptr + c, mean, mask=c < cols)
    tl.store(var_ptr + c, m2 / n, mask=c < cols)


@launch
def _():
    batch_norm_stats[(2,)](f32((50, 30)), f32(30, "uninit"), f32(30, "uninit"), 50,
                           30, BR=64, BC=16)


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def scan_rows(x_ptr, sum_ptr, recurrence_ptr, n, BLOCK: tl.constexpr):
    """Cumulative sums, and the linear recurrence h = a h + x with a = 1/2, carried over blocks of columns."""
    row = tl.program_id(0)
    carry = 0.0
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n + cols, mask=cols < n, other=0.0)
        sums = tl.associative_scan(x, 0, add)
        tl.store(sum_ptr + row * n + cols, carry + sums, mask=cols < n)
        carry += tl.sum(x)
        a, h = tl.associative_scan((tl.full([BLOCK], 0.5, tl.float32), x), 0, linear)
        tl.store(recurrence_ptr + row * n + cols, h, mask=cols < n)


@triton.jit
def linear(a, x, b, y):
    return a * b, b * x + y


@launch
def _():
    scan_rows[(2,)](f32((2, 700)), f32((2, 700), "uninit"), f32((2, 700), "uninit"),
                    700, BLOCK=512)


@triton.jit
def argmax_rows(x_ptr, value_ptr, index_ptr, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n + cols, mask=cols < n, other=-float("inf"))
    value, index = tl.max(x, axis=0, return_indices=True)
    tl.store(value_ptr + row, value)
    tl.store(index_ptr + row, index)


@launch
def _():
    argmax_rows[(3,)](f32((3, 700)), f32(3, "uninit"), i32(3, "uninit"), 700,
                      BLOCK=1024)


@triton.jit
def sort_rows(x_ptr, out_ptr, top_ptr, BLOCK: tl.constexpr, K: tl.constexpr):
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * BLOCK + cols)
    tl.store(out_ptr + row * BLOCK + cols, tl.sort(x))
    tl.store(top_ptr + row * K + tl.arange(0, K), tl.topk(x, K))


@launch
def _():
    sort_rows[(2,)](f32((2, 256)), f32((2, 256), "uninit"), f32((2, 8), "uninit"),
                    BLOCK=256, K=8)


@triton.jit
def histogram(x_ptr, counts_ptr, n, BINS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    counts = tl.histogram(x, BINS, mask=i < n)
    tl.atomic_add(counts_ptr + tl.arange(0, BINS), counts)


@launch
def _():
    histogram[(3,)](i32(600, "fill=5"), i32(64, "zeros"), 600, BINS=64, BLOCK=256)


@triton.jit
def gather_rows(x_ptr, index_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    i = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    tl.store(out_ptr + i, tl.gather(tl.load(x_ptr + i), tl.load(index_ptr + i) % ROWS, axis=0))


@launch
def _():
    gather_rows[(1,)](f32((32, 32)), i32((32, 32), "arange"), f32((32, 32), "uninit"),
                      ROWS=32, COLS=32)


@triton.jit
def segment_sum(x_ptr, segment_ptr, out_ptr, n, dim, BLOCK: tl.constexpr, DIM: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, DIM)
    mask = (rows[:, None] < n) & (cols[None, :] < dim)
    x = tl.load(x_ptr + rows[:, None] * dim + cols[None, :], mask=mask, other=0.0)
    segment = tl.load(segment_ptr + rows, mask=rows < n, other=0) // 4
    tl.atomic_add(out_ptr + segment[:, None] * dim + cols[None, :], x, mask=mask, sem="relaxed")


@launch
def _():
    segment_sum[(3,)](f32((45, 20)), i32(45, "arange"), f32((12, 20), "zeros"), 45,
                      20, BLOCK=16, DIM=32)


@triton.jit
def sum_by_last_block(x_ptr, partial_ptr, count_ptr, out_ptr, n, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The block that arrives last adds the partial sums."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0)))
    arrived = tl.atomic_add(count_ptr, 1, sem="acq_rel")
    if arrived == BLOCKS - 1:
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, BLOCKS))))


@launch
def _():
    sum_by_last_block[(8,)](f32(1000), f32(8, "uninit"), i32(1, "zeros"),
                            f32(1, "uninit"), 1000, BLOCK=128, BLOCKS=8)


@triton.jit
def scan_with_look_back(x_ptr, out_ptr, total_ptr, flag_ptr, BLOCK: tl.constexpr):
    """A scan over blocks: each block waits for the total of the block before it."""
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    sums = tl.cumsum(tl.load(x_ptr + i))
    before = 0.0
    if block > 0:
        while tl.atomic_add(flag_ptr + block - 1, 0, sem="acquire") == 0:
            pass
        before = tl.load(total_ptr + block - 1)
    tl.store(total_ptr + block, before + tl.sum(tl.where(tl.arange(0, BLOCK) == BLOCK - 1, sums, 0.0)))
    tl.debug_barrier()
    tl.atomic_xchg(flag_ptr + block, 1, sem="release")
    tl.store(out_ptr + i, sums + before)


@launch
def _():
    scan_with_look_back[(5,)](f32(640), f32(640, "uninit"), f32(5, "uninit"),
                              i32(5, "zeros"), BLOCK=128)


# Matrix products


@triton.jit
def tile_of_group(pid, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """The order of tiles that keeps GROUP rows of tiles in the L2 cache."""
    tiles_m = tl.cdiv(m, BM)
    per_group = GROUP * tl.cdiv(n, BN)
    first = pid // per_group * GROUP
    rows = min(tiles_m - first, GROUP)
    return first + pid % per_group % rows, pid % per_group // rows


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, m, n, k, sam, sak, sbk, sbn, scm, scn, BM: tl.constexpr, BN: tl.constexpr,
           BK: tl.constexpr, GROUP: tl.constexpr, ACT: tl.constexpr):
    tile_m, tile_n = tile_of_group(tl.program_id(0), m, n, BM, BN, GROUP)
    rows = (tile_m * BM + tl.arange(0, BM)) % m
    cols = (tile_n * BN + tl.arange(0, BN)) % n
    ks = tl.arange(0, BK)
    a_ptrs = a_ptr + rows[:, None] * sam + ks[None, :] * sak
    b_ptrs = b_ptr + ks[:, None] * sbk + cols[None, :] * sbn
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, tl.cdiv(k, BK)):
        a = tl.load(a_ptrs, mask=ks[None, :] < k - i * BK, other=0.0)
        b = tl.load(b_ptrs, mask=ks[:, None] < k - i * BK, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BK * sak
        b_ptrs += BK * sbk
    if ACT:
        acc = tl.where(acc >= 0, acc, 0.01 * acc)
    rows = tile_m * BM + tl.arange(0, BM)
    cols = tile_n * BN + tl.arange(0, BN)
    mask = (rows[:, None] < m) & (cols[None, :] < n)
    tl.store(c_ptr + rows[:, None] * scm + cols[None, :] * scn, acc.to(c_ptr.dtype.element_ty), mask=mask)


def launch_matmul(dtype, out, m, n, k, bm, bn, bk, act=False, column_major=False, **options):
    b = (1, k) if column_major else (n, 1)
    tiles = triton.cdiv(m, bm) * triton.cdiv(n, bn)
    c = Buffer(out, (m, n), "uninit")
    matmul[(tiles,)](Buffer(dtype, (m, k)), Buffer(dtype, (k, n)), c, m, n, k, k, 1, *b, n, 1,
                     BM=bm, BN=bn, BK=bk, GROUP=2, ACT=act, **options)


@launch(name="matmul_f16")
def _():
    launch_matmul("float16", "float16", 100, 72, 328, 64, 32, 32, num_stages=4)


@launch(name="matmul_bf16_leaky_relu")
def _():
    launch_matmul("bfloat16", "bfloat16", 64, 64, 320, 64, 64, 32, act=True, num_stages=3)


@launch(name="matmul_tf32")
def _():
    launch_matmul("float32", "float32", 64, 32, 192, 64, 32, 32, num_stages=3)


@launch(name="matmul_f8", capability=90)
def _():
    launch_matmul("float8_e4m3fn", "float32", 64, 64, 320, 64, 64, 64, column_major=True, num_stages=3)


@triton.jit
def matmul_int8(a_ptr, b_ptr, c_ptr, scale, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for i in range(0, k, BK):
        ks = i + tl.arange(0, BK)
        acc += tl.dot(tl.load(a_ptr + rows[:, None] * k + ks[None, :]),
                      tl.load(b_ptr + cols[None, :] * k + ks[:, None]))
    tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc.to(tl.float32) * scale)


@launch
def _():
    matmul_int8[(1, 2)](i8((32, 256)), i8((64, 256)), f32((32, 64), "uninit"), 0.01, 64,
                        256, BM=32, BN=32, BK=64, num_stages=2)


@triton.jit
def matmul_int4(a_ptr, packed_ptr, scale_ptr, c_ptr, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """b has two 4-bit integers in a byte, one scale for each column and each BK rows."""
    rows = tl.arange(0, BM)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, k // BK):
        ks = i * BK + tl.arange(0, BK)
        a = tl.load(a_ptr + rows[:, None] * k + ks[None, :])
        half = i * (BK // 2) + tl.arange(0, BK // 2)
        packed = tl.load(packed_ptr + half[:, None] * n + cols[None, :])
        b = tl.join(packed & 15, packed >> 4).permute(0, 2, 1).reshape(BK, BN)
        scale = tl.load(scale_ptr + i * n + cols)
        acc = tl.dot(a, ((b.to(tl.int8) - 8).to(tl.float16) * scale[None, :]), acc)
    tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc)


@launch
def _():
    matmul_int4[(2,)](f16((16, 160)), u8((80, 64), "arange"), f16((5, 64)),
                      f32((16, 64), "uninit"), 64, 160, BM=16, BN=32, BK=32, num_stages=2)


@triton.jit
def matmul_split_k(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr,
                   BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, BN)
    part = tl.program_id(1)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, tl.cdiv(k, BK * SPLIT)):
        ks = (i * SPLIT + part) * BK + tl.arange(0, BK)
        a = tl.load(a_ptr + rows[:, None] * k + ks[None, :], mask=(rows[:, None] < m) & (ks[None, :] < k), other=0.0)
        b = tl.load(b_ptr + ks[:, None] * n + cols[None, :], mask=(ks[:, None] < k) & (cols[None, :] < n), other=0.0)
        acc = tl.dot(a, b, acc)
    mask = (rows[:, None] < m) & (cols[None, :] < n)
    tl.atomic_add(c_ptr + rows[:, None] * n + cols[None, :], acc, mask=mask, sem="relaxed")


@launch
def _():
    matmul_split_k[(2, 3)](f16((40, 400)), f16((400, 32)), f32((40, 32), "zeros"),
                           40, 32, 400, BM=32, BN=32, BK=32, SPLIT=3, num_stages=3)


@triton.jit
def matmul_stream_k(a_ptr, b_ptr, c_ptr, lock_ptr, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                    PARTS: tl.constexpr):
    """The blocks of a tile add their parts in order; a flag holds the number of parts that are done."""
    part = tl.program_id(0)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    cols = tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    steps = k // BK // PARTS
    for i in range(part * steps, (part + 1) * steps):
        ks = i * BK + tl.arange(0, BK)
        acc = tl.dot(tl.load(a_ptr + rows[:, None] * k + ks[None, :]),
                     tl.load(b_ptr + ks[:, None] * n + cols[None, :]), acc)
    c_ptrs = c_ptr + rows[:, None] * n + cols[None, :]
    lock_ptr += tl.program_id(1)
    if part > 0:
        while tl.atomic_cas(lock_ptr, part, part, sem="acquire") != part:
            pass
        acc += tl.load(c_ptrs)
    tl.store(c_ptrs, acc)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, part + 1, sem="release")


@launch
def _():
    matmul_stream_k[(3, 2)](f16((64, 288)), f16((288, 32)), f32((64, 32), "uninit"),
                            i32(2, "zeros"), 32, 288, BM=32, BN=32, BK=32, PARTS=3, num_stages=2)


@triton.jit
def matmul_persistent(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                      BLOCKS: tl.constexpr):
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tiles, BLOCKS, flatten=True):
        tile_m, tile_n = tile_of_group(tile, m, n, BM, BN, 2)
        rows = tile_m * BM + tl.arange(0, BM)
        cols = tile_n * BN + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for i in range(0, tl.cdiv(k, BK)):
            ks = i * BK + tl.arange(0, BK)
            a = tl.load(a_ptr + rows[:, None] * k + ks[None, :], mask=ks[None, :] < k, other=0.0)
            b = tl.load(b_ptr + ks[:, None] * n + cols[None, :], mask=ks[:, None] < k, other=0.0)
            acc = tl.dot(a, b, acc)
        tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc.to(tl.float16))


@launch
def _():
    matmul_persistent[(2,)](f16((192, 160)), f16((160, 64)), f16((192, 64), "uninit"),
                            192, 64, 160, BM=64, BN=32, BK=32, BLOCKS=2, num_stages=3)


@triton.jit
def batched_matmul(a_ptr, b_ptr, c_ptr, n, k, B: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """A dot product of three dimensions."""
    batch = tl.arange(0, B)[:, None, None]
    acc = tl.zeros((B, M, BN), dtype=tl.float32)
    m = tl.arange(0, M)[None, :, None]
    cols = tl.program_id(0) * BN + tl.arange(0, BN)[None, None, :]
    for i in range(0, k, BK):
        a = tl.load(a_ptr + (batch * M + m) * k + i + tl.arange(0, BK)[None, None, :])
        b = tl.load(b_ptr + (batch * k + i + tl.arange(0, BK)[None, :, None]) * n + cols)
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + (batch * M + m) * n + cols, acc)


@launch
def _():
    batched_matmul[(2,)](f16((4, 16, 96)), f16((4, 96, 32)), f32((4, 16, 32), "uninit"),
                         32, 96, B=4, M=16, BN=16, BK=32, num_stages=2)


@triton.jit
def matmul_block_sparse(a_ptr, b_ptr, c_ptr, start_ptr, block_ptr, n, k, BM: tl.constexpr, BN: tl.constexpr,
                        BK: tl.constexpr):
    """Each row of tiles has a list of the blocks of k that are not zero."""
    tile = tl.program_id(0)
    rows = tile * BM + tl.arange(0, BM)
    cols = tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(tl.load(start_ptr + tile) * 5, tl.load(start_ptr + tile + 1) * 5):
        ks = tl.load(block_ptr + i) * BK + tl.arange(0, BK)
        acc = tl.dot(tl.load(a_ptr + rows[:, None] * k + ks[None, :]),
                     tl.load(b_ptr + ks[:, None] * n + cols[None, :]), acc)
    tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc)


@launch
def _():
    matmul_block_sparse[(2,)](f16((64, 320)), f16((320, 32)), f32((64, 32), "uninit"),
                              i32(3, "arange"), i32(10, "arange"), 32, 320, BM=32, BN=32, BK=32,
                              num_stages=2)


@triton.jit
def conv2d(x_ptr, w_ptr, y_ptr, height, width, C: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr):
    """A 3 × 3 convolution of an image in NHWC as a sum of nine matrix products."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = p // width
    col = p % width
    c = tl.arange(0, C)
    o = tl.arange(0, OUT)
    acc = tl.zeros((BLOCK, OUT), dtype=tl.float32)
    for tap in range(9):
        r = row + tap // 3 - 1
        s = col + tap % 3 - 1
        inside = (r >= 0) & (r < height) & (s >= 0) & (s < width)
        x = tl.load(x_ptr + (r * width + s)[:, None] * C + c[None, :], mask=inside[:, None], other=0.0)
        acc = tl.dot(x, tl.load(w_ptr + (tap * C + c[:, None]) * OUT + o[None, :]), acc)
    tl.store(y_ptr + p[:, None] * OUT + o[None, :], acc, mask=(p < height * width)[:, None])


@launch
def _():
    conv2d[(2,)](f16((9, 7, 32)), f16((9, 32, 32)), f32((63, 32), "uninit"), 9, 7,
                 C=32, OUT=32, BLOCK=32, num_stages=3)


# Tensor descriptors


@triton.jit
def matmul_descriptors(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    a_desc = tl.make_tensor_descriptor(a_ptr, shape=[m, k], strides=[k, 1], block_shape=[BM, BK])
    b_desc = tl.make_tensor_descriptor(b_ptr, shape=[n, k], strides=[k, 1], block_shape=[BN, BK])
    c_desc = tl.make_tensor_descriptor(c_ptr, shape=[m, n], strides=[n, 1], block_shape=[BM, BN])
    row = tl.program_id(0) * BM
    col = tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, k, BK):
        acc = tl.dot(a_desc.load([row, i]), b_desc.load([col, i]).T, acc)
    c_desc.store([row, col], acc.to(tl.float16))


@launch
def _():
    matmul_descriptors[(2, 2)](f16((96, 320)), f16((64, 320)), f16((96, 64), "uninit"),
                               96, 64, 320, BM=64, BN=32, BK=64, num_stages=3)


@triton.jit
def matmul_host_descriptors(a_desc, b_desc, c_desc, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0) * BM
    col = tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, k, BK):
        acc = tl.dot(a_desc.load([row, i]), b_desc.load([col, i]).T, acc)
    c_desc.store([row, col], acc.to(tl.float16))


def descriptors(m, n, k, bm, bn, bk):
    return (Descriptor(f16((m, k)), (bm, bk)), Descriptor(f16((n, k)), (bn, bk)),
            Descriptor(f16((m, n), "uninit"), (bm, bn)))


@launch
def _():
    matmul_host_descriptors[(2, 1)](*descriptors(128, 64, 384, 64, 64, 64), 384, BM=64, BN=64, BK=64, num_stages=4)


@triton.jit
def matmul_persistent_descriptors(a_desc, b_desc, c_desc, m, n, k, BM: tl.constexpr,
                                  BN: tl.constexpr, BK: tl.constexpr):
    tiles_n = tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(m, BM) * tiles_n, tl.num_programs(0), flatten=True):
        row = tile // tiles_n * BM
        col = tile % tiles_n * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for i in range(0, k, BK):
            acc = tl.dot(a_desc.load([row, i]), b_desc.load([col, i]).T, acc)
        c_desc.store([row, col], acc.to(tl.float16))


@launch
def _():
    matmul_persistent_descriptors[(2,)](*descriptors(192, 64, 192, 64, 32, 32),
                                        192, 64, 192, BM=64, BN=32, BK=32, num_stages=3)


@triton.jit
def matmul_warp_specialized(a_ptr, b_ptr, c_ptr, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    a_desc = tl.make_tensor_descriptor(a_ptr, shape=[m, k], strides=[k, 1], block_shape=[BM, BK])
    b_desc = tl.make_tensor_descriptor(b_ptr, shape=[n, k], strides=[k, 1], block_shape=[BN, BK])
    c_desc = tl.make_tensor_descriptor(c_ptr, shape=[m, n], strides=[n, 1], block_shape=[BM, BN])
    tiles_n = tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(m, BM) * tiles_n, tl.num_programs(0), warp_specialize=True):
        row = tile // tiles_n * BM
        col = tile % tiles_n * BN
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for i in range(0, k, BK):
            acc = tl.dot(a_desc.load([row, i]), b_desc.load([col, i]).T, acc)
        c_desc.store([row, col], acc.to(tl.float16))


@launch(capability=90)
def _():
    matmul_warp_specialized[(2,)](f16((256, 192)), f16((128, 192)), f16((256, 128), "uninit"),
                                  256, 128, 192, BM=128, BN=64, BK=32, num_stages=3)


@triton.jit
def copy_by_descriptor(x_desc, out_desc, sum_desc, BLOCK: tl.constexpr):
    """Copies tiles, and adds them all to one tile by the descriptor's atomic."""
    row = tl.program_id(0) * BLOCK
    x = x_desc.load([row, 0])
    out_desc.store([row, 0], x)
    sum_desc.atomic_add([0, 0], x)


@launch(capability=90)
def _():
    copy_by_descriptor[(3,)](Descriptor(f32((90, 32)), (32, 32)),
                             Descriptor(f32((90, 32), "uninit"), (32, 32)),
                             Descriptor(f32((32, 32), "zeros"), (32, 32)), BLOCK=32)


@triton.jit
def gather_by_descriptor(x_desc, index_ptr, out_ptr, ROWS: tl.constexpr, COLS: tl.constexpr):
    rows = tl.load(index_ptr + tl.program_id(0) * ROWS + tl.arange(0, ROWS))
    x = x_desc.load([tl.program_id(0) * ROWS, 0])
    tl.store(out_ptr + rows[:, None] * COLS + tl.arange(0, COLS)[None, :], x)


@launch
def _():
    gather_by_descriptor[(2,)](Descriptor(bf16((64, 64)), (32, 64)), i32(64, "arange"),
                               bf16((64, 64), "uninit"), ROWS=32, COLS=64)


# Attention


@triton.jit
def attention(q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, length, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
              CAUSAL: tl.constexpr):
    tile = tl.program_id(0)
    base = tl.program_id(1) * length * D
    rows = tile * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + base + rows[:, None] * D + d[None, :], mask=rows[:, None] < length, other=0.0)
    m = tl.full([BM], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    acc = tl.zeros([BM, D], dtype=tl.float32)
    end = tl.minimum((tile + 1) * BM, length) if CAUSAL else length
    for start in range(0, end, BN):
        cols = start + tl.arange(0, BN)
        k = tl.load(k_ptr + base + cols[None, :] * D + d[:, None], mask=cols[None, :] < length, other=0.0)
        s = tl.dot(q, k) * (scale * 1.44269504)
        keep = cols[None, :] < length
        if CAUSAL:
            keep = keep & (cols[None, :] <= rows[:, None])
        s = tl.where(keep, s, -1.0e6)
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.math.exp2(s - new[:, None])
        shrink = tl.math.exp2(m - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + base + cols[:, None] * D + d[None, :], mask=cols[:, None] < length, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        m = new
    tl.store(lse_ptr + tl.program_id(1) * length + rows, m + tl.math.log2(total), mask=rows < length)
    tl.store(out_ptr + base + rows[:, None] * D + d[None, :],
             (acc / total[:, None]).to(tl.float16), mask=rows[:, None] < length)


@launch
def _():
    heads, length, dim = 1, 150, 32
    attention[(3, heads)](*[f16((heads, length, dim)) for _ in range(3)],
                          Buffer(
    "float16", (heads, length, dim), "uninit"), Buffer(
        "float32", (heads, length), "uninit"), length,
                          0.17, BM=64, BN=32, D=dim, CAUSAL=True, num_stages=3)


@triton.jit
def attention_backward(q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, length, scale,
                       BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    """One block for each tile of keys; the gradients of the queries are summed by atomics."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.arange(0, D)
    kv = cols[:, None] * D + d[None, :]
    k = tl.load(k_ptr + kv)
    v = tl.load(v_ptr + kv)
    dk = tl.zeros([BN, D], dtype=tl.float32)
    dv = tl.zeros([BN, D], dtype=tl.float32)
    for start in range(0, length, BM):
        rows = start + tl.arange(0, BM)
        qo = rows[:, None] * D + d[None, :]
        q = tl.load(q_ptr + qo)
        do = tl.load(do_ptr + qo)
        s = tl.dot(q, tl.trans(k)) * scale
        p = tl.exp(s - tl.load(lse_ptr + rows)[:, None])
        dv = tl.dot(tl.trans(p.to(tl.float16)), do, dv)
        dp = tl.dot(do, tl.trans(v))
        ds = (p * (dp - tl.load(delta_ptr + rows)[:, None]) * scale).to(tl.float16)
        dk = tl.dot(tl.trans(ds), q, dk)
        tl.atomic_add(dq_ptr + qo, tl.dot(ds, k), sem="relaxed")
    tl.store(dk_ptr + kv, dk)
    tl.store(dv_ptr + kv, dv)


@launch
def _():
    length, dim = 96, 32
    half = [f16((length, dim)) for _ in range(4)]
    attention_backward[(3,)](*half, f32((length, dim), "zeros"), f32((length, dim), "uninit"),
                             f32((length, dim), "uninit"), f32(length, "fill=4"),
                             f32(length), length, 0.17, BM=32, BN=32, D=dim, num_stages=2)


@triton.jit
def decode_part(q_ptr, k_ptr, v_ptr, acc_ptr, lse_ptr, pages_ptr, length, scale, PARTS: tl.constexpr, BN: tl.constexpr,
                D: tl.constexpr, GROUP: tl.constexpr):
    """Attention of the GROUP query heads of one key head to one part of a paged cache."""
    part = tl.program_id(0)
    heads = tl.arange(0, GROUP)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + heads[:, None] * D + d[None, :])
    m = tl.full([GROUP], -float("inf"), dtype=tl.float32)
    total = tl.zeros([GROUP], dtype=tl.float32)
    acc = tl.zeros([GROUP, D], dtype=tl.float32)
    per_part = tl.cdiv(tl.cdiv(length, BN), PARTS)
    for i in range(part * per_part, min((part + 1) * per_part, tl.cdiv(length, BN))):
        page = tl.load(pages_ptr + i)
        j = tl.arange(0, BN)
        inside = i * BN + j < length
        k = tl.load(k_ptr + (page * BN + j)[None, :] * D + d[:, None])
        s = tl.where(inside[None, :], tl.dot(q, k) * scale, -float("inf"))
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp(s - new[:, None])
        total = total * tl.exp(m - new) + tl.sum(p, 1)
        v = tl.load(v_ptr + (page * BN + j)[:, None] * D + d[None, :])
        acc = acc * tl.exp(m - new)[:, None] + tl.dot(p.to(v.dtype), v)
        m = new
    tl.store(acc_ptr + (part * GROUP + heads)[:, None] * D + d[None, :], acc / total[:, None])
    tl.store(lse_ptr + part * GROUP + heads, m + tl.log(total))


@launch
def _():
    decode_part[(3,)](f16((16, 32)), f16((6, 32, 32)), f16((6, 32, 32)),
                      f32((3, 16, 32), "uninit"), f32((3, 16), "uninit"),
                      i32(6, "arange"), 180, 0.17, PARTS=3, BN=32, D=32, GROUP=16)


@triton.jit
def decode_merge(acc_ptr, lse_ptr, out_ptr, PARTS: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr):
    head = tl.program_id(0)
    parts = tl.arange(0, PARTS)
    d = tl.arange(0, D)
    lse = tl.load(lse_ptr + parts * GROUP + head)
    w = tl.exp(lse - tl.max(lse))
    acc = tl.load(acc_ptr + (parts * GROUP + head)[:, None] * D + d[None, :])
    tl.store(out_ptr + head * D + d, tl.sum(acc * w[:, None], 0) / tl.sum(w))


@launch
def _():
    decode_merge[(16,)](f32((4, 16, 32)), f32((4, 16)), f32((16, 32), "uninit"),
                        PARTS=4, D=32, GROUP=16)


@triton.jit
def linear_attention(q_ptr, k_ptr, v_ptr, out_ptr, length, C: tl.constexpr, D: tl.constexpr):
    """Chunks of C tokens; the state stays in registers."""
    i = tl.arange(0, C)
    d = tl.arange(0, D)
    state = tl.zeros([D, D], dtype=tl.float32)
    for start in range(0, length, C):
        at = (start + i)[:, None] * D + d[None, :]
        q = tl.load(q_ptr + at)
        k = tl.load(k_ptr + at)
        v = tl.load(v_ptr + at)
        s = tl.where(i[:, None] >= i[None, :], tl.dot(q, tl.trans(k)), 0.0)
        out = tl.dot(s.to(v.dtype), v) + tl.dot(q, state.to(q.dtype))
        tl.store(out_ptr + at, out)
        state += tl.dot(tl.trans(k), v)


@launch
def _():
    linear_attention[(1,)](*[bf16((160, 32)) for _ in range(3)], f32((160, 32), "uninit"), 160, C=32,
                           D=32, num_stages=2)


# Wrong kernels


@triton.jit
def wrong_sum_without_atomic(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + i)
    tl.store(out_ptr + i, tl.load(out_ptr + i) + x)  # finding: race


@launch
def _():
    wrong_sum_without_atomic[(4,)](f32(512), f32(128, "zeros"), 512, BLOCK=128)


@triton.jit
def wrong_mask(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x * 2, mask=i <= n)  # finding: out-of-bounds


@launch
def _():
    wrong_mask[(2,)](f32(200), f32(200, "uninit"), 200, BLOCK=128)


@triton.jit
def wrong_relaxed_arrival(x_ptr, partial_ptr, count_ptr, out_ptr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + i)))
    arrived = tl.atomic_add(count_ptr, 1, sem="relaxed")
    if arrived == BLOCKS - 1:
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, BLOCKS))))  # finding: race


@launch
def _():
    wrong_relaxed_arrival[(4,)](f32(512), f32(4, "uninit"), i32(1, "zeros"),
                                f32(1, "uninit"), BLOCK=128, BLOCKS=4)


@triton.jit
def wrong_lock_released_early(x_ptr, sum_ptr, lock_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + i)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    old = tl.load(sum_ptr + i)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)
    tl.store(sum_ptr + i, old + x)  # finding: race


@launch
def _():
    wrong_lock_released_early[(4,)](f32(512), Buffer(
        "float32", 128, "zeros"), i32(1, "zeros"), BLOCK=128)


@triton.jit
def wrong_flag(x_ptr, out_ptr, flag_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if tl.program_id(0) == 0:
        tl.store(out_ptr + i, tl.load(x_ptr + i))
        tl.debug_barrier()
        tl.atomic_xchg(flag_ptr, 1)
    else:
        while tl.atomic_add(flag_ptr, 0) < 2:  # finding: deadlock
            pass
        tl.store(out_ptr + BLOCK + i, tl.load(out_ptr + i))


@launch
def _():
    wrong_flag[(2,)](f32(128), f32(256, "uninit"), i32(1, "zeros"), BLOCK=128)


@triton.jit
def wrong_assertion(ids_ptr, table_ptr, out_ptr, rows, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + i)
    tl.device_assert(ids < rows, "an id is too large")  # finding: trap
    tl.store(out_ptr + i, tl.load(table_ptr + ids))


@launch
def _():
    wrong_assertion[(1,)](i32(128, "arange"), f32(128), f32(128, "uninit"), 100, BLOCK=128,
                          debug=True)


@triton.jit
def wrong_unwritten_workspace(x_ptr, workspace_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(workspace_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0), mask=i < n)
    tl.debug_barrier()
    tl.store(out_ptr, tl.sum(tl.load(workspace_ptr + i)))  # finding: uninitialized


@launch
def _():
    wrong_unwritten_workspace[(1,)](f32(100), f32(128, "uninit"), f32(1, "uninit"), 100,
                                    BLOCK=128)


@triton.jit
def wrong_in_place_transpose(x_ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Each block stores its tile where another block still reads."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x_ptr + r[:, None] * N + c[None, :])  # finding: race
    tl.store(x_ptr + c[:, None] * N + r[None, :], tl.trans(tile))


@launch
def _():
    wrong_in_place_transpose[(2, 2)](f32((64, 64)), N=64, BLOCK=32)


@triton.jit
def wrong_split_k_stores(a_ptr, b_ptr, c_ptr, n, k, BM: tl.constexpr,
                         BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(tl.program_id(0), k // BK, SPLIT):
        ks = i * BK + tl.arange(0, BK)
        acc = tl.dot(tl.load(a_ptr + rows[:, None] * k + ks[None, :]),
                     tl.load(b_ptr + ks[:, None] * n + cols[None, :]), acc)
    tl.store(c_ptr + rows[:, None] * n + cols[None, :], acc)  # finding: race


@launch
def _():
    wrong_split_k_stores[(2,)](f16((32, 256)), f16((256, 32)), f32((32, 32), "uninit"), 32,
                               256, BM=32, BN=32, BK=32, SPLIT=2)
