//! Fuzz targets for data files in binary formats: tables, images, videos. Worker processes decode tables and videos, as
//! in `reel` itself: for some inputs the decoder allocates all memory or crashes, which must end only the worker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use reel_input::config::Family;
use reel_input::media::image::{ExifOrientation, decode};
use reel_input::rows::Table;
use reel_support::worker::{WorkerProgram, set_worker_program};

use super::{Runner, accepted, run, write};

/// Tables in the formats of Parquet and Arrow, as pyarrow and the library `datasets` write them. A worker that does not
/// end is killed after half a second, and the file is tried at most three times.
pub fn table(path: PathBuf) -> Result<Runner> {
    set_worker_program(WorkerProgram { timeout: Duration::from_millis(500), ..WorkerProgram::of_current_executable() });
    run(move |input| {
        write(&path, input);
        let rows = accepted(Table::open(&path))?;
        let read = (0..rows.len().min(100)).filter(|&row| accepted(rows.value(row)).is_some()).count();
        (read == rows.len().min(100)).then_some(())
    })
}

/// Image files. The seeds are small images of every format and every kind of pixels.
pub fn image(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let mut input = input.to_vec();
        if input.starts_with(b"\x89PNG") {
            correct_png_checksums(&mut input);
        }
        let image = accepted(decode(&input, "image", ExifOrientation::Apply))?;
        assert!(image.view().is_ok(), "an image without pixels");
        Some(())
    })
}

/// Writes the correct checksum into each chunk of a PNG file: otherwise the decoder refuses every changed chunk. A
/// chunk is length (u32), type (4 bytes), data and checksum (u32).
fn correct_png_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let end = at + 8 + u32::from_be_bytes(*length) as usize;
        let Some(checksum) = bytes.get(at + 4..end).map(crc32fast::hash) else { return };
        let Some(field) = bytes.get_mut(end..end + 4) else { return };
        field.copy_from_slice(&checksum.to_be_bytes());
        at = end + 4;
    }
}

/// Video files.
#[cfg(feature = "ffmpeg")]
pub fn video(folder: PathBuf) -> Result<Runner> {
    use reel_input::media::profile::{MediaOverrides, MediaProfile};
    use reel_input::media::worker::DecodeWorker;

    let worker = DecodeWorker { memory_mib: 512, threads: 1, ..DecodeWorker::from_this_program() };
    let overrides = MediaOverrides { nframes: Some(4), ..MediaOverrides::default() };
    run(move |input| {
        let path = folder.join("clip");
        write(&path, input);
        let info = accepted(worker.probe(&path));
        let video =
            accepted(worker.decode_resized(&path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &overrides))?;
        let expected = video.indices.len() * video.height * video.width * 3;
        assert!(video.data.len() == expected && expected > 0, "{} bytes of pixels", video.data.len());
        info.map(drop)
    })
}
