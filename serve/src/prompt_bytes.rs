//! Prompts and numbers as bytes, for the processes that serve a model together.

use std::sync::Arc;

use bytemuck::Pod;
use reel_input::ModelInput;
use reel_input::media::frames::FrameBuf;
use reel_input::media_frames::MediaFrames;

/// Appends numbers and lists to bytes.
#[derive(Debug, Default)]
pub(crate) struct ByteWriter(Vec<u8>);

impl ByteWriter {
    pub(crate) fn write_number(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    /// Appends the length of a list and its elements.
    pub(crate) fn write_list<T: Pod>(&mut self, list: &[T]) {
        self.write_number(list.len() as u64);
        self.0.extend_from_slice(bytemuck::cast_slice(list));
    }

    fn write_optional_list<T: Pod>(&mut self, list: Option<&[T]>) {
        self.write_number(list.is_some().into());
        list.iter().for_each(|list| self.write_list(list));
    }

    fn write_frames(&mut self, all: &[FrameBuf]) {
        self.write_number(all.len() as u64);
        for FrameBuf { data, frames, height, width } in all {
            [frames, height, width].into_iter().for_each(|&size| self.write_number(size as u64));
            self.write_list(&data[..]);
        }
    }

    pub(crate) fn write_prompt(&mut self, prompt: &ModelInput) {
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
        self.write_list(input_ids);
        position_ids.iter().for_each(|axis| self.write_list(axis));
        self.write_list(&[*rope_delta]);
        self.write_frames(images);
        self.write_frames(videos);
        self.write_number(video_times.len() as u64);
        video_times.iter().for_each(|times| self.write_list(times));
        // These settings are plain numbers, which JSON can hold.
        self.write_list(&serde_json::to_vec(processor).unwrap_or_default());
        self.write_optional_list(pixel_values.as_deref());
        self.write_list(image_grid_thw);
        self.write_optional_list(pixel_values_videos.as_deref());
        self.write_list(video_grid_thw);
        self.write_list(second_per_grid_ts);
        self.write_list(frame_indices);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`ByteWriter`] has written. Each function returns `None` if the bytes are something else.
#[derive(Debug)]
pub(crate) struct ByteReader<'b>(pub(crate) &'b [u8]);

impl ByteReader<'_> {
    pub(crate) fn read_number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    pub(crate) fn read_list<T: Pod>(&mut self) -> Option<Vec<T>> {
        let bytes = usize::try_from(self.read_number()?).ok()?.checked_mul(size_of::<T>())?;
        let (list, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(bytemuck::pod_collect_to_vec(list))
    }

    fn read_array<T: Pod, const N: usize>(&mut self) -> Option<[T; N]> {
        self.read_list()?.try_into().ok()
    }

    fn read_optional_list<T: Pod>(&mut self) -> Option<Option<Vec<T>>> {
        match self.read_number()? {
            0 => Some(None),
            _ => self.read_list().map(Some),
        }
    }

    fn read_frames(&mut self) -> Option<Vec<FrameBuf>> {
        let count = self.read_number()?;
        let size = |reader: &mut Self| usize::try_from(reader.read_number()?).ok();
        let one = |reader: &mut Self| {
            let (frames, height, width) = (size(reader)?, size(reader)?, size(reader)?);
            Some(FrameBuf { data: Arc::new(reader.read_list()?), frames, height, width })
        };
        (0..count).map(|_| one(self)).collect()
    }

    pub(crate) fn read_prompt(&mut self) -> Option<ModelInput> {
        let input_ids = self.read_list()?;
        let position_ids = [self.read_list()?, self.read_list()?, self.read_list()?];
        let [rope_delta] = self.read_array()?;
        let (images, videos) = (self.read_frames()?, self.read_frames()?);
        let video_times = (0..self.read_number()?).map(|_| self.read_list()).collect::<Option<_>>()?;
        let processor = serde_json::from_slice(&self.read_list::<u8>()?).ok()?;
        Some(ModelInput {
            input_ids,
            position_ids,
            rope_delta,
            frames: MediaFrames { images, videos, video_times, processor },
            pixel_values: self.read_optional_list()?,
            image_grid_thw: self.read_list()?,
            pixel_values_videos: self.read_optional_list()?,
            video_grid_thw: self.read_list()?,
            second_per_grid_ts: self.read_list()?,
            frame_indices: self.read_list()?,
        })
    }
}
