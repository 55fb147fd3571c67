//! Reads a video that is given as a folder with one image file per frame, as in ms-swift and in video data sets.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::messages::MediaSource;

const IMAGES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"];
const HELP: &str = "give a folder that has the frames of one video, as images of one size, and nothing else";

/// The frames of a folder, sorted by name. Digits in names are compared as numbers: `f2.png` precedes `f10.png`. Names
/// that begin with a dot are left out.
///
/// # Errors
/// The folder cannot be read, has no images, or has an entry that is not an image.
pub fn frames_in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::cannot_read(folder, e))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::cannot_read(folder, e))?.file_name();
        let name = name.to_string_lossy().into_owned();
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        if name.starts_with('.') {
            continue;
        }
        if !extension.is_some_and(|extension| IMAGES.contains(&extension.as_str())) {
            let what = format!("is a folder with `{name}`, which is not the image of a frame");
            return Err(Error::media_file(folder, what, HELP));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(Error::media_file(folder, "is a folder without images", HELP));
    }
    names.sort_by(|a, b| by_numbers(a, b));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Checks that all frames of a folder have the same height and width; frames of different sizes are most likely not
/// from one video.
///
/// # Errors
/// Two frames differ; the message names the second one.
pub fn check_frame_sizes_equal(frames: &[MediaSource], sizes: impl IntoIterator<Item = (usize, usize)>) -> Result<()> {
    let mut sizes = sizes.into_iter();
    let Some((height, width)) = sizes.next() else { return Ok(()) };
    match frames.iter().skip(1).zip(sizes).find(|(_, size)| *size != (height, width)) {
        Some((frame, (h, w))) => {
            let what = format!("has {w}x{h} pixels, but the first frame of the folder has {width}x{height}");
            Err(Error::media_file(frame.path_or_address(), what, HELP))
        }
        None => Ok(()),
    }
}

/// Compares names, with runs of digits as numbers. Names that differ only in leading zeros are compared as texts.
fn by_numbers(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number, other) = (leading_digits(left), leading_digits(right));
            (left, right) = (&left[number.len()..], &right[other.len()..]);
            let significant = [number, other].map(|digits| digits.trim_start_matches('0'));
            significant[0].len().cmp(&significant[1].len()).then_with(|| significant[0].cmp(significant[1]))
        } else {
            (left, right) = (&left[x.len_utf8()..], &right[y.len_utf8()..]);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

fn leading_digits(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_digit).count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["f10.png", "f2.png", "f02.png", ".DS_Store", "f1.jpg", "e.png"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let frames = frames_in_folder(folder.path()).unwrap();
        let names: Vec<_> = frames.iter().map(|frame| frame.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["e.png", "f1.jpg", "f02.png", "f2.png", "f10.png"]);
    }

    #[test]
    fn folders_with_other_files_or_without_images_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = || frames_in_folder(folder.path()).unwrap_err().to_string();
        assert!(error().contains(": is a folder without images; "), "{}", error());
        std::fs::write(folder.path().join("1.png"), "").unwrap();
        std::fs::write(folder.path().join("times.txt"), "").unwrap();
        assert!(error().contains("is a folder with `times.txt`, which is not the image of a frame"), "{}", error());
    }
}
