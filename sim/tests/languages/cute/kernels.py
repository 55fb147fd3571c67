"""CuTe DSL kernels in the style of what people write, with one small launch each. make.py compiles them to PTX.

The kernels whose names begin with `wrong` have one defect; `# finding: KIND` is on the line that a run must name.
"""

import cutlass
import cutlass.cute as cute
import cutlass.pipeline as pipeline
import cutlass.utils as utils
import cutlass.utils.hopper_helpers as hopper
from cutlass.cute.nvgpu import cpasync, warp, warpgroup
from make import array, launch, run

F32, F16 = cutlass.Float32, cutlass.Float16


@cute.kernel
def vector_add_kernel(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    i = cute.arch.block_idx()[0] * 128 + cute.arch.thread_idx()[0]
    if i < cute.size(a):
        c[i] = a[i] + b[i]


@cute.jit
def vector_add_host(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    vector_add_kernel(a, b, c).launch(grid=[cute.ceil_div(cute.size(a), 128), 1, 1], block=[128, 1, 1])


@launch
def vector_add():
    return run(vector_add_host, array("float32", 500), array("float32", 500), array("float32", 500, "uninit"))


@cute.kernel
def tiled_scale_kernel(x: cute.Tensor, y: cute.Tensor, layout: cute.Layout, values: cute.Layout):
    t = cute.arch.thread_idx()[0]
    block = ((None, None), cute.arch.block_idx()[0])
    atom = cute.make_copy_atom(cute.nvgpu.CopyUniversalOp(), x.element_type)
    copy = cute.make_tiled_copy_tv(atom, layout, values).get_slice(t)
    source = copy.partition_S(x[block])
    fragment = cute.make_fragment_like(source)
    cute.copy(atom, source, fragment)
    fragment.store(fragment.load() * 2.0)
    cute.copy(atom, fragment, copy.partition_D(y[block]))


@cute.jit
def tiled_scale_host(x: cute.Tensor, y: cute.Tensor):
    layout, values = cute.make_ordered_layout((4, 32), order=(1, 0)), cute.make_ordered_layout((4, 4), order=(1, 0))
    tiler, _ = cute.make_layout_tv(layout, values)
    tiles = [cute.zipped_divide(tensor, tiler) for tensor in (x, y)]
    tiled_scale_kernel(
    tiles[0], tiles[1], layout, values).launch(
        grid=[
            cute.size(
                tiles[0], mode=[1]), 1, 1], block=[
                    128, 1, 1])


@launch
def tiled_scale():
    return run(tiled_scale_host, array("float32", (32, 256)), array("float32", (32, 256), "uninit"))


@cute.kernel
def transpose_kernel(x: cute.Tensor, y: cute.Tensor):
    t, bx, by = cute.arch.thread_idx()[0], cute.arch.block_idx()[0], cute.arch.block_idx()[1]
    tile = utils.SmemAllocator().allocate_tensor(F32, cute.make_layout((32, 32), stride=(33, 1)), 16)
    for i in cutlass.range_constexpr(8):
        r = i * 4 + t // 32
        tile[r, t % 32] = x[bx * 32 + r, by * 32 + t % 32]
    cute.arch.sync_threads()
    for i in cutlass.range_constexpr(8):
        r = i * 4 + t // 32
        y[by * 32 + r, bx * 32 + t % 32] = tile[t % 32, r]


@cute.jit
def transpose_host(x: cute.Tensor, y: cute.Tensor):
    transpose_kernel(x, y).launch(grid=[2, 3, 1], block=[128, 1, 1])


@launch
def transpose():
    return run(transpose_host, array("float32", (64, 96)), array("float32", (96, 64), "uninit"))


@cute.kernel
def wrong_transpose_kernel(x: cute.Tensor, y: cute.Tensor):
    t = cute.arch.thread_idx()[0]
    tile = utils.SmemAllocator().allocate_tensor(F32, cute.make_layout((32, 32), stride=(33, 1)), 16)
    for i in cutlass.range_constexpr(8):
        tile[i * 4 + t // 32, t % 32] = x[i * 4 + t // 32, t % 32]
    for i in cutlass.range_constexpr(8):
        y[i * 4 + t // 32, t % 32] = tile[t % 32, i * 4 + t // 32]  # finding: race


@cute.jit
def wrong_transpose_host(x: cute.Tensor, y: cute.Tensor):
    wrong_transpose_kernel(x, y).launch(grid=[1, 1, 1], block=[128, 1, 1])


@launch
def wrong_transpose():
    return run(wrong_transpose_host, array("float32", (32, 32)), array("float32", (32, 32), "uninit"))


@cute.kernel
def row_sum_kernel(x: cute.Tensor, y: cute.Tensor):
    t, row = cute.arch.thread_idx()[0], cute.arch.block_idx()[0]
    partial = utils.SmemAllocator().allocate_tensor(F32, cute.make_layout(4), 16)
    total = F32(0)
    for i in cutlass.range(t, cute.size(x, mode=[1]), 128):
        total += x[row, i] * x[row, i]
    total = cute.arch.warp_reduction_sum(total)
    if t % 32 == 0:
        partial[t // 32] = total
    cute.arch.sync_threads()
    if t == 0:
        y[row] = partial[0] + partial[1] + partial[2] + partial[3]


@cute.jit
def row_sum_host(x: cute.Tensor, y: cute.Tensor):
    row_sum_kernel(x, y).launch(grid=[cute.size(x, mode=[0]), 1, 1], block=[128, 1, 1])


@launch
def row_sum():
    return run(row_sum_host, array("float32", (3, 500)), array("float32", 3, "uninit"))


@cute.kernel
def softmax_kernel(x: cute.Tensor, y: cute.Tensor):
    """One warp for each row."""
    t, row = cute.arch.thread_idx()[0], cute.arch.block_idx()[0] * 4 + cute.arch.thread_idx()[0] // 32
    values = cute.make_rmem_tensor(cute.make_layout(4), F32)
    for i in cutlass.range_constexpr(4):
        values[i] = x[row, i * 32 + t % 32]
    row_max = cute.arch.warp_reduction_max(values.load().reduce(cute.ReductionOp.MAX, -cutlass.Float32.inf, 0))
    values.store(cute.math.exp(values.load() - row_max))
    total = cute.arch.warp_reduction_sum(values.load().reduce(cute.ReductionOp.ADD, F32(0), 0))
    for i in cutlass.range_constexpr(4):
        y[row, i * 32 + t % 32] = values[i] / total


@cute.jit
def softmax_host(x: cute.Tensor, y: cute.Tensor):
    softmax_kernel(x, y).launch(grid=[2, 1, 1], block=[128, 1, 1])


@launch
def softmax():
    return run(softmax_host, array("float32", (8, 128)), array("float32", (8, 128), "uninit"))


@cute.kernel
def staged_copy_kernel(x: cute.Tensor, y: cute.Tensor):
    """A pipeline of three cp.async stages; each thread reads what another thread copied."""
    t = cute.arch.thread_idx()[0]
    stages = utils.SmemAllocator().allocate_tensor(F32, cute.make_layout((4, 128, 3), stride=(1, 4, 512)), 16)
    atom = cute.make_copy_atom(cpasync.CopyG2SOp(), F32, num_bits_per_copy=128)
    for step in cutlass.range_constexpr(2):
        cute.copy(atom, x[(None, t, step)], stages[(None, t, step)])
        cute.arch.cp_async_commit_group()
    for step in cutlass.range(8):
        cute.arch.cp_async_wait_group(1)
        cute.arch.sync_threads()
        for i in cutlass.range_constexpr(4):
            y[i, t, step] = stages[i, 127 - t, step % 3] * 2.0
        if step + 2 < 8:
            cute.copy(atom, x[(None, t, step + 2)], stages[(None, t, (step + 2) % 3)])
        cute.arch.cp_async_commit_group()


@cute.jit
def staged_copy_host(x: cute.Tensor, y: cute.Tensor):
    layout = cute.make_layout((4, 128, 8), stride=(1, 4, 512))
    tensors = [cute.make_tensor(tensor.iterator, layout) for tensor in (x, y)]
    staged_copy_kernel(tensors[0], tensors[1]).launch(grid=[1, 1, 1], block=[128, 1, 1])


@launch
def staged_copy():
    return run(staged_copy_host, array("float32", 4096), array("float32", 4096, "uninit"))


@cute.kernel
def wrong_staged_copy_kernel(x: cute.Tensor, y: cute.Tensor):
    t = cute.arch.thread_idx()[0]
    stage = utils.SmemAllocator().allocate_tensor(F32, cute.make_layout((4, 128)), 16)
    atom = cute.make_copy_atom(cpasync.CopyG2SOp(), F32, num_bits_per_copy=128)
    cute.copy(atom, x[(None, t)], stage[(None, t)])
    cute.arch.cp_async_commit_group()
    cute.arch.sync_threads()
    for i in cutlass.range_constexpr(4):
        y[i, t] = stage[i, t] * 2.0  # finding: async-not-waited


@cute.jit
def wrong_staged_copy_host(x: cute.Tensor, y: cute.Tensor):
    tensors = [cute.make_tensor(tensor.iterator, cute.make_layout((4, 128))) for tensor in (x, y)]
    wrong_staged_copy_kernel(tensors[0], tensors[1]).launch(grid=[1, 1, 1], block=[128, 1, 1])


@launch
def wrong_staged_copy():
    return run(wrong_staged_copy_host, array("float32", 512), array("float32", 512, "uninit"))


@cute.kernel
def tma_scale_kernel(load: cute.CopyAtom, x: cute.Tensor, store: cute.CopyAtom, y: cute.Tensor):
    """Loads a tile by TMA, doubles it in shared memory, and stores it by TMA."""
    t, bx, by = cute.arch.thread_idx()[0], cute.arch.block_idx()[0], cute.arch.block_idx()[1]
    memory = utils.SmemAllocator()
    shared = memory.allocate_tensor(F32, cute.make_layout((32, 32), stride=(32, 1)), 128)
    bar = memory.allocate_array(cutlass.Int64, 1)
    to_shared, from_global = cpasync.tma_partition(
        load, 0, cute.make_layout(1), cute.group_modes(shared, 0, 2),
        cute.group_modes(cute.local_tile(x, (32, 32), (bx, by)), 0, 2))
    from_shared, to_global = cpasync.tma_partition(
        store, 0, cute.make_layout(1), cute.group_modes(shared, 0, 2),
        cute.group_modes(cute.local_tile(y, (32, 32), (bx, by)), 0, 2))
    if t == 0:
        cute.arch.mbarrier_init(bar, 1)
    cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if t < 32:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(bar, 4096)
        cute.copy(load, from_global, to_shared, tma_bar_ptr=bar)
    cute.arch.mbarrier_wait(bar, 0)
    for i in cutlass.range_constexpr(8):
        shared[i * 4 + t // 32, t % 32] = shared[i * 4 + t // 32, t % 32] * 2.0
    cute.arch.fence_proxy("async.shared", space="cta")
    cute.arch.sync_threads()
    if t < 32:
        cute.copy(store, from_shared, to_global)
        cute.arch.cp_async_bulk_commit_group()
        cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def tma_scale_host(x: cute.Tensor, y: cute.Tensor):
    tile = cute.make_layout((32, 32), stride=(32, 1))
    load, x_map = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), x, tile, (32, 32))
    store, y_map = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), y, tile, (32, 32))
    tma_scale_kernel(load, x_map, store, y_map).launch(grid=[2, 3, 1], block=[128, 1, 1])


@launch
def tma_scale():
    return run(tma_scale_host, array("float32", (64, 96)), array("float32", (64, 96), "uninit"))


@cute.kernel
def wrong_tma_scale_kernel(load: cute.CopyAtom, x: cute.Tensor, store: cute.CopyAtom, y: cute.Tensor):
    """The proxy fence before the store is missing."""
    t = cute.arch.thread_idx()[0]
    memory = utils.SmemAllocator()
    shared = memory.allocate_tensor(F32, cute.make_layout((32, 32), stride=(32, 1)), 128)
    bar = memory.allocate_array(cutlass.Int64, 1)
    to_shared, from_global = cpasync.tma_partition(
        load, 0, cute.make_layout(1), cute.group_modes(shared, 0, 2),
        cute.group_modes(cute.local_tile(x, (32, 32), (0, 0)), 0, 2))
    from_shared, to_global = cpasync.tma_partition(
        store, 0, cute.make_layout(1), cute.group_modes(shared, 0, 2),
        cute.group_modes(cute.local_tile(y, (32, 32), (0, 0)), 0, 2))
    if t == 0:
        cute.arch.mbarrier_init(bar, 1)
    cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if t < 32:
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(bar, 4096)
        cute.copy(load, from_global, to_shared, tma_bar_ptr=bar)
    cute.arch.mbarrier_wait(bar, 0)
    for i in cutlass.range_constexpr(8):
        shared[i * 4 + t // 32, t % 32] = shared[i * 4 + t // 32, t % 32] * 2.0
    cute.arch.sync_threads()
    if t < 32:
        cute.copy(store, from_shared, to_global)  # finding: async-proxy
        cute.arch.cp_async_bulk_commit_group()
        cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def wrong_tma_scale_host(x: cute.Tensor, y: cute.Tensor):
    tile = cute.make_layout((32, 32), stride=(32, 1))
    load, x_map = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), x, tile, (32, 32))
    store, y_map = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), y, tile, (32, 32))
    wrong_tma_scale_kernel(load, x_map, store, y_map).launch(grid=[1, 1, 1], block=[128, 1, 1])


@launch
def wrong_tma_scale():
    return run(wrong_tma_scale_host, array("float32", (32, 32)), array("float32", (32, 32), "uninit"))


@cute.kernel
def tma_pipeline_kernel(load: cute.CopyAtom, x: cute.Tensor, y: cute.Tensor):
    """Warp 0 loads tiles into two stages; four warps add them up."""
    t, warp_index = cute.arch.thread_idx()[0], cute.arch.make_warp_uniform(cute.arch.warp_idx())
    memory = utils.SmemAllocator()
    shared = memory.allocate_tensor(F32, cute.make_layout((32, 32, 2), stride=(32, 1, 1024)), 128)
    bars = memory.allocate_array(cutlass.Int64, 4)
    pipe = pipeline.PipelineTmaAsync.create(
        barrier_storage=bars, num_stages=2, tx_count=4096,
        producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),
        consumer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 4),
        cta_layout_vmnk=cute.make_layout((1, 1, 1, 1)))
    to_shared, from_global = cpasync.tma_partition(
        load, 0, cute.make_layout(1), cute.group_modes(shared, 0, 2),
        cute.group_modes(cute.local_tile(x, (32, 32), (0, None)), 0, 2))
    if warp_index == 4:
        state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, 2)
        for step in cutlass.range(8):
            pipe.producer_acquire(state)
            cute.copy(load, from_global[(None, step)], to_shared[(None, state.index)],
                      tma_bar_ptr=pipe.producer_get_barrier(state))
            pipe.producer_commit(state)
            state.advance()
        pipe.producer_tail(state)
    if warp_index < 4:
        state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, 2)
        total = F32(0)
        for step in cutlass.range(8):
            pipe.consumer_wait(state)
            for i in cutlass.range_constexpr(8):
                total += shared[i * 4 + t // 32, t % 32, state.index]
            cute.arch.sync_warp()
            pipe.consumer_release(state)
            state.advance()
        y[t] = total


@cute.jit
def tma_pipeline_host(x: cute.Tensor, y: cute.Tensor):
    tile = cute.make_layout((32, 32, 2), stride=(32, 1, 1024))
    load, x_map = cpasync.make_tiled_tma_atom(
    cpasync.CopyBulkTensorTileG2SOp(), x, cute.select(
        tile, mode=[
            0, 1]), (32, 32))
    tma_pipeline_kernel(load, x_map, y).launch(grid=[1, 1, 1], block=[160, 1, 1])


@launch
def tma_pipeline():
    return run(tma_pipeline_host, array("float32", (32, 256)), array("float32", 128, "uninit"))


@cute.kernel
def cluster_sum_kernel(x: cute.Tensor, y: cute.Tensor):
    """Each block sends its sum to the block of rank 0 of its cluster by st.async."""
    t, rank = cute.arch.thread_idx()[0], cute.arch.block_idx_in_cluster()
    memory = utils.SmemAllocator()
    sums = memory.allocate_tensor(cutlass.Int32, cute.make_layout(4), 16)
    bar = memory.allocate_array(cutlass.Int64, 1)
    if t == 0:
        cute.arch.mbarrier_init(bar, 1)
        if rank == 0:
            cute.arch.mbarrier_arrive_and_expect_tx(bar, 16)
    cute.arch.mbarrier_init_fence()
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
    total = cute.arch.warp_redux_sync(x[cute.arch.block_idx()[0] * 32 + t], "add")
    if t == 0:
        cute.arch.store_async_dsmem(sums.iterator + rank, total, bar, cutlass.Int32(0))
    if rank == 0:
        cute.arch.mbarrier_wait(bar, 0)
    if rank == 0 and t == 0:
        y[cute.arch.block_idx()[0] // 4] = sums[0] + sums[1] + sums[2] + sums[3]
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def cluster_sum_host(x: cute.Tensor, y: cute.Tensor):
    cluster_sum_kernel(x, y).launch(grid=[8, 1, 1], block=[32, 1, 1], cluster=[4, 1, 1])


@launch
def cluster_sum():
    return run(cluster_sum_host, array("int32", 256), array("int32", 2, "uninit"))


@cute.kernel
def wrong_cluster_sum_kernel(x: cute.Tensor, y: cute.Tensor):
    """The block of rank 0 does not wait for the sums."""
    t, rank = cute.arch.thread_idx()[0], cute.arch.block_idx_in_cluster()
    memory = utils.SmemAllocator()
    sums = memory.allocate_tensor(cutlass.Int32, cute.make_layout(4), 16)
    bar = memory.allocate_array(cutlass.Int64, 1)
    if t == 0:
        cute.arch.mbarrier_init(bar, 1)
        if rank == 0:
            cute.arch.mbarrier_arrive_and_expect_tx(bar, 16)
    cute.arch.mbarrier_init_fence()
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()
    total = cute.arch.warp_redux_sync(x[cute.arch.block_idx()[0] * 32 + t], "add")
    if t == 0:
        cute.arch.store_async_dsmem(sums.iterator + rank, total, bar, cutlass.Int32(0))
    if rank == 0 and t == 0:
        y[cute.arch.block_idx()[0] // 4] = sums[0] + sums[1] + sums[2] + sums[3]  # finding: async-not-waited
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def wrong_cluster_sum_host(x: cute.Tensor, y: cute.Tensor):
    wrong_cluster_sum_kernel(x, y).launch(grid=[8, 1, 1], block=[32, 1, 1], cluster=[4, 1, 1])


@launch
def wrong_cluster_sum():
    return run(wrong_cluster_sum_host, array("int32", 256), array("int32", 2, "uninit"))


@cute.kernel
def sum_by_last_block_kernel(x: cute.Tensor, partial: cute.Tensor, count: cute.Tensor, y: cute.Tensor):
    t, block = cute.arch.thread_idx()[0], cute.arch.block_idx()[0]
    total = cute.arch.warp_reduction_sum(x[block * 32 + t])
    if t == 0:
        partial[block] = total
        cute.arch.fence_acq_rel_gpu()
        before = cute.arch.atomic_add(count.iterator, cutlass.Int32(1), sem="relaxed", scope="gpu")
        if before == 3:
            cute.arch.fence_acq_rel_gpu()
            y[0] = partial[0] + partial[1] + partial[2] + partial[3]


@cute.jit
def sum_by_last_block_host(x: cute.Tensor, partial: cute.Tensor, count: cute.Tensor, y: cute.Tensor):
    sum_by_last_block_kernel(x, partial, count, y).launch(grid=[4, 1, 1], block=[32, 1, 1])


@launch
def sum_by_last_block():
    return run(sum_by_last_block_host, array("float32", 128), array("float32", 4, "uninit"),
               array("int32", 1, "zeros"), array("float32", 1, "uninit"))


@cute.kernel
def wrong_sum_by_last_block_kernel(x: cute.Tensor, partial: cute.Tensor, count: cute.Tensor, y: cute.Tensor):
    """The fences are missing."""
    t, block = cute.arch.thread_idx()[0], cute.arch.block_idx()[0]
    total = cute.arch.warp_reduction_sum(x[block * 32 + t])
    if t == 0:
        partial[block] = total
        before = cute.arch.atomic_add(count.iterator, cutlass.Int32(1), sem="relaxed", scope="gpu")
        if before == 3:
            y[0] = partial[0] + partial[1] + partial[2] + partial[3]  # finding: race


@cute.jit
def wrong_sum_by_last_block_host(x: cute.Tensor, partial: cute.Tensor, count: cute.Tensor, y: cute.Tensor):
    wrong_sum_by_last_block_kernel(x, partial, count, y).launch(grid=[4, 1, 1], block=[32, 1, 1])


@launch
def wrong_sum_by_last_block():
    return run(wrong_sum_by_last_block_host, array("float32", 128), array("float32", 4, "uninit"),
               array("int32", 1, "zeros"), array("float32", 1, "uninit"))


@cute.kernel
def gemm_mma_kernel(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor, mma: cute.TiledMma):
    """Tiles of 32 × 32 × 32 by mma.sync, with two barriers in each step."""
    t, bx, by = cute.arch.thread_idx()[0], cute.arch.block_idx()[0], cute.arch.block_idx()[1]
    memory = utils.SmemAllocator()
    tile = cute.make_layout((32, 32), stride=(40, 1))
    sa, sb = memory.allocate_tensor(F16, tile, 16), memory.allocate_tensor(F16, tile, 16)
    slice = mma.get_slice(t)
    ta, tb, tc = slice.partition_A(sa), slice.partition_B(sb), slice.partition_C(cute.local_tile(c, (32, 32), (bx, by)))
    ra, rb, acc = mma.make_fragment_A(ta), mma.make_fragment_B(tb), mma.make_fragment_C(tc)
    acc.fill(0.0)
    for step in cutlass.range(cute.size(a, mode=[1]) // 32):
        for i in cutlass.range_constexpr(8):
            r = i * 4 + t // 32
            sa[r, t % 32] = a[bx * 32 + r, step * 32 + t % 32]
            sb[r, t % 32] = b[by * 32 + r, step * 32 + t % 32]
        cute.arch.sync_threads()
        cute.autovec_copy(ta, ra)
        cute.autovec_copy(tb, rb)
        cute.gemm(mma, acc, ra, rb, acc)
        cute.arch.sync_threads()
    cute.autovec_copy(acc, tc)


@cute.jit
def gemm_mma_host(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    mma = cute.make_tiled_mma(warp.MmaF16BF16Op(F16, F32, (16, 8, 16)), cute.make_layout((2, 2, 1)), (32, 32, 16))
    gemm_mma_kernel(a, b, c, mma).launch(grid=[2, 1, 1], block=[128, 1, 1])


@launch
def gemm_mma():
    return run(gemm_mma_host, array("float16", (64, 160)), array(
        "float16", (32, 160)), array("float32", (64, 32), "uninit"))


@cute.kernel
def gemm_wgmma_kernel(load_a: cute.CopyAtom, a: cute.Tensor, load_b: cute.CopyAtom, b: cute.Tensor, c: cute.Tensor,
                      mma: cute.TiledMma, layout_a: cute.ComposedLayout, layout_b: cute.ComposedLayout):
    """Tiles of 64 × 32 × 64 in two stages: warp 0 loads them by TMA, the warpgroup multiplies them by wgmma."""
    t, bx = cute.arch.thread_idx()[0], cute.arch.block_idx()[0]
    warp_index = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    memory = utils.SmemAllocator()
    bars = memory.allocate_array(cutlass.Int64, 4)
    sa = memory.allocate_tensor(F16, layout_a.outer, 1024, swizzle=layout_a.inner)
    sb = memory.allocate_tensor(F16, layout_b.outer, 1024, swizzle=layout_b.inner)
    pipe = pipeline.PipelineTmaAsync.create(
        barrier_storage=bars, num_stages=2, tx_count=(64 + 32) * 64 * 2,
        producer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread),
        consumer_group=pipeline.CooperativeGroup(pipeline.Agent.Thread, 4),
        cta_layout_vmnk=cute.make_layout((1, 1, 1, 1)))
    ta, ga = cpasync.tma_partition(load_a, 0, cute.make_layout(1), cute.group_modes(sa, 0, 2),
                                   cute.group_modes(cute.local_tile(a, (64, 64), (bx, None)), 0, 2))
    tb, gb = cpasync.tma_partition(load_b, 0, cute.make_layout(1), cute.group_modes(sb, 0, 2),
                                   cute.group_modes(cute.local_tile(b, (32, 64), (0, None)), 0, 2))
    slice = mma.get_slice(t)
    tc = slice.partition_C(cute.local_tile(c, (64, 32), (bx, 0)))
    ra, rb = mma.make_fragment_A(slice.partition_A(sa)), mma.make_fragment_B(slice.partition_B(sb))
    acc = cute.make_rmem_tensor(tc.shape, F32)
    steps = cute.size(a, mode=[1]) // 64
    write = pipeline.make_pipeline_state(pipeline.PipelineUserType.Producer, 2)
    read = pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, 2)
    if warp_index == 0:
        pipe.producer_acquire(write)
        cute.copy(load_a, ga[(None, 0)], ta[(None, 0)], tma_bar_ptr=pipe.producer_get_barrier(write))
        cute.copy(load_b, gb[(None, 0)], tb[(None, 0)], tma_bar_ptr=pipe.producer_get_barrier(write))
        pipe.producer_commit(write)
    write.advance()
    mma.set(warpgroup.Field.ACCUMULATE, False)
    for step in cutlass.range(steps):
        if warp_index == 0 and step + 1 < steps:
            pipe.producer_acquire(write)
            cute.copy(load_a, ga[(None, step + 1)], ta[(None, write.index)],
                      tma_bar_ptr=pipe.producer_get_barrier(write))
            cute.copy(load_b, gb[(None, step + 1)], tb[(None, write.index)],
                      tma_bar_ptr=pipe.producer_get_barrier(write))
            pipe.producer_commit(write)
        write.advance()
        pipe.consumer_wait(read)
        warpgroup.fence()
        for k in cutlass.range_constexpr(4):
            cute.gemm(mma, acc, ra[(None, None, k, read.index)], rb[(None, None, k, read.index)], acc)
            mma.set(warpgroup.Field.ACCUMULATE, True)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        pipe.consumer_release(read)
        read.advance()
    cute.autovec_copy(acc, tc)


@cute.jit
def gemm_wgmma_host(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    row_major, k_major = utils.LayoutEnum.ROW_MAJOR, warpgroup.OperandMajorMode.K
    mma = hopper.make_trivial_tiled_mma(F16, F16, k_major, k_major, F32, (1, 1, 1), (64, 32))
    layout_a = hopper.make_smem_layout_a(row_major, (64, 32, 64), F16, 2)
    layout_b = hopper.make_smem_layout_b(row_major, (64, 32, 64), F16, 2)
    load_a, a_map = cpasync.make_tiled_tma_atom(
    cpasync.CopyBulkTensorTileG2SOp(), a, cute.slice_(
        layout_a, (None, None, 0)), (64, 64))
    load_b, b_map = cpasync.make_tiled_tma_atom(
    cpasync.CopyBulkTensorTileG2SOp(), b, cute.slice_(
        layout_b, (None, None, 0)), (32, 64))
    gemm_wgmma_kernel(
    load_a, a_map, load_b, b_map, c, mma, layout_a, layout_b).launch(
        grid=[
            2, 1, 1], block=[
                128, 1, 1])


@launch
def gemm_wgmma():
    return run(gemm_wgmma_host, array("float16", (128, 384)), array(
        "float16", (32, 384)), array("float32", (128, 32), "uninit"))
