//! Tensor copies: boxes of a tensor that a tensor map describes, between global and shared memory.

use super::bulk::{BulkRequest, add_bulk_store, count_global_bytes};
use super::engine::AsyncEngine;
use super::mbarrier_access::shared_address_in_block;
use crate::exec::context::InstructionContext;
use crate::exec::memory_system::MemorySystem;
use crate::exec::state::copies::{ByteRangeCopy, CompletionSignal, CopyEffect, InFlightOperation, TensorBoxLoad};
use crate::exec::state::location::MemoryLocation;
use crate::finding::FindingKind;
use crate::layout;
use crate::order::{AccessStrength, AsyncOpId, AsyncOpKind};
use crate::program::op::{AddressWindow, BulkCopy, BulkReduction};
use crate::tensor_map::{EncodedMap, Reduction, TensorMap};

/// A copy of a box of a tensor between global and shared memory.
struct BoxCopy<'b> {
    map: &'b TensorMap,
    coordinates: &'b [i32],
    /// Shared address of the box.
    shared: u64,
    lane: u32,
    /// The asynchronous operation to which shadow memory attributes the reads of the source.
    reading: AsyncOpId,
    /// The asynchronous operation to which shadow memory attributes the writes; for a load equal to `reading`.
    writing: AsyncOpId,
    /// Whether the copy goes from global to shared memory.
    load: bool,
    /// Whether an earlier lane issues an equal store (same bytes, same destination) with this instruction.
    repeats_store: bool,
    /// Whether the writes to global memory are weak or strong, and the scope of strong writes.
    strength: AccessStrength,
    /// Whether the copy counts as traffic. A multicast load reads global memory once for all its destinations.
    is_counted: bool,
}

impl AsyncEngine {
    /// Issues a tensor load to the shared memory of one block or of several (multicast).
    pub(super) fn tensor_load(&mut self, cx: &mut InstructionContext, memory: &mut MemorySystem, r: &BulkRequest) {
        let Some(map) = tensor_map_at(cx, memory, r.lane, r.from) else { return };
        if self.issue_tensor_load(cx, memory, r, map).is_none()
            && let Ok(copy) = map.box_copy_at(&r.coordinates, 0)
        {
            self.signal_refused_load(cx, memory, r, copy.bytes());
        }
    }

    /// Issues a tensor load by the tensor map `map`. Returns `None` if the load was reported and not issued.
    fn issue_tensor_load(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        r: &BulkRequest,
        map: TensorMap,
    ) -> Option<()> {
        let lane = r.lane;
        let mbarriers = self.mbarriers_of_copy(cx, memory, lane, r.mbarrier, &r.mbarrier_ranks())?;
        let op = memory.ops.start(AsyncOpKind::TensorCopy, &cx.warp.order, 1 << lane, cx.pc);
        let mut boxes = Vec::with_capacity(r.ranks.len());
        let mut bytes = 0;
        for (i, rank) in r.ranks.iter().enumerate() {
            let shared = shared_address_in_block(r.to, *rank);
            let copy = BoxCopy {
                map: &map,
                coordinates: &r.coordinates,
                shared,
                lane,
                reading: op,
                writing: op,
                load: true,
                repeats_store: false,
                strength: AccessStrength::Weak,
                is_counted: i == 0,
            };
            let Some((MemoryLocation::Shared(slot), _, n)) = self.check_box(cx, memory, &copy) else { return None };
            let shared = layout::split_shared_address(shared as u32, 0).offset;
            boxes.push(TensorBoxLoad { map, coordinates: r.coordinates.clone(), shared, slot });
            bytes = n;
        }
        let signal = CompletionSignal::CompleteTx(mbarriers.into_iter().map(|at| (at, bytes)).collect());
        let effect = CopyEffect { boxes, ..CopyEffect::default() };
        self.start_operation(cx.grid, memory, InFlightOperation { op: Some(op), effect, signal });
        Some(())
    }

    /// Issues a tensor store or tensor reduction from shared to global memory.
    pub(super) fn tensor_store(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        b: &BulkCopy,
        r: &BulkRequest,
    ) {
        let lane = r.lane;
        let Some(map) = tensor_map_at(cx, memory, lane, r.to) else { return };
        if map.data_type.is_converted() {
            cx.report(FindingKind::Unsupported, lane, || {
                format!("tensor stores of elements of type {:?} are not supported", map.data_type)
            });
            return;
        }
        let reduce = match b.reduce {
            Some(BulkReduction::Mapped(op)) => match Reduction::for_tensor_map(op, map.data_type) {
                Some(reduction) => Some(reduction),
                None => {
                    cx.report(FindingKind::Unsupported, lane, || {
                        format!("the tensor reduction does not support elements of type {:?}", map.data_type)
                    });
                    return;
                }
            },
            _ => None,
        };
        let (kind, strength) = match reduce {
            Some(_) => (AsyncOpKind::Reduce, AccessStrength::Gpu),
            None => (AsyncOpKind::TensorCopy, AccessStrength::Weak),
        };
        let reading = memory.ops.start(kind, &cx.warp.order, 1 << lane, cx.pc);
        let writing = memory.ops.start(kind, &cx.warp.order, 1 << lane, cx.pc);
        let coordinates = &r.coordinates[..];
        let (shared, repeats_store) = (r.from, r.repeats_store);
        let copy = BoxCopy {
            map: &map,
            coordinates,
            shared,
            lane,
            reading,
            writing,
            load: false,
            repeats_store,
            strength,
            is_counted: true,
        };
        let Some((location, base, _)) = self.check_box(cx, memory, &copy) else { return };
        let start = layout::split_shared_address(r.from as u32, 0).offset;
        let pieces = store_pieces(memory, &copy, start, location, base);
        let effect = CopyEffect { pieces, reduce, ..CopyEffect::default() };
        add_bulk_store(cx, memory, lane, (reading, writing), effect);
    }

    /// Checks the source and destination bytes of a box copy and counts its traffic. Returns the location, the offset
    /// and the size in bytes of the box in shared memory.
    fn check_box(
        &mut self,
        cx: &mut InstructionContext,
        memory: &mut MemorySystem,
        b: &BoxCopy,
    ) -> Option<(MemoryLocation, u64, u32)> {
        let offset = layout::split_shared_address(b.shared as u32, 0).offset;
        let copy = match b.map.box_copy_at(b.coordinates, offset) {
            Ok(copy) => copy,
            Err(e) => {
                let kind = match e.field.as_str() {
                    "shared address" => FindingKind::Misaligned,
                    "coordinates" => FindingKind::OutOfBounds,
                    _ => FindingKind::Unsupported,
                };
                cx.report_access(kind, b.lane, ("shared", offset as u64), || e.to_string());
                return None;
            }
        };
        let spread = copy.occupied_shared_bytes() as u64;
        let (location, base) = memory.locate_bytes(cx, b.lane, AddressWindow::SharedCluster, b.shared, spread)?;
        // In shared memory a load writes the whole box. A store does not read elements outside the tensor.
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        let mut whole = copy.is_dense();
        if whole && !b.load {
            copy.for_each_row(|r| whole &= r.global.is_some());
        }
        if whole {
            runs.push((base, spread));
        } else {
            copy.for_each_contiguous_part(|r| {
                if b.load || r.global.is_some() {
                    runs.push((base + (r.shared - offset) as u64, r.bytes as u64));
                }
            });
        }
        let (shared_op, shared_write, global_op, global_write) = match b.load {
            true => (b.writing, Some(AccessStrength::Weak), b.reading, None),
            false => (b.reading, None, b.writing, Some(b.strength)),
        };
        memory.check_async_runs(cx, (shared_op, b.lane), location, &runs, shared_write);
        // In global memory the box is checked row by row; consecutive rows in the same buffer are checked together.
        let mut rows = std::mem::take(&mut self.box_rows);
        rows.clear();
        copy.for_each_row(|r| rows.extend(r.global.map(|g| (g, r.bytes))));
        runs.clear();
        let (mut bytes, mut buffer) = (0, None);
        let mut in_bounds = true;
        for &(address, n) in &rows {
            let Some((row_buffer, at)) = memory.locate_global_bytes(cx, b.lane, address, n as u64) else {
                in_bounds = false;
                break;
            };
            if let Some(before) = buffer.replace(row_buffer)
                && before != row_buffer
            {
                if !b.repeats_store {
                    memory.check_async_runs(cx, (global_op, b.lane), before, &runs, global_write);
                }
                runs.clear();
            }
            runs.push((at, n as u64));
            bytes += n as u64;
        }
        // Stores of the same bytes by several lanes do not race with each other.
        if let Some(buffer) = buffer.filter(|_| in_bounds && !b.repeats_store) {
            memory.check_async_runs(cx, (global_op, b.lane), buffer, &runs, global_write);
        }
        (self.runs, self.box_rows) = (runs, rows);
        if !in_bounds {
            return None;
        }
        if b.is_counted {
            count_global_bytes(cx, bytes, !b.load);
        }
        Some((location, base, copy.bytes()))
    }
}

/// Splits a box store into copies of consecutive bytes. The box begins at byte `base` of `location`, a block's shared
/// memory; `start` is the address of this byte.
fn store_pieces(
    memory: &mut MemorySystem,
    b: &BoxCopy,
    start: u32,
    location: MemoryLocation,
    base: u64,
) -> Vec<ByteRangeCopy> {
    let mut pieces = Vec::new();
    let Ok(copy) = b.map.box_copy_at(b.coordinates, start) else { return pieces };
    copy.for_each_contiguous_part(|run| {
        let Some(address) = run.global else { return };
        let Some(index) = memory.find_buffer_index(address) else { return };
        let to_offset = address - memory.buffers.buffer(index).base;
        let from = Some((location, base + (run.shared - start) as u64));
        pieces.push(ByteRangeCopy { to: MemoryLocation::Global(index), to_offset, from, bytes: run.bytes });
    });
    pieces
}

/// Reads and decodes the tensor map at an address.
fn tensor_map_at(cx: &mut InstructionContext, memory: &mut MemorySystem, lane: u32, address: u64) -> Option<TensorMap> {
    if !address.is_multiple_of(64) {
        cx.report(FindingKind::Misaligned, lane, || {
            format!("the tensor map address {address:#x} is not a multiple of 64")
        });
        return None;
    }
    let bytes: Option<Vec<u8>> = match layout::state_space_of(address) {
        Some(AddressWindow::KernelParam) => {
            let from = (address - layout::PARAM_BASE) as usize;
            cx.grid.context.launch.params.get(from..from + 128).map(|b| b.to_vec())
        }
        Some(AddressWindow::Local) => None,
        _ => {
            let found = memory.locate_bytes(cx, lane, AddressWindow::Generic, address, 128);
            found.map(|(at, offset)| {
                if memory.is_writable(at) {
                    memory.check_tensor_map_read(cx, lane, at, (offset, 128), address);
                }
                memory.location_bytes(&cx.grid.blocks, at)[offset as usize..offset as usize + 128].to_vec()
            })
        }
    };
    let Some(blob): Option<EncodedMap> = bytes.and_then(|b| b.try_into().ok()) else {
        cx.report(FindingKind::OutOfBounds, lane, || format!("no tensor map can be read at {address:#x}"));
        return None;
    };
    match TensorMap::decode(&blob) {
        Ok(map) => Some(map),
        Err(e) => {
            cx.report(FindingKind::OutOfBounds, lane, || e.to_string());
            None
        }
    }
}
