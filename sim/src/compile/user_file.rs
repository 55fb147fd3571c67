//! Compiles a user's CUDA file to PTX: by NVRTC with replacements for the C library's headers, or else by nvcc if it
//! is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ptxas::PtxasReport;
use super::toolkit::Toolkit;
use super::{CompileError, Unit, number_of, nvrtc, temporary_folder};

/// A file compiled to PTX.
#[derive(Clone, Debug)]
pub struct CompiledUserFile {
    /// PTX with line information. In the line table the file has the name that the user gave.
    pub ptx: String,
    /// `NVRTC` or `nvcc`.
    pub compiler: &'static str,
}

/// How to compile a user's file.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserCompilerOptions<'o> {
    /// Folders in which `#include` looks for headers, after the file's own folder.
    pub include: &'o [PathBuf],
    /// Macros to define, each `NAME` or `NAME=VALUE`.
    pub define: &'o [String],
    /// The language standard, for example `c++20`; `None`: C++17.
    pub standard: Option<&'o str>,
    /// Further arguments for nvcc. If there are any, nvcc compiles the file and not NVRTC.
    pub nvcc: &'o [String],
    /// Replacements for headers of the C library: name and text.
    pub stand_ins: &'o [(&'o str, &'o str)],
}

impl UserCompilerOptions<'_> {
    fn standard(&self) -> &str {
        self.standard.unwrap_or("c++17")
    }
}

/// Compiles the file at `path` for an architecture such as `sm_90a`. `#include` finds headers among the replacements
/// (`stand_ins`), in the file's own folder, in the folders `include`, and among the CUDA headers of this machine. If
/// NVRTC reports errors, for example because of host code or the C++ library, nvcc compiles the file.
pub fn compile_user_file(
    path: &Path,
    sm: &str,
    options: &UserCompilerOptions,
) -> Result<CompiledUserFile, CompileError> {
    let number = number_of(sm)?;
    let bytes = fs::read(path).map_err(|e| CompileError::Unreadable { path: path.into(), reason: e.to_string() })?;
    let toolkit = Toolkit::from_environment();
    let own = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders: Vec<&Path> = [own].into_iter().chain(options.include.iter().map(PathBuf::as_path)).collect();

    let unit = Unit {
        name: path.display().to_string(),
        text: String::from_utf8_lossy(&bytes).into_owned(),
        headers: options.stand_ins.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect(),
        options: nvrtc_options(number, &folders, &toolkit.header_folders(), options),
    };
    let refused = if options.nvcc.is_empty() {
        match nvrtc::shared().and_then(|nvrtc| nvrtc.compile(&unit)) {
            Ok(output) => return Ok(CompiledUserFile { ptx: with_main_file(&output.ptx, path), compiler: "NVRTC" }),
            Err(e) => wanting_nvcc(e),
        }
    } else {
        let first = "--nvcc-arg needs nvcc, which was not found; install the CUDA toolkit".to_string();
        CompileError::Refused { first, log: String::new() }
    };
    match toolkit.program("nvcc") {
        Some(nvcc) => {
            let ptx = run_nvcc(&nvcc, path, number, &folders, options)?;
            Ok(CompiledUserFile { ptx: with_main_file(&ptx, path), compiler: "nvcc" })
        }
        None => Err(refused),
    }
}

/// Returns the registers per thread that ptxas, called with `options`, assigns to the kernel `symbol` of PTX; `None` if
/// ptxas is not installed, does not assemble the PTX, or ignores `setmaxnreg` (C7508) because it cannot determine the
/// register count at the kernel's entry.
pub fn registers_of_kernel(ptx: &str, symbol: &str, options: &[String]) -> Option<u32> {
    let ptxas = Toolkit::from_environment().program("ptxas")?;
    let target = ptx
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(".target")?.split([',', ' ', '\t']).find(|w| !w.is_empty()))?;
    let scratch = temporary_folder().ok()?;
    let file = scratch.path().join("in.ptx");
    fs::write(&file, ptx).ok()?;
    let mut command = Command::new(ptxas);
    command
        .arg("-v")
        .args(options)
        .arg(format!("-arch={}", target.trim()))
        // Other kernels of a module can take ptxas longer than the simulation of this one.
        .arg(format!("--entry={symbol}"))
        .arg("-o")
        .arg(scratch.path().join("out.cubin"))
        .arg(&file);
    let done = command.stdin(Stdio::null()).output().ok().filter(|done| done.status.success())?;
    let log = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    let report = PtxasReport::from_log(&log);
    let registers = report.resources_of_function(symbol)?.registers;
    let ignores_setmaxnreg = report.warnings.iter().any(|warning| warning.contains("C7508"));
    (registers > 0 && !ignores_setmaxnreg).then_some(registers)
}

fn nvrtc_options(number: &str, folders: &[&Path], headers: &[PathBuf], of: &UserCompilerOptions) -> Vec<String> {
    let mut options = vec![format!("-arch=compute_{number}"), format!("--std={}", of.standard()), "-lineinfo".into()];
    options.extend(of.define.iter().map(|macro_definition| format!("-D{macro_definition}")));
    let all = folders.iter().copied().chain(headers.iter().map(PathBuf::as_path));
    options.extend(all.map(|folder| format!("-I{}", folder.display())));
    // nvcc includes cuda_runtime.h before every file, and users' files rely on that.
    if of.stand_ins.iter().any(|(name, _)| *name == "cuda_runtime.h") {
        options.push("--pre-include=cuda_runtime.h".into());
    }
    options
}

fn run_nvcc(
    nvcc: &Path,
    path: &Path,
    number: &str,
    folders: &[&Path],
    options: &UserCompilerOptions,
) -> Result<String, CompileError> {
    let failed = |e: std::io::Error| CompileError::Unusable { path: nvcc.into(), reason: e.to_string() };
    // When nvcc fails, it deletes its output file, which would be /dev/stdout; so it writes to a temporary file.
    let scratch = temporary_folder().map_err(failed)?;
    let out = scratch.path().join("out.ptx");
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-lineinfo", "-o"]).arg(&out);
    command.arg(format!("-std={}", options.standard())).arg(format!("-arch=sm_{number}"));
    command.args(options.define.iter().map(|macro_definition| format!("-D{macro_definition}")));
    command.args(options.nvcc);
    command.args(folders.iter().map(|folder| format!("-I{}", folder.display())));
    // `-x cu` makes nvcc accept files without the ending .cu. `./` keeps a path with a leading dash from being read
    // as an option.
    command.args(["-x", "cu"]).arg(if path.is_absolute() { path.into() } else { Path::new(".").join(path) });
    let done = command.stdin(Stdio::null()).output().map_err(failed)?;
    let log = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if !done.status.success() && needs_host_compiler(&log) {
        let first = format!("{}: found no C++ compiler on this machine; install g++", nvcc.display());
        return Err(CompileError::Refused { first, log });
    }
    if !done.status.success() {
        return Err(CompileError::refused(&path.display().to_string(), &format!("nvcc: {}", done.status), log));
    }
    let bytes = fs::read(&out).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Tells from nvcc's log whether it failed because no compiler for host code is installed.
fn needs_host_compiler(log: &str) -> bool {
    log.contains("cc1plus") || log.contains("preprocess host compiler properties") || log.contains("g++: not found")
}

/// If NVRTC's error is about host code or a missing header, adds to it that nvcc might compile the file.
fn wanting_nvcc(e: CompileError) -> CompileError {
    match e {
        CompileError::Refused { first, log }
            if log.contains("cannot open source file") || log.contains("host function") =>
        {
            let first = format!("{first}; files with host code or the C++ library need nvcc, which was not found");
            CompileError::Refused { first, log }
        }
        e => e,
    }
}

/// Replaces the file's name in the PTX line table by the name that the user gave: compilers write absolute paths, in
/// different ways.
fn with_main_file(ptx: &str, path: &Path) -> String {
    let Ok(main) = path.canonicalize() else { return ptx.to_string() };
    let rename = |line: &str| -> String {
        let named = line.trim_start().starts_with(".file").then(|| line.split('"').nth(1)).flatten();
        match named {
            Some(name) if Path::new(name).canonicalize().is_ok_and(|p| p == main) => {
                line.replacen(name, &path.display().to_string(), 1)
            }
            _ => line.to_string(),
        }
    };
    ptx.split_inclusive('\n').map(rename).collect()
}

#[cfg(test)]
mod tests {
    use super::super::skip_without_nvrtc;
    use super::*;

    const STAND_INS: &[(&str, &str)] =
        &[("cuda_runtime.h", "#include <stdint.h>\n"), ("stdint.h", "#pragma once\ntypedef unsigned uint32_t;\n")];

    fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_missing_host_compiler_is_told_from_a_faulty_file() {
        let log =
            "gcc: fatal error: cannot execute 'cc1plus': execvp: No such file or directory\ncompilation terminated.\n";
        assert!(needs_host_compiler(log));
        assert!(needs_host_compiler("nvcc fatal   : Failed to preprocess host compiler properties.\n"));
        assert!(!needs_host_compiler("bad.cu(2): error: identifier \"y\" is undefined\n"));
    }

    #[test]
    fn headers_come_from_beside_the_file_and_from_stand_ins() {
        let Some(()) = skip_without_nvrtc() else { return };
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "mine.h", "__device__ uint32_t mine() { return 7; }\n");
        let text = "#include \"mine.h\"\n__global__ void k(uint32_t* x) {\n  x[threadIdx.x] = mine();\n}\n";
        let path = file(dir.path(), "k.cu", text);
        let options = UserCompilerOptions { stand_ins: STAND_INS, ..UserCompilerOptions::default() };
        let built = compile_user_file(&path, "sm_80", &options).unwrap();
        assert_eq!(built.compiler, "NVRTC");
        assert!(built.ptx.contains(".entry _Z1kPj("), "{}", built.ptx);
        assert!(built.ptx.contains(&format!(".file\t1 \"{}\"", path.display())), "{}", built.ptx);
        assert!(built.ptx.contains(".loc\t1 3 "));
    }

    #[test]
    fn host_code_goes_to_nvcc() {
        let Some(()) = skip_without_nvrtc() else { return };
        let dir = tempfile::tempdir().unwrap();
        let text =
            "#include <vector>\n__global__ void k(int* x) {\n  x[0] = 1;\n}\nint main() { k<<<1, 1>>>(nullptr); }\n";
        let path = file(dir.path(), "host", text);
        let options = UserCompilerOptions { stand_ins: STAND_INS, ..UserCompilerOptions::default() };
        match (Toolkit::from_environment().program("nvcc"), compile_user_file(&path, "sm_90a", &options)) {
            (Some(_), built) => {
                let built = built.unwrap();
                assert_eq!(built.compiler, "nvcc");
                assert!(built.ptx.contains(".target sm_90a") && built.ptx.contains(".entry _Z1kPi("));
                assert!(built.ptx.contains(&format!("\"{}\"", path.display())), "{}", built.ptx);
            }
            (None, e) => assert!(e.unwrap_err().to_string().contains("need nvcc")),
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        let Some(()) = skip_without_nvrtc() else { return };
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "bad.cu", "__global__ void k(int* x) {\n  x[0] = y;\n}\n");
        let options = UserCompilerOptions::default();
        let e = compile_user_file(&path, "sm_80", &options).unwrap_err().to_string();
        assert_eq!(e, format!("{}:2: identifier \"y\" is undefined", path.display()));
        let e = compile_user_file(&dir.path().join("none.cu"), "sm_80", &options).unwrap_err().to_string();
        assert!(e.contains("none.cu: cannot be read"), "{e}");
        let e = compile_user_file(&path, "sm80", &options).unwrap_err();
        assert!(matches!(e, CompileError::Architecture(_)));
    }

    #[test]
    fn macros_and_the_standard_reach_the_compiler() {
        let Some(()) = skip_without_nvrtc() else { return };
        let dir = tempfile::tempdir().unwrap();
        let text = "#if __cplusplus < 202002L\n#error too old\n#endif\n__global__ void k(int* x) { x[0] = SIZE; }\n";
        let path = file(dir.path(), "k.cu", text);
        let define = ["SIZE=77".to_string()];
        let options =
            UserCompilerOptions { define: &define, standard: Some("c++20"), ..UserCompilerOptions::default() };
        let built = compile_user_file(&path, "sm_80", &options).unwrap();
        assert!(built.ptx.contains("77"), "{}", built.ptx);
        let old = UserCompilerOptions { standard: None, ..options };
        assert!(compile_user_file(&path, "sm_80", &old).unwrap_err().to_string().contains("too old"));
        // ptxas reports registers if it is installed.
        if Toolkit::from_environment().program("ptxas").is_some() {
            assert!(registers_of_kernel(&built.ptx, "_Z1kPi", &[]).is_some_and(|n| (4..64).contains(&n)));
            assert_eq!(registers_of_kernel("no PTX", "_Z1kPi", &[]), None);
        }
    }

    #[test]
    fn a_missing_nvcc_is_named_where_it_could_help() {
        let of =
            |log: &str| wanting_nvcc(CompileError::Refused { first: "k.cu:1: x".into(), log: log.into() }).to_string();
        assert!(of("cannot open source file \"vector\"").contains("need nvcc"));
        assert_eq!(of("identifier \"y\" is undefined"), "k.cu:1: x");
    }
}
