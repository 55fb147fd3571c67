//! The archive of compiled kernels inside the binary. With it the program needs no NVRTC and starts without
//! compiling.
//!
//! The first line of an archive names its format. Then comes one entry for each kernel folder and architecture: a
//! line `folder architecture hash length` and `length` bytes of deflated code. The hash covers everything that was
//! compiled, so code of other sources than the binary's own is never run. The machine code is made by ptxas 12, so that
//! drivers of CUDA 12 and 13 load it (`driver_code.rs`), or by that of NVRTC's toolkit. The entries of
//! [`PTX_ARCHITECTURE`] are PTX text of the oldest ISA, which drivers compile for newer GPUs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::cache::Cache;
use super::driver_code::{
    compile_for_every_driver, driver_reads_cubin, isa_of_ptx, newest_isa_of_driver, with_oldest_isa,
};
use super::{ARCHITECTURES, CompileError, compile_to_cubin, compile_to_ptx, cubin_unit, number_of, ptx_unit};
use crate::Source;

/// The bytes of the archive in this binary; empty unless the variable `REEL_KERNELS` named an archive at build time.
static ARCHIVE: &[u8] = include!(concat!(env!("OUT_DIR"), "/archive.rs"));
/// The first line of an archive.
const MAGIC: &str = "reel-kernels 1";
/// The architecture of the PTX entries: the oldest supported one, whose PTX every newer GPU runs.
pub const PTX_ARCHITECTURE: &str = "compute_80";

/// The compiled code of one kernel folder, for one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuiltinCode {
    /// Machine code.
    Cubin(Vec<u8>),
    /// PTX text.
    Ptx(String),
}

/// A parsed archive of compiled kernels.
#[derive(Clone, Debug, Default)]
pub struct Archive<'a> {
    entries: Vec<Entry<'a>>,
}

#[derive(Clone, Debug)]
struct Entry<'a> {
    folder: &'a str,
    architecture: &'a str,
    hash: &'a str,
    deflated: &'a [u8],
}

impl<'a> Archive<'a> {
    /// Parses an archive. No bytes give an empty archive.
    ///
    /// # Errors
    /// The format or an entry is malformed; the message says how.
    pub fn parse(bytes: &'a [u8]) -> Result<Archive<'a>, String> {
        let mut entries = Vec::new();
        if bytes.is_empty() {
            return Ok(Archive { entries });
        }
        let (magic, mut rest) = line(bytes).ok_or("has no line feed after its first line")?;
        if magic != MAGIC {
            return Err(format!("begins with {magic:?}, not {MAGIC:?}"));
        }
        while !rest.is_empty() {
            let (head, body) =
                line(rest).ok_or("an entry does not begin with a line `folder architecture hash length`")?;
            let [folder, architecture, hash, length] = head.split(' ').collect::<Vec<_>>()[..] else {
                return Err(format!("{head:?} is not `folder architecture hash length`"));
            };
            let length: usize = length.parse().map_err(|_| format!("{head:?}: the length is not a number"))?;
            let deflated =
                body.get(..length).ok_or_else(|| format!("ends within the code of {folder} for {architecture}"))?;
            entries.push(Entry { folder, architecture, hash, deflated });
            rest = &body[length..];
        }
        Ok(Archive { entries })
    }

    /// Returns the code of a kernel folder for a GPU's architecture such as `sm_86` and a driver of this CUDA version
    /// (times 1000): machine code for this architecture, else for the nearest earlier one with the same major version,
    /// else PTX. Returns `None` if the driver loads none of these, or if the archive was compiled from other sources
    /// than `source`.
    pub fn code_for_gpu(&self, source: &Source, sm: &str, driver: u32) -> Option<BuiltinCode> {
        for architecture in runs_on(sm) {
            if let Some(entry) = self.entry(source, architecture) {
                let cubin = entry.inflate()?;
                if driver_reads_cubin(driver, &cubin) {
                    return Some(BuiltinCode::Cubin(cubin));
                }
            }
        }
        let entry = self.entry(source, PTX_ARCHITECTURE).filter(|_| capability(sm) >= capability(PTX_ARCHITECTURE))?;
        let ptx = String::from_utf8(entry.inflate()?).ok()?;
        isa_of_ptx(&ptx).is_some_and(|isa| isa <= newest_isa_of_driver(driver)).then_some(BuiltinCode::Ptx(ptx))
    }

    /// Whether all machine code of the archive can be loaded by a driver of this CUDA version (times 1000).
    pub fn suits_driver(&self, driver: u32) -> bool {
        let machine_code = self.entries.iter().filter(|e| e.architecture != PTX_ARCHITECTURE);
        machine_code.into_iter().all(|e| e.inflate().is_some_and(|cubin| driver_reads_cubin(driver, &cubin)))
    }

    /// Counts the compiled kernels in the archive: first those that match one of `sources`, the sources of this binary
    /// (fresh), then those that do not (stale).
    pub fn fresh_and_stale_counts(&self, sources: &[&Source]) -> (usize, usize) {
        let known = |e: &&Entry<'_>| {
            sources.iter().any(|s| s.name == e.folder && hash(s, e.architecture).is_some_and(|hash| hash == e.hash))
        };
        let fresh = self.entries.iter().filter(known).count();
        (fresh, self.entries.len() - fresh)
    }

    /// Returns the architectures that have entries, in order.
    pub fn architectures(&self) -> Vec<&'a str> {
        let mut all: Vec<&str> = self.entries.iter().map(|e| e.architecture).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn entry(&self, source: &Source, architecture: &str) -> Option<&Entry<'a>> {
        let here = |e: &&Entry<'_>| e.folder == source.name && e.architecture == architecture;
        self.entries.iter().find(here).filter(|e| hash(source, architecture).is_some_and(|hash| hash == e.hash))
    }
}

impl Entry<'_> {
    fn inflate(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        DeflateDecoder::new(self.deflated).read_to_end(&mut out).ok()?;
        Some(out)
    }
}

/// Returns the archive that is built into this binary.
pub fn archive() -> Archive<'static> {
    // The build script does not check the file: a file that is not an archive counts as an empty archive.
    Archive::parse(ARCHIVE).unwrap_or_default()
}

/// Returns the code that this binary contains for a kernel folder, a GPU's architecture and a driver of this CUDA
/// version (times 1000); `None` if it contains no code for this folder that the driver loads.
pub fn builtin_code(source: &Source, sm: &str, driver: u32) -> Option<BuiltinCode> {
    if ARCHIVE.is_empty() { None } else { archive().code_for_gpu(source, sm, driver) }
}

/// The drivers that load the machine code of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiveDrivers {
    /// The drivers of CUDA 12.0 and newer load the machine code, because ptxas 12 makes it.
    #[default]
    Every,
    /// The drivers of the toolkit's major version and newer load the machine code, because NVRTC's own toolkit makes
    /// it.
    OfToolkit,
}

/// The architectures of an archive for every GPU: machine code for [`ARCHITECTURES`], and PTX.
pub fn all_architectures() -> Vec<&'static str> {
    ARCHITECTURES.into_iter().chain([PTX_ARCHITECTURE]).collect()
}

/// Compiles `sources` for each of `architectures` on `threads` threads, and returns the bytes of an archive for
/// `drivers`. Each source is one kernel folder. The architectures must be among [`all_architectures`].
///
/// # Errors
/// NVRTC or a needed ptxas is missing, or a source does not compile.
pub fn compile_archive(
    sources: &[&Source],
    architectures: &[&str],
    drivers: ArchiveDrivers,
    threads: usize,
) -> Result<Vec<u8>, CompileError> {
    let all: Vec<(&Source, &str)> =
        sources.iter().flat_map(|source| architectures.iter().map(move |a| (*source, *a))).collect();
    let (next, parts) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some((i, (source, architecture))) = take(&next, &all) {
            let part = part(source, architecture, drivers);
            parts.lock().unwrap_or_else(|e| e.into_inner()).insert(i, part);
        }
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work))));
    let mut out = format!("{MAGIC}\n").into_bytes();
    for part in parts.into_inner().unwrap_or_else(|e| e.into_inner()).into_values() {
        out.extend(part?);
    }
    Ok(out)
}

fn take<T: Copy>(next: &AtomicUsize, all: &[T]) -> Option<(usize, T)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    all.get(i).map(|x| (i, *x))
}

/// Compiles a kernel folder for an architecture and returns its entry of the archive.
fn part(source: &Source, architecture: &str, drivers: ArchiveDrivers) -> Result<Vec<u8>, CompileError> {
    let unit = unit(source, architecture)?;
    let code = match (architecture.strip_prefix("compute_"), drivers) {
        (Some(number), _) => with_oldest_isa(&compile_to_ptx(source, &format!("sm_{number}"))?).into_bytes(),
        (None, ArchiveDrivers::Every) => compile_for_every_driver(source, architecture)?.image,
        (None, ArchiveDrivers::OfToolkit) => compile_to_cubin(source, architecture)?.image,
    };
    let mut out = Vec::new();
    append(&mut out, source.name, architecture, &Cache::content_hash(&unit), &code);
    Ok(out)
}

fn append(out: &mut Vec<u8>, folder: &str, architecture: &str, hash: &str, code: &[u8]) {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    let deflated = encoder.write_all(code).and_then(|()| encoder.finish()).expect("writing to a vector cannot fail");
    out.extend(format!("{folder} {architecture} {hash} {}\n", deflated.len()).bytes());
    out.extend(deflated);
}

/// Returns the translation unit of a kernel folder for an architecture; for `compute_80`, one that compiles to PTX
/// only.
fn unit(source: &Source, architecture: &str) -> Result<super::Unit, CompileError> {
    match architecture.strip_prefix("compute_") {
        Some(number) => ptx_unit(source, &format!("sm_{number}")),
        None => cubin_unit(source, architecture),
    }
}

fn hash(source: &Source, architecture: &str) -> Option<String> {
    unit(source, architecture).ok().map(|unit| Cache::content_hash(&unit))
}

/// Returns the architectures whose machine code a GPU with architecture `sm` runs, the best first: its own, then
/// earlier ones of the same major version. Code for `sm_90a` and other names that end in `a` runs on that
/// architecture only.
fn runs_on(sm: &str) -> Vec<&'static str> {
    let own = ARCHITECTURES.into_iter().filter(|a| *a == sm);
    let earlier = ARCHITECTURES.into_iter().rev().filter(|a| {
        !a.ends_with('a') && *a != sm && capability(a) / 10 == capability(sm) / 10 && capability(a) <= capability(sm)
    });
    own.chain(earlier).collect()
}

/// Returns the number in an architecture's name: 86 for `sm_86`, 90 for `sm_90a`.
fn capability(architecture: &str) -> u32 {
    let number = architecture.strip_prefix("compute_").or_else(|| number_of(architecture).ok()).unwrap_or_default();
    number.trim_end_matches(['a', 'f']).parse().unwrap_or(0)
}

/// Returns the first line of `bytes`, without its line feed, and the bytes after it.
fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: &Source = &source("small", "int small;");
    const OTHER: &Source = &source("other", "int other;");
    const BOTH: [&Source; 2] = [SMALL, OTHER];

    const fn source(name: &'static str, sm80: &'static str) -> Source {
        Source { name, sm80, params: &[], shared_headers: &[], headers: &[], header_owners: &[] }
    }

    fn archive_of(entries: &[(&Source, &str, &[u8])]) -> Vec<u8> {
        let mut out = format!("{MAGIC}\n").into_bytes();
        for (source, architecture, code) in entries {
            append(&mut out, source.name, architecture, &hash(source, architecture).unwrap(), code);
        }
        out
    }

    #[test]
    fn each_gpu_gets_the_best_that_it_runs() {
        let bytes = archive_of(&[
            (SMALL, "sm_80", b"eighty"),
            (SMALL, "sm_86", b"eighty-six"),
            (SMALL, "sm_90a", b"ninety"),
            (SMALL, PTX_ARCHITECTURE, b".version 9.0"),
        ]);
        let archive = Archive::parse(&bytes).unwrap();
        let code = |source, sm| archive.code_for_gpu(source, sm, 13_000);
        let cubin = |code: &[u8]| Some(BuiltinCode::Cubin(code.to_vec()));
        let ptx = Some(BuiltinCode::Ptx(".version 9.0".to_string()));
        assert_eq!(code(SMALL, "sm_80"), cubin(b"eighty"));
        assert_eq!(code(SMALL, "sm_86"), cubin(b"eighty-six"));
        assert_eq!(code(SMALL, "sm_89"), cubin(b"eighty-six"), "89 has no entry here");
        assert_eq!(code(SMALL, "sm_90a"), cubin(b"ninety"));
        assert_eq!(code(SMALL, "sm_100a"), ptx);
        assert_eq!(code(SMALL, "sm_120a"), ptx);
        assert_eq!(code(SMALL, "sm_75"), None);
        assert_eq!(code(OTHER, "sm_80"), None);
        assert_eq!(archive.fresh_and_stale_counts(&BOTH), (4, 0));
    }

    #[test]
    fn each_driver_gets_code_that_it_loads() {
        let [old, new] = [0x33, 0x41].map(|abi| [b"\x7fELF\x02\x01\x01".as_slice(), &[abi, 0, 0]].concat());
        let bytes = archive_of(&[
            (SMALL, "sm_80", &old),
            (SMALL, "sm_90a", &new),
            (SMALL, PTX_ARCHITECTURE, b".version 7.0"),
            (OTHER, PTX_ARCHITECTURE, b".version 9.0"),
        ]);
        let archive = Archive::parse(&bytes).unwrap();
        let ptx = Some(BuiltinCode::Ptx(".version 7.0".to_string()));
        assert_eq!(archive.code_for_gpu(SMALL, "sm_80", 12_000), Some(BuiltinCode::Cubin(old.clone())));
        assert_eq!(archive.code_for_gpu(SMALL, "sm_90a", 12_090), ptx, "the machine code is of CUDA 13");
        assert_eq!(archive.code_for_gpu(SMALL, "sm_90a", 13_000), Some(BuiltinCode::Cubin(new)));
        assert_eq!(archive.code_for_gpu(OTHER, "sm_90a", 12_090), None, "the PTX is of CUDA 13");
        assert!(!archive.suits_driver(12_090) && archive.suits_driver(13_000));
        assert!(Archive::parse(&archive_of(&[(SMALL, "sm_80", &old)])).unwrap().suits_driver(12_000));
    }

    #[test]
    fn code_of_other_sources_is_not_given() {
        let mut bytes = format!("{MAGIC}\n").into_bytes();
        append(&mut bytes, SMALL.name, "sm_80", &hash(OTHER, "sm_80").unwrap(), b"code");
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(archive.code_for_gpu(SMALL, "sm_80", 13_000), None);
        assert_eq!(archive.fresh_and_stale_counts(&BOTH), (0, 1));
    }

    #[test]
    fn what_is_built_in_is_an_archive() {
        Archive::parse(ARCHIVE).unwrap();
    }

    proptest! {
        /// An archive returns the code that was put in. A truncated archive is an error or has fewer entries.
        #[test]
        fn archives_hold_what_was_put_in(code in proptest::collection::vec(any::<u8>(), 0..4000), cut in any::<prop::sample::Index>()) {
            let bytes = archive_of(&[(SMALL, "sm_80", &code), (OTHER, "sm_90a", &code)]);
            let archive = Archive::parse(&bytes).unwrap();
            prop_assert_eq!(archive.code_for_gpu(SMALL, "sm_80", 13_000), Some(BuiltinCode::Cubin(code.clone())));
            prop_assert_eq!(archive.code_for_gpu(OTHER, "sm_90a", 13_000), Some(BuiltinCode::Cubin(code.clone())));
            let part = &bytes[..cut.index(bytes.len())];
            if let Ok(archive) = Archive::parse(part) {
                prop_assert!(archive.entries.len() < 2);
                for entry in &archive.entries {
                    prop_assert_eq!(entry.inflate(), Some(code.clone()));
                }
            }
        }
    }
}
