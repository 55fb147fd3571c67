//! The CUDA source of a kernel folder: headers, parameter structs and kernels, as a CUDA compiler reads them.

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

impl Source {
    /// Returns the headers that the source may include, sorted by name: those of `cuh/`, of the folder, and of
    /// [`Source::header_owners`].
    pub fn available_header_names_and_texts(&self) -> Vec<(&'static str, &'static str)> {
        let owned = self.header_owners.iter().flat_map(|s| s.headers);
        let mut all: Vec<_> = self.shared_headers.iter().chain(self.headers).chain(owned).copied().collect();
        all.sort_unstable();
        all
    }

    /// Returns the whole text that a CUDA compiler reads: [`Source::preamble`], then the source, whose `#include` lines
    /// name [`Source::available_header_names_and_texts`].
    pub fn text(&self) -> String {
        self.preamble() + &format!("#line 1 \"{}/sm80.cu\"\n", self.name) + self.sm80
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
        std::iter::once(self.sm80).chain(self.headers.iter().map(|(_, text)| *text)).any(|text| text.contains(&line))
    }

    /// Returns a hash (FNV-1a) of the folder's CUDA code: `sm80.cu`, then the folder's headers by name, without line
    /// comments and whitespace. A record of measured times contains this hash, so that a reader sees whether a kernel
    /// has changed since. Headers of `cuh/` are left out.
    pub fn code_hash(&self) -> u64 {
        let mut headers = self.headers.to_vec();
        headers.sort_unstable();
        let texts = std::iter::once(self.sm80).chain(headers.into_iter().map(|(_, text)| text));
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
        // benches/gpu/shares.py computes this number for the same text.
        assert_eq!(source("int a; // x", &[]).code_hash(), 0xfaf8_478f_437e_2d22);
    }
}
