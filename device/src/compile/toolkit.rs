//! Finds the CUDA compilers, programs and headers on this machine.
//!
//! Libraries, programs and headers are searched separately, in these folders and in this order: the folder that
//! `REEL_CUDA` names (a CUDA toolkit, a Python environment with NVIDIA's wheels, or a folder that they were installed
//! to), `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda*` (newest first), the loader's and the shell's search paths, and
//! the folder that `./x setup` fills: `$XDG_CACHE_HOME/reel/cuda-13.0`. Folders with NVRTC 13 precede those without. A
//! library that none of them has is searched in the packages of `python3`, where PyTorch's wheels install it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The CUDA major version whose PTX the simulator reads and whose libraries are opened.
pub const CUDA_MAJOR: u32 = 13;

/// The folders that may hold a CUDA toolkit or parts of one, in search order.
#[derive(Clone, Debug, Default)]
pub struct Toolkit {
    places: Vec<Place>,
    /// Returns further places to search for a library that no place in `places` has; `None` if there are none.
    last: Option<fn() -> &'static [Place]>,
}

/// The folders of one CUDA installation, or of the system's search paths.
#[derive(Clone, Debug, Default)]
struct Place {
    libraries: Vec<PathBuf>,
    programs: Vec<PathBuf>,
    headers: Vec<PathBuf>,
}

impl Toolkit {
    /// Finds the toolkit by this process' environment variables.
    pub fn from_environment() -> Toolkit {
        let found = Toolkit::of(|name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from));
        Toolkit { last: Some(python_packages), ..found }
    }

    /// Finds the toolkit without the packages of Python. `var` returns the value of an environment variable, or `None`
    /// if it is not set.
    fn of(var: impl Fn(&str) -> Option<PathBuf>) -> Toolkit {
        let named = ["REEL_CUDA", "CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| var(name));
        let mut local = children(Path::new("/usr/local"), |name| name.starts_with("cuda"));
        local.sort_by_key(|p| std::cmp::Reverse(version_of_name(p)));
        let mut places: Vec<Place> = named.chain(local).map(|root| Place::installation(&root)).collect();

        let listed = |name: &str| var(name).map(|v| env::split_paths(&v).collect()).unwrap_or_default();
        let mut paths = Place { libraries: listed("LD_LIBRARY_PATH"), programs: listed("PATH"), headers: Vec::new() };
        let system = [format!("/usr/lib/{}-linux-gnu", env::consts::ARCH), "/usr/lib64".into(), "/usr/lib".into()];
        paths.libraries.extend(system.map(PathBuf::from));
        places.push(paths);
        places.extend(cache_of(&var).map(|cache| Place::installation(&cache.join("cuda-13.0"))));
        // Installations with NVRTC 13 come first, so that programs and headers are taken from that release if
        // possible, and not from an older one.
        places.sort_by_key(|p| p.nvrtc().is_none());
        Toolkit { places, last: None }
    }

    /// Returns the first place that has the library `name`.
    fn place_with(&self, name: &str) -> Option<&Place> {
        let has = |p: &&Place| p.library(name).is_some();
        self.places.iter().find(has).or_else(|| (self.last?)().iter().find(has))
    }

    /// Returns the path of the NVRTC library, `libnvrtc.so.13`.
    pub fn nvrtc(&self) -> Option<PathBuf> {
        self.place_with(&nvrtc_library())?.nvrtc()
    }

    /// Returns the path of the cuBLASLt library, `libcublasLt.so.13`.
    pub fn cublas_lt(&self) -> Option<PathBuf> {
        let name = format!("libcublasLt.so.{CUDA_MAJOR}");
        self.place_with(&name)?.library(&name)
    }

    /// Returns the program `ptxas` of the installation that has the NVRTC library; `None` if it has none.
    pub fn ptxas_of_nvrtc(&self) -> Option<PathBuf> {
        self.place_with(&nvrtc_library())?.program("ptxas")
    }

    /// Returns the path of a program, for example `ptxas`.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        self.places.iter().find_map(|p| p.program(name))
    }

    /// Returns the header folders of the first installation that has `cuda_bf16.h`, for compiling users' kernels.
    pub fn header_folders(&self) -> Vec<PathBuf> {
        let has = |p: &&Place| p.headers.iter().any(|h| h.join("cuda_bf16.h").is_file());
        self.places.iter().find(has).map(|p| p.headers.clone()).unwrap_or_default()
    }
}

impl Place {
    /// Returns the folders of one installation, in any of the known layouts.
    fn installation(root: &Path) -> Place {
        let mut packages = vec![root.to_path_buf()];
        for lib in ["lib", "lib64"] {
            let pythons = children(&root.join(lib), |name| name.starts_with("python3"));
            packages.extend(pythons.iter().map(|p| p.join("site-packages")));
        }
        // NVIDIA's CUDA 13 wheels for Python are all installed to one folder, which has the layout of a toolkit.
        let wheels = packages.iter().map(|p| p.join("nvidia").join(format!("cu{CUDA_MAJOR}")));
        let roots: Vec<PathBuf> = [root.to_path_buf()].into_iter().chain(wheels).collect();
        let folders = |names: &[&str]| {
            roots.iter().flat_map(|r| names.iter().map(|n| r.join(n))).filter(|p| p.is_dir()).collect::<Vec<_>>()
        };
        Place {
            libraries: folders(&["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"]),
            programs: folders(&["bin"]),
            headers: folders(&["include", "include/cccl"]),
        }
    }

    fn nvrtc(&self) -> Option<PathBuf> {
        self.library(&nvrtc_library())
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        self.programs.iter().map(|folder| folder.join(name)).find(|p| is_program(p))
    }

    fn library(&self, name: &str) -> Option<PathBuf> {
        self.libraries.iter().map(|folder| folder.join(name)).find(|p| p.is_file())
    }
}

/// Returns the file name of the NVRTC library.
fn nvrtc_library() -> String {
    format!("libnvrtc.so.{CUDA_MAJOR}")
}

/// Returns the folders of the program `python3` in which NVIDIA's wheels may be: its prefix and its package folders.
/// Asks the program once per process; returns no folders if it cannot be run.
fn python_packages() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        const FOLDERS: &str = "import site, sys, sysconfig\n\
            print(sys.prefix, sysconfig.get_path('purelib'), site.getusersitepackages(), sep='\\n')";
        let python = Command::new("python3").args(["-c", FOLDERS]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        let folders = python.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        folders.lines().map(|folder| Place::installation(Path::new(folder))).collect()
    })
}

/// Returns the folder for data kept between runs: `$XDG_CACHE_HOME/reel` or `~/.cache/reel`.
pub fn cache_folder() -> Option<PathBuf> {
    cache_of(&|name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn cache_of(var: &impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification says to ignore relative paths.
    let xdg = var("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    Some(xdg.or_else(|| Some(var("HOME")?.join(".cache")))?.join("reel"))
}

/// Returns NVRTC's builtins library in NVRTC's folder, if there is one. NVRTC opens it by name while it compiles, and
/// the loader would not find it there.
pub(super) fn nvrtc_builtins_libraries(nvrtc: &Path) -> Vec<PathBuf> {
    let folder = nvrtc.parent().unwrap_or(Path::new("."));
    let mut found = children(folder, |name| name.starts_with(&format!("libnvrtc-builtins.so.{CUDA_MAJOR}.")));
    // The shorter name comes first, `.so.13.0` before `.so.13.0.88`, because NVRTC asks for it.
    found.sort_by_key(|p| p.as_os_str().len());
    found.truncate(1);
    found
}

fn children(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.filter(|e| wanted(&e.file_name().to_string_lossy())).map(|e| e.path()).collect();
    found.sort();
    found
}

/// Returns the numbers in a folder's name, to compare versions: `cuda-13.10` is newer than `cuda-13.2`. The plain
/// `cuda` is the administrator's choice and counts as the newest.
fn version_of_name(path: &Path) -> Vec<u32> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    if name == "cuda" {
        return vec![u32::MAX];
    }
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn every_layout_is_searched_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let of = |names: &[(&str, &str)]| {
            let named: Vec<_> = names.iter().map(|(k, v)| (k.to_string(), dir.path().join(v))).collect();
            Toolkit::of(move |name| named.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let toolkit = touch(dir.path().join("toolkit/lib64/libnvrtc.so.13"));
        let venv = touch(dir.path().join("venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        let cache = touch(dir.path().join("cache/reel/cuda-13.0/nvidia/cu13/lib/libnvrtc.so.13"));
        touch(dir.path().join("old/lib64/libnvrtc.so.12"));
        let header = touch(dir.path().join("venv/lib/python3.12/site-packages/nvidia/cu13/include/cuda_bf16.h"));
        fs::create_dir(header.with_file_name("cccl")).unwrap();

        assert_eq!(of(&[("CUDA_HOME", "toolkit"), ("REEL_CUDA", "venv")]).nvrtc(), Some(venv));
        assert_eq!(of(&[("CUDA_HOME", "toolkit"), ("XDG_CACHE_HOME", "cache")]).nvrtc(), Some(toolkit.clone()));
        assert_eq!(of(&[("LD_LIBRARY_PATH", "toolkit/lib64")]).nvrtc(), Some(toolkit));
        let include = header.parent().unwrap().to_path_buf();
        assert_eq!(of(&[("REEL_CUDA", "venv")]).header_folders(), [include.clone(), include.join("cccl")]);
        // The programs and headers of an older toolkit are taken last, even if an environment variable names that
        // toolkit.
        let bin = touch(dir.path().join("old/bin/nvcc"));
        fs::set_permissions(&bin, PermissionsExt::from_mode(0o755)).unwrap();
        touch(dir.path().join("old/include/cuda_bf16.h"));
        let both = of(&[("CUDA_HOME", "old"), ("CUDA_PATH", "venv")]);
        assert_eq!(
            (both.header_folders(), both.program("nvcc")),
            (vec![include.clone(), include.join("cccl")], Some(bin))
        );
        // A toolkit under /usr/local would be found before the cache, so the rest runs only on machines without one.
        if of(&[]).nvrtc().is_none() {
            assert_eq!(of(&[("CUDA_PATH", "old"), ("XDG_CACHE_HOME", "cache")]).nvrtc(), Some(cache));
        }
    }

    #[test]
    fn a_library_that_no_place_has_is_searched_in_the_last_ones() {
        static LAST: OnceLock<(tempfile::TempDir, Vec<Place>)> = OnceLock::new();
        let last = || -> &'static [Place] { &LAST.get().unwrap().1 };
        let dir = tempfile::tempdir().unwrap();
        let lib = |name: &str| dir.path().join("site-packages/nvidia/cu13/lib").join(name);
        let [_, blas] = ["libnvrtc.so.13", "libcublasLt.so.13"].map(|name| touch(lib(name)));
        let packages = Place::installation(&dir.path().join("site-packages"));
        LAST.set((dir, vec![packages])).unwrap();

        let toolkit = tempfile::tempdir().unwrap();
        let nvrtc = touch(toolkit.path().join("lib64/libnvrtc.so.13"));
        let found = Toolkit { places: vec![Place::installation(toolkit.path())], last: Some(last) };
        assert_eq!((found.nvrtc(), found.cublas_lt()), (Some(nvrtc), Some(blas)));
        assert_eq!(Toolkit { last: None, ..found }.cublas_lt(), None);
    }

    #[test]
    fn a_program_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let ptxas = touch(dir.path().join("bin/ptxas"));
        let t = Toolkit::of(|name| (name == "REEL_CUDA").then(|| dir.path().to_path_buf()));
        let found = |t: &Toolkit| t.program("ptxas").filter(|p| p.starts_with(dir.path()));
        assert_eq!(found(&t), None);
        fs::set_permissions(&ptxas, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(&t), Some(ptxas));
    }

    #[test]
    fn newer_toolkits_come_first() {
        let mut names = ["cuda-13.2", "cuda-12.9", "cuda", "cuda-13.10"].map(PathBuf::from);
        names.sort_by_key(|p| std::cmp::Reverse(version_of_name(p)));
        assert_eq!(names, ["cuda", "cuda-13.10", "cuda-13.2", "cuda-12.9"].map(PathBuf::from));
    }
}
