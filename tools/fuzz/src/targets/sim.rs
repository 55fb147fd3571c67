//! Fuzz targets for the simulator: PTX text, launches of kernels in PTX, and tensor maps.

use reel_sim::check::{CheckPlan, check_kernel};
use reel_sim::exec::{ExecOptions, LaunchConfig, RunLimits};
use reel_sim::memory::SimMemory;
use reel_sim::program::{Program, ProgramError};
use reel_sim::tensor_map::{DataType, MapField, Swizzle, TensorMap, replace_field};
use reel_support::diagnostic::Diagnostic;

use super::{FuzzTarget, repository_file, text_of};
use crate::mutate::{PartFormat, Seed};
use crate::random::{self, Random};
use crate::verdict::{value_if_accepted, verdict_of};

const WORDS: &[&str] = &[
    ".reg .b32 %x<4>;",
    ".shared .align 16 .b8 s[64];",
    ".local .b8 l[8];",
    ".global .u32 g[4] = {1, 2};",
    ".entry",
    ".func",
    "ld.global.u32",
    "st.shared.v4.f32",
    "atom.global.add.u32",
    "bar.sync 0;",
    "barrier.sync",
    "bra L;",
    "L:",
    "@%p0",
    "@!%p0",
    "call",
    "ret;",
    "exit;",
    "trap;",
    "mov.u32",
    "cvt.rn.f32.s32",
    "mad.lo.s32",
    "shfl.sync.idx.b32",
    "vote.sync.ballot.b32",
    "cp.async.ca.shared.global",
    "cp.async.wait_all;",
    "mbarrier.init.shared.b64",
    "mbarrier.try_wait.parity.shared.b64",
    "fma.rn.f32",
    "div.u32",
    "rem.s32",
    "0f7fc00000",
    "0d0000000000000000",
    "%tid.x",
    "%ctaid.y",
    "%clock64",
    "[%d0+4]",
    ".loc 1 2 3",
    ".file 1 \"x\"",
    ".section .debug_info {",
    ".param .b64 p",
    ".align",
    "{",
    "}",
    ";",
    "brx.idx",
    ".branchtargets",
    "setp.lt.s32",
    "selp.b32",
    "prmt.b32",
    "bfe.u32",
    "lop3.b32",
    "match.any.sync.b32",
    "redux.sync.add.s32",
    "membar.gl;",
    "wgmma.fence.sync.aligned;",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    ".visible",
    ".weak",
    ".maxntid 64",
    ".reqntid 32,1,1",
    ".minnctapersm 2",
    ".pragma \"nounroll\";",
    "nanosleep.u32 100;",
];

/// PTX text. The text is parsed, then each of its kernels is decoded.
pub const PTX: FuzzTarget = FuzzTarget {
    name: "ptx",
    words: WORDS,
    seeds: || {
        let files =
            ["sim/src/ptx/testdata/debug.ptx", "sim/src/ptx/testdata/functions.ptx", "sim/src/ptx/testdata/hopper.ptx"];
        let files = files.iter().map(|name| Ok(Seed::new(PartFormat::Text, repository_file(name)?)));
        files.chain(kernels().map(|text| Ok(Seed::new(PartFormat::Text, text)))).collect()
    },
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            let Some(program) = value_if_accepted(Program::parse(&text).map_err(diagnostic))? else { return Ok(false) };
            let mut all = true;
            for name in program.kernel_names() {
                all &= verdict_of(program.kernel(name).map_err(diagnostic))?;
            }
            Ok(all)
        }))
    },
};

/// Returns the error as `reel sim run` prints it.
fn diagnostic(e: ProgramError) -> Diagnostic {
    Diagnostic::new("k.ptx", e.to_string(), "give complete PTX")
}

/// Returns a PTX module with one kernel. The kernel has this body and one parameter, a pointer.
fn module(body: &str) -> String {
    let registers = ".reg .b32 %r<24>; .reg .b64 %d<12>; .reg .pred %p<6>; .reg .f32 %f<8>;";
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n.global .align 4 .u32 table[4] = {{1, 2, 3, 4}};\n\
         .func (.reg .b32 %out) twice(.reg .b32 %in) {{ add.u32 %out, %in, %in; ret; }}\n\
         .visible .entry k(.param .u64 p) {{\n{registers}\nld.param.u64 %d0, [p]; mov.u32 %r0, %tid.x;\n\
         cvt.u64.u32 %d1, %r0; shl.b64 %d2, %d1, 2; add.u64 %d3, %d0, %d2;\n{body}\nret;\n}}\n"
    )
}

/// Small kernels, each of which uses a different part of the simulator.
fn kernels() -> impl Iterator<Item = String> {
    let bodies = [
        "ld.global.u32 %r1, [%d3];\nmul.lo.u32 %r2, %r1, 3;\nadd.u32 %r2, %r2, %r0;\nst.global.u32 [%d3], %r2;",
        ".shared .align 16 .b8 s[512];\nmov.u32 %r3, s;\nshl.b32 %r4, %r0, 2;\nadd.u32 %r3, %r3, %r4;\n\
         st.shared.u32 [%r3], %r0;\nbar.sync 0;\nxor.b32 %r5, %r4, 4;\nmov.u32 %r6, s;\nadd.u32 %r6, %r6, %r5;\n\
         ld.shared.u32 %r7, [%r6];\nst.global.u32 [%d3], %r7;",
        "mov.u32 %r1, 0;\nLOOP:\natom.global.add.u32 %r2, [%d0], 1;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p0, %r1, 5;\n\
         @%p0 bra LOOP;",
        "shfl.sync.bfly.b32 %r1|%p1, %r0, 1, 31, 0xffffffff;\nvote.sync.ballot.b32 %r2, %p1, 0xffffffff;\n\
         setp.gt.u32 %p0, %r0, 15;\n@%p0 bra HIGH;\nadd.u32 %r2, %r2, 7;\nHIGH:\nselp.b32 %r3, %r1, %r2, %p0;\n\
         st.global.u32 [%d3], %r3;",
        ".shared .align 16 .b8 s[512];\n.reg .b32 %a;\nmov.u32 %r1, s;\nshl.b32 %r2, %r0, 2;\nadd.u32 %r1, %r1, %r2;\n\
         cp.async.ca.shared.global [%r1], [%d3], 4;\ncp.async.commit_group;\ncp.async.wait_group 0;\n\
         ld.shared.f32 %f0, [%r1];\nfma.rn.f32 %f1, %f0, 0f40000000, %f0;\nst.global.f32 [%d3], %f1;",
        ".shared .align 8 .b64 bar;\nmov.u32 %r1, bar;\nsetp.ne.u32 %p0, %r0, 0;\n@%p0 bra READY;\n\
         mbarrier.init.shared::cta.b64 [%r1], 64;\nREADY:\nbar.sync 0;\nmbarrier.arrive.shared::cta.b64 %d4, [%r1];\nWAIT:\n\
         mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], 0;\n@!%p1 bra WAIT;",
        ".local .align 4 .b8 l[64];\nmov.u64 %d4, l;\nst.local.u32 [%d4+8], %r0;\nld.local.u32 %r1, [%d4+8];\n\
         call (%r2), twice, (%r1);\nmov.u64 %d5, table;\nld.global.u32 %r3, [%d5+4];\nrem.u32 %r4, %r2, %r3;\n\
         cvt.rn.f32.u32 %f0, %r4;\nsqrt.rn.f32 %f1, %f0;\nst.global.f32 [%d3], %f1;",
        "mov.u32 %r1, %laneid;\nmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r1, %r1, %r1, %r1}, \
         {%r1, %r1}, {0f00000000, 0f00000000, 0f00000000, 0f00000000};\nst.global.f32 [%d3], %f0;\nredux.sync.add.s32 %r2, %r1, \
         0xffffffff;\nprmt.b32 %r3, %r1, %r2, 0x1054;\nlop3.b32 %r4, %r1, %r2, %r3, 0x96;\nbfe.u32 %r5, %r4, 3, 5;",
    ];
    bodies.into_iter().map(module)
}

/// Small kernels. The simulator runs them with limits of steps and memory but without a deadline.
pub const PTX_RUN: FuzzTarget = FuzzTarget {
    name: "ptx-run",
    words: WORDS,
    seeds: || Ok(kernels().map(|text| Seed::new(PartFormat::Text, text)).collect()),
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            let Some(program) = value_if_accepted(Program::parse(&text).map_err(diagnostic))? else { return Ok(false) };
            let Some(name) = program.kernel_names().first().map(|name| name.to_string()) else { return Ok(false) };
            let Some(kernel) = value_if_accepted(program.kernel(&name).map_err(diagnostic))? else { return Ok(false) };
            let mut random = Random::new(&[random::hash(input)]);
            let mut memory = SimMemory::new();
            let buffer = memory.alloc((0..512).map(|i| i as u8).collect());
            let mut params = buffer.to_le_bytes().to_vec();
            params.resize(kernel.param_bytes as usize, 0);
            let blocks = 1 + random.below(2) as u32;
            let launch = LaunchConfig {
                grid: [blocks, 1, 1],
                block: [64, 1, 1],
                cluster: [1; 3],
                dynamic_shared: if kernel.uses_dynamic_shared { 1024 } else { 0 },
                params,
            };
            // The limits are those of `reel sim run`, but with fewer steps.
            let limits = RunLimits { idle_steps: 500_000, deadline: None, memory_bytes: 256 << 20 };
            let options = ExecOptions { seed: random.next(), patience: 200_000, limits, ..ExecOptions::default() };
            let plan = CheckPlan { interleavings: 2, threads: 1, options, buffers: Vec::new() };
            let report = check_kernel(&program, &kernel, &launch, &memory, &plan);
            let shown = report.map_err(|e| Diagnostic::new("k.ptx", e.to_string(), "change the launch"));
            let Some(report) = value_if_accepted(shown)? else { return Ok(false) };
            report.findings.concat().iter().for_each(|finding| drop(std::hint::black_box(format!("{finding:?}"))));
            Ok(true)
        }))
    },
};

/// Tensor maps. A valid map is encoded, the input changes fields of the encoded map as the instruction
/// `tensormap.replace` does, and the result is decoded and used for a copy.
pub const TENSOR_MAP: FuzzTarget = FuzzTarget {
    name: "tensor-map",
    words: &[],
    seeds: || {
        // Each 16 bytes of a seed describe one change of a field. All changes of these seeds set the swizzle mode to
        // none.
        let change = [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Ok([0, 1, 4].map(|changes| Seed::new(PartFormat::Bytes, change.repeat(changes))).to_vec())
    },
    open: || {
        Ok(Box::new(|input| {
            let mut random = Random::new(&[random::hash(input)]);
            let map = TensorMap::tiled(DataType::F32, 4096, &[64, 16, 3], &[256, 4096], &[16, 8, 2], Swizzle::B64);
            let map = map.map_err(|e| e.to_string())?;
            let Some(mut bytes) = map.encode().ok() else {
                return Err("a valid tensor map is not encoded".to_string());
            };
            let fields = [
                MapField::GlobalAddress,
                MapField::Rank,
                MapField::BoxDim,
                MapField::GlobalDim,
                MapField::GlobalStride,
                MapField::ElementStride,
                MapField::ElemType,
                MapField::InterleaveLayout,
                MapField::SwizzleMode,
                MapField::FillMode,
            ];
            for change in input.chunks_exact(16).take(6) {
                let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
                let field = fields[usize::from(change[0]) % fields.len()];
                let _ = replace_field(&mut bytes, field, u32::from(change[1] % 6), number(&change[2..10]));
            }
            let decoded = TensorMap::decode(&bytes).map_err(|e| Diagnostic::new("map", e.to_string(), "change it"));
            let Some(map) = value_if_accepted(decoded)? else { return Ok(false) };
            let at: Vec<i32> = (0..map.rank).map(|_| random.next() as i32 >> random.below(32)).collect();
            if map.box_bytes() <= 1 << 20
                && let Ok(copy) = map.box_copy_at(&at, 1024)
            {
                std::hint::black_box((copy.bytes(), copy.occupied_shared_bytes(), copy.contiguous_parts().len()));
            }
            Ok(true)
        }))
    },
};
