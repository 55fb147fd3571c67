//! Prompts and numbers as bytes, for the processes that serve a model together.

use bytemuck::Pod;
use reel_input::ModelInput;
use reel_input::media_frames::MediaFrames;
use reel_media::frames::FrameBuf;
use reel_media::patches::PatchProcessor;

/// Appends numbers and lists to bytes.
#[derive(Debug, Default)]
pub(crate) struct ByteWriter(Vec<u8>);

impl ByteWriter {
    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    /// Appends the length of a list and its elements.
    pub(crate) fn list<T: Pod>(&mut self, list: &[T]) {
        self.number(list.len() as u64);
        self.0.extend_from_slice(bytemuck::cast_slice(list));
    }

    fn optional_list<T: Pod>(&mut self, list: Option<&[T]>) {
        self.number(list.is_some().into());
        list.iter().for_each(|list| self.list(list));
    }

    fn frames(&mut self, all: &[FrameBuf]) {
        self.number(all.len() as u64);
        for FrameBuf { data, frames, height, width } in all {
            [frames, height, width].into_iter().for_each(|&size| self.number(size as u64));
            self.list(data);
        }
    }

    pub(crate) fn prompt(&mut self, prompt: &ModelInput) {
        let ModelInput {
            input_ids,
            position_ids,
            rope_delta,
            frames: MediaFrames { images, videos, video_times, processor },
            pixel_values,
            image_grid_thw,
            pixel_values_videos,
            video_grid_thw,
            second_per_grid_ts,
            frame_indices,
        } = prompt;
        self.list(input_ids);
        position_ids.iter().for_each(|axis| self.list(axis));
        self.list(&[*rope_delta]);
        self.frames(images);
        self.frames(videos);
        self.number(video_times.len() as u64);
        video_times.iter().for_each(|times| self.list(times));
        let PatchProcessor {
            min_pixels,
            max_pixels,
            patch_size,
            temporal_patch_size,
            merge_size,
            rescale_factor,
            image_mean,
            image_std,
        } = processor;
        self.list(&[*min_pixels, *max_pixels]);
        self.list(&[*patch_size, *temporal_patch_size, *merge_size]);
        self.list(&[*rescale_factor]);
        self.list(&[*image_mean, *image_std]);
        self.optional_list(pixel_values.as_deref());
        self.list(image_grid_thw);
        self.optional_list(pixel_values_videos.as_deref());
        self.list(video_grid_thw);
        self.list(second_per_grid_ts);
        self.list(frame_indices);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`ByteWriter`] has written. Each function returns `None` if the bytes are something else.
#[derive(Debug)]
pub(crate) struct ByteReader<'b>(pub(crate) &'b [u8]);

impl ByteReader<'_> {
    pub(crate) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    pub(crate) fn list<T: Pod>(&mut self) -> Option<Vec<T>> {
        let bytes = usize::try_from(self.number()?).ok()?.checked_mul(size_of::<T>())?;
        let (list, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(bytemuck::pod_collect_to_vec(list))
    }

    fn array<T: Pod, const N: usize>(&mut self) -> Option<[T; N]> {
        self.list()?.try_into().ok()
    }

    fn optional_list<T: Pod>(&mut self) -> Option<Option<Vec<T>>> {
        match self.number()? {
            0 => Some(None),
            _ => self.list().map(Some),
        }
    }

    fn frames(&mut self) -> Option<Vec<FrameBuf>> {
        let count = self.number()?;
        let size = |reader: &mut Self| usize::try_from(reader.number()?).ok();
        let one = |reader: &mut Self| {
            let (frames, height, width) = (size(reader)?, size(reader)?, size(reader)?);
            Some(FrameBuf { data: reader.list()?, frames, height, width })
        };
        (0..count).map(|_| one(self)).collect()
    }

    pub(crate) fn prompt(&mut self) -> Option<ModelInput> {
        let input_ids = self.list()?;
        let position_ids = [self.list()?, self.list()?, self.list()?];
        let [rope_delta] = self.array()?;
        let (images, videos) = (self.frames()?, self.frames()?);
        let video_times = (0..self.number()?).map(|_| self.list()).collect::<Option<_>>()?;
        let [min_pixels, max_pixels] = self.array()?;
        let [patch_size, temporal_patch_size, merge_size] = self.array()?;
        let [rescale_factor] = self.array()?;
        let [image_mean, image_std] = self.array()?;
        let processor = PatchProcessor {
            min_pixels,
            max_pixels,
            patch_size,
            temporal_patch_size,
            merge_size,
            rescale_factor,
            image_mean,
            image_std,
        };
        Some(ModelInput {
            input_ids,
            position_ids,
            rope_delta,
            frames: MediaFrames { images, videos, video_times, processor },
            pixel_values: self.optional_list()?,
            image_grid_thw: self.list()?,
            pixel_values_videos: self.optional_list()?,
            video_grid_thw: self.list()?,
            second_per_grid_ts: self.list()?,
            frame_indices: self.list()?,
        })
    }
}
