//! The parts of `./x dist` (`packaging/`), tested on an artificial installation: the archive and its install script,
//! the wheel, the Containerfile, and the check of symbol versions. `./x dist --try` tests the real ones.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The name of the archive of a hypothetical version 1.2.3, and of the folder in the archive.
const NAME: &str = "reel-1.2.3-x86_64-linux";

/// Runs a bash command in the repository, in a shell with the functions of `packaging/` that write files.
fn packaging(command: &str) -> Output {
    let script = format!(
        "set -euo pipefail; die() {{ echo \"error: $*\" >&2; exit 1; }}; \
         . tools/packaging/toolchain.sh; . tools/packaging/archive.sh; {command}"
    );
    Command::new("bash").args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("bash starts")
}

#[track_caller]
fn succeeds(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Checks that a command failed with one line that contains each of `words` and says what to do.
#[track_caller]
fn refused(out: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text}");
    assert!(text.starts_with("error: "), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// A folder with an unpacked archive (`NAME/`), whose program is a shell script, and with the packed archive and its
/// checksum.
struct Made(tempfile::TempDir);

impl Made {
    /// Creates the folder. `extra` is an additional file of the installation, relative to its root.
    fn new(version: &str, extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join(NAME);
        let files = [
            ("bin/reel", format!("#!/bin/sh\necho reel {version}\n")),
            ("lib/reel/libavutil.so.57", "library".to_owned()),
            ("share/man/man1/reel.1", "page".to_owned()),
            ("share/doc/reel/README.md", "# reel\n".to_owned()),
            (extra, "extra".to_owned()),
        ];
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        fs::set_permissions(root.join("bin/reel"), fs::Permissions::from_mode(0o755)).expect("executable");
        let path = folder.path().display();
        succeeds(&packaging(&format!("write_archive '{path}' {NAME} '{path}'")));
        Self(folder)
    }

    fn archive(&self) -> PathBuf {
        self.0.path().join(format!("{NAME}.tar.xz"))
    }

    /// Runs the install script with this archive.
    fn install(&self, prefix: &Path) -> Output {
        install_script(&[self.archive().as_os_str(), "--prefix".as_ref(), prefix.as_os_str()])
    }
}

fn install_script(args: &[&std::ffi::OsStr]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/packaging/install.sh");
    Command::new("sh").arg(script).args(args).output().expect("sh starts")
}

/// Returns the files below a folder, relative to the folder.
fn files_below(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).expect("below").display().to_string());
            }
        }
    }
    found
}

#[test]
fn an_archive_is_installed_replaced_and_removed() {
    let (old, new) = (Made::new("1.2.3", "share/old page"), Made::new("1.3.0", "share/new/page"));
    let home = tempfile::tempdir().expect("a folder");
    let prefix = home.path().join("some prefix");
    fs::create_dir_all(prefix.join("bin")).expect("a folder");
    let said = succeeds(&old.install(&prefix));
    assert!(said.contains("reel 1.2.3") && said.contains("PATH"), "{said}");
    fs::write(prefix.join("share/of another program"), "").expect("written");
    assert!(prefix.join("share/old page").exists());
    let out = Command::new(prefix.join("bin/reel")).output().expect("the program starts");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "reel 1.2.3\n");

    assert!(succeeds(&new.install(&prefix)).contains("reel 1.3.0"));
    let expected = [
        "bin/reel",
        "lib/reel/libavutil.so.57",
        "share/doc/reel/README.md",
        "share/doc/reel/installed-files",
        "share/man/man1/reel.1",
        "share/new/page",
        "share/of another program",
    ];
    assert_eq!(files_below(&prefix), BTreeSet::from(expected.map(str::to_owned)));

    let remove = [std::ffi::OsStr::new("--uninstall"), "--prefix".as_ref(), prefix.as_os_str()];
    succeeds(&install_script(&remove));
    assert_eq!(files_below(&prefix), BTreeSet::from(["share/of another program".to_owned()]));
    assert!(!prefix.join("lib").exists(), "an empty folder is left");
    assert!(prefix.join("bin").exists(), "a folder that was there before is removed");
    refused(&install_script(&remove), &["no installation", "--prefix"]);
}

#[test]
fn a_damaged_archive_and_wrong_arguments_are_refused() {
    let made = Made::new("1.2.3", "share/page");
    let prefix = made.0.path().join("prefix");
    let mut bytes = fs::read(made.archive()).expect("the archive");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(made.archive(), bytes).expect("written");
    refused(&made.install(&prefix), &["SHA-256", "download"]);
    fs::remove_file(made.archive().with_extension("xz.sha256")).expect("removed");
    refused(&made.install(&prefix), &[".sha256: no such file"]);
    assert!(!prefix.exists(), "a refused archive leaves no folder");
    refused(&install_script(&["--force".as_ref()]), &["--force", "no such option"]);
    refused(&install_script(&["--prefix".as_ref()]), &["--prefix", "no value"]);
}

#[test]
fn a_program_that_does_not_start_is_not_installed() {
    let made = Made::new("1.2.3; exit 1", "share/page");
    let prefix = made.0.path().join("prefix");
    refused(&made.install(&prefix), &["glibc 2.28"]);
    assert_eq!(files_below(&prefix), BTreeSet::new());
}

#[test]
fn the_wheel_has_the_layout_of_an_installation_and_a_true_record() {
    let made = Made::new("1.2.3", "share/page");
    let path = made.0.path().display();
    succeeds(&packaging(&format!("write_wheel '{path}/{NAME}' '{path}/stage' '{path}' 1.2.3")));
    let wheel = made.0.path().join("reel-1.2.3-py3-none-manylinux_2_28_x86_64.whl");
    let unpacked = made.0.path().join("unpacked");
    let python = Command::new("python3").args(["-m", "zipfile", "-e"]).args([&wheel, &unpacked]).output();
    succeeds(&python.expect("python3 starts"));
    let expected = [
        "reel-1.2.3.data/data/lib/reel/libavutil.so.57",
        "reel-1.2.3.data/data/share/doc/reel/README.md",
        "reel-1.2.3.data/data/share/man/man1/reel.1",
        "reel-1.2.3.data/data/share/page",
        "reel-1.2.3.data/scripts/reel",
        "reel-1.2.3.dist-info/METADATA",
        "reel-1.2.3.dist-info/RECORD",
        "reel-1.2.3.dist-info/WHEEL",
        "reel-1.2.3.dist-info/licenses/LICENSE",
    ];
    let found = files_below(&unpacked);
    assert_eq!(found, BTreeSet::from(expected.map(str::to_owned)));

    let record = fs::read_to_string(unpacked.join("reel-1.2.3.dist-info/RECORD")).expect("the record");
    let mut recorded = BTreeSet::new();
    for line in record.lines() {
        let [name, hash, size] = line.split(',').collect::<Vec<_>>()[..] else { panic!("{line}: not three fields") };
        recorded.insert(name.to_owned());
        if name.ends_with("/RECORD") {
            assert_eq!((hash, size), ("", ""), "a record cannot have its own hash");
            continue;
        }
        let file = unpacked.join(name);
        assert_eq!(size.parse::<u64>().ok(), fs::metadata(&file).ok().map(|m| m.len()), "{line}");
        assert_eq!(hash, format!("sha256={}", URL_SAFE_NO_PAD.encode(sha256(&file))), "{line}");
    }
    assert_eq!(recorded, found);
    let metadata = fs::read_to_string(unpacked.join("reel-1.2.3.dist-info/METADATA")).expect("the metadata");
    assert!(metadata.contains("\nVersion: 1.2.3\n") && metadata.ends_with("\n\n# reel\n"), "{metadata}");
}

/// Returns the SHA-256 of a file, computed by the program `sha256sum`.
fn sha256(file: &Path) -> Vec<u8> {
    let text = succeeds(&Command::new("sha256sum").arg(file).output().expect("sha256sum starts"));
    (0..64).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("a hash")).collect()
}

#[test]
fn the_containerfile_finds_the_program_in_the_archive() {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/packaging/Containerfile")).expect("the file");
    let text = text.replace("$VERSION", "1.2.3");
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    assert!(!text.lines().any(|l| l.starts_with("RUN ")), "a RUN step could need the network");
    let made = Made::new("1.2.3", "share/page");
    let root = made.0.path().join("image");
    let [source, target] = field("ADD ").split(' ').collect::<Vec<_>>()[..] else { panic!("not one source") };
    assert_eq!(Some(source), made.archive().file_name().and_then(|n| n.to_str()));
    let target = root.join(target.trim_start_matches('/'));
    fs::create_dir_all(&target).expect("a folder");
    let unpacked = Command::new("tar").arg("-xJf").arg(made.archive()).arg("-C").arg(&target).output();
    succeeds(&unpacked.expect("tar starts"));
    let entry = field("ENTRYPOINT ").trim_matches(['[', ']', '"']);
    let first = field("ENV PATH=").split(':').next().expect("a folder").trim_start_matches('/');
    let out = Command::new(root.join(first).join(entry)).output().expect("the program of the image starts");
    assert_eq!(succeeds(&out), "reel 1.2.3\n");
}

/// The binary of this test is linked against this machine's glibc, which is newer than 2.28.
#[test]
fn a_program_for_a_newer_glibc_is_refused() {
    let own = std::env::current_exe().expect("this program");
    refused(&packaging(&format!("check_glibc '{}'", own.display())), &["newer than glibc 2.28", "GLIBC_2."]);
    let new = packaging(&format!("GLIBC=2.99; check_glibc '{}'", own.display()));
    refused(&new, &["libgcc_s", "not part of glibc"]);
}

/// Returns the manifests of the published crates, with their folders.
fn published_manifests() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("a manifest");
    let members = manifest.lines().find_map(|l| l.strip_prefix("members = [")).expect("a list of members");
    let mut manifests = vec![(root.to_path_buf(), manifest.clone())];
    for name in members.split('"').skip(1).step_by(2) {
        let text = fs::read_to_string(root.join(name).join("Cargo.toml")).expect("a manifest");
        if !text.contains("publish = false") {
            manifests.push((root.join(name), text));
        }
    }
    manifests
}

#[test]
fn manifests_have_what_a_registry_asks_for() {
    let manifests = published_manifests();
    let version = env!("CARGO_PKG_VERSION");
    for (folder, text) in &manifests {
        for field in ["description = \"", "license", "keywords", "categories"] {
            assert!(text.lines().any(|l| l.starts_with(field)), "{}: no {field}", folder.display());
        }
        for line in text.lines().filter(|l| l.starts_with("reel-") && l.contains("path = ")) {
            let has_version = line.contains(&format!("version = \"{version}\""));
            assert!(has_version, "{}: {line}: has no version {version}", folder.display());
        }
    }
    assert!(manifests.len() > 12, "only {} crates are published", manifests.len());
}

/// A published crate consists of its own folder: outside of tests, its code may not include files of other folders.
#[test]
fn crates_include_no_files_of_other_folders() {
    let mut wrong = Vec::new();
    for (folder, _) in published_manifests() {
        let source = [folder.join("src"), folder.join("cli")].into_iter().find(|path| path.exists()).expect("sources");
        for name in files_below(&source) {
            let path = source.join(&name);
            let is_test = path
                .components()
                .any(|c| ["tests", "tests.rs", "testing.rs"].map(Some).contains(&c.as_os_str().to_str()));
            if is_test || path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let texts = code.split("include_str!(\"").skip(1);
            for included in texts.chain(code.split("include_bytes!(\"").skip(1)) {
                let included = included.split('"').next().unwrap_or_default();
                let depth = path.strip_prefix(&folder).expect("below").components().count() - 1;
                if included.split('/').filter(|part| *part == "..").count() > depth {
                    wrong.push(format!("{}: {included}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
