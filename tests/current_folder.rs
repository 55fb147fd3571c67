//! Nothing runs from the current folder that the user did not name. The folder of these tests has a program, a library
//! and a Python module for each name that reel searches. Each of them would leave a file in another folder.

#[path = "support/grpo_run.rs"]
mod grpo_run;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{FinishedRun, file_names_in, finished_run, golden, reel};
use tempfile::TempDir;

const PROGRAMS: [&str; 14] = [
    "bash",
    "cc",
    "env",
    "ffmpeg",
    "git",
    "mpirun",
    "ncu",
    "nvcc",
    "nvidia-smi",
    "ptxas",
    "python3",
    "sh",
    "tar",
    "wandb",
];

/// Libraries that are opened while the program runs. Those that it is linked with (libc, libmpi) are opened before.
const LIBRARIES: [&str; 7] = [
    "libcublasLt.so.12",
    "libcublasLt.so.13",
    "libcuda.so.1",
    "libnccl.so.2",
    "libnvidia-ml.so.1",
    "libnvrtc.so.12",
    "libnvrtc.so.13",
];
const FFMPEG: [&str; 4] = ["libavutil", "libavcodec", "libavformat", "libswscale"];

const MODULES: [&str; 10] =
    ["argparse", "ast", "asyncio", "encodings", "importlib", "inspect", "json", "os", "site", "sysconfig"];

/// A current folder with traps, and a folder in which those that run leave a file.
struct Traps {
    folder: TempDir,
    ran: TempDir,
}

impl Traps {
    fn new() -> Self {
        let traps = Self { folder: grpo_run::training_folder(), ran: tempfile::tempdir().expect("a folder") };
        let at = traps.folder.path();
        for name in PROGRAMS {
            write_program(&at.join(name), &format!("#!/bin/sh\n: >'{}'\n", traps.mark(name).display()));
        }
        for name in MODULES {
            let code = format!("open({:?}, 'w').close()\n", traps.mark(&format!("{name}.py")));
            fs::write(at.join(format!("{name}.py")), code).expect("written");
        }
        let code = format!(
            "#include <fcntl.h>\n__attribute__((constructor)) static void run(void) {{ open({:?}, O_CREAT, 0600); }}\n",
            traps.mark("library")
        );
        fs::write(traps.ran.path().join("trap.c"), code).expect("written");
        let library = at.join("libtrap.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(traps.ran.path().join("trap.c"));
        assert!(compiler.status().expect("a C compiler, as for Rust").success());
        fs::remove_file(traps.ran.path().join("trap.c")).expect("removed");
        let versions = FFMPEG.iter().flat_map(|name| (5..70).map(move |version| format!("{name}.so.{version}")));
        for name in LIBRARIES.iter().map(ToString::to_string).chain(versions) {
            fs::hard_link(&library, at.join(name)).expect("a link");
        }
        traps
    }

    fn mark(&self, name: &str) -> PathBuf {
        self.ran.path().join(name)
    }

    /// Runs reel in the folder with these variables and arguments.
    fn run(&self, variables: &[(&str, String)], args: &[String]) -> FinishedRun {
        let mut command = reel();
        // The search for CUDA's libraries goes through all places, because this home has none.
        let home = self.ran.path().join("home");
        command.current_dir(self.folder.path()).env("XDG_CACHE_HOME", home).args(args);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        finished_run(command.output().expect("the binary starts"))
    }
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_string).collect()
}

#[test]
fn nothing_runs_from_the_current_folder() {
    let traps = Traps::new();
    let at = traps.folder.path();
    // The traps work: a program, a library and a module.
    let env = |variable: &str, program: &str| {
        Command::new("/usr/bin/env")
            .current_dir(at)
            .env("PATH", "")
            .args([variable, program])
            .status()
            .expect("it runs");
    };
    env("A=B", "nvidia-smi");
    env("LD_PRELOAD=./libcuda.so.1", "/bin/true");
    assert_eq!(file_names_in(traps.ran.path()), ["library", "nvidia-smi"]);
    ["library", "nvidia-smi"].iter().for_each(|name| fs::remove_file(traps.mark(name)).expect("removed"));

    let outside = tempfile::tempdir().expect("a folder");
    let function = outside.path().join("my.py");
    fs::write(
        &function,
        "import json, inspect\ndef one(completions, **columns):\n    return [1.0] * len(completions)\n",
    )
    .expect("written");
    let video = golden("clips/h264_709.mp4");
    let usual = std::env::var("PATH").expect("a PATH");
    let settings: [&[(&str, String)]; 4] = [
        &[],
        &[("PATH", format!(":{usual}")), ("LD_LIBRARY_PATH", ":".into()), ("PYTHONPATH", ":".into())],
        &[("PATH", format!(".:{usual}:")), ("LD_LIBRARY_PATH", "./;/nowhere".into()), ("PYTHONPATH", "".into())],
        &[("PATH", format!("{usual}:./x/..")), ("LD_LIBRARY_PATH", "/nowhere::".into())],
    ];
    let has_python = usual.split(':').any(|folder| Path::new(folder).join("python3").is_file());
    for (number, variables) in settings.iter().enumerate() {
        let doctor = traps.run(variables, &words("doctor"));
        assert!(doctor.stdout.contains("Processor"), "{}", doctor.stderr);
        assert!(!doctor.stdout.contains("libnvrtc.so.1") || !doctor.stdout.contains(&at.display().to_string()));
        let frames = format!("frames --video {} --out frames{number}.safetensors --nframes 2", video.display());
        traps.run(variables, &words(&frames)).ok();
        let mut grpo = grpo_run::grpo_args(&format!("out{number}"), &["--max-steps", "1"]);
        grpo.extend(["--report-command", "cat >lines"].map(str::to_string));
        if has_python {
            grpo.extend(["--reward-funcs".into(), format!("{}:one", function.display())]);
        }
        traps.run(variables, &grpo).ok();
        let generate =
            words("generate --model tiny --prompt Hi --max-new-tokens 2 --device cpu --tensor-parallel-size 2");
        traps.run(variables, &generate).ok();
        let ran = file_names_in(traps.ran.path());
        assert!(ran.iter().all(|name| name == "home"), "{variables:?}: {ran:?} ran");
    }
    // If nothing is left of PATH, the system's folders are searched.
    let mut sft = grpo_run::grpo_args("last", &["--max-steps", "1"]);
    sft.extend(["--report-command", "cat >lines"].map(str::to_string));
    traps.run(&[("PATH", ".".into())], &sft).ok();
    assert!(fs::metadata(at.join("lines")).expect("the lines of the report").len() > 0);
    assert!(file_names_in(traps.ran.path()).iter().all(|name| name == "home"));
}
