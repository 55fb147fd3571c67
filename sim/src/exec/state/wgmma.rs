//! wgmma products that have been issued and not waited for: the state per warpgroup and the state per warp.

use crate::matrix::Lanes;
use crate::matrix::wgmma::{SharedOperand, SumId};
use crate::order::{AsyncOpId, OperandWriters};
use crate::regs::Slot;
use std::collections::VecDeque;

/// Mask of the four warps of a warpgroup.
pub const ALL_WARPS: u8 = 0b1111;

/// The products of a warpgroup for which at least one of its warps has not waited, oldest first.
#[derive(Debug, Default)]
pub struct Warpgroup {
    /// Number of the oldest product in `products`. The products of a warpgroup are numbered from 0 over the whole
    /// life of the block.
    pub first: u64,
    /// The products, oldest first.
    pub products: VecDeque<WarpgroupProduct>,
    /// Sums that the accumulators should hold, but that have not been written to them. No two use the same register.
    pub deferred: Vec<DeferredSum>,
    /// For each row of the register file, whether it is an accumulator of a sum in `deferred`; grows as needed.
    deferred_rows: Vec<bool>,
}

impl Warpgroup {
    /// Returns whether one of the registers is an accumulator of a deferred sum.
    #[inline]
    pub fn defers_any_of(&self, registers: &[Slot]) -> bool {
        !self.deferred.is_empty() && registers.iter().any(|&s| self.deferred_rows.get(s as usize) == Some(&true))
    }

    /// Adds a deferred sum with the accumulators `d`.
    pub fn defer(&mut self, sum: DeferredSum, d: &[Slot]) {
        self.deferred.push(sum);
        let rows = d.iter().max().map_or(0, |&last| last as usize + 1);
        self.deferred_rows.resize(rows.max(self.deferred_rows.len()), false);
        d.iter().for_each(|&s| self.deferred_rows[s as usize] = true);
    }

    /// Removes the deferred sum number `at`, whose accumulators are `d`.
    pub fn remove_deferred(&mut self, at: usize, d: &[Slot]) -> DeferredSum {
        d.iter().for_each(|&s| self.deferred_rows[s as usize] = false);
        self.deferred.swap_remove(at)
    }
}

/// A sum of products whose values are written to the accumulators only when an instruction accesses them.
#[derive(Clone, Copy, Debug)]
pub struct DeferredSum {
    /// Index in the kernel's first function of a wgmma whose accumulators hold the sum.
    pub index: u32,
    /// The sum in the products that the runs share.
    pub sum: SumId,
}

/// One wgmma product of a warpgroup.
#[derive(Debug)]
pub struct WarpgroupProduct {
    /// Index of the wgmma instruction in the kernel.
    pub pc: u32,
    /// The asynchronous operation that reads the product's operands.
    pub op: AsyncOpId,
    /// Descriptors of A (`None` if A is in registers) and B as the first warp gave them.
    pub descriptors: (Option<u64>, u64),
    /// Operand A in shared memory; `None` if A is in registers.
    pub a: Option<SharedOperand>,
    /// Operand B in shared memory.
    pub b: SharedOperand,
    /// The last writers of the operands' bytes, which every warp that issues the product checks.
    pub writers: OperandWriters,
    /// Mask of the warps that have issued the product.
    pub issued: u8,
    /// Mask of the warps that have waited for the product.
    pub waited: u8,
    /// Whether the product has been computed.
    pub computed: bool,
}

/// The wgmma products of one warp and the registers that they use.
#[derive(Clone, Debug, Default)]
pub struct WarpWgmma {
    /// Number of products that the warp has waited for, and so the number of the first product in [`Self::issued`].
    pub waited: u64,
    /// Products that the warp has issued and not waited for, oldest first.
    pub issued: VecDeque<IssuedProduct>,
    /// Committed groups, oldest first; each entry is the number of the first product after the group.
    pub groups: VecDeque<u64>,
    /// For each register, whether an ordinary instruction accessed it since the last `wgmma.fence`; grows as needed.
    accessed: Vec<bool>,
    /// Whether any register is marked as accessed since the last `wgmma.fence`.
    pub any_accessed: bool,
    /// Whether the warp has executed a `wgmma.fence`.
    pub fenced: bool,
    /// Number of products issued before the last `wgmma.fence`.
    pub products_before_fence: u64,
    /// Whether the warp has executed a `wgmma.fence` and committed no group since then. A register access in this
    /// time probably stands before the fence in the CUDA source, and the compiler moved it behind the fence. ptxas
    /// repairs that, so the access causes a note, not a finding.
    after_fence: bool,
    /// Registers accessed since the last `wgmma.fence` while [`Self::after_fence`] holds.
    pub late: Vec<u32>,
}

/// The share of one warp in a product that it has issued: its instruction, lanes and registers.
#[derive(Clone, Debug)]
pub struct IssuedProduct {
    /// Index of the function that contains the wgmma instruction.
    pub function: u32,
    /// Index of the wgmma instruction in the function.
    pub index: u32,
    /// Index of the wgmma instruction in the kernel.
    pub pc: u32,
    /// Index of the call frame whose registers hold the accumulators.
    pub frame: u32,
    /// Mask of the lanes that issued the product.
    pub mask: u32,
    /// Whether the product is added to the accumulators' old values.
    pub scale_d: bool,
    /// The values of operand A, if A is in registers.
    pub a: Option<Box<[Lanes; 4]>>,
    /// Registers to which the compiler moved an accumulator before the product was complete, as (copy, accumulator).
    pub copies: Vec<(u32, u32)>,
}

impl WarpWgmma {
    /// Returns the number of the next product that the warp issues.
    pub fn next_product_number(&self) -> u64 {
        self.waited + self.issued.len() as u64
    }

    /// Returns whether an ordinary instruction accessed the register since the last `wgmma.fence`.
    pub fn was_accessed_since_fence(&self, register: u32) -> bool {
        self.accessed.get(register as usize).copied().unwrap_or(false)
    }

    /// Records whether an ordinary instruction accessed the register since the last `wgmma.fence`.
    pub fn mark_access(&mut self, register: u32, accessed: bool) {
        if self.after_fence {
            if accessed && !self.late.contains(&register) {
                self.late.push(register);
            }
            return;
        }
        if self.accessed.len() <= register as usize {
            if !accessed {
                return;
            }
            self.accessed.resize(register as usize + 1, false);
        }
        self.accessed[register as usize] = accessed;
        self.any_accessed |= accessed;
    }

    /// Executes `wgmma.fence`: orders earlier register accesses before later products.
    pub fn execute_fence(&mut self) {
        self.fenced = true;
        self.products_before_fence = self.next_product_number();
        if std::mem::take(&mut self.any_accessed) {
            self.accessed.fill(false);
        }
        self.after_fence = true;
        self.late.clear();
    }

    /// Executes `wgmma.commit_group`.
    pub fn commit_group(&mut self) {
        self.groups.push_back(self.next_product_number());
        self.after_fence = false;
        self.late.clear();
    }
}
