use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels/");

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap()
}

/// Decodes one image for each file format and pixel format that Pillow treats differently.
#[test]
fn each_format_equals_pillow() {
    let bytes = golden("kinds/expected.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.len() >= 60, "{}", tensors.len());
    for (name, want) in tensors.tensors() {
        let got =
            open(Path::new(&format!("{FOLDER}kinds/{name}")), ExifOrientation::Apply).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!([got.height, got.width, 3], want.shape(), "{name}");
        let different = got.data.iter().zip(want.data()).filter(|(got, want)| got != want).count();
        assert_eq!(different, 0, "{name}: values of {}", got.data.len());
    }
}

#[test]
fn sizes_and_mean_colours_equal_golden_index() {
    let index: Value = serde_json::from_slice(&golden("index.json")).unwrap();
    for case in index["images"].as_array().unwrap() {
        let file = case["file"].as_str().unwrap();
        // The golden sizes are those of qwen-vl-utils.
        let got = open(Path::new(&format!("{FOLDER}{file}")), ExifOrientation::Ignore).unwrap();
        let size: (usize, usize) = serde_json::from_value(case["size_hw"].clone()).unwrap();
        assert_eq!((got.height, got.width), size, "{file}");
        let exact = case["rgb_sha256"].is_string();
        for channel in 0..3 {
            let sum: f64 = got.data.iter().skip(channel).step_by(3).map(|&v| f64::from(v)).sum();
            let (mean, want) = (sum / (size.0 * size.1) as f64, case["rgb_mean"][channel].as_f64().unwrap());
            assert!((mean - want).abs() < if exact { 6e-4 } else { 0.1 }, "{file}: {mean} for {want}");
        }
    }
}

#[test]
fn data_uri_decodes_as_its_file() {
    let bytes = golden("13_png_rgb.png");
    let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
    let want = decode(&bytes, "bytes", ExifOrientation::Apply).unwrap();
    let (front, back) = text.split_at(60);
    for uri in [
        format!("data:image/png;base64,{text}"),
        format!("data:image/jpeg;base64,{}", text.trim_end_matches('=')),
        format!("data:image;base64,{front}\r\n{back}\n"),
        format!("data:;base64,{text}"),
        format!("data:application/octet-stream;base64,{text}"),
        format!("DATA:Image/PNG;base64,{text}"),
    ] {
        assert_eq!(from_data_uri(&uri, ExifOrientation::Apply).unwrap(), want);
    }
    for uri in
        ["data:image/png,abc", "data:text/plain;base64,AAAA", "data:image/png;base64,A!A", "data:image/png;base64,"]
    {
        let error = from_data_uri(uri, ExifOrientation::Apply).unwrap_err().to_string();
        assert!(error.starts_with("data: URI: ") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn broken_files_are_refused_by_name() {
    for name in ["bad_empty.jpg", "bad_not_a_picture.png", "bad_text.webp", "bad_truncated.png", "nosuch.png", "kinds"]
    {
        let error = open(Path::new(&format!("{FOLDER}{name}")), ExifOrientation::Apply).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(';') && !error.contains('\n'), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_device_is_refused_without_being_read() {
    let error = open(Path::new("/dev/zero"), ExifOrientation::Apply).unwrap_err().to_string();
    assert!(error.starts_with("/dev/zero: is not a regular file"), "{error}");
}

/// Images whose headers state up to 100 000 × 100 000 pixels are refused.
#[test]
fn decompression_bombs_are_refused_by_header() {
    let mut png = golden("00_png_rgb.png");
    png[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&100_000u32.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut bmp = golden("kinds/rgb.bmp");
    bmp[18..22].copy_from_slice(&60_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000i32.to_le_bytes());
    let mut gif = golden("kinds/rgb.gif");
    gif[6..10].fill(0xff);
    let mut jpeg = golden("06_jpg_420.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    for (name, bytes) in [("bomb.png", png), ("bomb.bmp", bmp), ("bomb.gif", gif), ("bomb.jpg", jpeg)] {
        let error = decode(&bytes, name, ExifOrientation::Apply).unwrap_err().to_string();
        assert!(error.starts_with(name) && error.contains("limit of 178956970 pixels"), "{error}");
    }
}

/// The CRC-32 at the end of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn truncated_files_are_refused() {
    for name in [
        "02_png_rgba.png",
        "06_jpg_420.jpg",
        "kinds/jpeg_420_progressive.jpg",
        "08_webp_lossless.webp",
        "kinds/rgb.gif",
    ] {
        let bytes = golden(name);
        for part in 1..16 {
            let cut = &bytes[..bytes.len() * part / 16];
            assert!(
                decode(cut, name, ExifOrientation::Apply).is_err(),
                "{name}, cut off after {part}/16 of its bytes, was accepted"
            );
        }
    }
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        "04_png_palette.png",
        "06_jpg_420.jpg",
        "kinds/jpeg_420_progressive.jpg",
        "kinds/jpeg_cmyk.jpg",
        "kinds/animated_alpha.webp",
        "kinds/lossy_alpha.webp",
        "kinds/part_local.gif",
        "kinds/rgb.gif",
        "kinds/palette.bmp",
        "kinds/rgba.tiff",
    ])
    .prop_map(golden)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_never_panic(
        bytes in any_file(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        // Changes within the first 64 bytes damage the header.
        front in prop::collection::vec((0usize..64, any::<u8>()), 0..4),
    ) {
        let mut bytes = bytes;
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in front {
            bytes[at] = value;
        }
        match decode(&bytes, "damaged", ExifOrientation::Apply) {
            Ok(image) => prop_assert_eq!(image.data.len(), image.height * image.width * 3),
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
        }
    }

    /// An earlier version of the decoder panicked if the fourth component had fewer samples than the first.
    #[test]
    fn cmyk_of_any_sampling_is_decoded_or_refused(factors in prop::collection::vec((1u8..=4, 1u8..=4), 4)) {
        let mut bytes = golden("kinds/jpeg_cmyk.jpg");
        let frame = bytes.windows(2).position(|m| matches!(m, [0xff, 0xc0..=0xc2])).expect("the file has a frame");
        for (component, (horizontal, vertical)) in factors.into_iter().enumerate() {
            bytes[frame + 11 + 3 * component] = horizontal << 4 | vertical;
        }
        match decode(&bytes, "cmyk", ExifOrientation::Apply) {
            Ok(image) => prop_assert_eq!(image.data.len(), image.height * image.width * 3),
            Err(error) => prop_assert!(!error.to_string().contains("its decoder ended"), "{}", error),
        }
    }

    #[test]
    fn alpha_blends_over_white(sample in any::<u8>(), alpha in any::<u8>()) {
        let got = drop_alpha(&[sample, 0, 255, alpha], true);
        let exact = |v: u8| (255.0 * (255.0 - f64::from(alpha)) + f64::from(v) * f64::from(alpha)) / 255.0;
        for (got, want) in got.iter().zip([sample, 0, 255].map(exact)) {
            prop_assert!((f64::from(*got) - want).abs() <= 0.5, "{got} for {want}");
        }
        prop_assert_eq!(drop_alpha(&[sample, 1, 2, alpha], false), vec![sample, 1, 2]);
    }
}

/// Decoders allocate the pixels that a header states before they read the data.
#[test]
fn headers_that_state_more_pixels_than_the_file_can_hold_are_refused() {
    let mut bmp = golden("kinds/bilevel.bmp");
    bmp[18..22].copy_from_slice(&13_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&13_000u32.to_le_bytes());
    let error = decode(&bmp, "x", ExifOrientation::Apply).unwrap_err().to_string();
    assert!(error.starts_with("x: is damaged or cut off: 130 bytes cannot hold 13000 x 13000 pixels; "), "{error}");
}

/// Lossless WebP stores an image of one colour and any size in a few bytes.
#[test]
fn a_large_webp_of_one_colour_is_read() {
    const SIDE: u64 = 4200;
    // The header fields of a lossless WebP as (value, number of bits): width - 1, height - 1, alpha, version, then
    // three flags for transforms, a colour cache and several groups of codes, all off.
    let mut fields = vec![(SIDE - 1, 14), (SIDE - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)];
    // The prefix codes of green, red, blue, alpha and distance. Each is a simple code with one symbol of 8 bits.
    for symbol in [20, 10, 30, 255, 0] {
        fields.extend([(1, 1), (0, 1), (1, 1), (symbol, 8)]);
    }
    let (mut stream, mut bit) = (vec![0u8; 16], 0);
    for (value, length) in fields {
        for i in 0..length {
            stream[bit / 8] |= u8::from(value >> i & 1 == 1) << (bit % 8);
            bit += 1;
        }
    }
    let chunk = [&b"VP8L"[..], &17u32.to_le_bytes(), &[0x2f], &stream, &[0]].concat();
    let file = [&b"RIFF"[..], &(4 + chunk.len() as u32).to_le_bytes(), b"WEBP", &chunk].concat();
    let image = decode(&file, "x", ExifOrientation::Apply).unwrap();
    assert_eq!([image.height, image.width], [SIDE as usize; 2]);
    assert!(image.data.chunks_exact(3).all(|pixel| pixel == [10, 20, 30]));
}

#[test]
fn a_jpeg_of_other_components_or_bits_is_refused() {
    let mut file = golden("kinds/jpeg_grey.jpg");
    let frame = file.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    file[frame + 4] = 12;
    let error = decode(&file, "x", ExifOrientation::Apply).unwrap_err().to_string();
    assert_eq!(error, "x: is a JPEG of 12 bits per sample; convert it to 8-bit RGB");
}

/// Returns EXIF data whose only tag is the orientation, in one of the two byte orders.
fn exif(orientation: u8, is_big: bool) -> Vec<u8> {
    let number = |bytes: &[u8]| if is_big { bytes.iter().rev().copied().collect() } else { bytes.to_vec() };
    let entry = [number(&[0x12, 1]), number(&[3, 0]), number(&[1, 0, 0, 0]), number(&[orientation, 0]), vec![0; 2]];
    let head = [if is_big { b"MM".to_vec() } else { b"II".to_vec() }, number(&[42, 0]), number(&[8, 0, 0, 0])];
    [head.concat(), number(&[1, 0]), entry.concat(), vec![0; 4]].concat()
}

/// XMP with the orientation as an attribute or an element.
fn xmp(orientation: u8, is_element: bool) -> Vec<u8> {
    match is_element {
        true => format!("<x><tiff:Orientation>{orientation}</tiff:Orientation></x>"),
        false => format!("<x tiff:Orientation=\"{orientation}\"/>"),
    }
    .into_bytes()
}

/// Adds a block of metadata, EXIF or XMP, to the file of an image.
fn with_block(file: &[u8], is_exif: bool, block: &[u8]) -> Vec<u8> {
    match ::image::guess_format(file).unwrap() {
        ImageFormat::Jpeg => {
            let name: &[u8] = if is_exif { b"Exif\0\0" } else { b"http://ns.adobe.com/xap/1.0/\0" };
            let length = (2 + name.len() + block.len()) as u16;
            [&file[..2], &[0xff, 0xe1], &length.to_be_bytes(), name, block, &file[2..]].concat()
        }
        ImageFormat::Png => {
            let (name, head): (&[u8], &[u8]) =
                if is_exif { (b"eXIf", b"") } else { (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0") };
            let content = [name, head, block].concat();
            let length = (content.len() - 4) as u32;
            // Before IEND, the last 12 bytes. The checksum of the added chunk is wrong, which Pillow ignores, too.
            let (front, end) = file.split_at(file.len() - 12);
            [front, &length.to_be_bytes(), &content, &[0; 4], end].concat()
        }
        _ => {
            let name: &[u8] = if is_exif { b"EXIF" } else { b"XMP " };
            let pad = vec![0; block.len() % 2];
            let chunk = [name, &(block.len() as u32).to_le_bytes(), block, &pad].concat();
            let length = (file.len() - 8 + chunk.len()) as u32;
            [&file[..4], &length.to_le_bytes(), &file[8..], &chunk].concat()
        }
    }
}

/// The pixels of all 8 orientations are those of Pillow's `exif_transpose`, whose rule is written out here.
#[test]
fn images_are_turned_by_their_exif_orientation() {
    for name in ["13_png_rgb.png", "kinds/jpeg_420_9x4.jpg", "kinds/lossy.webp"] {
        let plain = golden(name);
        let stored = decode(&plain, name, ExifOrientation::Apply).unwrap();
        let (h, w) = (stored.height, stored.width);
        assert_ne!(h, w, "{name}: a square does not show whether the sides are exchanged");
        for orientation in 0..=9u8 {
            let source = |y: usize, x: usize| match orientation {
                2 => (y, w - 1 - x),
                3 => (h - 1 - y, w - 1 - x),
                4 => (h - 1 - y, x),
                5 => (x, y),
                6 => (h - 1 - x, y),
                7 => (h - 1 - x, w - 1 - y),
                8 => (x, w - 1 - y),
                _ => (y, x),
            };
            let (height, width) = if (5..=8).contains(&orientation) { (w, h) } else { (h, w) };
            let pixel = |y: usize, x: usize| {
                let (y, x) = source(y, x);
                stored.data[(y * w + x) * 3..][..3].to_vec()
            };
            let data: Vec<u8> = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(y, x))).collect();
            let want = RgbImage { data, height, width };
            for (is_exif, block) in [
                (true, exif(orientation, false)),
                (true, exif(orientation, true)),
                (false, xmp(orientation, false)),
                (false, xmp(orientation, true)),
            ] {
                let file = with_block(&plain, is_exif, &block);
                assert!(decode(&file, name, ExifOrientation::Apply).unwrap() == want, "{name} {orientation} {is_exif}");
                assert!(decode(&file, name, ExifOrientation::Ignore).unwrap() == stored, "{name} {orientation}");
            }
        }
    }
}

proptest! {
    /// Damaged metadata are ignored: they do not turn the image and do not fail.
    #[test]
    fn any_metadata_may_be_damaged(block in prop::collection::vec(any::<u8>(), 0..40), cut in 0usize..40) {
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let file = with_block(&golden("13_png_rgb.png"), true, &block);
            exif::orientation(&file[..file.len() - cut], format);
            exif::orientation(&block, format);
        }
    }
}

/// Returns a progressive grey JPEG of `side` x `side` pixels with this number of scans, each of which has one byte.
fn jpeg_of_scans(side: u16, scans: usize) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let table = |class: u8| [&[0xff, 0xc4, 0, 20, class, 1][..], &[0; 15], &[0]].concat();
    let scan = [0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0, 0];
    let quantization = [&[0xff, 0xdb, 0, 67, 0][..], &[1; 64]].concat();
    let frame = [0xff, 0xc2, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0];
    [&[0xff, 0xd8][..], &quantization, &frame, &table(0), &table(0x10), &scan.repeat(scans), &[0xff, 0xd9]].concat()
}

#[test]
fn many_scans_are_refused_by_the_size_of_the_image() {
    let has_too_many = |side: u16, scans: usize| {
        let decoded = decode(&jpeg_of_scans(side, scans), "a.jpg", ExifOrientation::Apply);
        decoded.is_err_and(|e| e.to_string().contains("a.jpg: needs more memory or scans"))
    };
    assert!(!has_too_many(16, 100) && has_too_many(16, 501));
    assert!(!has_too_many(4000, 2) && has_too_many(4000, 100));
}
