//! A roofline model: the least time that a launch takes on a GPU, estimated from the counters of a simulated run.
//!
//! Each bound is a counter divided by a rate from the data sheet or from the programming guide's table of arithmetic
//! throughput; the estimate is the largest bound. The model ignores latency, the L2 cache, the machine code that
//! ptxas generates, and the last wave of blocks, which may leave multiprocessors idle. Every access to global memory
//! counts as DRAM traffic, also repeated ones.

use crate::counters::Counters;
use crate::exec::GpuSpec;
use crate::program::Kernel;
use crate::program::op::InstructionClass;

/// The GPUs for which reports show estimates.
pub const ESTIMATED_GPUS: [GpuSpec; 3] = [GpuSpec::A100, GpuSpec::H100, GpuSpec::H200];

/// Warp instructions that a multiprocessor issues per clock.
const ISSUED_WARPS_PER_CLOCK: f64 = 4.0;
/// Number of special functions (`ex2`, `rcp`, …; one per thread) that a multiprocessor computes per clock.
const SPECIAL_THREADS_PER_CLOCK: f64 = 16.0;
/// Number of passes through the 32 banks of its shared memory that a multiprocessor makes per clock.
const WAVEFRONTS_PER_CLOCK: f64 = 1.0;

/// How a number in a report was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberOrigin {
    /// Counted by the simulator while it executed the kernel.
    Counted,
    /// Computed from counted numbers by a model.
    Modelled,
}

impl NumberOrigin {
    /// Returns the name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            NumberOrigin::Counted => "counted",
            NumberOrigin::Modelled => "modelled",
        }
    }
}

/// The least time that a launch needs because of one resource of a GPU, by the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RooflineBound {
    /// The resource: `tensor`, `f32`, `special`, `issue`, `shared` or `dram`.
    pub name: &'static str,
    /// Time in seconds.
    pub seconds: f64,
}

/// The least times of a launch on a GPU, one per resource, by the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// The GPU for which the times are computed.
    pub gpu: GpuSpec,
    /// Number of multiprocessors that run blocks of the launch: fewer than the GPU has if the launch has fewer
    /// blocks.
    pub multiprocessors: u32,
    /// The bounds, one for each resource, always in the same order.
    pub bounds: [RooflineBound; 6],
}

impl Roofline {
    /// Computes the bounds from the counters of a launch.
    pub fn new(gpu: GpuSpec, kernel: &Kernel, counters: &Counters) -> Roofline {
        let multiprocessors = counters.blocks.clamp(1, gpu.multiprocessors as u64) as u32;
        let share = multiprocessors as f64 / gpu.multiprocessors as f64;
        let clocks = multiprocessors as f64 * gpu.clock;
        let total = counters.total();
        let (mut tensor, mut float, mut special) = (0.0, 0.0, 0.0);
        for (pc, count) in counters.by_instruction.iter().enumerate().filter(|(_, c)| c.warps > 0) {
            let (code, i) = kernel.function_and_instruction_index(pc as u32);
            match code.instrs.get(i).map(|instr| instr.class) {
                Some(InstructionClass::Float) => float += count.threads as f64,
                Some(InstructionClass::Special) => special += count.threads as f64,
                _ => {}
            }
            if count.matrix_flops > 0 {
                tensor += count.matrix_flops as f64 / tensor_rate(code.opcodes.get(i).map_or("", |o| o));
            }
        }
        let bytes = (total.global_read + total.global_written) as f64;
        let bound = |name, seconds| RooflineBound { name, seconds };
        let bounds = [
            bound("tensor", tensor / (gpu.bf16_flops * share)),
            // The data sheet's rate counts a multiply-add as two operations, the simulator's counter as one: halve
            // the rate.
            bound("f32", float / (gpu.f32_flops / 2.0 * share)),
            bound("special", special / (SPECIAL_THREADS_PER_CLOCK * clocks)),
            bound("issue", total.warps as f64 / (ISSUED_WARPS_PER_CLOCK * clocks)),
            bound("shared", total.wavefronts as f64 / (WAVEFRONTS_PER_CLOCK * clocks)),
            bound("dram", bytes / gpu.bandwidth),
        ];
        Roofline { gpu, multiprocessors, bounds }
    }

    /// Returns the share of the least time in which the tensor cores compute: 1 if they are the bound.
    pub fn tensor_occupancy(&self) -> f64 {
        let tensor = self.bounds.iter().find(|b| b.name == "tensor").map_or(0.0, |b| b.seconds);
        if tensor > 0.0 { tensor / self.largest_bound().seconds } else { 0.0 }
    }

    /// Returns the largest bound, which limits the launch.
    pub fn largest_bound(&self) -> RooflineBound {
        let first = self.bounds[0];
        self.bounds.into_iter().fold(first, |a, b| if b.seconds > a.seconds { b } else { a })
    }
}

/// Returns the throughput of a matrix instruction relative to bf16 and f16. Source: the dense rates in the data
/// sheets.
fn tensor_rate(opcode: &str) -> f64 {
    let has = |ty: &str| opcode.split('.').any(|part| part.strip_prefix("kind::").unwrap_or(part) == ty);
    if has("f64") {
        1.0 / 16.0
    } else if has("tf32") {
        0.5
    } else if ["s8", "u8", "e4m3", "e5m2", "i8", "f8f6f4"].into_iter().any(has) {
        2.0
    } else if has("s4") || has("u4") {
        4.0
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;

    const K: &str = "
.version 9.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x) {
    .reg .b64 %rd<4>; .reg .f32 %f<4>;
    ld.param.u64 %rd1, [x];
    ld.global.f32 %f1, [%rd1];
    add.f32 %f2, %f1, %f1;
    ex2.approx.f32 %f3, %f2;
    st.global.f32 [%rd1], %f3;
    ret;
}";

    fn of(gpu: GpuSpec, change: impl FnOnce(&mut Counters)) -> Roofline {
        let program = Program::parse(K).unwrap();
        let kernel = program.kernel("k").unwrap();
        let mut counters = Counters::new(kernel.instruction_count());
        counters.blocks = 1 << 20;
        change(&mut counters);
        Roofline::new(gpu, &kernel, &counters)
    }

    fn seconds(r: &Roofline, name: &str) -> f64 {
        r.bounds.iter().find(|b| b.name == name).unwrap().seconds
    }

    #[test]
    fn bound_is_count_divided_by_rate() {
        let r = of(GpuSpec::H200, |c| {
            c.by_instruction[1].warps = 1;
            c.by_instruction[1].global_read = 4_800_000_000_000;
        });
        assert_eq!(r.largest_bound().name, "dram");
        assert!((seconds(&r, "dram") - 1.0).abs() < 1e-12);
        let r = of(GpuSpec::A100, |c| {
            c.by_instruction[2].warps = 1 << 30;
            c.by_instruction[2].threads = 1 << 35;
        });
        assert_eq!(r.largest_bound().name, "f32");
        assert!((seconds(&r, "f32") - (1u64 << 36) as f64 / 19.5e12).abs() < 1e-9);
        let r = of(GpuSpec::A100, |c| {
            c.by_instruction[3].warps = 1 << 30;
            c.by_instruction[3].threads = 1 << 35;
        });
        assert_eq!(r.largest_bound().name, "special");
    }

    #[test]
    fn few_blocks_use_few_multiprocessors() {
        let work = |blocks| {
            of(GpuSpec::H100, |c| {
                c.by_instruction[0].warps = 1 << 20;
                c.blocks = blocks;
            })
        };
        assert_eq!((work(1).multiprocessors, work(1 << 20).multiprocessors), (1, 132));
        let ratio = seconds(&work(1), "issue") / seconds(&work(1 << 20), "issue");
        assert!((ratio - 132.0).abs() < 1e-6, "{ratio}");
    }

    #[test]
    fn tensor_rate_depends_on_element_type() {
        assert_eq!(tensor_rate("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"), 1.0);
        assert_eq!(tensor_rate("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"), 0.5);
        assert_eq!(tensor_rate("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"), 2.0);
        assert_eq!(tensor_rate("tcgen05.mma.cta_group::1.kind::tf32"), 0.5);
    }
}
