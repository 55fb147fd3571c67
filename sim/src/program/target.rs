//! Refuses instructions and special registers that the module's `.target` does not have, as ptxas does. Source: the
//! "Target ISA Notes" of the PTX ISA 9.0. Requirements below sm_80, the oldest GPU that the simulator models, are not
//! checked.

use super::ProgramError;
use crate::ptx::ast::{Function, Instruction, Module, Operand};
use std::fmt;

/// A GPU architecture, as a `.target` directive names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The number in the name: 90 for `sm_90` and `sm_90a`.
    pub architecture: u32,
    /// Whether the code runs only on this architecture (`sm_90a`) or family of architectures (`sm_100f`). Such code may
    /// use instructions that later architectures lack.
    pub specific: bool,
}

const SM_80: Target = Target { architecture: 80, specific: false };
const SM_86: Target = Target { architecture: 86, specific: false };
const SM_89: Target = Target { architecture: 89, specific: false };
const SM_90: Target = Target { architecture: 90, specific: false };
const SM_90A: Target = Target { architecture: 90, specific: true };
const SM_100: Target = Target { architecture: 100, specific: false };
const SM_100A: Target = Target { architecture: 100, specific: true };

impl Target {
    /// Returns the target of a module; sm_80 if the module names none.
    pub(super) fn of_module(module: &Module) -> Target {
        let number = module.target.trim_start_matches("sm_");
        let architecture = number.trim_end_matches(['a', 'f']);
        let specific = architecture.len() < number.len();
        architecture.parse().map_or(SM_80, |architecture| Target { architecture, specific })
    }

    /// Checks that this target has all instructions and special registers of a function.
    ///
    /// # Errors
    /// Returns [`ProgramError::Target`] for the first instruction or special register that the target lacks.
    pub(super) fn check_instructions(self, function: &Function) -> Result<(), ProgramError> {
        for i in &function.body {
            let of_instruction = needed_by_instruction(i).map(|needed| (i.opcode.clone(), needed));
            let special = i.operands.iter().find_map(|operand| match operand {
                Operand::Special(name) => Some((format!("%{name}"), needed_by_special_register(name)?)),
                _ => None,
            });
            let mut needs = of_instruction.into_iter().chain(special);
            // Of the instructions of sm_90a, later architectures lack only `wgmma`. sm_120 lacks `tcgen05`.
            let removed = self.architecture > 90 && i.opcode.starts_with("wgmma.")
                || self.architecture >= 120 && i.opcode.starts_with("tcgen05.");
            if let Some((what, needed)) = needs.find(|(_, needed)| removed || !self.includes(*needed)) {
                return Err(ProgramError::Target { line: i.line, what, needed, target: self });
            }
        }
        Ok(())
    }

    /// Returns true if this target has the instructions that the target `needed` introduced.
    fn includes(self, needed: Target) -> bool {
        self.architecture >= needed.architecture && (self.specific || !needed.specific)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sm_{}{}", self.architecture, if self.specific { "a" } else { "" })
    }
}

/// Returns the first target that has a special register; `None` if targets before sm_80 already have it.
fn needed_by_special_register(name: &str) -> Option<Target> {
    let of_cluster = ["cluster_", "clusterid", "nclusterid", "is_explicit_cluster", "aggr_smem_size"];
    match () {
        () if of_cluster.iter().any(|start| name.starts_with(start)) => Some(SM_90),
        () if name.starts_with("reserved_smem") => Some(SM_80),
        () => None,
    }
}

/// Returns the first target that has an instruction; `None` if targets before sm_80 already have it.
fn needed_by_instruction(i: &Instruction) -> Option<Target> {
    let parts: Vec<&str> = i.opcode.split('.').collect();
    let any = |words: &[&str]| words.iter().any(|word| parts.contains(word));
    let starts = |start: &str| parts.iter().any(|part| part.starts_with(start));
    let clusters = any(&["cluster", "shared::cluster"]);
    let bf16 = any(&["bf16", "bf16x2"]);
    let when = |condition: bool, target: Target| condition.then_some(target);
    match parts[0] {
        "wgmma" | "setmaxnreg" => Some(SM_90A),
        "tcgen05" => Some(SM_100A),
        "clusterlaunchcontrol" => Some(if any(&["multicast::cluster::all"]) { SM_100A } else { SM_100 }),
        "tensormap" => Some(if any(&["replace"]) { SM_90A } else { SM_90 }),
        "mapa" | "getctarank" | "elect" | "griddepcontrol" | "multimem" | "stmatrix" => Some(SM_90),
        "cp" if any(&["tile::scatter4"]) => Some(SM_100A),
        "cp" if any(&["tile::gather4"]) => Some(SM_100),
        "cp" if any(&["cta_group::1", "cta_group::2"]) => Some(SM_100A),
        "cp" => Some(if any(&["bulk"]) { SM_90 } else { SM_80 }),
        "mbarrier" => {
            let transactions = any(&["try_wait", "expect_tx", "complete_tx"]);
            let counts = any(&["arrive", "arrive_drop"]) && !any(&["noComplete"]) && i.operands.len() > 2;
            Some(if clusters || transactions || counts { SM_90 } else { SM_80 })
        }
        "barrier" => when(clusters, SM_90),
        "fence" | "membar" => {
            let proxy = starts("async") || starts("tensormap");
            // The PTX ISA lists `fence.acquire` and `fence.release` as of sm_90, but ptxas accepts them for all
            // targets.
            when(clusters || proxy || starts("sync_restrict") || any(&["mbarrier_init"]), SM_90)
        }
        "atom" | "red" => {
            let vector = any(&["v2", "v4", "v8"]);
            when(clusters || bf16 || vector || any(&["async", "b128"]), SM_90).or(when(any(&["L2::cache_hint"]), SM_80))
        }
        "ld" | "ldu" | "st" => {
            // 32 bytes per lane.
            let wide = any(&["v8"]) || any(&["v4"]) && any(&["b64", "u64", "s64", "f64"]);
            when(wide, SM_100)
                .or(when(clusters || any(&["async", "unified"]), SM_90))
                .or(when(any(&["L2::cache_hint", "L2::256B"]), SM_80))
        }
        "cvta" | "isspacep" => when(clusters, SM_90),
        "prefetch" => when(any(&["tensormap"]), SM_90).or(when(starts("L2::evict"), SM_80)),
        "redux" if any(&["f32"]) => Some(SM_100A),
        "createpolicy" | "discard" | "applypriority" | "redux" => Some(SM_80),
        "add" | "sub" | "mul" | "fma" if any(&["f32x2"]) || any(&["f32"]) && any(&["f16", "bf16"]) => Some(SM_100),
        "add" | "sub" | "mul" => when(bf16 || any(&["u16x2", "s16x2"]), SM_90),
        "fma" => when(any(&["oob"]), SM_90).or(when(bf16 || any(&["relu"]), SM_80)),
        "neg" | "abs" => when(bf16, SM_80),
        "min" | "max" if i.operands.len() > 3 => Some(SM_100),
        "min" | "max" => when(any(&["u16x2", "s16x2"]) || any(&["s32"]) && any(&["relu"]), SM_90)
            .or(when(any(&["xorsign"]), SM_86))
            .or(when(bf16 || any(&["f16", "f16x2", "NaN"]), SM_80)),
        "tanh" | "ex2" | "set" | "setp" => when(bf16, SM_90),
        "cvt" => needed_by_conversion(&parts),
        "mma" => {
            let fp8 = any(&["e4m3", "e5m2"]);
            let old = ["m8n8k4", "m8n8k16", "m8n8k32", "m8n8k128"];
            let turing = any(&old) || any(&["m16n8k8"]) && !bf16 && !any(&["tf32"]);
            when(any(&["f64"]) && !any(&["m8n8k4"]), SM_90)
                .or(when(fp8, SM_89))
                .or(when(!turing || any(&["f64", "and"]), SM_80))
        }
        "wmma" => when(bf16 || any(&["tf32", "f64", "and", "m16n16k8"]), SM_80),
        _ => None,
    }
}

/// Returns the first target that has a `cvt`, whose opcode ends in the types of the result and of the source.
fn needed_by_conversion(parts: &[&str]) -> Option<Target> {
    let any = |words: &[&str]| words.iter().any(|word| parts.contains(word));
    let [.., to, from] = parts else { return None };
    let with_bf16 = match (*to, *from) {
        ("f32", "bf16") => any(&["ftz"]),
        ("bf16", "f32") => false,
        (to, from) => to == "bf16" || from == "bf16",
    };
    let fp8 = any(&["e4m3x2", "e5m2x2"]);
    let narrower = any(&["rs", "e2m1x2", "e2m3x2", "e3m2x2", "ue8m0x2"]) || fp8 && any(&["bf16x2"]);
    let half = matches!((*to, *from), ("f16x2" | "bf16" | "bf16x2" | "tf32", _) | ("f32", "bf16"));
    let rules = [
        (narrower, SM_100A),
        (with_bf16 || *to == "tf32" && any(&["relu", "rn", "rz"]), SM_90),
        (fp8, SM_89),
        (half || any(&["relu"]), SM_80),
    ];
    rules.into_iter().find(|rule| rule.0).map(|rule| rule.1)
}

#[cfg(test)]
mod tests {
    use crate::program::Program;

    /// Returns the error of a kernel with this instruction in line 5, for the target `target`.
    fn refused(target: &str, instruction: &str) -> Option<String> {
        let text = format!(
            ".version 8.7\n.target {target}\n.address_size 64\n.entry k() {{ .reg .b16 %h<9>; .reg .b32 %r<9>, a; \
             .reg .b64 %d<9>; .reg .f64 %f<9>; .reg .b128 %q<2>; .reg .pred %p; .shared .b64 s;\n{instruction}\nret; }}"
        );
        Program::parse(&text).unwrap().kernel("k").err().map(|e| e.to_string())
    }

    #[test]
    fn instructions_of_later_targets_are_refused_by_name_and_line() {
        let message = refused("sm_80", "mbarrier.try_wait.shared.b64 %p, [s], %d0;").unwrap();
        assert_eq!(message, "line 5: mbarrier.try_wait.shared.b64 needs sm_90, but the module's .target is sm_80");
        let message = refused("sm_80", "mov.u32 %r0, %cluster_ctarank;").unwrap();
        assert_eq!(message, "line 5: %cluster_ctarank needs sm_90, but the module's .target is sm_80");
        let message = refused("sm_90", "setmaxnreg.dec.sync.aligned.u32 40;").unwrap();
        assert!(message.ends_with("needs sm_90a, but the module's .target is sm_90"), "{message}");
        let message = refused("sm_100a", "wgmma.fence.sync.aligned;").unwrap();
        assert!(message.ends_with("needs sm_90a, but the module's .target is sm_100a"), "{message}");
        assert_eq!(refused("sm_90a", "wgmma.fence.sync.aligned;"), None);
    }

    /// For each instruction, the first target for which ptxas accepts it: that of CUDA 13.0, and of CUDA 13.4 for those
    /// that begin with sm_100. An instruction of a target with `a` is in later targets with `a`.
    const FIRST_TARGETS: &str = "
        sm_75 barrier.sync 0;
        sm_75 cvt.rn.f16.f32 %h0, %r0;
        sm_75 ex2.approx.f16 %h0, %h1;
        sm_75 fence.acq_rel.gpu;
        sm_75 isspacep.shared::cta %p, %d0;
        sm_75 isspacep.shared %p, %d0;
        sm_75 ld.global.L2::128B.u32 %r0, [%d0];
        sm_75 mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r0,%r1},{%r2,%r3},{%r4},{%r5,%r6};
        sm_75 mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r0,%r1},{%r2},{%r3},{%r5,%r6};
        sm_75 mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%r0,%r1},{%r2},{%r3},{%r5,%r6};
        sm_75 mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%r0,%r1},{%r2},{%r3},{%r5,%r6};
        sm_75 mov.u64 %d0, %current_graph_exec;
        sm_75 red.global.add.noftz.f16x2 [%d0], %r0;
        sm_75 st.shared::cta.u32 [%r0], %r1;
        sm_80 abs.bf16x2 %r0, %r1;
        sm_80 applypriority.global.L2::evict_normal [%d0], 128;
        sm_80 cp.async.ca.shared.global [%r0], [%d0], 16;
        sm_80 cp.async.mbarrier.arrive.noinc.shared.b64 [s];
        sm_80 cp.async.wait_all;
        sm_80 createpolicy.fractional.L2::evict_last.b64 %d0, 1.0;
        sm_80 cvt.rn.bf16.f32 %h0, %r0;
        sm_80 cvt.f32.bf16 %r0, %h0;
        sm_80 cvt.rna.tf32.f32 %r0, %r1;
        sm_80 cvt.rn.f16x2.f32 %r0, %r1, %r2;
        sm_80 cvt.rn.bf16x2.f32 %r0, %r1, %r2;
        sm_80 cvt.rn.relu.f16.f32 %h0, %r1;
        sm_80 discard.global.L2 [%d0], 128;
        sm_80 fma.rn.bf16x2 %r0, %r1, %r2, %r3;
        sm_80 fma.rn.relu.f16 %h0, %h1, %h2, %h3;
        sm_80 ld.global.L2::cache_hint.u32 %r0, [%d0], %d1;
        sm_80 ld.global.L2::256B.u32 %r0, [%d0];
        sm_80 max.NaN.bf16x2 %r0, %r1, %r2;
        sm_80 max.f16x2 %r0, %r1, %r2;
        sm_80 mbarrier.arrive.shared.b64 %d0, [s];
        sm_80 mbarrier.arrive.noComplete.shared.b64 %d0, [s], 2;
        sm_80 mbarrier.test_wait.parity.shared.b64 %p, [s], 0;
        sm_80 mbarrier.arrive.release.cta.shared::cta.b64 %d0, [s];
        sm_80 mbarrier.arrive_drop.shared.b64 %d0, [s];
        sm_80 mbarrier.test_wait.acquire.cta.shared::cta.b64 %p, [s], %d0;
        sm_80 mbarrier.init.shared.b64 [s], 1;
        sm_80 mbarrier.pending_count.b64 %r0, %d0;
        sm_80 min.f16 %h0, %h1, %h2;
        sm_80 min.NaN.f32 %r0, %r1, %r2;
        sm_80 mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%f0, %f1}, {%f2}, {%f3}, {%f4, %f5};
        sm_80 mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%r0,%r1,%r2,%r3},{%r2,%r3},{%r4},{%r5,%r6,%r7,%r8};
        sm_80 mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%r0,%r1,%r2,%r3},{%r2,%r3},{%r4},{%r5,%r6,%r7,%r8};
        sm_80 mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r0,%r1},{%r2,%r3,%r4,%r5},{%r4,%r6},{%r5,%r6};
        sm_80 mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r0,%r1,%r2,%r3},{%r2,%r3},{%r4},{%r5,%r6,%r7,%r8};
        sm_80 mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.and.popc {%r0,%r1},{%r2},{%r3},{%r5,%r6};
        sm_80 mov.u32 %r0, %reserved_smem_offset_begin;
        sm_80 neg.bf16 %h0, %h1;
        sm_80 prefetch.global.L2::evict_last [%d0];
        sm_80 red.global.add.L2::cache_hint.u32 [%d0], %r0, %d1;
        sm_80 redux.sync.add.u32 %r0, %r1, -1;
        sm_80 st.global.L2::cache_hint.u32 [%d0], %r0, %d1;
        sm_80 wmma.load.a.sync.aligned.row.m16n16k16.global.bf16 {%r0,%r1,%r2,%r3}, [%d0], 16;
        sm_80 wmma.load.a.sync.aligned.row.m16n16k8.global.tf32 {%r0,%r1,%r2,%r3}, [%d0], 16;
        sm_86 min.xorsign.abs.f32 %r0, %r1, %r2;
        sm_89 cvt.rn.satfinite.e4m3x2.f32 %h0, %r0, %r1;
        sm_89 cvt.rn.f16x2.e4m3x2 %r0, %h0;
        sm_89 mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%r0,%r1,%r2,%r3},{a,a,a,a},{a,a},{a,a,a,a};
        sm_90 add.rn.bf16x2 %r0, %r1, %r2;
        sm_90 add.u16x2 %r0, %r1, %r2;
        sm_90 atom.global.exch.b128 %q0, [%d0], %q1;
        sm_90 barrier.cluster.arrive.aligned;
        sm_90 barrier.cluster.wait;
        sm_90 cp.async.bulk.commit_group;
        sm_90 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d0], [%r0], 16;
        sm_90 cp.async.bulk.prefetch.L2.global [%d0], 16;
        sm_90 cvt.rn.bf16.f16 %h0, %h1;
        sm_90 cvt.rn.tf32.f32 %r0, %r1;
        sm_90 cvt.rz.relu.tf32.f32 %r0, %r1;
        sm_90 cvt.ftz.f32.bf16 %r0, %h0;
        sm_90 cvt.f64.bf16 %f0, %h0;
        sm_90 cvt.rni.s32.bf16 %r0, %h0;
        sm_90 cvt.rn.bf16.s32 %h0, %r0;
        sm_90 cvta.shared::cluster.u64 %d0, %d1;
        sm_90 elect.sync %r0|%p, -1;
        sm_90 ex2.approx.ftz.bf16x2 %r0, %r1;
        sm_90 fence.proxy.async.shared::cta;
        sm_90 fence.proxy.tensormap::generic.release.gpu;
        sm_90 fence.mbarrier_init.release.cluster;
        sm_90 fence.acquire.sync_restrict::shared::cluster.cluster;
        sm_90 fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster;
        sm_90 fence.sc.cluster;
        sm_90 getctarank.u64 %r0, %d0;
        sm_90 griddepcontrol.wait;
        sm_90 isspacep.shared::cluster %p, %d0;
        sm_90 ld.relaxed.cluster.global.u32 %r0, [%d0];
        sm_90 mapa.shared::cluster.u32 %r0, %r1, %r2;
        sm_90 max.relu.s16x2 %r0, %r1, %r2;
        sm_90 mbarrier.arrive.shared::cta.b64 %d0, [s], 2;
        sm_90 mbarrier.arrive.expect_tx.shared.b64 _, [s], 16;
        sm_90 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [s], 16;
        sm_90 mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [s], 16;
        sm_90 mbarrier.arrive.release.cluster.shared::cta.b64 %d0, [s];
        sm_90 min.s16x2 %r0, %r1, %r2;
        sm_90 min.relu.s32 %r0, %r1, %r2;
        sm_90 mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%f0,%f1,%f2,%f3},{%f4,%f5},{%f6},{%f0,%f1,%f2,%f3};
        sm_90 mov.u32 %r0, %clusterid.x;
        sm_90 mov.u32 %r0, %nclusterid.x;
        sm_90 mov.u32 %r0, %cluster_nctaid.x;
        sm_90 mov.pred %p, %is_explicit_cluster;
        sm_90 mov.u32 %r0, %aggr_smem_size;
        sm_90 mul.rn.bf16 %h0, %h1, %h2;
        sm_90 multimem.red.relaxed.gpu.global.add.u32 [%d0], %r0;
        sm_90 prefetch.tensormap [%d0];
        sm_90 red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.inc.u32 [%r0], %r1, [%r2];
        sm_90 red.global.add.noftz.bf16x2 [%d0], %r0;
        sm_90 red.global.add.v2.f32 [%d0], {%r0, %r1};
        sm_90 set.lt.u32.bf16 %r0, %h0, %h1;
        sm_90 setp.lt.bf16 %p, %h0, %h1;
        sm_90 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r0], %r1, [%r2];
        sm_90 st.shared::cluster.u32 [%r0], %r1;
        sm_90 stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r0], {%r1};
        sm_90 sub.rn.bf16 %h0, %h1, %h2;
        sm_90 tanh.approx.bf16 %h0, %h1;
        sm_90 tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d0],[%r0],128;
        sm_90a setmaxnreg.inc.sync.aligned.u32 232;
        sm_90a tensormap.replace.tile.global_address.global.b1024.b64 [%d0], %d1;
        sm_100 add.rz.ftz.f32x2 %d0, %d1, %d2;
        sm_100 fma.rn.f32x2 %d0, %d1, %d2, %d3;
        sm_100 sub.rn.f32.bf16 %r0, %h0, %r1;
        sm_100 fma.rn.sat.f32.f16 %r0, %h0, %h1, %r1;
        sm_100 max.f32 %r0, %r1, %r2, %r3;
        sm_100 ld.global.v8.b32 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%d0];
        sm_100 st.global.v4.b64 [%d0], {%d1,%d2,%d3,%d4};
        sm_100 clusterlaunchcontrol.try_cancel.async.mbarrier::complete_tx::bytes.b128 [s], [s];
        sm_100 clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %p, %q0;
        sm_100 cp.async.bulk.tensor.2d.tile::gather4.shared::cta.global.mbarrier::complete_tx::bytes [s], [%d0, {%r0,%r1,%r2,%r3,%r4}], [s];
        sm_100a cp.async.bulk.tensor.2d.tile::scatter4.global.shared::cta.bulk_group [%d0, {%r0,%r1,%r2,%r3,%r4}], [s];
        sm_100a clusterlaunchcontrol.try_cancel.async.mbarrier::complete_tx::bytes.multicast::cluster::all.b128 [s], [s];
        sm_100a cp.async.bulk.tensor.1d.cta_group::1.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%d0, {%r0}], [s];
        sm_100a tcgen05.wait::ld.sync.aligned;
        sm_100a tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%d0];
        sm_100a redux.sync.min.abs.NaN.f32 %r0, %r1, -1;
        sm_100a cvt.rn.bf16x2.e4m3x2 %r0, %h0;
        sm_100a cvt.rn.satfinite.e5m2x2.bf16x2 %h0, %r0;
        sm_100a cvt.rn.satfinite.e2m1x2.f32 %h0, %r0, %r1;
        sm_100a cvt.rn.f16x2.e3m2x2 %r0, %h0;
        sm_100a cvt.rz.satfinite.ue8m0x2.f32 %h0, %r0, %r1;
        sm_100a cvt.rs.f16x2.f32 %r0, %r1, %r2, %r3;
    ";

    #[test]
    fn targets_have_the_instructions_that_ptxas_accepts() {
        let targets = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a"];
        for line in FIRST_TARGETS.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (first, instruction) = line.split_once(' ').unwrap();
            let allowed = targets.into_iter().filter(|target| refused(target, instruction).is_none());
            let is_specific = |target: &&str| target.ends_with('a') || !first.ends_with('a');
            let expected = targets.into_iter().skip_while(|target| *target != first).filter(is_specific);
            assert!(allowed.eq(expected), "{line}");
        }
    }
}
