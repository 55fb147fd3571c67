//! The CUDA source of a kernel folder: headers, parameter structs and kernels, as a CUDA compiler reads them.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use super::params::{CType, TENSOR_MAP_SLOT_DECLARATION, TensorMapSlot};

/// The CUDA source of one kernel folder: one translation unit with all kernels of the folder.
pub struct Source {
    /// The folder's name, for example `rms_norm`.
    pub name: &'static str,
    /// The text of `sm80.cu`, which runs on Ampere and later GPUs.
    pub sm80: &'static str,
    /// The C declarations of the parameter structs that the source uses.
    pub params: &'static [fn() -> String],
    /// The headers in `cuh/`, which all kernel folders share: the name by which `#include` refers to each, and its
    /// text.
    pub shared_headers: &'static [(&'static str, &'static str)],
    /// The folder's headers: the name by which `#include` refers to each, and its text.
    pub headers: &'static [(&'static str, &'static str)],
    /// The sources of the other kernel folders whose headers this source includes.
    pub header_owners: &'static [&'static Source],
}

/// The texts of files in place of those that the program was built with, by name (`swiglu/sm80.cu`).
static REPLACED: RwLock<BTreeMap<String, &str>> = RwLock::new(BTreeMap::new());

/// Replaces the text of a source file or header for the rest of this process. It is called before the first
/// compilation, because modules that are already compiled stay. `name` is the file's name as in [`Source::file_names`].
pub fn replace_file(name: &str, text: String) {
    // The text lives as long as the texts of the build.
    let text: &'static str = Box::leak(text.into_boxed_str());
    REPLACED.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), text);
}

/// The text of the file `name`, which was `built` when the program was built.
fn current_text(name: &str, built: &'static str) -> &'static str {
    REPLACED.read().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(built)
}

impl Source {
    /// The name of `sm80.cu` in messages of the compiler, `swiglu/sm80.cu`.
    fn main_name(&self) -> String {
        format!("{}/sm80.cu", self.name)
    }

    /// The text of `sm80.cu`.
    pub fn main_text(&self) -> &'static str {
        current_text(&self.main_name(), self.sm80)
    }

    /// The folder's headers: names and texts.
    fn own_headers(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.headers.iter().map(|(name, text)| (*name, current_text(name, text)))
    }

    /// The names of all files that [`replace_file`] can replace for this source: `sm80.cu`, the folder's headers, and
    /// the other headers that it may include.
    pub fn file_names(&self) -> Vec<String> {
        let others = self.available_header_names_and_texts().into_iter().map(|(name, _)| name.to_string());
        let (mut own, others): (Vec<_>, Vec<_>) = others.partition(|name| self.headers.iter().any(|(h, _)| h == name));
        own.insert(0, self.main_name());
        own.into_iter().chain(others).collect()
    }

    /// Returns the headers that the source may include, sorted by name: those of `cuh/`, of the folder, and of
    /// [`Source::header_owners`].
    pub fn available_header_names_and_texts(&self) -> Vec<(&'static str, &'static str)> {
        let owned = self.header_owners.iter().flat_map(|s| s.own_headers());
        let shared = self.shared_headers.iter().map(|(name, text)| (*name, current_text(name, text)));
        let mut all: Vec<_> = shared.chain(self.own_headers()).chain(owned).collect();
        all.sort_unstable();
        all
    }

    /// Number of bytes of `sm80.cu` and of the folder's headers.
    pub fn own_bytes(&self) -> usize {
        self.main_text().len() + self.own_headers().map(|(_, text)| text.len()).sum::<usize>()
    }

    /// Returns the whole text that a CUDA compiler reads: [`Source::preamble`], then the source, whose `#include` lines
    /// name [`Source::available_header_names_and_texts`].
    pub fn text(&self) -> String {
        self.preamble() + &format!("#line 1 \"{}\"\n", self.main_name()) + self.main_text()
    }

    /// Returns the declarations that precede the source: `offsetof` and the parameter structs. They are generated; no
    /// file has them.
    pub fn preamble(&self) -> String {
        // Defines offsetof, which NVRTC lacks, unless the headers of another compiler define it.
        let mut text = String::from(
            "#ifdef __CUDACC_RTC__\n#define offsetof(T, field) __INTADDR__(&(((T*)0)->field))\n\
             #elif !defined(offsetof)\n#define offsetof(T, field) __builtin_offsetof(T, field)\n#endif\n",
        );
        let declarations: String = self.params.iter().map(|declaration| declaration()).collect();
        if declarations.contains(<TensorMapSlot as CType>::NAME) {
            text += TENSOR_MAP_SLOT_DECLARATION;
        }
        text + &declarations
    }

    /// Whether the source has code for programmatic dependent launches, which the compiler leaves out below sm_90.
    pub fn has_dependent_launches(&self) -> bool {
        self.includes("dependent.cuh")
    }

    /// Whether the source has products of warpgroups (wgmma), which only sm_90a has.
    pub fn has_warpgroup_products(&self) -> bool {
        self.includes("wgmma.cuh")
    }

    /// Whether the compiler translates the source anew for sm_90, under `#if __CUDA_ARCH__ >= 900`. All other sources
    /// are compiled to the PTX of sm_80 for every architecture.
    pub fn has_hopper_code(&self) -> bool {
        self.has_dependent_launches() || self.has_warpgroup_products()
    }

    /// Whether the source or a header of its folder includes this header of `cuh/`.
    fn includes(&self, header: &str) -> bool {
        let line = format!("#include \"cuh/{header}\"");
        std::iter::once(self.main_text())
            .chain(self.own_headers().map(|(_, text)| text))
            .any(|text| text.contains(&line))
    }

    /// Returns a hash (FNV-1a) of the folder's CUDA code: `sm80.cu`, then the folder's headers by name, without line
    /// comments and whitespace. A record of measured times contains this hash, so that a reader sees whether a kernel
    /// has changed since. Headers of `cuh/` are left out.
    pub fn code_hash(&self) -> u64 {
        let mut headers: Vec<_> = self.own_headers().collect();
        headers.sort_unstable();
        let texts = std::iter::once(self.main_text()).chain(headers.into_iter().map(|(_, text)| text));
        let code = texts.flat_map(str::lines).map(|line| line.split_once("//").map_or(line, |(code, _)| code));
        let bytes = code.flat_map(str::bytes).filter(|byte| !byte.is_ascii_whitespace());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_whitespace_do_not_change_the_hash() {
        let source =
            |sm80, headers| Source { name: "x", sm80, params: &[], shared_headers: &[], headers, header_owners: &[] };
        let plain = source("int a; int b;", &[("x/y.cuh", "c"), ("x/z.cuh", "d")]).code_hash();
        assert_eq!(
            source("int a;  // one\n\n\tint b;\n", &[("x/z.cuh", "d // e\n"), ("x/y.cuh", "c")]).code_hash(),
            plain
        );
        assert_ne!(source("int a; int c;", &[("x/y.cuh", "c"), ("x/z.cuh", "d")]).code_hash(), plain);
        // tools/benches/gpu/shares.py computes this number for the same text.
        assert_eq!(source("int a; // x", &[]).code_hash(), 0xfaf8_478f_437e_2d22);
    }
}
