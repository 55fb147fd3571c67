//! Finds the CUDA compilers, programs and headers on this machine.
//!
//! Libraries, programs and headers are searched separately, in these folders and in this order: the folder that
//! `REEL_CUDA` names (a CUDA toolkit, a Python environment with NVIDIA's wheels, or a folder that they were installed
//! to), `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda*` (newest first), the loader's and the shell's search paths, and
//! the folders that `./x setup` fills: `cuda-13.0` and `cuda-12.9` in `$XDG_CACHE_HOME/reel`. Folders with NVRTC 13
//! precede those with NVRTC 12, and these precede the others. A library that none of them has is searched in the
//! packages of Python, where PyTorch's wheels install it: in the environments that `VIRTUAL_ENV` and `CONDA_PREFIX` name,
//! in that of the first `python3` in `PATH`, and in the user's own packages. No Python runs for this, because its own
//! search path may begin with the current folder.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The CUDA major versions whose compilers and libraries are used, the preferred one first.
pub const CUDA_MAJORS: [u32; 2] = [13, 12];

/// The folders that may hold a CUDA toolkit or parts of one, in search order.
#[derive(Clone, Debug, Default)]
pub struct Toolkit {
    places: Vec<Place>,
    /// A function that returns further places to search, after no place in `places` had a library. `None` if there are
    /// no further places.
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
        let mut places: Vec<Place> = named.chain(local).flat_map(|root| Place::installations(&root)).collect();

        // An empty or relative entry would name the current folder, which may be one of a data set.
        let absolute = |v: PathBuf| env::split_paths(&v).filter(|folder| folder.is_absolute()).collect();
        let listed = |name: &str| var(name).map(absolute).unwrap_or_default();
        let mut paths = Place { libraries: listed("LD_LIBRARY_PATH"), programs: listed("PATH"), headers: Vec::new() };
        let system = [format!("/usr/lib/{}-linux-gnu", env::consts::ARCH), "/usr/lib64".into(), "/usr/lib".into()];
        paths.libraries.extend(system.map(PathBuf::from));
        places.push(paths);
        let fetched =
            cache_of(&var).into_iter().flat_map(|cache| ["cuda-13.0", "cuda-12.9"].map(|name| cache.join(name)));
        places.extend(fetched.flat_map(|root| Place::installations(&root)));
        // Programs and headers are taken from the release of the preferred NVRTC if possible.
        let rank = |p: &Place| CUDA_MAJORS.iter().position(|major| p.library(&nvrtc_library(*major)).is_some());
        places.sort_by_key(|p| rank(p).unwrap_or(CUDA_MAJORS.len()));
        Toolkit { places, last: None }
    }

    /// Returns the first place that has the library `name`, and the library's path there.
    fn place_with(&self, name: &str) -> Option<(&Place, PathBuf)> {
        let has = |p: &'_ Place| p.library(name);
        let here = self.places.iter().find_map(|p| Some((p, has(p)?)));
        here.or_else(|| (self.last?)().iter().find_map(|p| Some((p, has(p)?))))
    }

    /// Returns the place of the NVRTC library of the preferred major version, and the library's path.
    fn place_of_nvrtc(&self) -> Option<(&Place, PathBuf)> {
        CUDA_MAJORS.iter().find_map(|major| self.place_with(&nvrtc_library(*major)))
    }

    /// Returns the path of the NVRTC library: `libnvrtc.so.13`, else `libnvrtc.so.12`.
    pub fn nvrtc(&self) -> Option<PathBuf> {
        Some(self.place_of_nvrtc()?.1)
    }

    /// Returns the path of the cuBLASLt library for a driver that supports CUDA versions up to the major version
    /// `driver`: `libcublasLt.so.13` or `libcublasLt.so.12`. A library needs a driver of its own major version or a
    /// newer one.
    pub fn cublas_lt(&self, driver: u32) -> Option<PathBuf> {
        let names = CUDA_MAJORS.iter().filter(|major| **major <= driver).map(|major| format!("libcublasLt.so.{major}"));
        Some(names.into_iter().find_map(|name| self.place_with(&name))?.1)
    }

    /// Returns the program `ptxas` of the installation that has the NVRTC library; `None` if it has none.
    pub fn ptxas_of_nvrtc(&self) -> Option<PathBuf> {
        self.place_of_nvrtc()?.0.program("ptxas")
    }

    /// Returns the newest program `ptxas` of the CUDA major version `major`. Runs the programs that it finds, for their
    /// versions.
    pub fn ptxas_of_major(&self, major: u32) -> Option<PathBuf> {
        let found = self.places.iter().filter_map(|p| p.program("ptxas"));
        let versions = found.filter_map(|ptxas| Some((numbers(&program_version(&ptxas)?), ptxas)));
        versions.filter(|(version, _)| version.first() == Some(&major)).max().map(|(_, ptxas)| ptxas)
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
    /// Returns the folders below `root`, in any of the known layouts: first those of a toolkit and of NVIDIA's CUDA 13
    /// wheels for Python, then those of the CUDA 12 wheels, which may be installed beside them.
    fn installations(root: &Path) -> [Place; 2] {
        // Wheels of CUDA 13 are all installed to one folder, which has the layout of a toolkit; each wheel of CUDA 12
        // has a folder of its own.
        const CUDA_12_WHEELS: [&str; 4] = ["cuda_nvrtc", "cuda_nvcc", "cuda_runtime", "cublas"];
        let mut packages = vec![root.to_path_buf()];
        for lib in ["lib", "lib64"] {
            let pythons = children(&root.join(lib), |name| name.starts_with("python3"));
            packages.extend(pythons.iter().flat_map(|p| ["site-packages", "dist-packages"].map(|name| p.join(name))));
        }
        let nvidia: Vec<PathBuf> = packages.iter().map(|p| p.join("nvidia")).collect();
        let newer = [root.to_path_buf()].into_iter().chain(nvidia.iter().map(|p| p.join("cu13")));
        let older = nvidia.iter().flat_map(|p| CUDA_12_WHEELS.map(|wheel| p.join(wheel)));
        [Place::of_roots(&newer.collect::<Vec<_>>()), Place::of_roots(&older.collect::<Vec<_>>())]
    }

    /// Returns the folders of one release, which is installed in one or several folders of a toolkit's layout.
    fn of_roots(roots: &[PathBuf]) -> Place {
        let folders = |names: &[&str]| {
            roots.iter().flat_map(|r| names.iter().map(|n| r.join(n))).filter(|p| p.is_dir()).collect::<Vec<_>>()
        };
        Place {
            libraries: folders(&["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"]),
            programs: folders(&["bin"]),
            headers: folders(&["include", "include/cccl"]),
        }
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        self.programs.iter().map(|folder| folder.join(name)).find(|p| is_program(p))
    }

    fn library(&self, name: &str) -> Option<PathBuf> {
        self.libraries.iter().map(|folder| folder.join(name)).find(|p| p.is_file())
    }
}

/// Returns the file name of the NVRTC library of a CUDA major version.
fn nvrtc_library(major: u32) -> String {
    format!("libnvrtc.so.{major}")
}

/// Returns the CUDA major version in a library's file name: 12 for `libnvrtc.so.12`.
pub fn major_of_library(path: &Path) -> Option<u32> {
    let (_, version) = path.file_name()?.to_str()?.rsplit_once(".so.")?;
    version.split('.').next()?.parse().ok()
}

/// Returns the version that a CUDA program prints with `--version`, such as `13.0.88`; `None` if it cannot be run.
pub fn program_version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|l| l.rsplit_once(", V"))?.1;
    Some(version.trim().to_string())
}

/// Returns the folders of Python environments in which NVIDIA's wheels may be. Searches them once per process.
fn python_packages() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let prefixes = python_prefixes(|name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from));
        prefixes.iter().flat_map(|prefix| Place::installations(prefix)).collect()
    })
}

/// Returns the folders above `lib/python3.N` of the Python environments of this user, in search order. `var` returns
/// the value of an environment variable.
fn python_prefixes(var: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| var(name)).collect();
    let paths = var("PATH").unwrap_or_default();
    let python = env::split_paths(&paths).map(|folder| folder.join("python3")).find(|python| is_program(python));
    // In a virtual environment, python3 is a link to the interpreter that the environment was made with.
    let programs = python.iter().cloned().chain(python.iter().filter_map(|python| python.canonicalize().ok()));
    for prefix in programs.filter_map(|program| Some(program.parent()?.parent()?.to_path_buf())) {
        // pyenv's python3 is a script, and its interpreters are in `versions`. Debian's packages are in `/usr/lib`, and
        // those of pip in `/usr/local/lib`.
        let mut versions = children(&prefix.join("versions"), |_| true);
        versions.sort_by_key(|version| std::cmp::Reverse(version_of_name(version)));
        prefixes.push(prefix.clone());
        prefixes.extend(versions);
        prefixes.push(prefix.join("local"));
    }
    prefixes.extend(var("PYTHONUSERBASE").or_else(|| Some(var("HOME")?.join(".local"))));
    prefixes.retain(|prefix| prefix.is_absolute());
    prefixes
}

/// Returns the folder for data kept between runs: `$XDG_CACHE_HOME/reel` or `~/.cache/reel`.
pub fn cache_folder() -> Option<PathBuf> {
    cache_of(&|name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn cache_of(var: &impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification says to ignore relative paths.
    let xdg = var("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let home = || Some(var("HOME").filter(|p| p.is_absolute())?.join(".cache"));
    Some(xdg.or_else(home)?.join("reel"))
}

/// Returns NVRTC's builtins library in NVRTC's folder, if there is one. NVRTC opens it by name while it compiles, and
/// the loader would not find it there.
pub fn nvrtc_builtins_libraries(nvrtc: &Path) -> Vec<PathBuf> {
    let folder = nvrtc.parent().unwrap_or(Path::new("."));
    let major = major_of_library(nvrtc).unwrap_or_default();
    let mut found = children(folder, |name| name.starts_with(&format!("libnvrtc-builtins.so.{major}.")));
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
    numbers(name)
}

/// Returns the numbers in a text: 12, 9 and 86 of `12.9.86`.
fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
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
        let old = touch(dir.path().join("old/lib64/libnvrtc.so.12"));
        let header = touch(dir.path().join("venv/lib/python3.12/site-packages/nvidia/cu13/include/cuda_bf16.h"));
        fs::create_dir(header.with_file_name("cccl")).unwrap();

        assert_eq!(of(&[("CUDA_HOME", "toolkit"), ("REEL_CUDA", "venv")]).nvrtc(), Some(venv));
        assert_eq!(of(&[("CUDA_HOME", "toolkit"), ("XDG_CACHE_HOME", "cache")]).nvrtc(), Some(toolkit.clone()));
        assert_eq!(of(&[("LD_LIBRARY_PATH", "toolkit/lib64")]).nvrtc(), Some(toolkit.clone()));
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
        // NVRTC 13 is preferred wherever it is.
        assert_eq!(of(&[("REEL_CUDA", "old"), ("CUDA_HOME", "toolkit")]).nvrtc(), Some(toolkit));
        // A toolkit under /usr/local would be found before the cache, so the rest runs only on machines without one.
        if of(&[]).nvrtc().is_none() {
            assert_eq!(of(&[("CUDA_HOME", "old")]).nvrtc(), Some(old));
            assert_eq!(of(&[("CUDA_PATH", "old"), ("XDG_CACHE_HOME", "cache")]).nvrtc(), Some(cache));
        }
    }

    /// Writes a program that prints the version of a ptxas.
    fn fake_ptxas(path: PathBuf, version: &str) -> PathBuf {
        touch(path.clone());
        let text = format!("#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn wheels_of_cuda_12_and_13_in_one_environment_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join("nvidia").join(name);
        let [old, new] = ["cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13"].map(file);
        let [old_blas, new_blas] = ["cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13"].map(file);
        touch(old.clone());
        let old_ptxas = fake_ptxas(file("cuda_nvcc/bin/ptxas"), "12.9");
        let find = || Toolkit { places: Place::installations(dir.path()).to_vec(), last: None };
        assert_eq!((find().nvrtc(), find().ptxas_of_nvrtc()), (Some(old), Some(old_ptxas.clone())));
        assert_eq!((find().cublas_lt(13), find().ptxas_of_major(13)), (None, None));
        touch(new.clone());
        let new_ptxas = fake_ptxas(file("cu13/bin/ptxas"), "13.0");
        assert_eq!((find().nvrtc(), find().ptxas_of_nvrtc()), (Some(new), Some(new_ptxas.clone())));
        assert_eq!((find().ptxas_of_major(12), find().ptxas_of_major(13)), (Some(old_ptxas), Some(new_ptxas)));
        touch(old_blas.clone());
        assert_eq!((find().cublas_lt(12), find().cublas_lt(13)), (Some(old_blas.clone()), Some(old_blas.clone())));
        touch(new_blas.clone());
        assert_eq!((find().cublas_lt(12), find().cublas_lt(13)), (Some(old_blas), Some(new_blas)));
        assert_eq!(major_of_library(Path::new("/a/libnvrtc.so.12.9.86")), Some(12));
    }

    #[test]
    fn a_library_that_no_place_has_is_searched_in_the_last_ones() {
        static LAST: OnceLock<(tempfile::TempDir, Vec<Place>)> = OnceLock::new();
        let last = || -> &'static [Place] { &LAST.get().unwrap().1 };
        let dir = tempfile::tempdir().unwrap();
        let lib = |name: &str| dir.path().join("site-packages/nvidia/cu13/lib").join(name);
        let [_, blas] = ["libnvrtc.so.13", "libcublasLt.so.13"].map(|name| touch(lib(name)));
        let packages = Place::installations(&dir.path().join("site-packages")).to_vec();
        LAST.set((dir, packages)).unwrap();

        let toolkit = tempfile::tempdir().unwrap();
        let nvrtc = touch(toolkit.path().join("lib64/libnvrtc.so.13"));
        let found = Toolkit { places: Place::installations(toolkit.path()).to_vec(), last: Some(last) };
        assert_eq!((found.nvrtc(), found.cublas_lt(13)), (Some(nvrtc), Some(blas)));
        assert_eq!(Toolkit { last: None, ..found }.cublas_lt(13), None);
    }

    /// A program `python3` is found by its file, its links and the names of the folders around it, and is not run.
    #[test]
    fn packages_of_python_are_found_without_running_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let python = |name: &str| {
            let python = touch(at(name));
            fs::write(&python, format!("#!/bin/sh\n: >'{}'\n", at("ran").display())).unwrap();
            fs::set_permissions(&python, PermissionsExt::from_mode(0o755)).unwrap();
        };
        python("usr/bin/python3.12");
        python("pyenv/shims/python3");
        fs::create_dir_all(at("venv/bin")).unwrap();
        std::os::unix::fs::symlink(at("usr/bin/python3.12"), at("venv/bin/python3")).unwrap();
        let library = "nvidia/cu13/lib/libnvrtc.so.13";
        // The variables, the folders in PATH, and the packages of the environment that is found.
        for (variables, packages) in [
            (&[("PATH", "none:venv/bin:usr/bin")][..], "venv/lib/python3.12/site-packages"),
            (&[("PATH", "none:venv/bin")], "usr/lib/python3/dist-packages"),
            (&[("PATH", "venv/bin")], "usr/local/lib/python3.12/dist-packages"),
            (&[("PATH", "pyenv/shims")], "pyenv/versions/3.11.7/lib/python3.11/site-packages"),
            (&[("VIRTUAL_ENV", "uv")], "uv/lib/python3.13/site-packages"),
            (&[("CONDA_PREFIX", "conda")], "conda/lib64/python3.10/site-packages"),
            (&[("HOME", "home")], "home/.local/lib/python3.12/site-packages"),
            (&[("HOME", "home"), ("PYTHONUSERBASE", "base")], "base/lib/python3.12/site-packages"),
        ] {
            let nvrtc = touch(at(packages).join(library));
            let value = |of: &str| {
                let (_, value) = variables.iter().find(|(name, _)| *name == of)?;
                Some(PathBuf::from(env::join_paths(value.split(':').map(at)).unwrap()))
            };
            let places: Vec<Place> = python_prefixes(value).iter().flat_map(|p| Place::installations(p)).collect();
            assert_eq!(Toolkit { places, last: None }.nvrtc(), Some(nvrtc.clone()), "{variables:?}");
            fs::remove_file(nvrtc).unwrap();
        }
        assert!(!at("ran").exists());
        // The current folder is not searched.
        let relative = |name: &str| ["VIRTUAL_ENV", "PATH", "HOME"].contains(&name).then(|| PathBuf::from("."));
        assert_eq!(python_prefixes(relative), Vec::<PathBuf>::new());
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
