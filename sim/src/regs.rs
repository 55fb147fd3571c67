//! The registers of a simulated warp. A register is one or more rows, which hold 32 bits for each of the 32 lanes; a
//! predicate is a mask with one bit per lane. Further masks tell in which lanes a register is undefined.

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
}

impl Registers {
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
