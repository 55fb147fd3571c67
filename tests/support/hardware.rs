//! What kernels and their plans take for granted of a GPU and of its driver, as checks of a GPU. The same checks run on
//! the fake driver.
#![allow(unsafe_code)]

use std::collections::BTreeSet;

use reel_device::Stage;
use reel_device::cuda::Gpu;
use reel_device::launch::KernelLaunch;
use reel_kernels::catalogue::{FOLDERS, Sizes, find_kernel_folder, variants_of};
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

/// Copies a box of head 1 of a KV cache by a tensor copy. Parameters: the tensor map, the address of the output, the
/// row where the box begins, and the bytes of the box. Output: the shared address of the box, then the box. If the copy
/// does not count all bytes on its mbarrier, the kernel ends after 10000 waits without the box.
const BOX: &str = "
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 1024 .b8 room[];
.visible .entry boxed(.param .align 64 .b8 p[192])
.maxntid 32, 1, 1
{
    .reg .pred %p<4>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<6>;
    mov.b64 %rd1, p;
    cvta.param.u64 %rd1, %rd1;
    ld.param.u64 %rd2, [p+128];
    ld.param.u32 %r1, [p+136];
    ld.param.u32 %r2, [p+140];
    mov.u32 %r3, room;
    add.u32 %r4, %r3, %r2;
    mov.u32 %r5, %tid.x;
    setp.ne.u32 %p1, %r5, 0;
    @%p1 bra READY;
    st.global.u32 [%rd2], %r3;
    mbarrier.init.shared::cta.b64 [%r4], 1;
    fence.mbarrier_init.release.cluster;
    fence.proxy.async.shared::cta;
    mbarrier.arrive.expect_tx.shared::cta.b64 %rd3, [%r4], %r2;
    mov.u32 %r6, 0;
    mov.u32 %r7, 1;
    cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1, {%r6, %r1, %r6, %r7}], [%r4];
READY:
    bar.sync 0;
    mov.u32 %r8, 0;
WAIT:
    add.u32 %r8, %r8, 1;
    setp.gt.u32 %p2, %r8, 10000;
    @%p2 bra DONE;
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r4], 0;
    @!%p3 bra WAIT;
    shl.b32 %r9, %r5, 2;
LOOP:
    add.u32 %r10, %r3, %r9;
    ld.shared.u32 %r11, [%r10];
    cvt.u64.u32 %rd4, %r9;
    add.u64 %rd5, %rd2, %rd4;
    st.global.u32 [%rd5+4], %r11;
    add.u32 %r9, %r9, 128;
    setp.lt.u32 %p2, %r9, %r2;
    @%p2 bra LOOP;
DONE:
    ret;
}";

/// Checks tensor copies from a KV cache whose tensor map has 2^31 slots, more than the memory has: a box that begins
/// before the first slot has zeros there, and its mbarrier counts the bytes of the whole box. Also checks that dynamic
/// shared memory begins at a multiple of 1024 bytes, as the swizzle of the boxes needs.
pub fn check_boxes_of_a_cache(gpu: &Gpu) {
    const SLOTS: usize = 128;
    let boxed = gpu.load_ptx(BOX, "boxed").expect("PTX");
    for (head_dim, columns, swizzle, chunks) in [(80, 16, Swizzle::B32, 0x10), (128, 64, Swizzle::B128, 0x70)] {
        let cache: Vec<u16> = (1..).take(SLOTS * 2 * head_dim).collect();
        let memory = gpu.alloc(2 * cache.len()).expect("memory");
        gpu.upload(&memory, 0, bytemuck::cast_slice(&cache)).expect("a copy");
        let (groups, head_bytes) = (head_dim / columns, 2 * head_dim as u64);
        let dims = [columns as u64, 1 << 31, groups as u64, 2];
        let (strides, size) =
            ([2 * head_bytes, 2 * columns as u64, head_bytes], [columns as u32, 64, groups as u32, 1]);
        let map = TensorMap::tiled(DataType::Bf16, memory.address(), &dims, &strides, &size, swizzle).expect("a map");
        let map = gpu.driver().encode(&map).expect("the driver takes a map of 2^31 slots");
        let bytes = 64 * 2 * head_dim;
        let out = gpu.alloc(4 + bytes).expect("memory");
        for first in [0, 64, -32, -64] {
            gpu.fill(&out, 0xff).expect("a fill");
            let mut params = [0; 192];
            params[..128].copy_from_slice(&map);
            params[128..136].copy_from_slice(&out.address().to_le_bytes());
            params[136..140].copy_from_slice(&i32::to_le_bytes(first));
            params[140..144].copy_from_slice(&(bytes as u32).to_le_bytes());
            // SAFETY: the cache has the slots of the box that are not negative, and `out` has the address and the box.
            unsafe { boxed.launch([1; 3], [32, 1, 1], bytes as u32 + 8, &[&params]).expect("a launch") }
            let mut words = vec![0u16; 2 + bytes / 2];
            gpu.download(&out, 0, bytemuck::cast_slice_mut(&mut words)).expect("a copy");
            let at = u32::from(words[1]) << 16 | u32::from(words[0]);
            assert!(at.is_multiple_of(1024), "dynamic shared memory begins at {at:#x}");
            for (i, want) in (0..bytes / 2).map(|i| {
                let (group, row, column) = (i / columns / 64, (i / columns % 64) as i32, i % columns);
                let slot = usize::try_from(first + row);
                (i, slot.map_or(0, |slot| cache[(2 * slot + 1) * head_dim + group * columns + column]))
            }) {
                let swizzled = (2 * i) ^ ((2 * i) >> 3 & chunks);
                let got = words[2 + swizzled / 2];
                assert_eq!(got, want, "element {i} of the box from row {first}, head_dim {head_dim}");
            }
        }
        println!("head_dim {head_dim}: boxes of a map of 2^31 slots are copied, also those before the first slot");
    }
}

/// Asks the driver how many blocks of a launch are resident. Returns a text that says it, as an error if they are fewer
/// than the `assumed` ones.
fn compare_residency(gpu: &Gpu, launch: &KernelLaunch, stage: &Stage, assumed: u32) -> Result<String, String> {
    let resident = gpu.resident_blocks(launch.kernel.source, stage, launch.params.len()).expect("the driver's answer");
    let blocks: u32 = stage.grid.iter().product();
    let (symbol, cluster): (_, u32) = (stage.symbol, stage.cluster.iter().product());
    let text = format!("{symbol}, {blocks} blocks in clusters of {cluster}: plan {assumed}, driver {resident}");
    let enough = resident >= assumed.min(blocks).max(1);
    if enough { Ok(text) } else { Err(text) }
}

/// Checks for the launches of the example calls, and of their variants, that as many blocks are resident as the plans
/// assume: of skinny products with 1 to 64 rows, and of all kernels of `folders`.
pub fn check_resident_blocks(gpu: &Gpu, folders: impl Fn(&str) -> bool) {
    let skinny = find_kernel_folder("skinny").expect("a folder");
    let with_rows = |rows| Sizes::new([("batch".to_string(), rows)]).expect("a size");
    let skinny = [1, 8, 16, 32, 64].map(|rows| skinny.examples_with_sizes(&with_rows(rows)).expect("examples"));
    let others = FOLDERS.iter().filter(|folder| folders(folder.name)).flat_map(|folder| folder.examples());
    let (mut enough, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for launch in skinny.into_iter().flatten().chain(others).map(|example| example.launch) {
        let variants = variants_of(launch.kernel).map(|variant| variant.kernel);
        for stage in variants.chain([launch.kernel]).flat_map(|kernel| (kernel.plan)(&launch.params, &gpu.arch())) {
            // The clusters of a matrix product stay until all tiles are done.
            let persistent = launch.kernel.name.starts_with("gemm") && stage.cluster != [1; 3];
            let assumed = if persistent { stage.grid.iter().product() } else { stage.resident_blocks };
            match compare_residency(gpu, &launch, &stage, assumed) {
                Ok(text) => enough.insert(text),
                Err(text) => missing.insert(text),
            };
            let hungry = Stage { shared: gpu.arch().shared_per_block, ..stage.clone() };
            if assumed > gpu.arch().multiprocessors && stage.grid.iter().product::<u32>() >= assumed {
                let one = compare_residency(gpu, &launch, &hungry, assumed);
                assert!(one.is_err(), "two blocks with all shared memory of a multiprocessor: {one:?}");
            }
        }
    }
    enough.iter().chain(&missing).for_each(|text| println!("resident blocks: {text}"));
    assert!(missing.is_empty(), "fewer blocks are resident than plans assume: {missing:#?}");
}
