//! Decodes H.264 and HEVC on a GPU (NVDEC) by FFmpeg's hardware decoders, with the bits of the software decoders.
//!
//! ```text
//! gpu_for           refuse streams that NVDEC does not decode; open the CUDA device, once in a process
//! attach            give the device to a decoder, which then asks choose_format for the format of its frames
//! check_frame       of each frame: refuse it if NVDEC may differ from the software decoder
//! software_frame    of each selected frame: copy it to the host and separate U from V
//! HAS_LOGGED_ERROR  at the end: refuse the video if FFmpeg has logged an error
//! ```
//! Both standards prescribe every bit of a frame, so a selected frame then equals the software decoder's frame, and
//! colour conversion, rotation and resize are the same code. A GPU frame is NV12 or P010: a plane of Y, and a plane of U
//! and V in turns. P010 has its 10 bits in the high bits of 16, yuv420p10 in the low bits.
//!
//! What is refused is an error here. The caller of the worker then decodes the video in software.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{Id, decoder};
use ffmpeg::ffi;
use ffmpeg::format::Pixel;
use ffmpeg::frame::Video as AvFrame;
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

use super::convert::allocate_frame;
use super::demux::VideoFile;
use crate::error::{Error, Result};
use crate::media::libraries::load_ffmpeg;

/// The help of an error about a stream. Users do not see it, because the video is then decoded in software.
const IN_SOFTWARE: &str = "decode it in software (--decoder cpu)";

/// A GPU, as FFmpeg's CUDA device.
pub(crate) struct Gpu(*mut ffi::AVBufferRef);

// SAFETY: FFmpeg counts references to a device atomically, and a CUDA device may be used by several threads.
unsafe impl Send for Gpu {}
// SAFETY: as above; nothing changes the value after it was opened.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The GPU with this index in CUDA's order. It is opened at the first call in this process and stays open, because
    /// making a CUDA context takes longer than decoding a short video. Frames are decoded in the process that opened
    /// the GPU, not in its forks, in which CUDA does not work.
    ///
    /// # Errors
    /// This machine has no NVIDIA driver, the driver has no decoder, FFmpeg was built without NVDEC, or there is no
    /// such GPU.
    pub(crate) fn open(index: usize) -> Result<&'static Self> {
        static OPENED: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = opened.get(&index) {
            return Ok(gpu);
        }
        let refuse = |what: String, help: &str| Err(Error::setting("decoder nvdec", what, help));
        if let Err(what) = load_ffmpeg() {
            return refuse(format!("FFmpeg is not usable: {what}"), "install the FFmpeg libraries of this version");
        }
        let libraries = [
            ("libcuda.so.1", "install the NVIDIA driver, or leave this option out"),
            (
                "libnvcuvid.so.1",
                "install the decoder of the NVIDIA driver (in a container: NVIDIA_DRIVER_CAPABILITIES must contain video), \
                 or leave this option out",
            ),
        ];
        for (library, help) in libraries {
            // SAFETY: these are libraries of the NVIDIA driver, which FFmpeg loads in the same way.
            match unsafe { Library::open(Some(library), RTLD_LAZY | RTLD_LOCAL) } {
                // A driver library stays loaded, because it may have started threads.
                Ok(loaded) => std::mem::forget(loaded),
                Err(_) => return refuse(format!("{library} cannot be loaded"), help),
            }
        }
        if !has_cuda_decoder(Id::H264) {
            let help = "install an FFmpeg that was built with NVDEC (`ffmpeg -hwaccels` then lists cuda), or leave this option out";
            return refuse("the installed libavcodec cannot decode H.264 with CUDA".into(), help);
        }
        let mut device = ptr::null_mut();
        let name = CString::new(index.to_string()).unwrap_or_default();
        let kind = ffi::AVHWDeviceType::AV_HWDEVICE_TYPE_CUDA;
        // SAFETY: FFmpeg writes a reference to the new device to `device`, or leaves null; `name` outlives the call.
        let code = unsafe { ffi::av_hwdevice_ctx_create(&mut device, kind, name.as_ptr(), ptr::null_mut(), 0) };
        if code < 0 || device.is_null() {
            return refuse(
                format!("GPU {index} cannot be opened"),
                "check with nvidia-smi that it exists and has free memory, or leave this option out",
            );
        }
        // SAFETY: the function may be called by several threads at once. Nothing else in this process reads messages.
        unsafe { ffi::av_log_set_callback(Some(note_error)) };
        let gpu: &Self = Box::leak(Box::new(Self(device)));
        opened.insert(index, gpu);
        Ok(gpu)
    }

    /// Makes a decoder that is not open yet decode on this GPU.
    pub(super) fn attach(&self, context: &mut ffmpeg::codec::Context) -> std::result::Result<(), ffmpeg::Error> {
        // SAFETY: the device lives as long as the process, and the context, which has no other owner, frees its own
        // reference to the device.
        unsafe {
            let device = ffi::av_buffer_ref(self.0);
            if device.is_null() {
                return Err(ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM });
            }
            (*context.as_mut_ptr()).hw_device_ctx = device;
            (*context.as_mut_ptr()).get_format = Some(choose_format);
        }
        Ok(())
    }
}

/// Opens GPU `index` for decoding a video.
///
/// # Errors
/// The video is none that the GPU decodes, or the GPU cannot be opened.
pub(super) fn gpu_for(video: &VideoFile, index: usize) -> Result<&'static Gpu> {
    let gpu = Gpu::open(index)?;
    let codec = video.parameters.codec_id();
    match refusal(codec, video.parameters.pixel_format(), has_cuda_decoder(codec)) {
        Some(why) => Err(Error::media_file(&video.path, why, IN_SOFTWARE)),
        None => Ok(gpu),
    }
}

/// Whether FFmpeg's decoder of this codec can decode on a CUDA device.
fn has_cuda_decoder(codec: Id) -> bool {
    let Some(decoder) = ffmpeg::decoder::find(codec) else { return false };
    // SAFETY: the decoder is a static of FFmpeg, and so is each config; null ends their list.
    let configs = (0..).map_while(|i| unsafe { ffi::avcodec_get_hw_config(decoder.as_ptr(), i).as_ref() });
    let by_device = ffi::AV_CODEC_HW_CONFIG_METHOD_HW_DEVICE_CTX as i32;
    configs.into_iter().any(|config| {
        config.device_type == ffi::AVHWDeviceType::AV_HWDEVICE_TYPE_CUDA && config.methods & by_device != 0
    })
}

/// The pixel formats of a stream's frames: in the software decoder, and on the GPU.
type FrameFormats = (Pixel, Pixel);

/// The formats of a stream whose software decoder has the pixel format `software` (a number of `AVPixelFormat`); `None` if
/// the stream is not decoded on the GPU. NVDEC decodes H.264 with 10 bits on the latest GPUs only.
fn frame_formats(codec: Id, software: i32) -> Option<FrameFormats> {
    const ALL: [FrameFormats; 3] =
        [(Pixel::YUV420P, Pixel::NV12), (Pixel::YUVJ420P, Pixel::NV12), (Pixel::YUV420P10LE, Pixel::P010LE)];
    let of_codec = &ALL[..if codec == Id::HEVC { 3 } else { 2 }];
    let is_decoded = matches!(codec, Id::H264 | Id::HEVC);
    of_codec.iter().copied().find(|formats| is_decoded && ffi::AVPixelFormat::from(formats.0) as i32 == software)
}

/// Says why a stream is not decoded on the GPU; `None` if it is.
fn refusal(codec: Id, software: i32, has_cuda_decoder: bool) -> Option<String> {
    if !matches!(codec, Id::H264 | Id::HEVC) {
        return Some(format!("its codec is {}, and NVDEC is used for H.264 and HEVC", codec.name()));
    }
    if !has_cuda_decoder {
        return Some(format!("the installed libavcodec cannot decode {} with CUDA", codec.name()));
    }
    let what = "its pixel format is not 4:2:0 with 8 bits (of HEVC, also 10 bits)";
    frame_formats(codec, software).is_none().then(|| what.to_owned())
}

/// FFmpeg calls this function when a decoder knows its stream, and after a choice that the GPU could not use.
unsafe extern "C" fn choose_format(
    context: *mut ffi::AVCodecContext,
    offered: *const ffi::AVPixelFormat,
) -> ffi::AVPixelFormat {
    // SAFETY: the context is alive, and the list of formats ends with -1. They are read as plain numbers, because
    // FFmpeg may know formats that the enum does not have.
    let (codec, offered) = unsafe {
        let offered = offered.cast::<i32>();
        let count = (0..).take_while(|&i| *offered.add(i) != -1).count();
        (Id::from((*context).codec_id), std::slice::from_raw_parts(offered, count))
    };
    if takes_gpu_frames(codec, offered) {
        ffi::AVPixelFormat::AV_PIX_FMT_CUDA
    } else {
        // Ends decoding with an error. Software frames would be decoded by one thread.
        ffi::AVPixelFormat::AV_PIX_FMT_NONE
    }
}

/// Whether a decoder that offers these pixel formats, its software format last, decodes on the GPU.
fn takes_gpu_frames(codec: Id, offered: &[i32]) -> bool {
    let Some((&software, of_hardware)) = offered.split_last() else { return false };
    of_hardware.contains(&(ffi::AVPixelFormat::AV_PIX_FMT_CUDA as i32)) && frame_formats(codec, software).is_some()
}

/// The error of a video whose decoding on the GPU failed.
pub(super) fn failed_on_gpu(path: &Path) -> Error {
    Error::media_file(path, "decoding on the GPU failed, or its data are damaged", IN_SOFTWARE)
}

/// Whether FFmpeg has logged an error. It returns none for pictures that the GPU's driver refuses, and in some versions
/// none for failed copies from the GPU, but it logs both.
pub(super) static HAS_LOGGED_ERROR: AtomicBool = AtomicBool::new(false);

/// FFmpeg calls this function with each message. The type of the message's arguments depends on the architecture.
unsafe extern "C" fn note_error<Arguments>(_: *mut c_void, level: c_int, format: *const c_char, _: Arguments) {
    // SAFETY: FFmpeg passes a format string of printf.
    let format = unsafe { CStr::from_ptr(format) };
    // Intact H.264 streams release references to frames that were skipped, which FFmpeg logs as an error. The higher bits
    // of the level are a colour.
    if level & 0xff <= ffi::AV_LOG_ERROR && !format.to_bytes().starts_with(b"mmco:") {
        HAS_LOGGED_ERROR.store(true, Ordering::Relaxed);
    }
}

/// Refuses a frame that NVDEC may have decoded in another way than the software decoder.
pub(super) fn check_frame(path: &Path, frame: &AvFrame) -> Result<()> {
    // SAFETY: the frame is alive.
    let (errors, left, top) =
        unsafe { ((*frame.as_ptr()).decode_error_flags, (*frame.as_ptr()).crop_left, (*frame.as_ptr()).crop_top) };
    let why = if frame.is_corrupt() || errors != 0 {
        "its data are damaged or incomplete"
    } else if frame.is_interlaced() {
        "it is interlaced"
    } else if left != 0 || top != 0 {
        // FFmpeg crops frames in GPU memory at the right and at the bottom only.
        "its frames are cropped at the left or at the top"
    } else {
        return Ok(());
    };
    Err(Error::media_file(path, why, IN_SOFTWARE))
}

/// Copies a GPU frame of `decoder` to the host, as the frame that the software decoder outputs.
pub(super) fn software_frame(path: &Path, decoder: &decoder::Video, frame: &AvFrame) -> Result<AvFrame> {
    let mut host = AvFrame::empty();
    // SAFETY: the decoder and both frames are alive, and FFmpeg allocates the memory of the empty frame. The format is
    // read as a plain number.
    let (code, software) = unsafe {
        let code = ffi::av_hwframe_transfer_data(host.as_mut_ptr(), frame.as_ptr(), 0);
        (code, ptr::addr_of!((*decoder.as_ptr()).sw_pix_fmt).cast::<i32>().read())
    };
    let formats = frame_formats(decoder.id(), software).filter(|formats| code >= 0 && formats.1 == host.format());
    let planar = formats.and_then(|formats| planar_frame(&host, formats).ok());
    let mut planar = planar.ok_or_else(|| failed_on_gpu(path))?;
    planar.set_color_space(frame.color_space());
    planar.set_color_range(frame.color_range());
    Ok(planar)
}

/// Separates U from V: converts NV12 to yuv420p, and P010 to yuv420p10.
fn planar_frame(from: &AvFrame, formats: FrameFormats) -> std::result::Result<AvFrame, ffmpeg::Error> {
    let mut to = allocate_frame(formats.0, from.width(), from.height())?;
    if formats.1 == Pixel::NV12 {
        write_planes(from, &mut to, |[byte]: [u8; 1]| [byte]);
    } else {
        write_planes(from, &mut to, |sample: [u8; 2]| (u16::from_le_bytes(sample) >> 6).to_le_bytes());
    }
    Ok(to)
}

/// Writes Y, U and V, each sample of `N` bytes converted by `convert`.
fn write_planes<const N: usize>(from: &AvFrame, to: &mut AvFrame, convert: impl Fn([u8; N]) -> [u8; N]) {
    let (width, height) = (from.width() as usize, from.height() as usize);
    let (chroma_width, chroma_height) = (width.div_ceil(2), height.div_ceil(2));
    // Each plane of `to`: the plane of `from`, the sample in each group of `from`, the samples of a group, and its size.
    let planes =
        [(0, 0, 1, width, height), (1, 0, 2, chroma_width, chroma_height), (1, 1, 2, chroma_width, chroma_height)];
    for (index, (source, sample, group, width, height)) in planes.into_iter().enumerate() {
        let (from, from_stride) = plane(from, source, height);
        let (to, to_stride) = plane_mut(to, index, height);
        for (from, to) in from.chunks_exact(from_stride).zip(to.chunks_exact_mut(to_stride)) {
            let groups = from.as_chunks::<N>().0.chunks_exact(group);
            for (samples, out) in groups.zip(&mut to.as_chunks_mut::<N>().0[..width]) {
                *out = convert(samples[sample]);
            }
        }
    }
}

/// The first `rows` rows of a plane in host memory, and the bytes of a row.
fn plane(frame: &AvFrame, index: usize, rows: usize) -> (&[u8], usize) {
    let stride = frame.stride(index);
    // SAFETY: FFmpeg has allocated the plane with at least this many rows.
    (unsafe { std::slice::from_raw_parts((*frame.as_ptr()).data[index], stride * rows) }, stride)
}

fn plane_mut(frame: &mut AvFrame, index: usize, rows: usize) -> (&mut [u8], usize) {
    let stride = frame.stride(index);
    // SAFETY: as in `plane`; the frame is the only owner of its memory.
    (unsafe { std::slice::from_raw_parts_mut((*frame.as_mut_ptr()).data[index], stride * rows) }, stride)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::convert::{RgbConverter, Rotation};
    use super::*;
    use crate::media::resize::{FrameFilter, ResizeTarget};

    const EIGHT_BITS: FrameFormats = (Pixel::YUV420P, Pixel::NV12);
    const TEN_BITS: FrameFormats = (Pixel::YUV420P10LE, Pixel::P010LE);

    fn number(format: Pixel) -> i32 {
        ffi::AVPixelFormat::from(format) as i32
    }

    /// What a GPU makes of a frame of the software decoder, sample by sample.
    fn gpu_frame(planar: &AvFrame, formats: FrameFormats) -> AvFrame {
        let (width, height) = (planar.width() as usize, planar.height() as usize);
        let mut to = allocate_frame(formats.1, planar.width(), planar.height()).unwrap();
        for (index, rows, columns) in [(0, height, width), (1, height / 2, width / 2), (2, height / 2, width / 2)] {
            let (from, from_stride) = plane(planar, index, rows);
            let (to, to_stride) = plane_mut(&mut to, index.min(1), rows);
            for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                let at = if index == 0 { x } else { 2 * x + index - 1 };
                if formats == TEN_BITS {
                    let sample = u16::from_le_bytes([0, 1].map(|i| from[y * from_stride + 2 * x + i]));
                    to[y * to_stride + 2 * at..][..2].copy_from_slice(&(sample << 6).to_le_bytes());
                } else {
                    to[y * to_stride + at] = from[y * from_stride + x];
                }
            }
        }
        to
    }

    /// Visible samples of Y, U and V, one after the other.
    fn samples(frame: &AvFrame, formats: FrameFormats) -> Vec<u8> {
        let bytes = if formats == TEN_BITS { 2 } else { 1 };
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let planes = [(0, height, width), (1, height / 2, width / 2), (2, height / 2, width / 2)];
        let visible = |(index, rows, columns): (usize, usize, usize)| {
            let (plane, stride) = plane(frame, index, rows);
            plane.chunks(stride).flat_map(move |row| row[..columns * bytes].to_vec()).collect::<Vec<_>>()
        };
        planes.into_iter().flat_map(visible).collect()
    }

    fn resized_rgb(frame: &AvFrame) -> Vec<u8> {
        let size = (frame.height() as usize, frame.width() as usize);
        let target = ResizeTarget { size: (28, 56), filter: FrameFilter::Torch };
        let mut out = vec![0; 28 * 56 * 3];
        let mut converter = RgbConverter::new(size, Rotation::default(), Some(target)).unwrap();
        converter.write_as_rgb(Path::new("frame"), frame, &mut out).unwrap();
        out
    }

    /// All frames of a clip, by the software decoder.
    fn decoded(name: &str) -> Vec<AvFrame> {
        load_ffmpeg().unwrap();
        let path: std::path::PathBuf = [env!("CARGO_MANIFEST_DIR"), "../tests/golden/clips", name].iter().collect();
        let video = VideoFile::read_container(&path, u64::MAX).unwrap();
        assert_eq!(refusal(video.parameters.codec_id(), video.parameters.pixel_format(), true), None, "{name}");
        let mut decoder = video.parameters.unopened_decoder().unwrap().decoder().video().unwrap();
        let mut frames = Vec::new();
        let packets = video.data.as_ref().unwrap().iter().map(Some).chain([None]);
        for packet in packets {
            match packet {
                Some(packet) => decoder.send_packet(packet).unwrap(),
                None => decoder.send_eof().unwrap(),
            }
            let mut frame = AvFrame::empty();
            while decoder.receive_frame(&mut frame).is_ok() {
                check_frame(&path, &frame).unwrap();
                frames.push(std::mem::replace(&mut frame, AvFrame::empty()));
            }
        }
        frames
    }

    #[test]
    fn frames_of_a_gpu_become_those_of_the_software_decoder() {
        for name in ["h264_709.mp4", "h264_bframes_audio.mp4", "h264_rot90.mp4", "h264_vfr.mp4", "starts_in_group.ts"] {
            let frames = decoded(name);
            assert!(frames.len() > 8, "{name}");
            for frame in frames {
                let mut got = planar_frame(&gpu_frame(&frame, EIGHT_BITS), EIGHT_BITS).unwrap();
                got.set_color_space(frame.color_space());
                got.set_color_range(frame.color_range());
                assert!(samples(&got, EIGHT_BITS) == samples(&frame, EIGHT_BITS), "{name}");
                assert!(resized_rgb(&got) == resized_rgb(&frame), "{name}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_samples_keep_their_places(half in (1u32..40, 1u32..40), seed in any::<u64>(), ten_bits in any::<bool>()) {
            load_ffmpeg().unwrap();
            let formats = if ten_bits { TEN_BITS } else { EIGHT_BITS };
            let mut frame = allocate_frame(formats.0, 2 * half.0, 2 * half.1).unwrap();
            let mut state = seed | 1;
            for index in 0..3 {
                let rows = (if index == 0 { 2 * half.1 } else { half.1 }) as usize;
                for (i, byte) in plane_mut(&mut frame, index, rows).0.iter_mut().enumerate() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let high_byte = ten_bits && i % 2 == 1;
                    *byte = (state >> 56) as u8 & if high_byte { 3 } else { 255 };
                }
            }
            let got = planar_frame(&gpu_frame(&frame, formats), formats).unwrap();
            prop_assert!(samples(&got, formats) == samples(&frame, formats));
            prop_assert!(resized_rgb(&got) == resized_rgb(&frame));
        }
    }

    #[test]
    fn only_streams_that_nvdec_decodes_exactly_go_to_the_gpu() {
        load_ffmpeg().unwrap();
        let decodes = [
            (Id::H264, Pixel::YUV420P, Some(Pixel::NV12)),
            (Id::H264, Pixel::YUVJ420P, Some(Pixel::NV12)),
            (Id::H264, Pixel::YUV420P10LE, None),
            (Id::H264, Pixel::YUV422P, None),
            (Id::H264, Pixel::YUV444P, None),
            (Id::H264, Pixel::GRAY8, None),
            (Id::HEVC, Pixel::YUV420P, Some(Pixel::NV12)),
            (Id::HEVC, Pixel::YUV420P10LE, Some(Pixel::P010LE)),
            (Id::HEVC, Pixel::YUV420P12LE, None),
            (Id::HEVC, Pixel::YUV444P10LE, None),
            (Id::VP9, Pixel::YUV420P, None),
            (Id::AV1, Pixel::YUV420P10LE, None),
            (Id::MPEG4, Pixel::YUV420P, None),
        ];
        let cuda = ffi::AVPixelFormat::AV_PIX_FMT_CUDA as i32;
        for (codec, software, gpu) in decodes {
            let (case, software) = (format!("{codec:?} {software:?}"), number(software));
            assert_eq!(frame_formats(codec, software).map(|formats| formats.1), gpu, "{case}");
            assert_eq!(refusal(codec, software, true).is_none(), gpu.is_some(), "{case}");
            assert!(refusal(codec, software, false).is_some(), "{case}");
            let vaapi = number(Pixel::VAAPI);
            assert_eq!(takes_gpu_frames(codec, &[vaapi, cuda, software]), gpu.is_some(), "{case}");
            assert!(!takes_gpu_frames(codec, &[vaapi, software]) && !takes_gpu_frames(codec, &[]), "{case}");
        }
        assert!(refusal(Id::VP9, number(Pixel::YUV420P), true).unwrap().contains("its codec is vp9"));
        assert!(refusal(Id::HEVC, number(Pixel::YUV444P), true).unwrap().contains("4:2:0"));
        assert!(refusal(Id::H264, -1, true).is_some(), "an unknown pixel format");
    }

    #[test]
    fn ffmpeg_gets_the_chosen_format() {
        load_ffmpeg().unwrap();
        let mut context = ffmpeg::codec::Context::new();
        let (cuda, none) = (ffi::AVPixelFormat::AV_PIX_FMT_CUDA, ffi::AVPixelFormat::AV_PIX_FMT_NONE);
        let [nv12, planar] = [Pixel::NV12, Pixel::YUV420P].map(ffi::AVPixelFormat::from);
        // SAFETY: the context is alive and not open, and each list ends with NONE.
        unsafe {
            (*context.as_mut_ptr()).codec_id = Id::H264.into();
            assert_eq!(choose_format(context.as_mut_ptr(), [cuda, planar, none].as_ptr()), cuda);
            assert_eq!(choose_format(context.as_mut_ptr(), [planar, none].as_ptr()), none);
            assert_eq!(choose_format(context.as_mut_ptr(), [cuda, nv12, none].as_ptr()), none);
        }
    }

    #[test]
    fn frames_that_may_differ_are_refused() {
        load_ffmpeg().unwrap();
        let refused = |change: fn(&mut ffi::AVFrame)| {
            let mut frame = allocate_frame(Pixel::NV12, 8, 8).unwrap();
            // SAFETY: the frame is alive; only plain fields are changed.
            change(unsafe { &mut *frame.as_mut_ptr() });
            check_frame(Path::new("a.mp4"), &frame).err().map(|e| e.diagnostic.what)
        };
        assert_eq!(refused(|_| ()), None);
        assert!(refused(|frame| frame.flags |= ffi::AV_FRAME_FLAG_CORRUPT).unwrap().contains("damaged"));
        assert!(refused(|frame| frame.decode_error_flags = 1).unwrap().contains("damaged"));
        assert!(refused(|frame| frame.crop_left = 2).unwrap().contains("cropped"));
        assert!(refused(|frame| frame.crop_top = 2).unwrap().contains("cropped"));
    }
}
