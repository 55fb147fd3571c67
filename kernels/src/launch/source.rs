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
        let mut all: Vec<_> =
            crate::cuh::headers::HEADER_NAMES_AND_TEXTS.iter().chain(self.headers).chain(owned).copied().collect();
        all.sort_unstable();
        all
    }

    /// Returns the whole text that a CUDA compiler reads: parameter structs, then the source, whose `#include` lines
    /// name [`Source::available_header_names_and_texts`].
    pub fn text(&self) -> String {
        // Defines offsetof, which NVRTC lacks, unless the headers of another compiler define it.
        let mut text = String::from(
            "#ifdef __CUDACC_RTC__\n#define offsetof(T, field) __INTADDR__(&(((T*)0)->field))\n\
             #elif !defined(offsetof)\n#define offsetof(T, field) __builtin_offsetof(T, field)\n#endif\n",
        );
        let declarations: String = self.params.iter().map(|declaration| declaration()).collect();
        if declarations.contains(<TensorMapSlot as CType>::NAME) {
            text += TENSOR_MAP_SLOT_DECLARATION;
        }
        text += &declarations;
        text += &format!("#line 1 \"{}/sm80.cu\"\n", self.name);
        text + self.sm80
    }
}
