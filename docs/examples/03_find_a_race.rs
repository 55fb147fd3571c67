//! Uses the simulator as a library: it finds a race in a PTX kernel that lacks a barrier, and none in the same kernel
//! with the barrier.
//!
//!     cargo run --release --example 03_find_a_race

use std::error::Error;

use reel_sim::check::{CheckPlan, NamedBuffer, check_kernel};
use reel_sim::exec::LaunchConfig;
use reel_sim::finding::{Finding, FindingKind};
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use reel_sim::value::ElementType;

/// Returns the PTX of a kernel with the instruction `barrier`: thread i stores i to shared memory, executes
/// `barrier`, and loads the value that its neighbour stored.
fn shift(barrier: &str) -> String {
    format!(
        "
.version 9.0
.target sm_80
.address_size 64
.visible .entry shift(.param .u64 x) {{
    .reg .b32 %r<6>;
    .reg .b64 %rd<4>;
    .shared .align 4 .b8 tile[256];
    ld.param.u64 %rd1, [x];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, tile;
    add.u32 %r4, %r3, %r2;
    st.shared.u32 [%r4], %r1;
    {barrier}
    xor.b32 %r2, %r2, 4;
    add.u32 %r4, %r3, %r2;
    ld.shared.u32 %r5, [%r4];
    cvt.u64.u32 %rd2, %r2;
    add.u64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r5;
    ret;
}}"
    )
}

/// Returns the simulator's findings for the kernel with 64 threads, in eight interleavings.
fn findings(source: &str) -> Result<Vec<Finding>, Box<dyn Error>> {
    let program = Program::parse(source)?;
    let kernel = program.kernel("shift")?;
    let mut memory = SimMemory::new();
    let x = memory.alloc(vec![0; 256]);
    let launch = LaunchConfig {
        grid: [1, 1, 1],
        block: [64, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
        params: x.to_le_bytes().to_vec(),
    };
    let buffers = vec![NamedBuffer { address: x, name: "x".into(), dtype: ElementType::U32 }];
    let report = check_kernel(&program, &kernel, &launch, &memory, &CheckPlan { buffers, ..CheckPlan::default() })?;
    Ok(report.findings.into_iter().flatten().collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let racy = findings(&shift(""))?;
    println!("without a barrier: {}", racy[0].message);
    assert_eq!(racy[0].kind, FindingKind::Race);
    let correct = findings(&shift("bar.sync 0;"))?;
    println!("with a barrier: {} findings", correct.len());
    assert!(correct.is_empty());
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example runs");
}
