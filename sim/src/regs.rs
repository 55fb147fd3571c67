//! The registers of a simulated warp. A register is one or more rows, which hold 32 bits for each of the 32 lanes; a
//! predicate is a mask with one bit per lane. Further masks tell in which lanes a register is undefined.

use std::collections::HashMap;

/// A row of the register file: 32 bits for each of the 32 lanes. A 64-bit register takes two consecutive rows, which
/// are read as `[u64; 32]`; a 128-bit register takes four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct RegisterRow(pub [u32; 32]);

/// A register's position in the register file: the index of its first row.
pub type Slot = u32;

/// The registers of one warp.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// Rows of all registers. Registers of 8 and 16 bits use the low bits of a lane; the other bits are zero.
    pub rows: Vec<RegisterRow>,
    /// For the first row of each register, the mask of the lanes in which the register is undefined.
    pub undefined: Vec<u32>,
    /// The predicates, each a mask with one bit per lane.
    pub predicates: Vec<u32>,
    /// For each predicate, the mask of the lanes in which it is undefined.
    pub undefined_predicates: Vec<u32>,
    /// For registers into which a load copied bytes that nothing has written, by slot and lane: which bytes these are,
    /// and the load that read them. An entry counts only while the register is undefined in the lane.
    pub unwritten: HashMap<(Slot, u8), UnwrittenBytes>,
    /// For registers that an instruction packed from a defined and an undefined half: the mask of the lanes in which
    /// the low half is defined, and the mask for the high half. The masks count only in lanes in which the register is
    /// undefined.
    pub defined_halves: HashMap<Slot, [u32; 2]>,
}

/// Bytes of a register that a load copied from memory that nothing has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwrittenBytes {
    /// Mask of the register's bytes that the load copied from unwritten memory.
    pub bytes: u16,
    /// The load that read the bytes.
    pub source: UnwrittenSource,
}

/// A load of bytes that nothing has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnwrittenSource {
    /// Index of the load instruction in the kernel.
    pub pc: u32,
    /// The state space that the load reads: `global`, `shared` or `local`; `param` if the instruction stores an
    /// undefined register in an argument or return value.
    pub space: &'static str,
    /// The address that the load reads.
    pub address: u64,
    /// True if the compiler declares all the unwritten bytes as padding.
    pub is_padding: bool,
}

impl Registers {
    /// Marks the register at `slot` as undefined in `lanes`.
    #[inline(always)]
    pub fn mark_undefined(&mut self, slot: Slot, lanes: u32) {
        self.undefined[slot as usize] |= lanes;
        if lanes != 0 && !self.defined_halves.is_empty() {
            self.forget_halves(slot, lanes);
        }
    }

    #[cold]
    fn forget_halves(&mut self, slot: Slot, lanes: u32) {
        if let Some(halves) = self.defined_halves.get_mut(&slot) {
            *halves = halves.map(|defined| defined & !lanes);
        }
    }

    /// Records that an instruction packed two halves into the register at `slot` in the lanes of `mask`. `undefined`
    /// holds the lanes in which each half is undefined, low half first.
    #[cold]
    pub fn set_undefined_halves(&mut self, slot: Slot, mask: u32, undefined: [u32; 2]) {
        let halves = self.defined_halves.entry(slot).or_default();
        for (defined, undefined) in halves.iter_mut().zip(undefined) {
            *defined = (*defined & !mask) | (mask & !undefined);
        }
    }

    /// Forgets which single bytes and halves of registers are undefined, because a new call frame reuses all registers.
    pub fn clear_partial_definitions(&mut self) {
        self.unwritten.clear();
        self.defined_halves.clear();
    }

    /// Returns true if some register was packed from a defined and an undefined half.
    #[inline(always)]
    pub fn has_defined_halves(&self) -> bool {
        !self.defined_halves.is_empty()
    }

    /// Returns the lanes in which the low half (`half` 0) or the high half (1) of a 32-bit or 64-bit register is
    /// undefined.
    pub fn undefined_half(&self, slot: Slot, half: usize) -> u32 {
        let undefined = self.undefined[slot as usize];
        if undefined == 0 || self.defined_halves.is_empty() {
            return undefined;
        }
        let defined = self.defined_halves.get(&slot).map_or(0, |halves| halves[half]);
        undefined & !defined
    }

    /// Returns the mask of the low `width` bytes of a register that are undefined in one lane: all of them, unless a
    /// load copied the register's value and left some bytes defined, or only one of two packed halves is undefined.
    pub fn undefined_bytes(&self, slot: Slot, lane: usize, width: usize) -> u16 {
        if self.undefined[slot as usize] >> lane & 1 == 0 {
            return 0;
        }
        let all = ((1u32 << width) - 1) as u16;
        if self.has_defined_halves() && width <= 4 {
            let is_undefined = |half| self.undefined_half(slot, half) >> lane & 1 != 0;
            let of_halves = (u16::from(is_undefined(0)) * 0b11) | (u16::from(is_undefined(1)) * 0b1100);
            if of_halves != 0b1111 {
                return of_halves & all;
            }
        }
        self.unwritten.get(&(slot, lane as u8)).map_or(all, |unwritten| unwritten.bytes & all)
    }

    /// Records that a load has copied unwritten bytes into a register of one lane.
    pub fn set_unwritten(&mut self, slot: Slot, lane: usize, bytes: u16, source: UnwrittenSource) {
        self.mark_undefined(slot, 1 << lane);
        self.unwritten.insert((slot, lane as u8), UnwrittenBytes { bytes, source });
    }

    /// Returns the 32-bit register at `slot`.
    #[inline(always)]
    pub fn get(&self, slot: Slot) -> [u32; 32] {
        self.rows[slot as usize].0
    }

    /// Writes the lanes of `mask` of the 32-bit register at `slot`.
    #[inline(always)]
    pub fn set(&mut self, slot: Slot, value: &[u32; 32], mask: u32) {
        let row = &mut self.rows[slot as usize].0;
        if mask == u32::MAX {
            *row = *value;
        } else {
            for lane in 0..32 {
                let take = 0u32.wrapping_sub(mask >> lane & 1);
                row[lane] = value[lane] & take | row[lane] & !take;
            }
        }
    }

    /// Returns the 64-bit register at `slot`.
    #[inline(always)]
    pub fn get64(&self, slot: Slot) -> [u64; 32] {
        let rows: &[RegisterRow] = &self.rows[slot as usize..slot as usize + 2];
        let lanes: &[u64] = bytemuck::cast_slice(rows);
        lanes.try_into().expect("two register rows have 32 lanes of 64 bits")
    }

    /// Writes the lanes of `mask` of the 64-bit register at `slot`.
    #[inline(always)]
    pub fn set64(&mut self, slot: Slot, value: &[u64; 32], mask: u32) {
        let rows: &mut [RegisterRow] = &mut self.rows[slot as usize..slot as usize + 2];
        let lanes: &mut [u64] = bytemuck::cast_slice_mut(rows);
        if mask == u32::MAX {
            lanes.copy_from_slice(value);
        } else {
            for lane in 0..32 {
                let take = 0u64.wrapping_sub((mask >> lane & 1) as u64);
                lanes[lane] = value[lane] & take | lanes[lane] & !take;
            }
        }
    }
}
