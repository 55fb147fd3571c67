//! TensorBoard's event files: records of length, data and a masked CRC-32C of each (the TFRecord format),
//! the data being a small protobuf message (`tensorflow/core/util/event.proto`: wall_time 1, step 2, file_version 3,
//! summary 5; `summary.proto`: value 1 with tag 1, simple_value 2, image 4 (height 1, width 2, colorspace 3, encoded_image_string 4),
//! histo 5 (min 1, max 2, num 3, sum 4, sum_squares 5, bucket_limit 6, bucket 7), tensor 8 (dtype 1, tensor_shape 2, string_val 8),
//! metadata 9 (plugin_data 1 with plugin_name 1)).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use reel_media::strip::Png;

use crate::trainer::Shown;
use crate::{Result, TrainError};

/// An event file that is being written.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a new file in `dir`, under a name that TensorBoard looks for. Each run of a folder has its own.
    pub fn create(dir: &Path) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{}.{:06}.{}", now.as_secs(), now.subsec_micros(), std::process::id());
        let path = dir.join(name);
        let file = File::create(&path).map_err(|e| TrainError::write(&path, e))?;
        let mut events = Self { path, file };
        let mut message = event(now.as_secs_f64(), None);
        bytes_field(&mut message, 3, b"brain.Event:2");
        events.record(&message)?;
        Ok(events)
    }

    /// Adds the values of a step.
    pub fn scalars(&mut self, step: u64, values: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = scalars(now.as_secs_f64(), step, values);
        self.record(&message)
    }

    /// Adds what was drawn for a step: a histogram of its rewards, a text, a picture.
    pub fn shown(&mut self, step: u64, shown: &Shown) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut summary = Vec::new();
        if !shown.rewards.is_empty() {
            bytes_field(&mut summary, 1, &tagged("rollouts/rewards", 5, &histogram(&shown.rewards)));
        }
        if !shown.text.is_empty() {
            bytes_field(&mut summary, 1, &text("rollouts/completions", &shown.text));
        }
        if let Some(strip) = &shown.strip {
            bytes_field(&mut summary, 1, &tagged("rollouts/frames", 4, &picture(strip)));
        }
        let mut message = event(now.as_secs_f64(), Some(step));
        bytes_field(&mut message, 5, &summary);
        self.record(&message)
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        self.file.write_all(&framed(message)).map_err(|e| TrainError::write(&self.path, e))
    }
}

fn scalars(wall_time: f64, step: u64, values: &[(impl AsRef<str>, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = Vec::new();
        bytes_field(&mut one, 1, tag.as_ref().as_bytes());
        one.push(2 << 3 | 5);
        one.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &one);
    }
    let mut message = event(wall_time, Some(step));
    bytes_field(&mut message, 5, &summary);
    message
}

/// A value of a summary: its tag, and a message as one of its fields.
fn tagged(tag: &str, field: u8, message: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    bytes_field(&mut value, 1, tag.as_bytes());
    bytes_field(&mut value, field, message);
    value
}

/// Thirty bins of equal width from the smallest value to the largest.
fn histogram(values: &[f32]) -> Vec<u8> {
    const BINS: usize = 30;
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let width = (high - low).max(1e-6) / BINS as f64;
    let mut counts = [0.0f64; BINS];
    for v in &values {
        counts[(((v - low) / width) as usize).min(BINS - 1)] += 1.0;
    }
    let limits: Vec<f64> = (1..=BINS).map(|i| low + width * i as f64).collect();
    let mut message = Vec::new();
    let sums = [low, high, values.len() as f64, values.iter().sum(), values.iter().map(|v| v * v).sum()];
    for (field, number) in (1u8..).zip(sums) {
        message.push(field << 3 | 1);
        message.extend(number.to_le_bytes());
    }
    for (field, list) in [(6, &limits[..]), (7, &counts)] {
        bytes_field(&mut message, field, &list.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
    }
    message
}

/// A value that TensorBoard shows as Markdown: a tensor of one string (dtype 7, no dimensions), for the plugin `text`.
fn text(tag: &str, text: &str) -> Vec<u8> {
    let mut tensor = vec![1 << 3, 7];
    bytes_field(&mut tensor, 2, &[]);
    bytes_field(&mut tensor, 8, text.as_bytes());
    let (mut plugin, mut metadata) = (Vec::new(), Vec::new());
    bytes_field(&mut plugin, 1, b"text");
    bytes_field(&mut metadata, 1, &plugin);
    let mut value = tagged(tag, 8, &tensor);
    bytes_field(&mut value, 9, &metadata);
    value
}

/// A PNG with three colours.
fn picture(png: &Png) -> Vec<u8> {
    let mut message = Vec::new();
    for (field, n) in [(1u8, png.height), (2, png.width), (3, 3)] {
        message.push(field << 3);
        varint(&mut message, n as u64);
    }
    bytes_field(&mut message, 4, &png.bytes);
    message
}

fn event(wall_time: f64, step: Option<u64>) -> Vec<u8> {
    let mut message = vec![1 << 3 | 1];
    message.extend(wall_time.to_le_bytes());
    if let Some(step) = step {
        message.push(2 << 3);
        varint(&mut message, step);
    }
    message
}

fn bytes_field(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, bytes.len() as u64);
    to.extend(bytes);
}

fn varint(to: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), message, &masked(message)].concat()
}

/// The checksum as the format stores it: turned and shifted, so that a checksum of checksums is no fixed point.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: records have a hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_scalar_is_the_message_that_protobuf_writes() {
        // What TensorFlow's Event(wall_time=1.0, step=300, summary=Summary(value=[Value(tag="loss", simple_value=0.5)])) serialises to.
        let want = [
            &[0x09][..],
            &1.0f64.to_le_bytes(),
            &[0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04],
            b"loss",
            &[0x15],
            &0.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(scalars(1.0, 300, &[("loss", 0.5)]), want);
    }

    #[test]
    fn a_file_is_whole_records_from_its_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path()).unwrap();
        events.scalars(1, &[("loss", 2.0), ("grad_norm", 1.0)]).unwrap();
        let strip = Some(Png { width: 2, height: 1, bytes: vec![1; 200] });
        events.shown(1, &Shown { rewards: vec![0.0, 1.0, 0.5], text: "a".into(), strip }).unwrap();
        let data = std::fs::read(&events.path).unwrap();
        assert!(events.path.file_name().unwrap().to_string_lossy().contains("tfevents"));
        let (mut at, mut records) = (0, 0);
        while at < data.len() {
            let n = u64::from_le_bytes(data[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(data[at + 8..at + 12], masked(&data[at..at + 8]));
            assert_eq!(data[at + 12 + n..at + 16 + n], masked(&data[at + 12..at + 12 + n]));
            at += 16 + n;
            records += 1;
        }
        assert_eq!((at, records), (data.len(), 3));
    }
}
