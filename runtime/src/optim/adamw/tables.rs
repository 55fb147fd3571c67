//! The tables in device memory by which one launch works on all parameters: the addresses and lengths of the
//! parameters, the chunks into which they are cut, and the values that change from step to step. The tables are made
//! once; a step writes only the scalars, and the addresses of the gradients if they have changed.

use reel_device::launch::{AddressTable, ArrayEntry, Chunk, Params, chunks};
use reel_device::{Addr, DType, Device, MemoryCategory};
use reel_kernels::fingerprint::ByteRange;
use reel_kernels::{adamw as kernel, fingerprint, reduce};

use super::{CellState, ParameterState};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// All tables of an optimizer. The entries are this rank's cells, sorted by the parameter's name, then by the first
/// weight.
#[derive(Debug)]
pub(super) struct ParameterTables {
    /// The weights and the optimizer state of each cell.
    pub parameters: DeviceTable,
    /// The weights that this rank hashes, as ranges of bytes: see [`hashed_ranges`].
    pub weights: DeviceTable,
    /// The gradient of each cell in the current step; null if its parameter has none.
    pub gradients: DeviceTable,
    /// The scalars of the current step for each cell.
    pub steps: Tensor,
    /// The chunks of weights that an AdamW step updates.
    pub step_chunks: DeviceChunks,
    /// The chunks whose sums of squares make up the gradient norm.
    pub norm_chunks: DeviceChunks,
    /// The chunks of bytes that are hashed for the hashes of the weights.
    pub hash_chunks: DeviceChunks,
}

impl ParameterTables {
    /// Makes the tables of `parameters`, which have no gradients yet. With `has_only_owned_cells`, this rank has only
    /// the weights of its cells.
    pub fn new<'a>(
        device: &Device,
        parameters: impl Iterator<Item = &'a (Tensor, ParameterState)> + Clone,
        has_only_owned_cells: bool,
    ) -> Result<ParameterTables> {
        let address = |t: &Option<Tensor>| t.as_ref().map_or(Addr::NULL, Tensor::addr);
        let cells = parameters.clone().flat_map(|(_, state)| &state.cells);
        let entries = cells.clone().map(|cell| kernel::ParameterEntry {
            w: cell.weights.addr(),
            low: address(&cell.low),
            m: cell.m.addr(),
            v: cell.v.addr(),
            scales: address(&cell.scales),
            n: cell.range.len() as u64,
            first: cell.range.start as u64,
        });
        let mut weights = Vec::new();
        for (p, state) in parameters.clone() {
            weights.extend(hashed_ranges(p, state, has_only_owned_cells)?);
        }
        let counts = cells.map(|cell| cell.range.len());
        let gradients = counts.clone().map(|count| ArrayEntry { x: Addr::NULL, len: count as u64 });
        let steps = counts.clone().count() * size_of::<kernel::StepEntry>();
        let step_chunks = chunks(counts.clone(), kernel::WEIGHTS_PER_CHUNK);
        let norm_chunks = chunks(counts, reduce::ELEMENTS_PER_CHUNK);
        let hash_chunks = chunks(weights.iter().map(|range| range.len as usize), fingerprint::BYTES_PER_CHUNK);
        Ok(ParameterTables {
            parameters: DeviceTable::new(device, &entries.collect::<Vec<_>>())?,
            weights: DeviceTable::new(device, &weights)?,
            gradients: DeviceTable::new(device, &gradients.collect::<Vec<_>>())?,
            steps: Tensor::empty(device, &[steps], DType::U8, MemoryCategory::Optimizer)?,
            step_chunks: DeviceChunks::new(device, &step_chunks)?,
            norm_chunks: DeviceChunks::new(device, &norm_chunks)?,
            hash_chunks: DeviceChunks::new(device, &hash_chunks)?,
        })
    }
}

/// The ranges of bytes whose hashes add up to the hash of a parameter without its padding, or with
/// `has_only_owned_cells` to this rank's part of it.
///
/// # Errors
/// The parameter has padded rows whose size is not a multiple of the hash's words of 8 bytes.
pub(super) fn hashed_ranges(p: &Tensor, state: &ParameterState, has_only_owned_cells: bool) -> Result<Vec<ByteRange>> {
    if !has_only_owned_cells {
        return ranges_of(p, 0, p.parameter_name().unwrap_or_default());
    }
    // A cell begins at a multiple of the hash's words, because it is a whole number of chunks.
    let of_cell = |cell: &CellState| {
        ranges_of(&cell.weights, cell.range.start * p.dtype().size() / 8, p.parameter_name().unwrap_or_default())
    };
    Ok(state.cells.iter().map(of_cell).collect::<Result<Vec<_>>>()?.concat())
}

/// The ranges of bytes of a tensor, without its padding, whose first word of 8 bytes has the index `first_word`.
fn ranges_of(t: &Tensor, first_word: usize, name: &str) -> Result<Vec<ByteRange>> {
    let (runs, start) = (t.unpadded_runs(), t.addr());
    if runs.count > 1 && !runs.bytes.is_multiple_of(8) {
        let what =
            format!("the padded rows of {name} have {} bytes of weights, which is not a multiple of 8", runs.bytes);
        return Err(shape_error("fingerprint", format!("{what}; load it without padding")));
    }
    let range = |i: usize| ByteRange {
        x: start.offset(i * runs.pitch),
        len: runs.bytes as u64,
        first_word: (first_word + i * runs.bytes / 8) as u64,
    };
    Ok((0..runs.count).map(range).collect())
}

/// A table in device memory that contains addresses, and a list of these addresses on the host.
#[derive(Debug)]
pub(super) struct DeviceTable {
    memory: Tensor,
    contents: AddressTable,
}

impl DeviceTable {
    fn new<E: Params>(device: &Device, entries: &[E]) -> Result<DeviceTable> {
        Ok(DeviceTable { memory: upload(device, entries)?, contents: AddressTable::new(entries) })
    }

    /// Replaces all entries. Copies them to the device if they differ from the previous entries.
    pub fn replace<E: Params>(&mut self, entries: &[E]) -> Result<()> {
        let contents = AddressTable::new(entries);
        if contents.bytes() != self.contents.bytes() {
            self.memory.write(contents.bytes())?;
            self.contents = contents;
        }
        Ok(())
    }

    /// The address of the table.
    pub fn addr(&self) -> Addr {
        self.memory.addr()
    }

    /// The contents of the table. A launch that reads the table lists these contents.
    pub fn contents(&self) -> AddressTable {
        self.contents.clone()
    }
}

/// A list of chunks in device memory.
#[derive(Debug)]
pub(super) struct DeviceChunks {
    memory: Tensor,
    /// The number of chunks.
    pub count: u64,
}

impl DeviceChunks {
    fn new(device: &Device, list: &[Chunk]) -> Result<DeviceChunks> {
        Ok(DeviceChunks { memory: upload(device, list)?, count: list.len() as u64 })
    }

    /// The address of the list.
    pub fn addr(&self) -> Addr {
        self.memory.addr()
    }
}

fn upload<E: Params>(device: &Device, entries: &[E]) -> Result<Tensor> {
    let bytes: &[u8] = bytemuck::cast_slice(entries);
    Tensor::from_slice(device, &[bytes.len()], DType::U8, bytes, MemoryCategory::Optimizer)
}
