//! Writes TensorBoard event files. A record consists of length and data, each followed by its masked CRC-32C (the
//! TFRecord format); the data is a small protobuf message. Field numbers of `tensorflow/core/util/event.proto`:
//! wall_time 1, step 2, file_version 3, summary 5, session_log 7 (status 1). Of `summary.proto`: value 1 with tag 1,
//! simple_value 2, image 4 (height 1, width 2, colorspace 3, encoded_image_string 4), histo 5 (min 1, max 2, num 3,
//! sum 4, sum_squares 5, bucket_limit 6, bucket 7), tensor 8 (dtype 1, tensor_shape 2, string_val 8), metadata 9
//! (plugin_data 1 with plugin_name 1).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::metrics::RolloutPreview;
use reel_input::media::strip::PngImage;

use crate::runs::reporting::preview::{COMPLETIONS_TAG, FRAMES_TAG, Histogram, REWARDS_TAG};
use crate::runs::reporting::protobuf::ProtoMessage;

/// An open TensorBoard event file.
#[derive(Debug)]
pub struct TensorboardEventFile {
    path: PathBuf,
    file: File,
}

impl TensorboardEventFile {
    /// Creates an event file in `dir`, with a file name that TensorBoard recognises, for the steps after step `done`.
    /// Each process of a run has its own file. If a run resumes from an earlier checkpoint, the files of its earlier
    /// processes have later steps; the event START makes TensorBoard drop them.
    pub fn create(dir: &Path, done: u64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.{:06}.{}", now.as_secs(), now.subsec_micros(), std::process::id());
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| Error::cannot_write(&path, e))?;
        let mut events = Self { path, file };
        events.record(&ProtoMessage::default().double(1, now.as_secs_f64()).bytes(3, "brain.Event:2"))?;
        if done > 0 {
            let start = ProtoMessage::default().varint(1, 1);
            events.record(&ProtoMessage::default().double(1, now.as_secs_f64()).varint(2, done + 1).bytes(7, start))?;
        }
        Ok(events)
    }

    /// Adds the named numbers of a step.
    pub fn write_scalars(&mut self, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        self.record(&event(now(), step, &scalars(values)))
    }

    /// Adds the preview of a step: a histogram of rewards, the text of completions, a strip of frames.
    pub fn write_preview(&mut self, step: u64, preview: &RolloutPreview) -> Result<()> {
        let mut summary = ProtoMessage::default();
        if !preview.rewards.is_empty() {
            summary = summary.bytes(1, tagged(REWARDS_TAG, 5, histogram(&preview.rewards)));
        }
        if !preview.text.is_empty() {
            summary = summary.bytes(1, text(COMPLETIONS_TAG, &preview.text));
        }
        if let Some(strip) = &preview.strip {
            summary = summary.bytes(1, tagged(FRAMES_TAG, 4, image_message(strip)));
        }
        self.record(&event(now(), step, &summary))
    }

    fn record(&mut self, message: &ProtoMessage) -> Result<()> {
        self.file.write_all(&framed(message.as_ref())).map_err(|e| Error::cannot_write(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn event(wall_time: f64, step: u64, summary: &ProtoMessage) -> ProtoMessage {
    ProtoMessage::default().double(1, wall_time).varint(2, step).bytes(5, summary)
}

fn scalars(values: &[(impl AsRef<str>, f64)]) -> ProtoMessage {
    values.iter().fold(ProtoMessage::default(), |summary, (tag, value)| {
        summary.bytes(1, ProtoMessage::default().bytes(1, tag.as_ref()).float(2, *value as f32))
    })
}

/// Makes the protobuf message of one summary value, with the tag `tag`, and `message` in field number `field`.
fn tagged(tag: &str, field: u32, message: ProtoMessage) -> ProtoMessage {
    ProtoMessage::default().bytes(1, tag).bytes(field, message)
}

fn histogram(values: &[f32]) -> ProtoMessage {
    let Histogram { low, high, limits, counts } = Histogram::new(values);
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    let sums = [low, high, values.len() as f64, sum, squares];
    let message = (1..).zip(sums).fold(ProtoMessage::default(), |m, (field, number)| m.double(field, number));
    let packed = |list: Vec<f64>| list.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let counts = counts.into_iter().map(|n| n as f64).collect();
    message.bytes(6, packed(limits)).bytes(7, packed(counts))
}

/// Makes a summary value that TensorBoard shows as Markdown: a tensor of one string (dtype 7, no dimensions) for the
/// plugin `text`.
fn text(tag: &str, text: &str) -> ProtoMessage {
    let tensor = ProtoMessage::default().varint(1, 7).bytes(2, []).bytes(8, text);
    let plugin = ProtoMessage::default().bytes(1, "text");
    tagged(tag, 8, tensor).bytes(9, ProtoMessage::default().bytes(1, plugin))
}

/// Makes the protobuf message of an RGB image in PNG format.
fn image_message(png: &PngImage) -> ProtoMessage {
    ProtoMessage::default().varint(1, png.height as u64).varint(2, png.width as u64).varint(3, 3).bytes(4, &png.bytes)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), message, &masked(message)].concat()
}

/// Computes the checksum of the TFRecord format: a CRC-32C that is masked (rotated, then increased by a constant),
/// because a plain CRC of data that contains CRCs is a weak check.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit. Records are about 100 bytes long, so speed does not matter.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_rfc() {
        // Test vectors of RFC 3720, B.4, and the standard check value of CRC-32C for "123456789".
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn scalar_event_matches_tensorflow_bytes() {
        // These are the bytes that TensorFlow writes for Event(wall_time=1.0, step=300,
        // summary=Summary(value=[Value(tag="loss", simple_value=0.5)])).
        let want = [
            &[0x09][..],
            &1.0f64.to_le_bytes(),
            &[0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04],
            b"loss",
            &[0x15],
            &0.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(event(1.0, 300, &scalars(&[("loss", 0.5)])).as_ref(), want);
    }

    #[test]
    fn file_consists_of_complete_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = TensorboardEventFile::create(dir.path(), 0).unwrap();
        events.write_scalars(1, &[("loss", 2.0), ("grad_norm", 1.0)]).unwrap();
        let strip = Some(PngImage { width: 2, height: 1, bytes: vec![1; 200] });
        events.write_preview(1, &RolloutPreview { rewards: vec![0.0, 1.0, 0.5], text: "a".into(), strip }).unwrap();
        assert!(events.path.file_name().unwrap().to_string_lossy().contains("tfevents"));
        assert_eq!(records(&events.path).len(), 3);
    }

    /// Returns the messages of the records of a file, and checks their checksums.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let data = std::fs::read(path).unwrap();
        let (mut at, mut records) = (0, Vec::new());
        while at < data.len() {
            let n = u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(data[at + 8..at + 12], masked(&data[at..at + 8]));
            assert_eq!(data[at + 12 + n..at + 16 + n], masked(&data[at + 12..at + 12 + n]));
            records.push(data[at + 12..at + 12 + n].to_vec());
            at += 16 + n;
        }
        records
    }

    /// TensorBoard drops the events of a folder from the step of an event START on (`event_accumulator.py`), so each
    /// step remains once, from the last process that did it.
    #[test]
    fn steps_after_a_resume_replace_the_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut shown: Vec<(u64, usize)> = Vec::new();
        for (process, (done, last)) in [(0, 6), (4, 5), (2, 8)].into_iter().enumerate() {
            let mut events = TensorboardEventFile::create(dir.path(), done).unwrap();
            (done + 1..=last).for_each(|step| events.write_scalars(step, &[("loss", 1.0)]).unwrap());
            for record in records(&events.path) {
                // An event has its time in 9 bytes, then the byte 16 and the step, then the tag of its last field.
                let [16, step, field, ..] = record[9..] else { continue };
                match field {
                    58 if record[11..] == [58, 2, 8, 1] => shown.retain(|(shown, _)| *shown < u64::from(step)),
                    _ => shown.push((u64::from(step), process)),
                }
            }
        }
        assert_eq!(shown, [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2)]);
    }
}
