//! `reel doctor`: checks what this machine has, and says what to install for what is missing.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use reel_device::compile::driver_code::OLDEST_DRIVER;
use reel_device::compile::toolkit::{Toolkit, major_of_library, program_version};
use reel_device::cpu::simd;
use reel_device::cuda::{DriverLibrary, cuda_version_text, nccl};
use reel_device::gpu_sensor::{NVML_LIBRARY, nvml_driver_version};
use reel_device::{Team, compile};
use reel_input::media::libraries;
use reel_kernels::limits;
use reel_support::hub::Hub;
use serde::Serialize;

use crate::common::CommonOptions;
use crate::{output, ranks};

/// Check this machine: CPU, memory, FFmpeg, CUDA compilers, GPU, model cache. Says what to install for what is missing.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel doctor")]
pub struct DoctorArgs {}

/// One line of the table: a thing that was looked for, and whether it was found.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// Heading of the table section that the line belongs to.
    group: &'static str,
    name: String,
    found: bool,
    /// What was found: version, path or size.
    what: String,
    /// How to install the thing if it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    install: Option<&'static str>,
}

impl Finding {
    fn new(group: &'static str, name: &str, found: Option<String>, install: &'static str) -> Self {
        let install = if found.is_none() { Some(install) } else { None };
        Self { group, name: name.to_string(), found: found.is_some(), what: found.unwrap_or_default(), install }
    }
}

impl DoctorArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let findings = [processor(common)?, memory_and_disk(), ffmpeg(), compilers(), gpu(), hub_cache()].concat();
        if common.json {
            return output::print_json(
                &serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "findings": findings}),
            );
        }
        let width = findings.iter().map(|f| f.name.len()).max().unwrap_or(0);
        let mut group = "";
        for f in &findings {
            if f.group != group {
                output::print_line(format!("{}{}", if group.is_empty() { "" } else { "\n" }, f.group))?;
                group = f.group;
            }
            let mark = if f.found { "yes" } else { "no " };
            let what = [f.what.as_str(), f.install.unwrap_or_default()];
            let what = what.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
            output::print_line(format!("  {mark}  {:width$}  {what}", f.name))?;
        }
        Ok(())
    }
}

fn processor(common: &CommonOptions) -> Result<Vec<Finding>> {
    let group = "Processor";
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m.trim().to_string());
    let isa = match simd::isa() {
        simd::Isa::Plain => "no vector instructions beyond the architecture's baseline",
        simd::Isa::Avx2 => "AVX2 with FMA",
        simd::Isa::Avx512 => "AVX-512",
        simd::Isa::Avx512Bf16 => "AVX-512 with bf16 dot products",
        simd::Isa::Amx => "AVX-512, and AMX for bf16 matrix products",
        simd::Isa::AmxF32 => "AVX-512, and AMX for matrix products",
    };
    let (name, default) = (simd::isa().name(), simd::default_isa());
    let isa = match simd::requested_isa() {
        Ok(Some(_)) => format!(
            "{name}: {isa}; set by {}, the default is {}: {}",
            simd::ISA_VARIABLE,
            default.isa.name(),
            default.reason
        ),
        _ => format!("{name}: {isa}; {}", default.reason),
    };
    Ok(vec![
        Finding::new(group, "model", model.or_else(|| Some(env::consts::ARCH.to_string())), ""),
        Finding::new(group, "threads", Some(threads(common.threads()?)), ""),
        Finding::new(group, "processes", Some(ranks::describe_process()), ""),
        Finding::new(group, "instructions", Some(isa), ""),
        Finding::new(group, "bf16 products", Some(simd::isa().bf16_product_instructions().to_string()), ""),
    ])
}

/// Describes the number of threads and the latency between cores: the time until one thread reads what another thread
/// has written.
fn threads(count: usize) -> String {
    match limits::measure_cache_line_handover_seconds(&Team::new(count)) {
        Some(seconds) => format!("{count}; {:.0} ns from core to core", seconds * 1e9),
        None => count.to_string(),
    }
}

fn memory_and_disk() -> Vec<Finding> {
    let group = "Memory and disk";
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| {
        let line = info.lines().find(|l| l.starts_with(key))?;
        let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / (1 << 20) as f64)
    };
    let memory =
        gib("MemAvailable:").zip(gib("MemTotal:")).map(|(free, all)| format!("{free:.1} of {all:.1} GiB free"));
    let disk = |path: &Path| {
        let s = rustix::fs::statvfs(path).ok()?;
        Some(format!("{:.1} GiB free in {}", (s.f_bavail * s.f_frsize) as f64 / (1u64 << 30) as f64, path.display()))
    };
    vec![
        Finding::new(group, "memory", memory, "/proc/meminfo cannot be read"),
        Finding::new(group, "disk, here", env::current_dir().ok().and_then(|p| disk(&p)), "this folder cannot be read"),
        Finding::new(group, "disk, temporary", disk(&env::temp_dir()), "set TMPDIR to a folder that exists"),
    ]
}

/// Checks FFmpeg's libraries and the codecs that reel needs.
fn ffmpeg() -> Vec<Finding> {
    let missing = |help: &'static str| Finding::new("FFmpeg", "FFmpeg", None, help);
    let versions = match libraries::ffmpeg_library_names_and_versions() {
        Ok(versions) if versions.is_empty() => {
            return vec![missing(
                "this build of reel was compiled without FFmpeg and cannot read videos; use a build with the feature `ffmpeg`",
            )];
        }
        Ok(versions) => versions.into_iter().map(|(name, v)| Finding::new("FFmpeg", name, Some(v), "")),
        Err(what) => {
            let install = missing("to read videos, install the FFmpeg libraries of this version, or build reel here");
            return vec![Finding { what: what.to_string(), ..install }];
        }
    };
    let folder = libraries::installed_ffmpeg_folder();
    let missing_codec = if folder.is_some() {
        "reel's own FFmpeg lacks this codec; delete its folder, and reel uses the system's FFmpeg of the same version"
    } else {
        "this FFmpeg was built without this codec; install the distribution's full FFmpeg libraries"
    };
    let folder = folder.map_or_else(|| "the system's libraries".to_string(), |f| f.display().to_string());
    let folder = Finding::new("FFmpeg", "FFmpeg", Some(folder), "");
    let decoders = [
        ("reads H.264", &["h264"][..]),
        ("reads HEVC", &["hevc"]),
        ("reads VP9", &["vp9", "libvpx-vp9"]),
        ("reads AV1", &["libdav1d", "libaom-av1", "av1"]),
        ("reads MPEG-4", &["mpeg4"]),
        ("reads GIF", &["gif"]),
    ];
    let encoders = [("writes H.264 (demo)", &["libx264"][..]), ("writes MPEG-4 (demo)", &["mpeg4"])];
    let find = |names: &[&str], has: fn(&str) -> bool| names.iter().find(|n| has(n)).map(|n| (*n).to_string());
    let decoders =
        decoders.map(|(n, names)| Finding::new("FFmpeg", n, find(names, libraries::has_decoder), missing_codec));
    let encoders =
        encoders.map(|(n, names)| Finding::new("FFmpeg", n, find(names, libraries::has_encoder), missing_codec));
    std::iter::once(folder).chain(versions).chain(decoders).chain(encoders).collect()
}

/// Looks for the programs and libraries that compile kernels and inspect their machine code, by file name only. The
/// only library that is loaded is NVRTC, for its version.
fn compilers() -> Vec<Finding> {
    let group = "CUDA compilers (for `reel kernels check` and the simulator)";
    let toolkit = Toolkit::from_environment();
    let setup = "run ./x setup, or install CUDA 13 and set CUDA_HOME";
    let nvrtc = toolkit.nvrtc().map(|p| match compile::nvrtc_version() {
        Ok((major, minor)) => format!("{major}.{minor}, {}", p.display()),
        Err(e) => format!("{}: {e}", p.display()),
    });
    let version_and_path = |path: PathBuf| {
        format!("{}, {}", program_version(&path).unwrap_or_else(|| "no version".to_string()), path.display())
    };
    let program = |name: &str| toolkit.program(name).map(version_and_path);
    let headers = toolkit.header_folders().first().map(|p| p.display().to_string());
    let mut findings = vec![
        Finding::new(group, "NVRTC", nvrtc, setup),
        Finding::new(group, "nvcc (host code in kernel files)", program("nvcc"), setup),
        Finding::new(group, "ptxas", program("ptxas"), setup),
        Finding::new(
            group,
            "ptxas 12 (for drivers of CUDA 12)",
            toolkit.ptxas_of_major(OLDEST_DRIVER / 1000).map(version_and_path),
            "run ./x setup, or install the wheel nvidia-cuda-nvcc-cu12 and set REEL_CUDA",
        ),
        Finding::new(group, "nvdisasm (machine code as text)", program("nvdisasm"), setup),
        Finding::new(group, "CUDA headers", headers, setup),
    ];
    findings.extend(useless_cuda_folders(group, &toolkit));
    findings
}

/// Reports the environment variables for a CUDA toolkit whose value is not a folder. Also reports `REEL_CUDA`, the
/// first of them, if no part of CUDA was found in its folder.
fn useless_cuda_folders(group: &'static str, toolkit: &Toolkit) -> Vec<Finding> {
    let named = |name: &'static str| Some((name, PathBuf::from(env::var_os(name).filter(|value| !value.is_empty())?)));
    let describe = |(name, folder): (&'static str, PathBuf)| {
        let programs = ["nvcc", "ptxas", "nvdisasm"].into_iter().filter_map(|name| toolkit.program(name));
        let libraries = [toolkit.nvrtc(), toolkit.cublas_lt(u32::MAX)].into_iter().flatten();
        let is_used = programs.chain(libraries).chain(toolkit.header_folders()).any(|path| path.starts_with(&folder));
        let what = match folder.is_dir() {
            false => "which is not a folder",
            true if name == "REEL_CUDA" && !is_used => "in which no part of CUDA was found",
            true => return None,
        };
        let help = "name a CUDA toolkit or a Python environment with NVIDIA's wheels, or unset the variable";
        let finding = Finding::new(group, name, None, help);
        Some(Finding { what: format!("is {}, {what}", folder.display()), ..finding })
    };
    ["REEL_CUDA", "CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(named).filter_map(describe).collect()
}

/// Looks for the GPU, the driver and the libraries that device `cuda` opens at run time. Only the driver's libraries
/// are opened, for their versions; the other libraries are looked for by file name.
fn gpu() -> Vec<Finding> {
    let group = "GPU";
    let read = |path: &str| fs::read_to_string(path).ok();
    let version = read("/proc/driver/nvidia/version").and_then(|text| {
        text.split_whitespace()
            .find(|w| w.split('.').count() >= 2 && w.starts_with(|c: char| c.is_ascii_digit()))
            .map(str::to_string)
    });
    let cards: Vec<String> = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| fs::read_to_string(e.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|l| l.strip_prefix("Model:"))?.trim().to_string()))
        .collect();
    let toolkit = "install CUDA, or install the wheel nvidia-cublas (nvidia-cublas-cu12 with a driver of CUDA 12) and set REEL_CUDA to its Python environment";
    let opened = DriverLibrary::open();
    let cuda = opened.as_ref().map(|library| library.version);
    let driver = "install NVIDIA's driver, if there is an NVIDIA GPU";
    let library =
        |name: &str, install| Finding::new(group, name, find_library(name).map(|p| p.display().to_string()), install);
    vec![
        Finding::new(
            group,
            "GPU",
            if cards.is_empty() { None } else { Some(cards.join(", ")) },
            "no NVIDIA GPU is visible",
        ),
        Finding::new(group, "driver", version, driver),
        library("libcuda.so.1", driver),
        driver_support(group, opened, driver),
        Finding::new(group, "cuBLASLt", cublas_lt(cuda.map_or(u32::MAX, |version| version / 1000)), toolkit),
        nvml(group),
        Finding::new(
            group,
            "NCCL",
            nccl::library_beside_toolkit().or_else(|| find_library("libnccl.so.2")).map(|p| p.display().to_string()),
            "only a job of several GPUs needs it; install libnccl2, or the wheel nvidia-nccl-cu13 beside nvidia-cublas",
        ),
        Finding::new(
            group,
            "built-in kernels",
            builtin(cuda),
            "none in this binary: NVRTC compiles each kernel at its first use",
        ),
    ]
}

/// Checks whether NVML can be used. NVML reports the power, clocks, temperature and throttling of a GPU.
fn nvml(group: &'static str) -> Finding {
    let install =
        "without NVML, power, clocks, temperature and throttling are not reported; it comes with NVIDIA's driver";
    match nvml_driver_version() {
        Ok(version) => Finding::new(group, "NVML", Some(format!("{NVML_LIBRARY} of driver {version}")), install),
        Err(why) => Finding { what: why, ..Finding::new(group, "NVML", None, install) },
    }
}

/// Describes which CUDA version the driver supports, and what a newer one would do better.
fn driver_support(group: &'static str, library: Option<DriverLibrary>, no_driver: &'static str) -> Finding {
    let name = "CUDA of the driver";
    let Some(library) = library else { return Finding::new(group, name, None, no_driver) };
    let version = cuda_version_text(library.version);
    let lacks = |what: String, install| Finding { what, ..Finding::new(group, name, None, install) };
    if library.version < OLDEST_DRIVER {
        return lacks(version, "device `cuda` needs 12.0 or newer: update the driver");
    }
    if !library.missing.is_empty() {
        return lacks(format!("{version}, without the calls {}", library.missing.join(", ")), "reinstall the driver");
    }
    let has_ptxas_12 = Toolkit::from_environment().ptxas_of_major(OLDEST_DRIVER / 1000).is_some();
    let limitations = library.limitations(has_ptxas_12).into_iter().map(str::to_string);
    Finding::new(group, name, Some([version].into_iter().chain(limitations).collect::<Vec<_>>().join("; ")), "")
}

/// Describes the cuBLASLt library for a driver of a CUDA major version.
fn cublas_lt(driver: u32) -> Option<String> {
    let path = Toolkit::from_environment().cublas_lt(driver)?;
    Some(format!("{}, {}", major_of_library(&path).unwrap_or_default(), path.display()))
}

/// Describes the kernels whose machine code is built into this binary; `None` if there are none. `driver` is the CUDA
/// version of the driver, times 1000, if there is one.
fn builtin(driver: Option<u32>) -> Option<String> {
    let archive = compile::builtin::archive();
    if driver.is_some_and(|version| !archive.suits_driver(version)) {
        return Some("machine code of a newer CUDA release, which the driver does not load: run reel kernels pack without --cuda 13".into());
    }
    match archive.fresh_and_stale_counts(&reel_kernels::catalogue::sources()) {
        (0, 0) => None,
        (fresh, 0) => Some(format!("machine code of {fresh} CUDA modules for {}", archive.architectures().join(", "))),
        (fresh, stale) => Some(format!(
            "machine code of {fresh} CUDA modules; that of {stale} others is out of date and not used: run reel kernels pack again"
        )),
    }
}

/// Returns the first file whose name begins with `name` in the folders that the dynamic loader searches.
fn find_library(name: &str) -> Option<PathBuf> {
    let listed = |key: &str| env::var_os(key).map(|v| env::split_paths(&v).collect::<Vec<_>>()).unwrap_or_default();
    let mut folders = listed("LD_LIBRARY_PATH");
    let named = |key: &str| env::var_os(key).filter(|folder| !folder.is_empty());
    if let Some(cuda) = named("CUDA_HOME").or_else(|| named("CUDA_PATH")) {
        folders.push(Path::new(&cuda).join("lib64"));
    }
    let arch = env::consts::ARCH;
    folders.extend(["/usr/local/cuda/lib64", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib"].map(PathBuf::from));
    folders
        .extend(["/usr/lib", "/lib", "/usr/local/lib"].map(|root| PathBuf::from(format!("{root}/{arch}-linux-gnu"))));
    folders.iter().find_map(|folder| {
        let mut found: Vec<PathBuf> = fs::read_dir(folder)
            .ok()?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(name))
            .map(|e| e.path())
            .collect();
        found.sort();
        found.into_iter().next()
    })
}

/// Lists the models and data sets in the Hugging Face hub cache, and checks the access token for downloads.
fn hub_cache() -> Vec<Finding> {
    let hub = Hub::from_environment();
    let folder = hub.cache.display();
    let of_kind = |prefix: &str| {
        let entries = fs::read_dir(&hub.cache).into_iter().flatten().flatten();
        let name = |e: fs::DirEntry| Some(e.file_name().to_string_lossy().strip_prefix(prefix)?.replacen("--", "/", 1));
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names
    };
    let list = |names: Vec<String>, kind: &str, option: &str| match names.len() {
        0 => format!("{folder}: no {kind} yet; {option} with a Hugging Face id downloads one"),
        n => format!("{folder}: {n} {kind}: {}", names.join(", ")),
    };
    let token = match &hub.token_source {
        Some(source) => format!("from {source}"),
        None => {
            "none; only public models and data sets can be downloaded without a token (hf auth login, HF_TOKEN)".into()
        }
    };
    let group = "Hub cache";
    if hub.lacks_home {
        return vec![Finding::new(group, "home folder", None, "set HOME, or HF_HOME to the folder of the cache")];
    }
    vec![
        Finding::new(group, "models", Some(list(of_kind("models--"), "models", "--model")), ""),
        Finding::new(group, "data sets", Some(list(of_kind("datasets--"), "data sets", "--data")), ""),
        Finding::new(group, "token", Some(token), ""),
    ]
}
