//! Moves the bytes of asynchronous copies when they take effect.

use crate::exec::grid::GridState;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::block::BlockTable;
use crate::exec::state::copies::{CopyEffect, CpAsyncCopy, TensorBoxLoad};
use crate::layout::FIRST_SHARED_ADDRESS;
use crate::memory::{Allocation, SimMemory};

/// Moves the bytes of an asynchronous operation to their destination.
pub fn apply_copy_effect(grid: &mut GridState, memory: &mut MemorySystem, effect: &CopyEffect) {
    for row in &effect.rows {
        move_cp_async_bytes(&mut grid.blocks, memory, row, row.lanes);
    }
    for load in &effect.boxes {
        if let Some(block) = grid.blocks.get_mut(load.slot) {
            move_box(&memory.buffers, load, &mut block.shared);
        }
    }
    let mut buffer = Vec::new();
    for piece in &effect.pieces {
        buffer.clear();
        if let Some(bytes) = &effect.bytes {
            buffer.extend_from_slice(bytes);
        } else if let Some((location, offset)) = piece.from {
            let (data, from) = (memory.location_bytes(&grid.blocks, location), offset as usize);
            buffer.extend_from_slice(data.get(from..from + piece.bytes as usize).unwrap_or(&[]));
        }
        let data = memory.location_bytes_mut(&mut grid.blocks, piece.to);
        let at = piece.to_offset as usize;
        if let Some(target) = data.get_mut(at..at + buffer.len()) {
            match &effect.reduce {
                Some(reduction) => reduction.apply(target, &buffer),
                None => target.copy_from_slice(&buffer),
            }
        }
    }
    grid.count_memory_or_barrier_change();
}

/// Moves the bytes that the lanes in mask `lanes` copy with one `cp.async`.
pub fn move_cp_async_bytes(blocks: &mut BlockTable, memory: &mut MemorySystem, row: &CpAsyncCopy, lanes: u32) {
    let size = row.size as usize;
    let mut bytes = [[0u8; 16]; 32];
    let source = memory.location_bytes(blocks, row.from);
    let mut left = row.lanes & lanes;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        let (from, read) = (row.from_offsets[lane] as usize, row.read_bytes[lane] as usize);
        if read == 16 {
            // Fast path for 16 bytes: a copy of constant length compiles to one move instead of a call.
            bytes[lane].copy_from_slice(&source[from..from + 16]);
        } else {
            bytes[lane][..read].copy_from_slice(&source[from..from + read]);
        }
    }
    let target = memory.location_bytes_mut(blocks, row.to);
    let mut left = row.lanes & lanes;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        let at = row.to_offsets[lane] as usize;
        if size == 16 {
            target[at..at + 16].copy_from_slice(&bytes[lane]);
        } else {
            target[at..at + size].copy_from_slice(&bytes[lane][..size]);
        }
    }
}

/// Copies a box of a tensor to shared memory. Elements outside of the tensor get the fill value of its tensor map.
fn move_box(buffers: &SimMemory, load: &TensorBoxLoad, shared: &mut [u8]) {
    let Ok(copy) = load.map.box_copy_at(&load.coordinates, load.shared) else { return };
    let fill = load.map.out_of_bounds_fill_bytes();
    let is_converted = load.map.data_type.is_converted();
    let mut buffer: Option<&Allocation> = None;
    copy.for_each_row(|row| {
        let source = row.global.and_then(|address| {
            if buffer.is_none_or(|b| address.wrapping_sub(b.base) >= b.data.len() as u64) {
                buffer = buffers.buffer_index(address).map(|index| buffers.buffer(index));
            }
            let from = (address - buffer?.base) as usize;
            buffer?.data.get(from..from + row.bytes as usize)
        });
        // Fast path for rows of whole units of 16 bytes: a copy of constant length compiles to one move instead of a
        // call.
        if let Some((units, [])) = source.map(<[u8]>::as_chunks::<16>)
            && row.shared.is_multiple_of(16)
            && !is_converted
        {
            for (unit, bytes) in units.iter().enumerate() {
                let at = load.map.swizzle.swizzled_address(row.shared + 16 * unit as u32) - FIRST_SHARED_ADDRESS;
                if let Some(target) = shared.get_mut(at as usize..).and_then(<[u8]>::first_chunk_mut) {
                    *target = *bytes;
                }
            }
            return;
        }
        let mut done = 0;
        copy.for_each_contiguous_part_of_row(row, |run| {
            let (at, bytes) = ((run.shared - FIRST_SHARED_ADDRESS) as usize, run.bytes as usize);
            let Some(target) = shared.get_mut(at..at + bytes) else { return };
            match (run.global, source) {
                (None, _) => target.iter_mut().enumerate().for_each(|(i, byte)| *byte = fill[i % 16]),
                (Some(_), Some(source)) => target.copy_from_slice(&source[done..done + bytes]),
                (Some(_), None) => {}
            }
            done += bytes;
            if run.global.is_some() && is_converted {
                for element in target.chunks_exact_mut(4) {
                    let bits = u32::from_le_bytes([element[0], element[1], element[2], element[3]]);
                    element.copy_from_slice(&load.map.data_type.converted_bits(bits).to_le_bytes());
                }
            }
        });
    });
}
