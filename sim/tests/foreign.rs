//! What kernels in other people's style brought to light: each small here, in PTX of our own.

use reel_sim::check::{Plan, check_kernel};
use reel_sim::exec::{Launch, Options};
use reel_sim::memory::Memory;
use reel_sim::program::Program;

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// The kinds and lines found in kernel `k` with 64 threads and one buffer.
fn found(ptx: &str) -> Vec<(&'static str, u32)> {
    let program = Program::parse(ptx).unwrap();
    let kernel = program.kernel("k").unwrap();
    let mut memory = Memory::new();
    let params = memory.alloc(vec![0; 1024]).to_le_bytes().to_vec();
    let launch = Launch { grid: [1; 3], block: [64, 1, 1], cluster: [1; 3], dynamic_shared: 0, params };
    let plan = Plan { interleavings: 4, threads: 1, options: Options::default(), buffers: Vec::new() };
    let report = check_kernel(&program, &kernel, &launch, &memory, &plan).unwrap();
    report.findings.iter().flatten().map(|f| (f.kind.name(), f.line)).collect()
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

#[test]
fn a_refused_store_is_one_finding() {
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
fn lines_are_of_the_compiled_file_though_a_headers_kernel_comes_first() {
    let ptx = format!(
        "{HEAD}.visible .entry other() {{ .loc 1 5 0\n ret; }}
        .visible .entry k(.param .u64 p) {{ .reg .b64 %d; .reg .b32 %r;
        .loc 2 33 0\n ld.param.u64 %d, [p]; mov.u32 %r, 1;
        .loc 2 34 0\n st.global.u32 [%d+1024], %r; ret; }}
        .file 1 \"kernels.cuh\"\n.file 2 \"main.cu\"\n"
    );
    assert_eq!(found(&ptx), [("out-of-bounds", 34)]);
}
