//! AdamW on named parameters (Loshchilov and Hutter, "Decoupled Weight Decay Regularization").
//!
//! Moments are f32, or bf16 or 8-bit with stochastic rounding. A bf16 weight has an exact f32 master weight: its own
//! 16 bits and 16 low bits that the optimizer keeps. If a parameter has no gradient in a step, the parameter and its
//! step count do not change.
//!
//! The gradient norm and the hashes of the weights take one launch each, and a step takes one launch per dtype of the
//! weights. These numbers do not depend on the number of parameters, because tables in device memory list the
//! parameters (`tables.rs`).
//!
//! In a job of several ranks, each rank has only the state of its own [cells](super::partition) and updates their
//! weights. With ZeRO-3, the rank also has only the weights of these cells.

mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytemuck::Zeroable;
use reel_device::launch::ArrayEntry;
use reel_device::{Addr, DType, Device, MemoryCategory};
use reel_kernels::fingerprint::ByteRange;
use reel_kernels::{adamw as kernel, fingerprint, reduce};

use super::partition::{ParameterSize, Partition};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::tape::{Grads, fill_zero};
use tables::{ParameterTables, hashed_ranges};

/// The AdamW hyperparameters of one parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWParams {
    /// The learning rate.
    pub learning_rate: f64,
    /// β₁, the decay rate of the first moment.
    pub beta1: f64,
    /// β₂, the decay rate of the second moment.
    pub beta2: f64,
    /// The number that is added to the square root of the second moment.
    pub epsilon: f64,
    /// The coefficient of the decoupled weight decay.
    pub weight_decay: f64,
}

/// The storage type of the moments. Bf16 and 8-bit moments are rounded stochastically, so updates smaller than the
/// spacing of representable values still count on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// f32: 8 bytes for both moments of a weight.
    #[default]
    F32,
    /// bf16: 4 bytes for both moments of a weight.
    Bf16,
    /// 8-bit codes with two f32 scales for each block of [`kernel::WEIGHTS_PER_SCALE`] weights: 2.03 bytes for both
    /// moments of a weight.
    Int8,
}

impl MomentFormat {
    fn dtype(self) -> DType {
        match self {
            MomentFormat::F32 => DType::F32,
            MomentFormat::Bf16 => DType::BF16,
            MomentFormat::Int8 => DType::U8,
        }
    }

    fn of_kernel(self) -> kernel::Moments {
        match self {
            MomentFormat::F32 => kernel::Moments::F32,
            MomentFormat::Bf16 => kernel::Moments::Bf16,
            MomentFormat::Int8 => kernel::Moments::Int8,
        }
    }
}

/// The optimizer state of one parameter.
#[derive(Clone, Debug, Default)]
pub struct ParameterState {
    /// The states of the parameter's cells that this rank owns; in a single process, one cell for the whole parameter.
    pub cells: Vec<CellState>,
    /// The number of steps in which this parameter had a gradient.
    pub steps: u64,
}

/// Finds the weights of a cell by the name of its parameter and the index of its first weight.
type WeightsOfCell<'f> = &'f dyn Fn(&str, usize) -> Option<Tensor>;

/// The optimizer state of a cell of n weights. A cell that is a whole parameter has tensors of the parameter's shape.
#[derive(Clone, Debug)]
pub struct CellState {
    /// The weights of the cell, as indices into the parameter.
    pub range: Range<usize>,
    /// The weights, `[n]`: a part of the parameter's memory or, with ZeRO-3, separate memory.
    pub weights: Tensor,
    /// First moment, `[n]`: f32, bf16, or signed 8-bit codes (as U8).
    pub m: Tensor,
    /// Second moment, `[n]`: f32, bf16, or unsigned 8-bit codes.
    pub v: Tensor,
    /// f32 `[ceil(n / WEIGHTS_PER_SCALE), 2]`: for 8-bit moments, the scales of m and v in each block of codes.
    pub scales: Option<Tensor>,
    /// For a bf16 parameter, the low 16 bits of the f32 master weights (two's complement), `[n]`.
    pub low: Option<Tensor>,
}

impl CellState {
    /// Creates the optimizer state of a cell, the range of a parameter's weights that one rank updates: zero moments,
    /// and master weights equal to the weights.
    fn new(p: &Tensor, range: &Range<usize>, weights: Tensor, moments: MomentFormat) -> Result<Self> {
        let (device, n) = (p.device(), range.len());
        let is_whole = n == p.count();
        let like = |dtype| match is_whole {
            true => Tensor::empty(device, p.shape(), dtype, MemoryCategory::Optimizer)?
                .with_unpadded_shape(p.unpadded_shape()),
            false => Tensor::empty(device, &[n], dtype, MemoryCategory::Optimizer),
        };
        let (m, v) = (like(moments.dtype())?, like(moments.dtype())?);
        let scales = match moments {
            MomentFormat::Int8 => {
                let shape = [n.div_ceil(kernel::WEIGHTS_PER_SCALE), 2];
                Some(Tensor::empty(device, &shape, DType::F32, MemoryCategory::Optimizer)?)
            }
            MomentFormat::F32 | MomentFormat::Bf16 => None,
        };
        [&m, &v].into_iter().chain(&scales).try_for_each(fill_zero)?;
        let low = if p.dtype() == DType::BF16 { Some(like(DType::U16)?) } else { None };
        if let Some(low) = &low {
            let w = weights.addr();
            let params = kernel::SplitParams { src: w, w, low: low.addr(), n: n as u64 };
            device.launch(&kernel::split_master(&params))?;
        }
        Ok(Self { range: range.clone(), weights, m, v, scales, low })
    }
}

/// The gradients of a step, by the names of the parameters.
pub trait GradientSource {
    /// The names of the parameters that have a gradient.
    fn names(&self) -> impl Iterator<Item = &str>;
    /// The address of a parameter's gradient, f32, from its element `start` on; null if the parameter has no gradient.
    fn address(&self, parameter: &str, start: usize) -> Addr;
}

impl GradientSource for Grads {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    fn address(&self, parameter: &str, start: usize) -> Addr {
        self.get(parameter).map_or(Addr::NULL, |gradient| gradient.addr().offset(start * DType::F32.size()))
    }
}

/// The AdamW optimizer with the state of all parameters or, on one of several ranks, of the cells that the rank owns.
#[derive(Debug)]
pub struct AdamW {
    moments: MomentFormat,
    seed: u64,
    parameters: BTreeMap<String, (Tensor, ParameterState)>,
    partition: Partition,
    /// Whether this rank stores only the weights of its own cells instead of whole parameters (ZeRO-3).
    has_only_owned_cells: bool,
    /// The tables of the parameters; `None` if there are no parameters.
    tables: Option<ParameterTables>,
}

impl AdamW {
    /// An optimizer of these parameters, with zero moments and master weights equal to the weights. The random numbers
    /// of stochastic rounding depend on `seed`, the parameter's index in the order of names, its step count, and the
    /// weight's index.
    ///
    /// # Errors
    /// The device is out of memory; a tensor is not a parameter; moments are 8-bit and a parameter has padded columns,
    /// because the blocks of 8-bit codes would then differ from the blocks of the unpadded weights in files.
    pub fn new(parameters: &[Tensor], moments: MomentFormat, seed: u64) -> Result<AdamW> {
        Self::for_rank(parameters, moments, seed, 0, 1)
    }

    /// Like [`Self::new`], for rank `rank` of `ranks`: creates the state of the cells that this rank owns.
    ///
    /// # Errors
    /// The errors of [`Self::new`].
    pub fn for_rank(
        parameters: &[Tensor],
        moments: MomentFormat,
        seed: u64,
        rank: usize,
        ranks: usize,
    ) -> Result<AdamW> {
        let partition = |sizes: &[ParameterSize]| Partition::new(sizes, rank, ranks);
        Self::with_partition(parameters, moments, seed, partition, None)
    }

    /// Like [`Self::for_rank`], for parameters whose memory exists only while it is needed (ZeRO-3). `weights_of` has
    /// the weights of each cell that this rank owns, by the parameter's name and the cell's first weight.
    ///
    /// # Errors
    /// The errors of [`Self::new`]; a cell without weights.
    pub fn for_rank_with_cells(
        parameters: &[Tensor],
        moments: MomentFormat,
        seed: u64,
        (rank, ranks): (usize, usize),
        weights_of: WeightsOfCell<'_>,
    ) -> Result<AdamW> {
        let partition = |sizes: &[ParameterSize]| Partition::new(sizes, rank, ranks);
        Self::with_partition(parameters, moments, seed, partition, Some(weights_of))
    }

    fn with_partition(
        parameters: &[Tensor],
        moments: MomentFormat,
        seed: u64,
        partition: impl Fn(&[ParameterSize]) -> Partition,
        weights_of: Option<WeightsOfCell<'_>>,
    ) -> Result<AdamW> {
        let mut all = BTreeMap::new();
        for p in parameters {
            let name = p.parameter_name().ok_or_else(|| {
                shape_error("adamw", "got a tensor that is not a parameter; make it one with into_parameter")
            })?;
            if moments == MomentFormat::Int8 && p.unpadded_runs().count > 1 {
                let what = format!("the columns of {name} are padded with zeros, which 8-bit moments do not support");
                return Err(shape_error("adamw", format!("{what}; load its weights without padding")));
            }
            all.insert(name.to_string(), (p.clone(), ParameterState::default()));
        }
        let partition = partition(&all.values().map(|(p, _)| ParameterSize::of_tensor(p)).collect::<Vec<_>>());
        let names: Vec<String> = all.keys().cloned().collect();
        for cell in partition.owned_cells() {
            let name = &names[cell.parameter];
            let Some((p, state)) = all.get_mut(name) else { continue };
            let weights = match weights_of {
                None => cell.slice_of(p)?,
                Some(weights_of) => weights_of(name, cell.range.start).ok_or_else(|| {
                    shape_error("adamw", format!("{name}: this rank does not have the elements {:?}", cell.range))
                })?,
            };
            state.cells.push(CellState::new(p, &cell.range, weights, moments)?);
        }
        let has_only_owned_cells = weights_of.is_some();
        let tables = match all.first_key_value() {
            Some((_, (first, _))) => Some(ParameterTables::new(first.device(), all.values(), has_only_owned_cells)?),
            None => None,
        };
        Ok(AdamW { moments, seed, parameters: all, partition, has_only_owned_cells, tables })
    }

    /// The storage type of the moments.
    pub fn moment_format(&self) -> MomentFormat {
        self.moments
    }

    /// Whether this rank has only the weights of its cells, not those of whole parameters (ZeRO-3).
    pub fn has_only_owned_cells(&self) -> bool {
        self.has_only_owned_cells
    }

    /// Which cells of the parameters belong to which rank.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// All parameters with their optimizer states, in the order of their names.
    pub fn parameter_states(&self) -> impl Iterator<Item = (&str, &Tensor, &ParameterState)> {
        self.parameters.iter().map(|(name, (p, s))| (name.as_str(), p, s))
    }

    /// Sets the step count of each parameter, as in a resumed run. Moments are written with [`Tensor::write`].
    pub fn set_step_counts(&mut self, steps: impl Fn(&str) -> u64) {
        self.parameters.iter_mut().for_each(|(name, (_, state))| state.steps = steps(name));
    }

    /// Writes the addresses of this step's gradients to their table. Returns the number of all gradient elements.
    ///
    /// # Errors
    /// A gradient of a tensor that is not among the optimizer's parameters.
    fn set_gradients(&mut self, gradients: &impl GradientSource) -> Result<u64> {
        if let Some(name) = gradients.names().find(|name| !self.parameters.contains_key(*name)) {
            let what = format!("{name} has a gradient, but the optimizer was made without it");
            return Err(shape_error("adamw", format!("{what}; give AdamW::new all parameters that are trained")));
        }
        let cells = self.parameters.iter().flat_map(|(name, (_, s))| s.cells.iter().map(move |cell| (name, cell)));
        let entry = |(name, cell): (&String, &CellState)| ArrayEntry {
            x: gradients.address(name, cell.range.start),
            len: cell.range.len() as u64,
        };
        let entries: Vec<ArrayEntry> = cells.map(entry).collect();
        self.tables.iter_mut().try_for_each(|tables| tables.gradients.replace(&entries))?;
        Ok(entries.iter().filter(|entry| !entry.x.is_null()).map(|entry| entry.len).sum())
    }

    /// The L2 norm of all gradients, and the factor `min(1, max_norm / (norm + 1e-6))` that clips them: f32 `[2]` on
    /// the device.
    ///
    /// # Errors
    /// A gradient of a tensor that is not among the optimizer's parameters; a device error.
    pub fn norm_and_clip_factor(
        &mut self,
        device: &Device,
        gradients: &impl GradientSource,
        max_norm: f32,
    ) -> Result<Tensor> {
        let partials = self.sums_of_squares(device, gradients)?;
        clip_factor(device, &partials, max_norm)
    }

    /// Computes the sums of squares of the gradients of this rank's cells, one for each chunk of
    /// [`reduce::ELEMENTS_PER_CHUNK`] elements, in the order of the cells: f64 `[chunks]`, stored as f32 `[chunks, 2]`.
    /// A chunk without a gradient has the sum 0.
    ///
    /// # Errors
    /// A gradient of a tensor that is not among the optimizer's parameters; a device error.
    pub fn sums_of_squares(&mut self, device: &Device, gradients: &impl GradientSource) -> Result<Tensor> {
        let elements = self.set_gradients(gradients)?;
        let count = self.tables.as_ref().map_or(0, |tables| tables.norm_chunks.count);
        // Each f64 partial sum takes two f32 elements.
        let partials = Tensor::empty(device, &[count as usize, 2], DType::F32, MemoryCategory::Workspace)?;
        if let Some(tables) = &self.tables {
            let params = reduce::SumSquaresParams {
                arrays: tables.gradients.addr(),
                chunks: tables.norm_chunks.addr(),
                partials: partials.addr(),
                chunk_count: count,
            };
            device.launch(&reduce::sum_squares(&params, tables.gradients.contents(), elements))?;
        }
        Ok(partials)
    }

    /// Updates the weights of this rank's cells once. Each gradient is multiplied by the clipping factor in `clip` (see
    /// [`Self::norm_and_clip_factor`]). `hyper` returns the hyperparameters of a parameter by its name.
    ///
    /// # Errors
    /// A gradient of a tensor that is not among the optimizer's parameters; a device error.
    pub fn step(
        &mut self,
        gradients: &impl GradientSource,
        clip: &Tensor,
        hyper: impl Fn(&str) -> AdamWParams,
    ) -> Result<()> {
        self.set_gradients(gradients)?;
        let Some(tables) = &self.tables else { return Ok(()) };
        let reached: BTreeSet<&str> = gradients.names().collect();
        let mut steps = Vec::with_capacity(self.parameters.len());
        // The numbers of f32 and of bf16 weights that this step changes.
        let mut weights = [(DType::F32, 0), (DType::BF16, 0)];
        for (index, (name, (p, state))) in (0u64..).zip(&mut self.parameters) {
            if !reached.contains(name.as_str()) {
                steps.extend(state.cells.iter().map(|_| kernel::StepEntry::zeroed()));
                continue;
            }
            state.steps += 1;
            let h = hyper(name);
            let scalars = kernel::StepHyperparameters {
                lr: h.learning_rate,
                beta1: h.beta1,
                beta2: h.beta2,
                eps: h.epsilon,
                weight_decay: h.weight_decay,
                step: state.steps,
            };
            let stream = rounding_stream(state.steps, index);
            let entry = kernel::StepEntry { stream, numbers: scalars.step_numbers() };
            steps.extend(state.cells.iter().map(|_| entry));
            let owned: usize = state.cells.iter().map(|cell| cell.range.len()).sum();
            weights.iter_mut().filter(|(dtype, _)| *dtype == p.dtype()).for_each(|(_, n)| *n += owned as u64);
        }
        tables.steps.write(&steps)?;
        let params = kernel::Params {
            parameters: tables.parameters.addr(),
            gradients: tables.gradients.addr(),
            steps: tables.steps.addr(),
            chunks: tables.step_chunks.addr(),
            clip: clip.addr(),
            seed: self.seed,
            chunk_count: tables.step_chunks.count,
        };
        for (dtype, weights) in weights.into_iter().filter(|(_, weights)| *weights > 0) {
            let (parameters, gradients) = (tables.parameters.contents(), tables.gradients.contents());
            let tables = kernel::StepTables { parameters, gradients };
            clip.device().launch(&kernel::step(dtype, self.moments.of_kernel(), &params, tables, weights))?;
        }
        Ok(())
    }
}

impl AdamW {
    /// Computes a 64-bit hash of the bits of each parameter, without its padding. The result is sorted by name. The
    /// hashes are computed on the device, so weights are not downloaded. With ZeRO-3, the hash of a parameter covers
    /// only the cells of this rank. The sum of the hashes of all ranks, modulo 2^64, is the hash of the parameter.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn parameter_hashes(&self) -> Result<Vec<(&str, u64)>> {
        let (Some(tables), Some((_, (first, _)))) = (&self.tables, self.parameters.first_key_value()) else {
            return Ok(Vec::new());
        };
        let (device, chunk_count) = (first.device(), tables.hash_chunks.count);
        // Each u64 sum takes two i32 elements.
        let shape = [chunk_count as usize * fingerprint::SUMS_PER_CHUNK, 2];
        let sums = Tensor::empty(device, &shape, DType::I32, MemoryCategory::Workspace)?;
        let (arrays, chunks) = (tables.weights.addr(), tables.hash_chunks.addr());
        let params = fingerprint::Params { arrays, chunks, sums: sums.addr(), chunk_count };
        let mut ranges = Vec::new();
        for (p, state) in self.parameters.values() {
            ranges.push(hashed_ranges(p, state, self.has_only_owned_cells)?);
        }
        let bytes = ranges.iter().flatten().map(|range| range.len).sum();
        device.launch(&fingerprint::fingerprint(&params, tables.weights.contents(), bytes))?;
        let words = sums.read_bytes()?;
        let mut rest = words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut hash = |ranges: &Vec<ByteRange>| {
            let chunks: usize =
                ranges.iter().map(|range| (range.len as usize).div_ceil(fingerprint::BYTES_PER_CHUNK)).sum();
            rest.by_ref().take(chunks * fingerprint::SUMS_PER_CHUNK).fold(0, u64::wrapping_add)
        };
        Ok(self.parameters.keys().zip(&ranges).map(|(name, ranges)| (name.as_str(), hash(ranges))).collect())
    }
}

/// Computes the L2 norm of gradients from their sums of squares, and the factor that clips them to `max_norm`: f32
/// `[2]`, as [`AdamW::norm_and_clip_factor`] returns it. `partials` has the [`AdamW::sums_of_squares`] of all cells, in
/// the order of the cells.
///
/// # Errors
/// A device error.
pub fn clip_factor(device: &Device, partials: &Tensor, max_norm: f32) -> Result<Tensor> {
    let out = Tensor::empty(device, &[2], DType::F32, MemoryCategory::Workspace)?;
    let count = (partials.count() / 2) as u64;
    let params = reduce::ClipParams { partials: partials.addr(), out: out.addr(), count, max_norm, reserved: 0 };
    device.launch(&reduce::clip(&params))?;
    Ok(out)
}

/// The number of the Philox stream from which one parameter gets its random numbers for stochastic rounding in one
/// step. Its highest bit separates it from the streams that sampling uses with the same seed.
fn rounding_stream(step: u64, parameter: u64) -> u64 {
    (1 << 63) | (step << 24) | parameter
}

#[cfg(test)]
mod tests;
