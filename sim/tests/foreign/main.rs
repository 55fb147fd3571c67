//! Kernels as other projects write them, reduced to small PTX. Each of them once revealed an error of the simulator.

mod atomics;
mod blackwell;
mod braces;
mod cluster_addresses;
mod copies;
mod descriptors;
mod fences;
mod found;
mod found_libraries;
mod groups;
mod harness;
mod limits;
mod operands;
mod partial_tiles;
mod patterns;
mod polling;
mod python_languages;
mod refused;
mod registers;
mod same_value;

use reel_sim::check::{CheckPlan, check_kernel};
use reel_sim::exec::{ExecOptions, LaunchConfig};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// Runs kernel `k` with 64 threads and one buffer. Returns the kinds and lines of its findings.
fn found(ptx: &str) -> Vec<(&'static str, u32)> {
    run(ptx, 1, 64, vec![0; 1024]).0
}

/// Runs kernel `k`. Returns the kinds and lines of its findings, and the buffer afterwards.
fn run(ptx: &str, blocks: u32, threads: u32, buffer: Vec<u8>) -> (Vec<(&'static str, u32)>, Vec<u8>) {
    let program = Program::parse(ptx).unwrap();
    let kernel = program.kernel("k").unwrap();
    let mut memory = SimMemory::new();
    let address = memory.alloc(buffer);
    let params = address.to_le_bytes().to_vec();
    let launch =
        LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1; 3], dynamic_shared: 0, params };
    let plan = CheckPlan { interleavings: 4, threads: 1, options: ExecOptions::default(), buffers: Vec::new() };
    let report = check_kernel(&program, &kernel, &launch, &memory, &plan).unwrap();
    let found = report.findings.iter().flatten().map(|f| (f.kind.name(), f.line)).collect();
    (found, report.memory.buffer_bytes(address).unwrap().to_vec())
}

fn exchange(between: &str, after: &str) -> Vec<&'static str> {
    let ptx = format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p; .shared .b32 s[64];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        xor.b32 %r4, %r2, 128; add.u32 %r4, %r1, %r4; st.volatile.shared.u32 [%r3], %r0;
        {between}
        ld.volatile.shared.u32 %r5, [%r4];
        {after}
        cvt.u64.u32 %d1, %r2; add.u64 %d2, %d0, %d1; st.global.u32 [%d2], %r5; ret; }}"
    );
    found(&ptx).iter().map(|f| f.0).collect()
}

#[test]
fn volatile_data_needs_a_barrier_and_volatile_flags_do_not() {
    assert_eq!(exchange("", ""), ["race"]);
    assert_eq!(exchange("bar.sync 0;", ""), [""; 0]);
    let poll = "setp.ne.u32 %p, %r5, 77; @%p bra DONE; add.u32 %r5, %r5, 1; DONE:";
    assert!(!exchange("", poll).contains(&"race"));
}

/// Returns the findings of a kernel in which each thread writes its elements of two shared arrays, reads another
/// thread's elements, and writes its own again. `first` and `second` are the instructions after the first and the
/// second step.
fn steps(first: &str, second: &str) -> Vec<(&'static str, u32)> {
    let ptx = format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %d<4>; .shared .b32 s[64]; .shared .b32 t[64];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; xor.b32 %r2, %r1, 128;
        mov.u32 %r3, s; mov.u32 %r4, t; add.u32 %r5, %r3, %r1; add.u32 %r6, %r4, %r1; add.u32 %r3, %r3, %r2; add.u32 %r4, %r4, %r2;
        st.shared.u32 [%r5], %r0;
        st.shared.u32 [%r6], %r0;
        {first}
        ld.shared.u32 %r7, [%r3];
        ld.shared.u32 %r8, [%r4];
        {second}
        st.shared.u32 [%r5], %r7;
        st.shared.u32 [%r6], %r8;
        ret; }}"
    );
    found(&ptx)
}

#[test]
fn each_missing_barrier_is_one_finding() {
    let barrier = "bar.sync 0;";
    assert_eq!(steps(barrier, barrier), []);
    assert_eq!(steps("", barrier).iter().map(|f| f.0).collect::<Vec<_>>(), ["race"]);
    assert_eq!(steps(barrier, "").iter().map(|f| f.0).collect::<Vec<_>>(), ["race"]);
    // The kernel lacks two barriers: the one after the first stores, and one between a later store and the load after
    // it.
    let again = "bar.sync 0; st.shared.u32 [%r5], %r0;
        ld.shared.u32 %r7, [%r3];
        bar.sync 0;";
    assert_eq!(steps("", again).iter().map(|f| f.0).collect::<Vec<_>>(), ["race", "race"]);
}

#[test]
fn rejected_store_is_one_finding() {
    let ptx = format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %d<4>; .shared .b32 s[68];
        ld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x; mov.u32 %r1, s; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;
        st.shared.u32 [%r3+2], %r0;
        bar.sync 0;
        ld.shared.u16 %r5, [%r3+2];
        cvt.u64.u32 %d1, %r2; add.u64 %d2, %d0, %d1; st.global.u32 [%d2], %r5; ret; }}"
    );
    let kinds: Vec<_> = found(&ptx).iter().map(|f| f.0).collect();
    assert_eq!(kinds, ["misaligned"]);
}

#[test]
fn lines_are_those_of_the_compiled_file_even_after_a_header_kernel() {
    let ptx = format!(
        "{HEAD}.visible .entry other() {{ .loc 1 5 0\n ret; }}
        .visible .entry k(.param .u64 p) {{ .reg .b64 %d; .reg .b32 %r;
        .loc 2 33 0\n ld.param.u64 %d, [p]; mov.u32 %r, 1;
        .loc 2 34 0\n st.global.u32 [%d+1024], %r; ret; }}
        .file 1 \"kernels.cuh\"\n.file 2 \"main.cu\"\n"
    );
    assert_eq!(found(&ptx), [("out-of-bounds", 34)]);
}

/// Returns a kernel that computes D = A·B by wmma for 16×16 matrices of bf16. In its buffer, A (row-major) begins at
/// byte 0, B (`layout`) at byte 512, and D (f32) at byte 1024. The kernel stores A in shared memory, executes the
/// instructions `between`, and loads A's fragment from byte `offset` of the shared array on.
fn product(layout: &str, offset: u32, between: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b32 %a<4>; .reg .b32 %b<4>; .reg .f32 %f<16>;
        .reg .b64 %d<6>; .shared .align 32 .b8 s[544];
        ld.param.u64 %d0, [p]; cvta.to.global.u64 %d1, %d0; mov.u32 %r0, %tid.x; mov.u32 %r7, 16;
        mul.wide.u32 %d2, %r0, 16; add.u64 %d3, %d1, %d2; shl.b32 %r1, %r0, 4; mov.u32 %r2, s; add.u32 %r3, %r2, %r1;
        ld.global.v4.u32 {{%a0, %a1, %a2, %a3}}, [%d3]; st.shared.v4.u32 [%r3], {{%a0, %a1, %a2, %a3}};
        mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
        mov.f32 %f4, %f0; mov.f32 %f5, %f0; mov.f32 %f6, %f0; mov.f32 %f7, %f0;
        {between}
        wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {{%a0, %a1, %a2, %a3}}, [%r2+{offset}], %r7;
        wmma.load.b.sync.aligned.{layout}.m16n16k16.global.bf16 {{%b0, %b1, %b2, %b3}}, [%d1+512];
        wmma.mma.sync.aligned.row.{layout}.m16n16k16.f32.bf16.bf16.f32 {{%f8, %f9, %f10, %f11, %f12, %f13, %f14, %f15}},
            {{%a0, %a1, %a2, %a3}}, {{%b0, %b1, %b2, %b3}}, {{%f0, %f1, %f2, %f3, %f4, %f5, %f6, %f7}};
        wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%d1+1024], {{%f8, %f9, %f10, %f11, %f12, %f13, %f14, %f15}}, %r7;
        ret; }}"
    )
}

#[test]
fn wmma_loads_multiplies_and_stores() {
    let value = |i: usize, j: usize, seed: usize| ((i * 5 + j * 3 + seed * i * j) % 7) as f32 - 3.0;
    for layout in ["row", "col"] {
        let mut buffer = vec![0u8; 2048];
        for (i, j) in (0..256).map(|n| (n / 16, n % 16)) {
            let put = |buffer: &mut Vec<u8>, at: usize, v: f32| {
                buffer[at..at + 2].copy_from_slice(&((v.to_bits() >> 16) as u16).to_le_bytes());
            };
            put(&mut buffer, 2 * (16 * i + j), value(i, j, 1));
            let (line, along) = if layout == "row" { (i, j) } else { (j, i) };
            put(&mut buffer, 512 + 2 * (16 * line + along), value(i, j, 2));
        }
        let (found, after) = run(&product(layout, 0, "bar.warp.sync -1;"), 1, 32, buffer);
        assert_eq!(found, []);
        for (i, j) in (0..256).map(|n| (n / 16, n % 16)) {
            let at = 1024 + 4 * (16 * i + j);
            let got = f32::from_le_bytes(after[at..at + 4].try_into().unwrap());
            let want: f32 = (0..16).map(|x| value(i, x, 1) * value(x, j, 2)).sum();
            assert_eq!(got, want, "{layout} {i} {j}");
        }
    }
}

#[test]
fn wmma_accesses_are_checked() {
    let kinds = |ptx: &str| run(ptx, 1, 32, vec![0; 2048]).0.iter().map(|f| f.0).collect::<Vec<_>>();
    assert_eq!(kinds(&product("row", 0, "")), ["race"]);
    assert_eq!(kinds(&product("row", 8, "bar.warp.sync -1;")), ["misaligned"]);
    // The load of A begins one row (32 bytes) too late, so the last 32 bytes that it reads are uninitialised.
    assert_eq!(kinds(&product("row", 32, "bar.warp.sync -1;")), ["uninitialized"]);
    // The load of A begins two rows (64 bytes) too late and goes past the end of the shared array.
    assert_eq!(kinds(&product("row", 64, "bar.warp.sync -1;")), ["out-of-bounds", "uninitialized"]);
}

#[test]
fn cooperative_launch_has_a_grid_barrier_workspace() {
    // Every block writes its number, waits for the grid, and reads its neighbour's number.
    let ptx = |arrive: &str| {
        format!(
            "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<9>; .reg .b64 %d<8>; .reg .pred %p<3>;
            mov.u32 %r0, %envreg2; mov.u32 %r1, %envreg1; cvt.u64.u32 %d0, %r0; cvt.u64.u32 %d1, %r1; shl.b64 %d1, %d1, 32;
            or.b64 %d0, %d0, %d1; setp.ne.u64 %p0, %d0, 0; @%p0 bra THERE; trap;
            THERE: ld.param.u64 %d2, [p]; mov.u32 %r2, %ctaid.x; mul.wide.u32 %d3, %r2, 4; add.u64 %d4, %d2, %d3;
            st.global.u32 [%d4], %r2;
            {arrive} [%d0+4], 1;
            WAIT: ld.acquire.gpu.global.u32 %r3, [%d0+4]; setp.lt.u32 %p1, %r3, 4; @%p1 bra WAIT;
            xor.b32 %r4, %r2, 1; mul.wide.u32 %d5, %r4, 4; add.u64 %d6, %d2, %d5;
            ld.global.u32 %r5, [%d6]; st.global.u32 [%d4+64], %r5; ret; }}"
        )
    };
    let (found, after) = run(&ptx("red.release.gpu.global.add.u32"), 4, 1, vec![0; 128]);
    assert_eq!(found, []);
    let words: Vec<u8> = after[64..80].iter().step_by(4).copied().collect();
    assert_eq!(words, [1, 0, 3, 2]);
    let (found, _) = run(&ptx("red.relaxed.gpu.global.add.u32"), 4, 1, vec![0; 128]);
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), ["race"]);
}

#[test]
fn multi_warp_groups_have_zeroed_scratch() {
    let ptx = |at: u32| {
        format!(
            "{HEAD}.visible .entry k(.param .u64 p) {{ .reg .b32 %r<5>; .reg .b64 %d; .shared .b32 s[8];
            ld.param.u64 %d, [p]; mov.u32 %r0, %reserved_smem_offset_1; atom.shared.or.b32 %r1, [%r0+{at}], 1;
            mov.u32 %r2, s; st.shared.u32 [%r2], %r1; st.global.u32 [%d], %r1; ret; }}"
        )
    };
    let (found, after) = run(&ptx(16), 1, 1, vec![9; 4]);
    assert_eq!((found, &after[..]), (vec![], &[0; 4][..]));
    assert_eq!(run(&ptx(288), 1, 1, vec![9; 4]).0[0].0, "out-of-bounds");
}
