//! Loads FFmpeg's libraries when a video is first opened, instead of at the start of the program.
//!
//! FFmpeg brings about a hundred other libraries. The dynamic linker needs 40 ms to load them, a delay for every
//! command, although most commands do not use FFmpeg. A program that loads the libraries itself also starts on a
//! machine without FFmpeg.
//!
//! The crate `ffmpeg-sys-next` calls FFmpeg's functions by their names, as if the program were linked with FFmpeg. So
//! this file defines a function for each of these names. Each function is one jump, to an address that [`load_ffmpeg`]
//! looks up and stores:
//! ```text
//! av_read_frame:  jmp [ADDRESS of av_read_frame]     before `load_ffmpeg`: the function `not_loaded`, which aborts
//! ```
//! The static linker then finds all names defined, so it does not list FFmpeg's libraries as dependencies of the
//! program (`--as-needed`). If [`functions!`] lacks a function that is called, the program is linked with that
//! function's library again; the test `ffmpeg_is_not_loaded_at_the_start` notices.
//!
//! The names are hidden symbols, so calls between FFmpeg's own libraries do not reach these functions.

use std::arch::global_asm;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use ffmpeg_next::ffi;
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

/// A function of FFmpeg that is called through a stored address.
struct Function {
    /// The function's name with a zero byte at the end.
    name: &'static [u8],
    /// The address of the function, after the libraries are loaded.
    address: &'static AtomicPtr<c_void>,
    /// The function of the same name in this file, which jumps to `address`.
    jump: unsafe extern "C" fn(),
}

/// Defines the jump functions of each library from its name, its major version and the names of its functions.
macro_rules! functions {
    ($($library:ident, $version:expr, $table:ident: $($name:ident)*;)*) => {
        #[allow(non_upper_case_globals)]
        mod address {
            use super::{AtomicPtr, not_loaded};

            $($(pub(super) static $name: AtomicPtr<super::c_void> = AtomicPtr::new(not_loaded as *mut _);)*)*
        }

        unsafe extern "C" {
            $($(fn $name();)*)*
        }

        $($(
            global_asm!(
                concat!(".globl ", stringify!($name)),
                concat!(".hidden ", stringify!($name)),
                concat!(".type ", stringify!($name), ", @function"),
                concat!(stringify!($name), ":"),
                "jmp qword ptr [rip + {address}]",
                address = sym address::$name,
            );
        )*)*

        $(
            static $table: &[Function] = &[$(Function {
                name: concat!(stringify!($name), "\0").as_bytes(),
                address: &address::$name,
                jump: $name,
            },)*];
        )*

        /// The libraries in the order in which they are loaded, each with its major version and its functions.
        static LIBRARIES: &[(&str, i64, &[Function])] = &[$((stringify!($library), $version as i64, $table),)*];
    };
}

functions! {
    libavutil, ffi::LIBAVUTIL_VERSION_MAJOR, AVUTIL:
        av_buffer_ref av_dict_free av_dict_set av_frame_alloc av_frame_free av_frame_get_buffer av_hwdevice_ctx_create
        av_hwframe_transfer_data av_log_set_callback av_log_set_level avutil_version;
    libavcodec, ffi::LIBAVCODEC_VERSION_MAJOR, AVCODEC:
        av_codec_is_decoder av_codec_is_encoder av_init_packet av_new_packet av_packet_rescale_ts av_packet_unref
        avcodec_alloc_context3 avcodec_close avcodec_find_decoder avcodec_find_decoder_by_name
        avcodec_find_encoder_by_name avcodec_flush_buffers avcodec_free_context avcodec_get_hw_config avcodec_get_name
        avcodec_open2 avcodec_parameters_alloc avcodec_parameters_copy avcodec_parameters_free
        avcodec_parameters_from_context avcodec_parameters_to_context avcodec_receive_frame avcodec_receive_packet
        avcodec_send_frame avcodec_send_packet avcodec_version;
    libavformat, ffi::LIBAVFORMAT_VERSION_MAJOR, AVFORMAT:
        av_find_best_stream av_interleaved_write_frame av_read_frame av_seek_frame av_write_trailer
        avformat_alloc_output_context2 avformat_close_input avformat_find_stream_info avformat_free_context
        avformat_index_get_entries_count avformat_new_stream avformat_open_input avformat_version
        avformat_write_header avio_close avio_open;
    libswscale, ffi::LIBSWSCALE_VERSION_MAJOR, SWSCALE:
        sws_freeContext sws_getCoefficients sws_getColorspaceDetails sws_getContext sws_scale
        sws_setColorspaceDetails swscale_version;
}

/// The target of all jumps until [`load_ffmpeg`] has stored the addresses: prints an error and aborts.
extern "C" fn not_loaded() {
    eprintln!("a function of FFmpeg was called before its libraries were loaded; this is a bug in reel-input");
    std::process::abort();
}

/// The file name of a library, such as `libavutil.so.57`. The number is the major version of the headers that the
/// program was compiled with. Libraries of another major version have other struct layouts.
fn file_name((name, version, _): &(&str, i64, &[Function])) -> String {
    format!("{name}.so.{version}")
}

/// The folder `../lib/reel` beside the program's folder, if it has FFmpeg's libraries of the right version, as in an
/// installed release. All libraries are then loaded from this folder instead of the system's folders.
pub(super) fn installed_ffmpeg_folder() -> Option<PathBuf> {
    installed_ffmpeg_folder_of(&std::env::current_exe().ok()?)
}

fn installed_ffmpeg_folder_of(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?.parent()?.join("lib/reel");
    folder.join(file_name(LIBRARIES.first()?)).is_file().then_some(folder)
}

/// Loads FFmpeg's libraries, at the first call. The error says which library is missing.
pub(super) fn load_ffmpeg() -> Result<(), &'static str> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let folder = installed_ffmpeg_folder().unwrap_or_default();
        LIBRARIES.iter().try_for_each(|library| {
            let (file, functions) = (file_name(library), library.2);
            // SAFETY: the libraries of this name and version are FFmpeg's; their initialisers have no conditions.
            let library = unsafe { Library::open(Some(folder.join(&file)), RTLD_LAZY | RTLD_LOCAL) };
            let library = library.map_err(|e| format!("{file} cannot be loaded ({e})"))?;
            for function in functions {
                let name = || String::from_utf8_lossy(&function.name[..function.name.len() - 1]).into_owned();
                // SAFETY: only the address is taken. The crate `ffmpeg-sys-next` declares the function as the headers
                // of this version do.
                let found = unsafe { library.get::<*mut c_void>(function.name) };
                let found = found.map_err(|e| format!("{file} has no function {} ({e})", name()))?.into_raw();
                if found == function.jump as *mut c_void {
                    return Err(format!("{file} does not define the function {}", name()));
                }
                function.address.store(found, Ordering::Release);
            }
            // The addresses are used until the end of the program, so the library is never unloaded.
            std::mem::forget(library);
            Ok(())
        })
    });
    loaded.as_ref().copied().map_err(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_beside_the_program_are_found_by_their_major_version() {
        let prefix = tempfile::tempdir().unwrap();
        let (program, folder) = (prefix.path().join("bin/reel"), prefix.path().join("lib/reel"));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(installed_ffmpeg_folder_of(&program), None, "an empty folder has no libraries");
        std::fs::write(folder.join("libavutil.so.1"), "").unwrap();
        assert_eq!(installed_ffmpeg_folder_of(&program), None, "another major version does not fit");
        std::fs::write(folder.join(file_name(&LIBRARIES[0])), "").unwrap();
        assert_eq!(installed_ffmpeg_folder_of(&program), Some(folder));
    }
}
