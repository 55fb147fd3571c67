//! The file of a checkpoint with the optimizer state, `training/optimizer.safetensors`: moments, their scales, and
//! low bits of the master weights. Its tensors have the shapes of whole parameters, without padding, for any number
//! of ranks: each rank writes the bytes of its cells at their offsets. So any number of ranks can resume from the
//! file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::step::trainer::Trainer;
use reel_device::DType;
use reel_input::tensor_file::{HeaderEntry, write_safetensors_header};
use reel_runtime::Tensor;
use reel_runtime::optim::{CellState, MomentFormat, WEIGHTS_PER_SCALE};
use safetensors::SafeTensors;

use super::parts::{FilePart, PartContents, TensorBytes, write_parts};
use crate::runs::folder::resume::RunState;

/// The path of the optimizer file in a checkpoint folder.
pub(super) const OPTIMIZER_FILE: &str = "training/optimizer.safetensors";

/// The description of a tensor in the optimizer file, without its bytes.
#[derive(Debug)]
struct StateTensor {
    name: String,
    dtype: &'static str,
    element_bytes: usize,
    shape: Vec<usize>,
}

impl StateTensor {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.element_bytes) as u64
    }
}

/// Consecutive bytes of the file that this rank writes: one cell of one tensor.
#[derive(Debug)]
struct CellBytes {
    /// The position of the first byte of the cell in the file.
    offset: u64,
    held: TensorBytes,
}

/// The optimizer file of a checkpoint. This rank holds the bytes of its own cells.
#[derive(Debug)]
pub(super) struct OptimizerFile {
    header: Vec<u8>,
    /// Number of bytes of the whole file.
    len: u64,
    cells: Vec<CellBytes>,
}

impl OptimizerFile {
    /// Captures the optimizer state of `t` without copying it.
    ///
    /// # Errors
    /// The header cannot be made.
    pub fn capture(t: &Trainer) -> io::Result<Self> {
        let mut tensors = state_tensors(t);
        // Larger elements come first, so that each tensor in the file is aligned for its type.
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.element_bytes));
        let mut header = Vec::new();
        let shapes: Vec<(&StateTensor, u64)> = tensors.iter().map(|(_, tensor)| (tensor, tensor.bytes())).collect();
        let entries =
            shapes.iter().map(|&(t, bytes)| HeaderEntry { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes });
        write_safetensors_header(&mut header, entries)?;
        let cells: BTreeMap<&str, &[CellState]> =
            t.optimizer.parameter_states().map(|(name, _, state)| (name, &state.cells[..])).collect();
        let (mut len, mut written) = (header.len() as u64, Vec::new());
        for (kind, tensor) in &tensors {
            let name = &tensor.name[kind.prefix().len()..];
            for cell in cells.get(name).copied().unwrap_or_default() {
                let Some(part) = kind.of(cell) else { continue };
                let offset = len + kind.bytes_of(cell, tensor).start as u64;
                written.push(CellBytes { offset, held: TensorBytes::Tensor(part.clone()) });
            }
            len += tensor.bytes();
        }
        Ok(Self { header, len, cells: written })
    }

    /// Returns the tensors of which this rank writes bytes.
    pub fn tensors_of_this_rank(&mut self) -> impl Iterator<Item = &mut TensorBytes> {
        self.cells.iter_mut().map(|cell| &mut cell.held)
    }

    /// Creates the file with its header and its full length. Rank 0 calls it before all ranks write their cells.
    pub fn create(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.header)?;
        File::options().write(true).open(path)?.set_len(self.len)
    }

    /// Writes this rank's cells to the created file.
    pub fn write_cells(&self, path: &Path) -> io::Result<()> {
        let parts = self.cells.iter().map(|CellBytes { offset, held }| FilePart {
            offset: *offset,
            bytes: held.len() as u64,
            contents: PartContents::Held(held),
        });
        write_parts(path, parts)
    }
}

/// A kind of tensor in the optimizer file.
#[derive(Clone, Copy, Debug)]
enum StateTensorKind {
    FirstMoment,
    SecondMoment,
    Scales,
    LowBits,
}

impl StateTensorKind {
    const ALL: [Self; 4] = [Self::FirstMoment, Self::SecondMoment, Self::Scales, Self::LowBits];

    /// The prefix of the tensor's name. The parameter's name follows it.
    fn prefix(self) -> &'static str {
        match self {
            Self::FirstMoment => "m/",
            Self::SecondMoment => "v/",
            Self::Scales => "scales/",
            Self::LowBits => "low/",
        }
    }

    /// Returns the tensor of this kind in the state of a cell; `None` if the optimizer has none of this kind.
    fn of(self, cell: &CellState) -> Option<&Tensor> {
        match self {
            Self::FirstMoment => Some(&cell.m),
            Self::SecondMoment => Some(&cell.v),
            Self::Scales => cell.scales.as_ref(),
            Self::LowBits => cell.low.as_ref(),
        }
    }

    /// Returns the element type in the file and its size in bytes; `None` if the optimizer has no tensor of this
    /// kind.
    fn dtype(self, moments: MomentFormat, weights: DType) -> Option<(&'static str, usize)> {
        match (self, moments) {
            (Self::FirstMoment | Self::SecondMoment, MomentFormat::F32) => Some(("F32", 4)),
            (Self::FirstMoment | Self::SecondMoment, MomentFormat::Bf16) => Some(("BF16", 2)),
            (Self::FirstMoment, MomentFormat::Int8) => Some(("I8", 1)),
            (Self::SecondMoment, MomentFormat::Int8) => Some(("U8", 1)),
            (Self::Scales, MomentFormat::Int8) => Some(("F32", 4)),
            (Self::Scales, MomentFormat::F32 | MomentFormat::Bf16) => None,
            (Self::LowBits, _) => (weights == DType::BF16).then_some(("U16", 2)),
        }
    }

    /// Returns the range of bytes that a cell has in the tensor of its parameter.
    fn bytes_of(self, cell: &CellState, tensor: &StateTensor) -> Range<usize> {
        let start = match self {
            Self::Scales => cell.range.start / WEIGHTS_PER_SCALE * 2 * tensor.element_bytes,
            Self::FirstMoment | Self::SecondMoment | Self::LowBits => cell.range.start * tensor.element_bytes,
        };
        start..start + self.of(cell).map_or(0, |t| t.unpadded_bytes())
    }
}

/// Lists the tensors of the optimizer file, in the order of the parameters' names.
fn state_tensors(t: &Trainer) -> Vec<(StateTensorKind, StateTensor)> {
    let mut tensors = Vec::new();
    for (name, parameter, _) in t.optimizer.parameter_states() {
        for kind in StateTensorKind::ALL {
            let Some((dtype, element_bytes)) = kind.dtype(t.optimizer.moment_format(), parameter.dtype()) else {
                continue;
            };
            let shape = match kind {
                StateTensorKind::Scales => vec![parameter.count().div_ceil(WEIGHTS_PER_SCALE), 2],
                _ => parameter.unpadded_shape().to_vec(),
            };
            tensors.push((kind, StateTensor { name: format!("{}{name}", kind.prefix()), dtype, element_bytes, shape }));
        }
    }
    tensors
}

/// Number of bytes of the optimizer state on this rank, which is the memory that a copy for a checkpoint needs.
pub(super) fn optimizer_state_bytes(t: &Trainer) -> u64 {
    let cells = t.optimizer.parameter_states().flat_map(|(_, _, state)| &state.cells);
    let tensors = cells.flat_map(|cell| StateTensorKind::ALL.iter().filter_map(move |kind| kind.of(cell)));
    tensors.map(|tensor| tensor.unpadded_bytes() as u64).sum()
}

/// Loads the optimizer state of a checkpoint into `t`: moments, low bits of the master weights and step counts. The
/// weights of the same checkpoint must already have been loaded into `t`.
///
/// # Errors
/// The file cannot be read, or has other tensors than this run.
pub fn load_optimizer_state(folder: &Path, t: &mut Trainer, state: &RunState) -> Result<()> {
    let path = folder.join(OPTIMIZER_FILE);
    let damaged = |what: String| Error::failed(path.display().to_string(), what, "resume from another checkpoint");
    let mapped = reel_device::MappedFile::open(&path).map_err(|e| Error::cannot_read(&path, e))?;
    let stored = SafeTensors::deserialize(mapped.as_bytes()).map_err(|e| damaged(format!("is damaged: {e}")))?;
    t.optimizer.set_step_counts(|name| state.parameter_steps.get(name).copied().unwrap_or(state.step));
    let tensors = state_tensors(t);
    let cells: BTreeMap<&str, &[CellState]> =
        t.optimizer.parameter_states().map(|(name, _, state)| (name, &state.cells[..])).collect();
    for (kind, tensor) in &tensors {
        let StateTensor { name, dtype, shape, .. } = tensor;
        let view = stored.tensor(name).map_err(|_| damaged(format!("lacks {name}")))?;
        if view.dtype().to_string() != *dtype || view.shape() != shape {
            let what = format!("{name} is {} {:?}, expected {dtype} {shape:?}", view.dtype(), view.shape());
            return Err(damaged(what));
        }
        for cell in cells.get(&name[kind.prefix().len()..]).copied().unwrap_or_default() {
            let Some(part) = kind.of(cell) else { continue };
            part.write_unpadded(&view.data()[kind.bytes_of(cell, tensor)])?;
        }
    }
    if tensors.len() != stored.len() {
        return Err(damaged(format!("holds {} optimizer tensors, but this run has {}", stored.len(), tensors.len())));
    }
    Ok(())
}
