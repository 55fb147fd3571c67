//! Recognises what a file is that lies under the name of another one, by its first bytes: a clone without Git LFS
//! leaves pointers in place of large files, a failed download leaves a web page, and phones and sites write image
//! formats that few decoders know.

use super::UnsuitableFile;

/// The number of bytes at the start of a file that [`recognise`] needs. The signature of a tar archive ends at byte
/// 262.
pub const SIGNATURE_BYTES: usize = 512;

const UNPACK: &str = "unpack it, and give the file in it";
const TO_JPEG: &str = "convert it to JPEG or PNG";
const AS_SAFETENSORS: &str = "load it with the program that wrote it, and save it as safetensors";

/// Returns what a file is that begins with `start`, if it is a file that is often found in place of data, weights or
/// media: a pointer, a web page, an archive, weights in another format, or an image that is not supported.
pub fn recognise(start: &[u8]) -> Option<UnsuitableFile> {
    let at = |position: usize, magic: &[u8]| start.get(position..position + magic.len()) == Some(magic);
    let (what, help) = match () {
        () if at(0, b"\x1f\x8b") => ("is compressed with gzip", UNPACK),
        () if at(0, b"\x28\xb5\x2f\xfd") => ("is compressed with zstd", UNPACK),
        () if at(0, b"\xfd7zXZ\0") => ("is compressed with xz", UNPACK),
        () if at(0, b"BZh") && at(4, b"1AY&SY") => ("is compressed with bzip2", UNPACK),
        () if at(0, b"PK\x03\x04") && start.windows(8).any(|part| part == b"data.pkl") => {
            ("is a file of torch.save, not safetensors", AS_SAFETENSORS)
        }
        () if at(0, b"PK\x03\x04") => ("is a ZIP archive", UNPACK),
        () if at(0, b"7z\xbc\xaf\x27\x1c") => ("is a 7z archive", UNPACK),
        () if at(257, b"ustar") => ("is a tar archive", UNPACK),
        () if at(0, b"\x80\x02\x8a\x0a") || at(0, b"\x80\x04\x95") => ("is a file of Python's pickle", AS_SAFETENSORS),
        () if at(0, b"GGUF") => ("has weights in the format GGUF", "use the safetensors of the model"),
        () if at(0, b"%PDF-") => ("is a PDF", "save its pages as images"),
        () if at(0, b"\0\0\0\x0cJXL ") || at(0, b"\xff\x0a") => ("is a JPEG XL image, which is not supported", TO_JPEG),
        () if at(4, b"ftyp") => match start.get(8..12)? {
            b"avif" | b"avis" => ("is an AVIF image, which is not supported", TO_JPEG),
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" => {
                ("is a HEIC image, which is not supported", TO_JPEG)
            }
            b"mif1" | b"msf1" if start.windows(4).any(|brand| brand == b"avif") => {
                ("is an AVIF image, which is not supported", TO_JPEG)
            }
            b"mif1" | b"msf1" => ("is a HEIC image, which is not supported", TO_JPEG),
            _ => return None,
        },
        () => return recognise_text(start),
    };
    Some(UnsuitableFile::Other { what, help })
}

/// Like [`recognise`], for texts that are in place of any file: a pointer of Git LFS, a web page, an SVG image.
pub(super) fn recognise_text(start: &[u8]) -> Option<UnsuitableFile> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let lower = text[..text.len().min(SIGNATURE_BYTES)].to_ascii_lowercase();
    let has = |tag: &str| lower.windows(tag.len()).any(|part| part == tag.as_bytes());
    let is_xml = lower.starts_with(b"<?xml");
    let (what, help) = match () {
        () if lower.starts_with(b"version https://git-lfs") => {
            let help = "run git lfs pull in its folder, or download the file";
            ("is a pointer of Git LFS, not the file itself", help)
        }
        () if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") || (is_xml && has("<html")) => {
            ("is a web page (HTML), not the file itself", "download the file again: the server has sent a page")
        }
        () if lower.starts_with(b"<svg") || (is_xml && has("<svg")) => ("is an SVG drawing, not pixels", TO_JPEG),
        () => return None,
    };
    Some(UnsuitableFile::Other { what, help })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_recognised() {
        let mut tar = vec![b'a'; 300];
        tar[257..262].copy_from_slice(b"ustar");
        for (start, wanted) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3949\n"[..], "a pointer of Git LFS"),
            (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>", "a web page (HTML)"),
            (b"<HTML lang=en>", "a web page (HTML)"),
            (b"<?xml version=\"1.0\"?>\n<!DOCTYPE html PUBLIC \"x\">\n<html>", "a web page (HTML)"),
            (b"<?xml version=\"1.0\"?><svg width=\"3\">", "an SVG drawing"),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1", "an AVIF image"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "an AVIF image"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
            (b"PK\x03\x04\0\0\x08\x08archive/data.pkl", "a file of torch.save"),
            (b"PK\x03\x04\0\0\x08\x08a.txt", "a ZIP archive"),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "a file of Python's pickle"),
            (b"\x1f\x8b\x08", "compressed with gzip"),
            (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
            (b"BZh91AY&SY\x01", "compressed with bzip2"),
            (&tar, "a tar archive"),
            (b"%PDF-1.7", "a PDF"),
        ] {
            let found = recognise(start).unwrap_or_else(|| panic!("{wanted}"));
            assert!(found.to_string().contains(wanted) && !found.help().is_empty(), "{found}, not {wanted}");
        }
        for start in
            [&b""[..], b"{\"a\": \"<html>\"}", b"\0\0\0\x20ftypisom", b"\0\0\0\x14ftypqt  ", b"BZhou", b"version"]
        {
            assert_eq!(recognise(start), None, "{start:?}");
        }
    }
}
