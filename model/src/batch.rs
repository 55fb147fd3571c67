//! Sequences with their pictures and films, packed into one row and put on a device.

use std::borrow::Cow;

use reel_media::frames::FrameBuf;
use reel_media::patches::PatchProcessor;
use reel_runtime::ops::{self, CuSeqlens};
use reel_runtime::{Category, DType, Device, Kernels, Tensor};
use twox_hash::xxhash3_128;

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::input::MediaFrames;
use crate::input::window::{GridThw, Windows, windowed_positions};

/// One sequence on the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence<'a> {
    /// `[S]`
    pub input_ids: &'a [i64],
    /// `[3][S]`: time, height, width.
    pub position_ids: [&'a [i64]; 3],
    /// `[N, patch_dim]` of all pictures, in processor order.
    pub pixel_values: &'a [f32],
    /// One a picture.
    pub image_grid_thw: &'a [GridThw],
    /// `[N, patch_dim]` of all films, in processor order.
    pub pixel_values_videos: &'a [f32],
    /// One a film.
    pub video_grid_thw: &'a [GridThw],
    /// Pictures and films whose pixels are not given as values.
    pub frames: Option<&'a MediaFrames>,
}

/// The pictures or the films of a sequence.
#[derive(Clone, Copy)]
struct Kind<'a> {
    grids: &'a [GridThw],
    values: &'a [f32],
    frames: &'a [FrameBuf],
    /// Whose `frames` are.
    all: Option<&'a MediaFrames>,
    pad: u32,
    name: &'static str,
}

impl<'a> Sequence<'a> {
    fn kinds(&self, config: &ModelConfig) -> [Kind<'a>; 2] {
        let (pictures, films) = self.frames.map_or((&[][..], &[][..]), |f| (&f.images[..], &f.videos[..]));
        // Values that are given stand before frames.
        let kind = |grids, values: &'a [f32], frames, pad, name| {
            let frames: &[FrameBuf] = if values.is_empty() { frames } else { &[] };
            Kind { grids, values, frames, all: self.frames, pad, name }
        };
        let (image, video) = (config.tokens.image, config.tokens.video);
        [
            kind(self.image_grid_thw, self.pixel_values, pictures, image, "pixel_values"),
            kind(self.video_grid_thw, self.pixel_values_videos, films, video, "pixel_values_videos"),
        ]
    }
}

impl<'a> Kind<'a> {
    /// Refuses unless grids, pixels and the number of pads belong together.
    fn check(&self, config: &ModelConfig, pads: usize, place: &str) -> Result<()> {
        let (grids, merge) = (self.grids, config.vision.spatial_merge_size);
        if let Some(g) = grids.iter().find(|g| g[1] % merge != 0 || g[2] % merge != 0 || g.contains(&0)) {
            return Err(ModelError::inputs(
                place,
                format!("grid {g:?} has sides that are no multiples of {merge}"),
                "make it with `reel preprocess`",
            ));
        }
        let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();
        let (dim, cut) = (config.vision.patch_dim(), self.cut()?);
        if cut.is_empty() && self.values.len() != patches * dim {
            let what = format!("{} values, but the grids want {patches} patches of {dim}", self.values.len());
            return Err(ModelError::inputs(place, what, "make it with `reel preprocess`"));
        }
        if !cut.is_empty() && cut != grids {
            return Err(ModelError::inputs(
                place,
                format!("frames of {cut:?} patches, but the grids are {grids:?}"),
                "the grids must be those of the frames",
            ));
        }
        if pads * config.vision.merge_unit() != patches {
            let what = format!("{pads} pads in the ids for {} vision tokens", patches / config.vision.merge_unit());
            return Err(ModelError::inputs(place, what, "the ids and the media must belong together"));
        }
        Ok(())
    }

    /// The grids of the frames.
    fn cut(&self) -> Result<Vec<GridThw>> {
        let Some(all) = self.all else { return Ok(Vec::new()) };
        self.frames.iter().map(|f| all.grid(f)).collect()
    }

    /// The pixels of all patches, in processor order.
    fn pixels(&self) -> Result<Cow<'a, [f32]>> {
        match self.all {
            Some(all) if !self.frames.is_empty() => all.pixels(self.frames).map(Cow::Owned),
            _ => Ok(Cow::Borrowed(self.values)),
        }
    }
}

/// Packed sequences on a device. `S` tokens of all sequences.
#[derive(Clone, Debug)]
pub struct Batch {
    /// i32 `[S]`
    pub ids: Tensor,
    /// i32 `[3, S]`
    pub positions: Tensor,
    /// Where each sequence begins.
    pub seqs: CuSeqlens,
    /// Pictures and films, if there are any.
    pub media: Option<VisionInput>,
}

/// The media of a batch in the vision tower's order. `N` patches, `M` = N / merge² tokens.
#[derive(Clone, Debug)]
pub struct VisionInput {
    /// What the patches are made of.
    pub pixels: PatchSource,
    /// i32 `[2, N]`: row and column of each patch.
    pub positions: Tensor,
    /// Frames, for full blocks.
    pub frames: CuSeqlens,
    /// Windows, for windowed blocks.
    pub windows: CuSeqlens,
    /// How the tokens come back from the tower's order.
    pub reverse: Reverse,
    /// i32 `[S]`: the vision token, in processor order, that each token of the batch stands for; -1 where it is text.
    pub slots: Tensor,
    /// A hash of the pixels and their grids.
    pub key: u128,
}

/// Where the first product of the vision tower finds its patches.
#[derive(Clone, Debug)]
pub enum PatchSource {
    /// `[N, patch_dim]` in the dtype of activations, in the tower's order.
    Values(Tensor),
    /// Decoded media, in processor order, and i32 `[N]`: the patch, in that order, at each place of the tower's order.
    Frames(Vec<ops::DeviceFrames>, Tensor),
}

/// The way from the tower's order back to processor order.
#[derive(Clone, Debug)]
pub enum Reverse {
    /// Before the merger, together with its norm: i32 `[N]`, the tower's place of each patch.
    Patches(Tensor),
    /// After the merger: i32 `[M]`, the tower's place of each token.
    Tokens(Tensor),
}

impl Reverse {
    /// `index`: the tower's place of each square of `unit` patches. On a GPU the norm reads its rows from anywhere at no cost; the
    /// processor is quicker when it moves the merger's results, which are fewer numbers than the patches.
    fn new(device: &Device, index: &[usize], unit: usize) -> Result<Reverse> {
        let put = |index: Vec<i32>| Tensor::from_i32(device, &[index.len()], &index);
        Ok(match device.kernels() {
            Kernels::Cuda => {
                Reverse::Patches(put(index.iter().flat_map(|&i| i * unit..(i + 1) * unit).map(|i| i as i32).collect())?)
            }
            Kernels::Cpu => Reverse::Tokens(put(index.iter().map(|&i| i as i32).collect())?),
        })
    }
}

impl Batch {
    /// Packs `sequences`; pixels become `dtype`. `place` names them in messages.
    ///
    /// # Errors
    /// Ids outside the vocabulary; pads that do not match the grids; pixels that do not match either; out of memory.
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        sequences: &[Sequence],
        place: &str,
    ) -> Result<Batch> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.input_ids.len()).collect();
        let ids = sequences
            .iter()
            .flat_map(|s| s.input_ids)
            .map(|&id| checked_id(id, config, place))
            .collect::<Result<Vec<i32>>>()?;
        let mut positions = Vec::with_capacity(3 * ids.len());
        for axis in 0..3 {
            for s in sequences {
                if s.position_ids[axis].len() != s.input_ids.len() {
                    let what = format!("{} positions for {} ids", s.position_ids[axis].len(), s.input_ids.len());
                    return Err(ModelError::inputs(
                        format!("{place}: position_ids"),
                        what,
                        "give one for each id on each axis",
                    ));
                }
                positions.extend(s.position_ids[axis].iter().map(|&p| p as i32));
            }
        }
        Ok(Batch {
            positions: Tensor::from_i32(device, &[3, ids.len()], &positions)?,
            ids: Tensor::from_i32(device, &[ids.len()], &ids)?,
            seqs: CuSeqlens::from_lengths(device, &lengths)?,
            media: VisionInput::new(device, config, dtype, sequences, place)?,
        })
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.ids.count()
    }
}

fn checked_id(id: i64, config: &ModelConfig, place: &str) -> Result<i32> {
    if (0..config.text.vocab_size as i64).contains(&id) {
        return Ok(id as i32);
    }
    let what = format!("id {id} is outside the vocabulary of {}", config.text.vocab_size);
    Err(ModelError::inputs(format!("{place}: input_ids"), what, "use the tokenizer of this model"))
}

impl VisionInput {
    /// The key of a sequence's media; none where it has none.
    pub fn key_of(sequence: &Sequence, config: &ModelConfig) -> Option<u128> {
        let kinds = sequence.kinds(config);
        kinds.iter().any(|kind| !kind.grids.is_empty()).then(|| key(&kinds))
    }

    /// The media of sequences; none where there are none. `place` names them in messages.
    ///
    /// # Errors
    /// Those of [`Batch::new`].
    pub fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        sequences: &[Sequence],
        place: &str,
    ) -> Result<Option<VisionInput>> {
        let (mut grids, mut kinds) = (Vec::new(), Vec::new());
        let tokens = sequences.iter().map(|s| s.input_ids.len()).sum::<usize>();
        let (mut slots, mut placed) = (vec![-1; tokens], 0);
        let mut start = 0;
        for s in sequences {
            for kind in s.kinds(config) {
                let first = placed;
                for (slot, _) in slots[start..].iter_mut().zip(s.input_ids).filter(|(_, id)| **id == kind.pad as i64) {
                    *slot = placed;
                    placed += 1;
                }
                kind.check(config, (placed - first) as usize, &format!("{place}: {}", kind.name))?;
                grids.extend_from_slice(kind.grids);
                kinds.push(kind);
            }
            start += s.input_ids.len();
        }
        if placed == 0 {
            return Ok(None);
        }
        let plan = Windows::plan(&grids, &config.vision);
        let at = windowed_positions(&grids, &config.vision, &plan);
        let axis = |i: usize| at.iter().map(move |p| p[i] as i32);
        let as_i32 = |v: &[usize]| v.iter().map(|&x| x as i32).collect::<Vec<i32>>();
        Ok(Some(VisionInput {
            pixels: PatchSource::new(device, config, dtype, &kinds, &plan.window_index)?,
            positions: Tensor::from_i32(device, &[2, at.len()], &axis(0).chain(axis(1)).collect::<Vec<_>>())?,
            frames: CuSeqlens::new(device, &as_i32(&plan.cu_seqlens))?,
            windows: CuSeqlens::new(device, &as_i32(&plan.cu_window_seqlens))?,
            reverse: Reverse::new(device, &plan.reverse_index, config.vision.merge_unit())?,
            slots: Tensor::from_i32(device, &[slots.len()], &slots)?,
            key: key(&kinds),
        }))
    }
}

/// A hash of media, in order: their kind, their grids and their pixels.
fn key(kinds: &[Kind]) -> u128 {
    let mut hash = xxhash3_128::Hasher::new();
    for kind in kinds.iter().filter(|kind| !kind.grids.is_empty()) {
        hash.write(kind.name.as_bytes());
        kind.grids.iter().flatten().for_each(|side| hash.write(&(*side as u64).to_le_bytes()));
        hash.write(bytemuck::cast_slice(kind.values));
        for f in kind.frames {
            [f.frames, f.height, f.width].iter().for_each(|side| hash.write(&(*side as u64).to_le_bytes()));
            hash.write(&f.data);
        }
    }
    hash.finish_128()
}

impl PatchSource {
    /// `order`: the square of patches, in processor order, at each place of the tower's.
    fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        kinds: &[Kind],
        order: &[usize],
    ) -> Result<PatchSource> {
        let unit = config.vision.merge_unit();
        if kinds.iter().any(|kind| !kind.values.is_empty()) {
            let pixels = kinds.iter().map(Kind::pixels).collect::<Result<Vec<_>>>()?.concat();
            let ordered = in_tower_order(&pixels, order, unit * config.vision.patch_dim());
            let shape = [order.len() * unit, config.vision.patch_dim()];
            return Ok(PatchSource::Values(Tensor::from_f32(device, &shape, dtype, &ordered, Category::Inputs)?));
        }
        let mut frames = Vec::new();
        for (all, kind) in kinds.iter().filter_map(|kind| Some((kind.all?, kind))) {
            let how = patching(&all.processor);
            for f in kind.frames {
                frames.push(ops::DeviceFrames::new(device, &f.data, [f.frames, f.height, f.width], &how)?);
            }
        }
        let order: Vec<i32> = order.iter().flat_map(|&i| i * unit..(i + 1) * unit).map(|i| i as i32).collect();
        Ok(PatchSource::Frames(frames, Tensor::from_i32(device, &[order.len()], &order)?))
    }
}

fn patching(p: &PatchProcessor) -> ops::Patching {
    ops::Patching {
        rescale: p.rescale_factor,
        mean: p.image_mean,
        std: p.image_std,
        patch: p.patch_size,
        temporal: p.temporal_patch_size,
        merge: p.merge_size,
    }
}

/// Squares of patches moved to where the tower wants them.
fn in_tower_order(pixels: &[f32], window_index: &[usize], square: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(pixels.len());
    for &i in window_index {
        out.extend_from_slice(&pixels[i * square..(i + 1) * square]);
    }
    out
}
