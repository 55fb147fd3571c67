//! The tests of the Python package, run by pytest on this build of the native module.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Returns the Python of the environment that `./x setup` makes; `REEL_PYTHON` names another one.
fn python() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
        env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map_or_else(home, PathBuf::from)
    };
    env::var_os("REEL_PYTHON").map_or_else(|| cache().join("reel/python/bin/python"), PathBuf::from)
}

/// Lays out the package as pip installs it, so that pytest finds the plugin by its entry point.
fn install(to: &Path) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (package, info) = (to.join("reel_sim"), to.join("reel_sim-0.1.0.dist-info"));
    fs::create_dir_all(&package).unwrap();
    fs::create_dir_all(&info).unwrap();
    for file in fs::read_dir(here.join("reel_sim")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "py") {
            fs::copy(&path, package.join(path.file_name().unwrap())).unwrap();
        }
    }
    // The module lies beside this test program.
    let module = env::current_exe().unwrap().with_file_name("lib_native.so");
    fs::copy(&module, package.join("_native.abi3.so")).unwrap_or_else(|e| panic!("{}: {e}", module.display()));
    fs::write(info.join("METADATA"), "Metadata-Version: 2.1\nName: reel-sim\nVersion: 0.1.0\n").unwrap();
    fs::write(info.join("entry_points.txt"), "[pytest11]\nreel_sim = reel_sim.pytest_plugin\n").unwrap();
}

#[test]
fn the_package_passes_its_tests() {
    let python = python();
    assert!(python.exists(), "{}: not found; ./x setup fetches it", python.display());
    let folder = tempfile::tempdir().unwrap();
    install(folder.path());
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let scratch = folder.path().join("tests");
    fs::create_dir(&scratch).unwrap();
    let mut run = Command::new(&python);
    run.args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--basetemp"]).arg(&scratch).arg(&tests);
    run.env("PYTHONPATH", folder.path()).env("PYTHONDONTWRITEBYTECODE", "1").env("TRITON_CACHE_DIR", folder.path());
    let done = run.current_dir(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}\n{}", String::from_utf8_lossy(&done.stderr));
    println!("{text}");
}
