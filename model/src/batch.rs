//! Sequences with their pictures and films, packed into one row and put on a device.

use reel_runtime::ops::CuSeqlens;
use reel_runtime::{Category, DType, Device, Tensor};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
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
    pub media: Option<Media>,
}

/// The media of a batch in the vision tower's order. `N` patches, `M` = N / merge² tokens.
#[derive(Clone, Debug)]
pub struct Media {
    /// `[N, patch_dim]` in the dtype of activations.
    pub pixels: Tensor,
    /// i32 `[2, N]`: row and column of each patch.
    pub positions: Tensor,
    /// Frames, for full blocks.
    pub frames: CuSeqlens,
    /// Windows, for windowed blocks.
    pub windows: CuSeqlens,
    /// i32 `[M]`: the tower's place of each token in processor order.
    pub reverse: Tensor,
    /// i32 `[M]`: the token of the batch that each vision token stands for, in processor order.
    pub slots: Tensor,
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
            media: Media::new(device, config, dtype, sequences, place)?,
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

impl Media {
    fn new(
        device: &Device,
        config: &ModelConfig,
        dtype: DType,
        sequences: &[Sequence],
        place: &str,
    ) -> Result<Option<Media>> {
        let (mut grids, mut slots, mut pixels) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for s in sequences {
            let kinds = [
                (s.image_grid_thw, s.pixel_values, config.tokens.image, "pixel_values"),
                (s.video_grid_thw, s.pixel_values_videos, config.tokens.video, "pixel_values_videos"),
            ];
            for (of_kind, values, pad, name) in kinds {
                let first = slots.len();
                let pads = s.input_ids.iter().enumerate().filter(|(_, id)| **id == pad as i64);
                slots.extend(pads.map(|(i, _)| (start + i) as i32));
                check_sizes(config, of_kind, values.len(), slots.len() - first, &format!("{place}: {name}"))?;
                grids.extend_from_slice(of_kind);
                pixels.push(values);
            }
            start += s.input_ids.len();
        }
        if slots.is_empty() {
            return Ok(None);
        }
        let plan = Windows::plan(&grids, &config.vision);
        let at = windowed_positions(&grids, &config.vision, &plan);
        let axis = |i: usize| at.iter().map(move |p| p[i] as i32);
        let as_i32 = |v: &[usize]| v.iter().map(|&x| x as i32).collect::<Vec<i32>>();
        let ordered = in_tower_order(
            &pixels.concat(),
            &plan.window_index,
            config.vision.merge_unit() * config.vision.patch_dim(),
        );
        Ok(Some(Media {
            pixels: Tensor::from_f32(
                device,
                &[at.len(), config.vision.patch_dim()],
                dtype,
                &ordered,
                Category::Inputs,
            )?,
            positions: Tensor::from_i32(device, &[2, at.len()], &axis(0).chain(axis(1)).collect::<Vec<_>>())?,
            frames: CuSeqlens::new(device, &as_i32(&plan.cu_seqlens))?,
            windows: CuSeqlens::new(device, &as_i32(&plan.cu_window_seqlens))?,
            reverse: Tensor::from_i32(device, &[slots.len()], &as_i32(&plan.reverse_index))?,
            slots: Tensor::from_i32(device, &[slots.len()], &slots)?,
        }))
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

fn check_sizes(config: &ModelConfig, grids: &[GridThw], values: usize, pads: usize, place: &str) -> Result<()> {
    let merge = config.vision.spatial_merge_size;
    if let Some(g) = grids.iter().find(|g| g[1] % merge != 0 || g[2] % merge != 0 || g.contains(&0)) {
        return Err(ModelError::inputs(
            place,
            format!("grid {g:?} has sides that are no multiples of {merge}"),
            "make it with `reel preprocess`",
        ));
    }
    let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();
    if values != patches * config.vision.patch_dim() {
        let what = format!("{values} values, but the grids want {patches} patches of {}", config.vision.patch_dim());
        return Err(ModelError::inputs(place, what, "make it with `reel preprocess`"));
    }
    if pads * config.vision.merge_unit() != patches {
        let what = format!("{pads} pads in the ids for {} vision tokens", patches / config.vision.merge_unit());
        return Err(ModelError::inputs(place, what, "the ids and the media must belong together"));
    }
    Ok(())
}
