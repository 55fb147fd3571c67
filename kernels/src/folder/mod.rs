//! What a kernel folder registers about itself: source, headers, checks and example calls.
//!
//! `kernel_folder!` in a folder's `mod.rs` makes one [`KernelFolder`]; `lib.rs` lists them. Example calls use the
//! sizes of Qwen2.5-VL-7B: a sequence of 8192 tokens, or a decode step of 16 sequences with 8192 keys each. [`Sizes`]
//! replaces some of them.

mod sizes;

use std::borrow::Cow;

use reel_device::DType::{self, BF16, F32};
use reel_device::launch::{Addr, KernelLaunch, Launch, Params, Source};

use crate::checks::Check;
use crate::tuning::Variant;

pub use sizes::{SizeError, Sizes};

/// A kernel folder: name, documentation, CUDA source, checks and example calls.
pub struct KernelFolder {
    /// The folder's name, for example `rms_norm`.
    pub name: &'static str,
    /// The text of its `mod.rs`.
    pub module: &'static str,
    /// The folder's CUDA source.
    pub source: &'static Source,
    /// The checks of its kernels.
    pub checks: &'static [Check],
    /// The variants of its kernels.
    pub variants: &'static [Variant],
    /// Makes an example call of each kernel; see [`KernelFolder::examples`].
    pub calls: fn(&Sizes) -> LabeledLaunches,
}

/// Example calls, each with a text that describes its size.
pub type LabeledLaunches = Vec<(&'static str, Launch)>;

/// An example call of a kernel. Its addresses are placeholders: its plan and cost can be computed, but it cannot run.
#[derive(Clone, Debug)]
pub struct ExampleCall {
    /// Text that describes the size of the call.
    pub size: Cow<'static, str>,
    /// The call.
    pub launch: KernelLaunch,
}

impl KernelFolder {
    /// Returns the documentation at the head of `mod.rs`: what the kernels compute.
    pub fn documentation(&self) -> String {
        let lines = self.module.lines().map_while(|l| l.strip_prefix("//!"));
        let text = lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect::<Vec<_>>().join("\n");
        without_links(&text)
    }

    /// Returns an example call of each kernel of the folder.
    pub fn examples(&self) -> Vec<ExampleCall> {
        kernel_calls((self.calls)(&Sizes::default()), |size| size.into())
    }

    /// Returns the example calls with given sizes; a size that is not given keeps its default.
    ///
    /// # Errors
    /// A size that the folder's calls do not have, or a value that its kernels do not support.
    pub fn examples_with_sizes(&self, sizes: &Sizes) -> Result<Vec<ExampleCall>, SizeError> {
        // The first calls use only defaults. `defaults` then knows the names of all sizes that the calls use.
        let defaults = Sizes::default();
        (self.calls)(&defaults);
        sizes.check_given_sizes(self.name, &defaults)?;
        Ok(kernel_calls((self.calls)(sizes), |size| {
            if sizes.has_given_sizes() { sizes.to_text().into() } else { size.into() }
        }))
    }
}

/// Replaces rustdoc's links, such as [`crate::rms_norm`], by the names of the items.
fn without_links(text: &str) -> String {
    text.replace("[`crate::", "`").replace("[`", "`").replace("`]", "`")
}

fn kernel_calls(calls: LabeledLaunches, size: impl Fn(&'static str) -> Cow<'static, str>) -> Vec<ExampleCall> {
    let kernel = |(words, launch)| match launch {
        Launch::Kernel(launch) => Some(ExampleCall { size: size(words), launch }),
        Launch::Matmul(_) | Launch::WeightGroups(_) => None,
    };
    calls.into_iter().filter_map(kernel).collect()
}

/// Number of tokens of a long video with a question about it.
pub(crate) const SEQUENCE_LEN: u32 = 8192;
/// Number of elements of the decoder's hidden state of one token.
pub(crate) const HIDDEN_SIZE: u32 = 3584;
/// Inner width of the decoder's feed-forward layers (`intermediate_size` in config.json).
pub(crate) const INTERMEDIATE_SIZE: u32 = 18944;
/// Number of query heads of the decoder.
pub(crate) const HEADS: u32 = 28;
/// Number of key heads of the decoder, and of value heads.
pub(crate) const KV_HEADS: u32 = 4;
/// Number of elements of an attention head.
pub(crate) const HEAD_DIM: u32 = 128;
/// Number of token ids of the vocabulary.
pub(crate) const VOCAB_SIZE: u32 = 152_064;
/// Number of sequences of a decode step.
pub(crate) const BATCH_SIZE: u32 = 16;
/// The address that stands for every operand of an example call. It is never accessed.
pub(crate) const PLACEHOLDER_ADDRESS: Addr = Addr(1 << 40);
/// Returns parameters whose addresses are all [`PLACEHOLDER_ADDRESS`] and whose numbers are 0.
pub(crate) fn placeholder_params<P: Params>() -> P {
    let mut params = P::zeroed();
    for field in P::FIELDS.iter().filter(|field| field.address) {
        bytemuck::bytes_of_mut(&mut params)[field.offset..][..8].copy_from_slice(&PLACEHOLDER_ADDRESS.0.to_le_bytes());
    }
    params
}

/// The element types that most kernels support.
pub(crate) const FLOAT_DTYPES: [DType; 2] = [F32, BF16];
/// Size text of example calls that process all weights of one matrix.
pub(crate) const WEIGHTS_DESCRIPTION: &str = "one feed-forward matrix of 18944 x 3584 weights";
/// Size text of example calls that process the hidden states of a sequence.
pub(crate) const ACTIVATIONS_DESCRIPTION: &str = "8192 tokens of 3584 elements";

/// Registers a kernel folder: declares its `SOURCE` and its `FOLDER`.
///
/// `params` lists the parameter structs that `sm80.cu` uses and `headers` the folder's `.cuh` files. `headers_of`
/// lists other folders whose headers it includes, besides those of `cuh/`. `variants` is a constant slice of
/// [`Variant`]s. The folder's `check.rs` has the checks (`checks!`) and `examples.rs` the function `example_calls`.
/// `traffic` names a function of `examples.rs` that returns small launches on allocated arrays; a test simulates them
/// and compares the bytes that they move with their cost.
macro_rules! kernel_folder {
    (name: $name:literal, params: [$($params:ty),*], $(headers: [$($header:literal),*],)?
     $(headers_of: [$($owner:ident),*],)? $(variants: $variants:path,)? $(traffic: $traffic:ident,)?) => {
        /// The CUDA source of this folder.
        pub static SOURCE: reel_device::Source = reel_device::Source {
            name: $name,
            sm80: include_str!("sm80.cu"),
            params: &[$(<$params as reel_device::launch::Params>::c_declaration),*],
            shared_headers: $crate::cuh::headers::HEADER_NAMES_AND_TEXTS,
            headers: &[$($((concat!($name, "/", $header), include_str!($header))),*)?],
            header_owners: &[$($(&$crate::$owner::SOURCE),*)?],
        };

        /// Source, checks and example calls of this folder.
        pub const FOLDER: $crate::folder::KernelFolder = $crate::folder::KernelFolder {
            name: $name,
            module: include_str!("mod.rs"),
            source: &SOURCE,
            checks: check::CHECKS,
            variants: $crate::folder::first_of!($($variants,)? &[]),
            calls: examples::example_calls,
        };

        $(
            #[cfg(test)]
            mod $traffic {
                #[test]
                fn launches_move_the_bytes_of_their_cost() {
                    $crate::checks::traffic::assert_traffic_within_limits(super::examples::$traffic);
                }

                #[test]
                #[ignore = "prints a table; see checks/model_inputs.rs"]
                fn inputs_of_the_model() {
                    $crate::checks::model_inputs::print_inputs_of_traffic_launches(super::examples::$traffic);
                }
            }
        )?
    };
}
pub(crate) use kernel_folder;

/// Expands to the first of its expressions. Callers pass an optional macro argument and then the default. If the
/// argument is absent, the default is the first expression.
macro_rules! first_of {
    ($first:expr $(, $other:expr)*) => {
        $first
    };
}
pub(crate) use first_of;
