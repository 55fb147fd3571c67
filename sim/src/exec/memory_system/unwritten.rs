//! Copies of bytes that nothing has written, such as the padding of structs. A load that only copies is not a defect:
//! it passes on which bytes are unwritten, through registers, parameters and memory. A use of the copied bytes is a
//! defect.
//!
//! ```text
//! load that only copies:   its unwritten bytes become unwritten bytes of the register
//! store of that register:  to local or shared memory, or as an argument: the stored bytes become unwritten, too
//!                          to global memory: so does padding; anything else is reported, at the load
//! any other load:          reported if a byte that it reads and uses is unwritten, except from shared memory
//! ```
//!
//! Computing with unwritten shared memory is no defect, either, if the results do not matter: kernels multiply matrices
//! whose last rows nothing has written, and do not store the rows of the product that depend on them.
//!
//! ```text
//! other loads, `ldmatrix`, from shared memory:  the register becomes undefined; the warp remembers the load
//! store of an undefined register to shared memory:  the bytes become unwritten; the block remembers the load
//! store to local memory, argument:  the bytes become unwritten
//! other uses (address, branch, atomic, store to global memory):  reported, at the load
//! ```
//!
//! A load uses only the bytes that its function does not drop later by a conversion, a mask or a shift
//! (`program/demanded_bits.rs`).
//!
//! A load that only serves to change a bit-field (`bit_field_updates` in `program/data_flow.rs`) uses no byte; the
//! store after it writes the bytes of the bit-field.
//!
//! Unwritten bytes are padding in two cases: the compiler says that the load does not use them (pragma
//! `used_bytes_mask`), or they come from a struct in local memory and another byte of the register is written.

use super::check::shadow_memory_of;
use super::system::MemorySystem;
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::operands::{lanes_where, mark_undefined_lanes};
use crate::exec::state::location::{LaneGroup, MemoryLocation};
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::matrix::ldmatrix;
use crate::program::op::{LdStMatrix, LoadStore};
use crate::regs::{Registers, Slot, UnwrittenSource};

/// The lanes of a copying load that read unwritten bytes: the lane, and the mask of these bytes.
pub(super) type UnwrittenLanes = Vec<(u32, u32)>;

impl MemorySystem {
    /// Returns the unwritten bytes that a load of `group` reads, limited to the mask `wanted`. Marks these bytes as
    /// written, so that the race check does not report them; [`MemorySystem::copy_unwritten`] marks them as unwritten
    /// again.
    pub(super) fn find_unwritten_bytes(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        bytes: u32,
        wanted: u32,
    ) -> UnwrittenLanes {
        let mut found = Vec::new();
        if cx.grid.context.options.count_only {
            return found;
        }
        let Some(shadow) = shadow_memory_of(&mut self.buffers, &mut cx.grid.blocks, group.location) else {
            return found;
        };
        if group.consecutive && shadow.is_initialized(group.offsets[0]..group.offsets[0] + 32 * bytes as u64) {
            return found;
        }
        for lane in lanes_in_mask(group.lanes) {
            let start = group.offsets[lane as usize];
            let end = start + bytes as u64;
            if !shadow.is_initialized(start..end) {
                let is_unwritten = |byte: &u32| !shadow.is_initialized(start + *byte as u64..start + *byte as u64 + 1);
                let mask = (0..bytes).filter(is_unwritten).fold(0, |mask, byte| mask | 1 << byte) & wanted;
                found.extend((mask != 0).then_some((lane, mask)));
            }
        }
        // Several lanes may read the same bytes, so the bytes are marked only after all lanes have been examined.
        for &(lane, mask) in &found {
            let start = group.offsets[lane as usize];
            let unwritten = (0..32).filter(|byte| mask >> byte & 1 != 0);
            unwritten.for_each(|byte| shadow.mark_initialized(start + byte..start + byte + 1));
        }
        found
    }

    /// After a load: marks the bytes that [`MemorySystem::find_unwritten_bytes`] returned as unwritten again, in
    /// memory and, if the load only copies, in the registers.
    pub(super) fn copy_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
        unwritten: &UnwrittenLanes,
    ) {
        for &(lane, bytes) in unwritten {
            let start = group.offsets[lane as usize];
            self.mark_bytes_unwritten(cx, group.location, start, bytes);
            if t.copies {
                let is_padding = bytes & t.used_bytes == 0;
                let source = UnwrittenSource { is_padding, ..self.unwritten_source(cx, group.location, start) };
                set_registers_unwritten(cx.regs_mut(), t, lane, bytes, source);
            }
        }
    }

    /// Marks the bytes of the mask `bytes`, from offset `start` on, as unwritten.
    pub(super) fn mark_bytes_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        at: MemoryLocation,
        start: u64,
        bytes: u32,
    ) {
        let Some(shadow) = shadow_memory_of(&mut self.buffers, &mut cx.grid.blocks, at) else { return };
        for byte in (0..32).filter(|byte| bytes >> byte & 1 != 0) {
            shadow.mark_uninitialized(start + byte..start + byte + 1);
        }
    }

    /// Called after a store of `group`. In the lanes `copied`, passes the unwritten bytes of the stored registers on
    /// to memory. If the store makes these bytes a result of the kernel, reports them instead.
    pub(super) fn store_unwritten(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
        copied: u32,
    ) {
        let width = t.width as usize;
        for lane in lanes_in_mask(group.lanes & copied) {
            for (n, slot) in t.regs.iter().flatten().enumerate() {
                let bytes = cx.regs().undefined_bytes(*slot, lane as usize, width);
                let Some(unwritten) = cx.regs().unwritten.get(&(*slot, lane as u8)).filter(|_| bytes != 0) else {
                    continue;
                };
                let source = unwritten.source;
                let is_part = source.space == "local" && u32::from(bytes) + 1 != 1 << width;
                if matches!(group.location, MemoryLocation::Global(_)) && !source.is_padding && !is_part {
                    let site = cx.finding_site(lane);
                    cx.grid.report_unwritten(site, source);
                    continue;
                }
                let start = group.offsets[lane as usize] + (n * width) as u64;
                self.mark_bytes_unwritten(cx, group.location, start, bytes.into());
            }
        }
    }
}

impl MemorySystem {
    /// Returns the origin of unwritten bytes that the current instruction loads at an offset. The origin is an earlier
    /// load if a store put a value there that depends on that load. Otherwise it is the current instruction.
    fn unwritten_source(&self, cx: &InstructionContext, at: MemoryLocation, offset: u64) -> UnwrittenSource {
        let (base, stored) = match at {
            MemoryLocation::Global(index) => (self.buffers.buffer(index).base, None),
            MemoryLocation::Shared(slot) => (
                FIRST_SHARED_ADDRESS as u64,
                cx.grid.blocks.get(slot).and_then(|block| block.undefined_words.get(&(offset / 4))),
            ),
        };
        let space = at.state_space_name();
        let here = UnwrittenSource { pc: cx.pc, space, address: base + offset, is_padding: false };
        stored.copied().unwrap_or(here)
    }

    /// Returns which of the first `bytes` bytes from an offset on are unwritten.
    fn unwritten_bytes(&mut self, cx: &mut InstructionContext, at: MemoryLocation, offset: u64, bytes: u32) -> u32 {
        let Some(shadow) = shadow_memory_of(&mut self.buffers, &mut cx.grid.blocks, at) else { return 0 };
        let is_unwritten = |byte: &u32| !shadow.is_initialized(offset + *byte as u64..offset + *byte as u64 + 1);
        (0..bytes).filter(is_unwritten).fold(0, |mask, byte| mask | 1 << byte)
    }

    /// After a load that read unwritten shared memory: makes the registers that hold the unwritten bytes undefined.
    #[cold]
    pub(super) fn set_loaded_registers_undefined(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
    ) {
        let width = t.width as u32;
        for lane in lanes_in_mask(std::mem::take(&mut self.unwritten_lanes)) {
            let start = group.offsets[lane as usize];
            let unwritten = self.unwritten_bytes(cx, group.location, start, width * t.regs.len() as u32);
            let source = self.unwritten_source(cx, group.location, start + u64::from(unwritten.trailing_zeros()));
            cx.warp.record_unwritten_load(lane, source);
            let regs = cx.regs_mut();
            for (n, slot) in t.regs.iter().enumerate() {
                let of_element = u64::from(unwritten) >> (n as u32 * width) & ((1 << width) - 1);
                let Some(slot) = slot.filter(|_| of_element != 0) else { continue };
                regs.mark_undefined(slot, 1 << lane);
                regs.unwritten.remove(&(slot, lane as u8));
            }
        }
    }

    /// After an `ldmatrix` that read unwritten rows: makes the registers undefined in the lanes that hold elements of
    /// these rows. `offsets` are the offsets of all rows, `rows` is the mask of the rows with unwritten bytes.
    #[cold]
    pub(super) fn set_loaded_fragments_undefined(
        &mut self,
        cx: &mut InstructionContext,
        at: MemoryLocation,
        offsets: &[u64; 32],
        rows: u32,
        t: &LdStMatrix,
    ) {
        let mut unwritten_rows = [[0u8; 16]; 32];
        let mut source = None;
        for row in lanes_in_mask(rows).map(|row| row as usize) {
            let bytes = self.unwritten_bytes(cx, at, offsets[row], 16);
            let marks = unwritten_rows[row].iter_mut().enumerate();
            marks.for_each(|(byte, mark)| *mark = if bytes >> byte & 1 != 0 { 0xff } else { 0 });
            source = Some(self.unwritten_source(cx, at, offsets[row] + u64::from(bytes.trailing_zeros())));
        }
        let Some(source) = source else { return };
        // [`ldmatrix::load`] distributes the marks to the lanes in the same way as it distributes the matrix elements.
        let mut marks = [[0u32; 32]; 4];
        let count = t.regs.len();
        ldmatrix::load(&unwritten_rows[..8 * count], t.trans, &mut marks[..count]);
        for (&slot, marks) in t.regs.iter().zip(&marks) {
            let lanes = lanes_where(cx.mask, |lane| marks[lane] != 0);
            cx.regs_mut().mark_undefined(slot, lanes);
            for lane in lanes_in_mask(lanes) {
                cx.warp.record_unwritten_load(lane, source);
                cx.regs_mut().unwritten.remove(&(slot, lane as u8));
            }
        }
    }

    /// After a store of `group` with undefined registers in the lanes `undefined`: reports a store to global memory,
    /// which makes the registers a result of the kernel. A store to shared memory marks the stored bytes as unwritten,
    /// and the block records the load of unwritten shared memory from which the value may come.
    #[cold]
    pub(super) fn store_undefined(
        &mut self,
        cx: &mut InstructionContext,
        group: &LaneGroup,
        t: &LoadStore,
        undefined: u32,
    ) {
        let MemoryLocation::Shared(slot) = group.location else {
            cx.report_undefined(undefined.trailing_zeros(), || "a store of an undefined register".into());
            return;
        };
        let width = t.width as usize;
        for lane in lanes_in_mask(undefined) {
            let source = cx.warp.unwritten_load(lane);
            for (n, register) in t.regs.iter().enumerate() {
                let bytes = register.map_or(0, |register| cx.regs().undefined_bytes(register, lane as usize, width));
                let start = group.offsets[lane as usize] + (n * width) as u64;
                self.mark_bytes_unwritten(cx, group.location, start, bytes.into());
                if let (Some(source), Some(block)) = (source.filter(|_| bytes != 0), cx.grid.blocks.get_mut(slot)) {
                    let words = start / 4..(start + width as u64).div_ceil(4);
                    block.undefined_words.extend(words.map(|word| (word, source)));
                }
            }
        }
    }
}

/// Returns the lanes of `undefined` in which every undefined data register of a store holds a copy of unwritten bytes.
pub(super) fn lanes_with_copies(regs: &Registers, t: &LoadStore, undefined: u32) -> u32 {
    if !t.copies || undefined == 0 || regs.unwritten.is_empty() {
        return 0;
    }
    let is_copy = |lane: &u32| {
        let holds = |slot: &Slot| regs.unwritten.contains_key(&(*slot, *lane as u8));
        t.regs.iter().flatten().all(|slot| regs.undefined[*slot as usize] >> lane & 1 == 0 || holds(slot))
    };
    lanes_in_mask(undefined).filter(is_copy).fold(0, |lanes, lane| lanes | 1 << lane)
}

/// Called after a load whose value is only copied: marks its registers as unwritten in one lane. `bytes` is the mask
/// of the unwritten bytes among the bytes that the lane has read.
pub(super) fn set_registers_unwritten(
    regs: &mut Registers,
    t: &LoadStore,
    lane: u32,
    bytes: u32,
    source: UnwrittenSource,
) {
    let width = t.width as u32;
    for (n, slot) in t.regs.iter().enumerate() {
        let of_element = (bytes >> (n as u32 * width)) as u16 & ((1u32 << width) - 1) as u16;
        let Some(slot) = slot.filter(|_| of_element != 0) else { continue };
        let top_is_unwritten = of_element >> (width - 1) & 1 != 0;
        let extension = if t.signed && top_is_unwritten { !(((1u32 << width) - 1) as u16) } else { 0 };
        regs.set_unwritten(slot, lane as usize, of_element | extension, source);
    }
}

/// Executes [`crate::program::op::Op::CopyRegister`].
pub fn copy_register(cx: &mut InstructionContext, dst: Slot, src: Slot, rows: u8) -> NextAction {
    let mask = cx.mask;
    let regs = cx.regs_mut();
    match rows {
        1 => {
            let value = regs.get(src);
            regs.set(dst, &value, mask);
        }
        2 => {
            let value = regs.get64(src);
            regs.set64(dst, &value, mask);
        }
        _ => {
            let values: [u128; 32] = std::array::from_fn(|lane| super::registers::lane_value(regs, src, rows, lane));
            super::registers::set_register_lanes(regs, dst, rows, &values, mask);
        }
    }
    let undefined = regs.undefined[src as usize] & mask;
    mark_undefined_lanes(regs, dst, undefined, mask);
    for lane in lanes_in_mask(undefined).map(|lane| lane as u8) {
        match regs.unwritten.get(&(src, lane)).copied() {
            Some(unwritten) => regs.unwritten.insert((dst, lane), unwritten),
            None => regs.unwritten.remove(&(dst, lane)),
        };
    }
    NextAction::Next
}
