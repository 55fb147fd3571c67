//! Stages (the CUDA launches that a kernel's plan makes from a call), and the encoding of their tensor maps into the
//! parameters.

use std::borrow::Cow;

use reel_sim::tensor_map::TensorMap;

use super::params::TensorMapSlot;

/// The properties of a GPU that a plan may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Compute capability times ten: 80, 86, 89 or 90.
    pub sm: u32,
    /// Largest shared memory of a block in bytes.
    pub shared_per_block: u32,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Number of clusters of eight blocks that run at a time if each block has a multiprocessor of its own; 0 on a GPU
    /// without clusters, and if the driver does not tell. The blocks of a cluster run on one group of multiprocessors
    /// (GPC), and the sizes of these groups differ, so the number is less than an eighth of the multiprocessors.
    pub clusters_of_8: u32,
}

impl Arch {
    /// A100.
    pub const A100: Arch = Arch { sm: 80, shared_per_block: 163 << 10, multiprocessors: 108, clusters_of_8: 0 };
    /// A GPU of compute capability 8.6, with the number of multiprocessors of the RTX 3090.
    pub const SM86: Arch = Arch { sm: 86, shared_per_block: 99 << 10, multiprocessors: 82, clusters_of_8: 0 };
    /// A GPU of compute capability 8.9, with the number of multiprocessors of the RTX 4090.
    pub const SM89: Arch = Arch { sm: 89, shared_per_block: 99 << 10, multiprocessors: 128, clusters_of_8: 0 };
    /// H100 and H200. 120 of their 132 multiprocessors run clusters of eight blocks: that many were in use in a
    /// measurement of the placement of clusters (github.com/accel-sim/gpu-app-collection, pull request 87), and cuBLAS
    /// launches as many blocks in such clusters (github.com/NVIDIA/cutlass, issue 1921). For an opened GPU, the driver
    /// tells the number.
    pub const H100: Arch = Arch { sm: 90, shared_per_block: 227 << 10, multiprocessors: 132, clusters_of_8: 15 };

    /// Returns the GPU for which launches on a GPU of this compute capability are planned; `None` below 8.0.
    pub fn of_capability(compute_capability: u32) -> Option<Arch> {
        let known = [Arch::A100, Arch::SM86, Arch::SM89, Arch::H100];
        known.into_iter().rfind(|arch| arch.sm <= compute_capability)
    }

    /// Returns this GPU with only two multiprocessors. Small inputs then give each block of threads as many tiles or
    /// rows as large inputs do on a whole GPU.
    pub const fn with_two_multiprocessors(self) -> Arch {
        Arch { multiprocessors: 2, ..self }
    }
}

/// A tensor map that cannot be encoded into a launch's parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "kernel {symbol}: the tensor map at byte {offset} of the parameters is invalid: {why}; correct the kernel's plan"
)]
pub struct TensorMapError {
    /// Symbol of the kernel.
    pub symbol: &'static str,
    /// Offset of the map in the parameters, in bytes.
    pub offset: usize,
    /// The rule that the map breaks.
    pub why: String,
}

/// One CUDA launch: a symbol with its grid. Its argument is the call's parameter struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The `extern "C"` name.
    pub symbol: &'static str,
    /// Number of blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y and z; all 1 without clusters.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// Cooperative launch: all blocks are resident at once, so that they may wait for each other.
    pub cooperative: bool,
    /// Programmatic dependent launch: blocks may start before the previous launch has ended, and the kernel executes
    /// `griddepcontrol.wait` before it accesses memory other than weights. Needs compute capability 9.0. The device
    /// makes the launch an ordinary one if the previous launch may write weights (`kernels/device/src/cuda/gpu.rs`).
    pub programmatic: bool,
    /// Number of blocks that the plan takes to run at a time on the GPU, by its choice of tiles and stages; 0 if the plan
    /// does not depend on it. If a multiprocessor must then run several blocks, the device asks the driver for as much
    /// shared memory as there is. On a GPU, `tests/support/hardware.rs` compares the number with the driver's.
    pub resident_blocks: u32,
    /// Tensor maps that the device encodes into the parameters, each with the offset of its [`TensorMapSlot`] in bytes.
    pub tensor_maps: Vec<(usize, TensorMap)>,
}

impl Stage {
    /// A one-dimensional launch of `blocks` blocks of `threads` threads, without dynamic shared memory.
    pub const fn one_dimensional(symbol: &'static str, blocks: u32, threads: u32) -> Stage {
        Stage {
            symbol,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster: [1, 1, 1],
            shared: 0,
            cooperative: false,
            programmatic: false,
            resident_blocks: 0,
            tensor_maps: Vec::new(),
        }
    }

    /// Makes the stage a programmatic dependent launch on an architecture that has them. Its kernel calls
    /// `wait_for_previous_launch` (`cuh/dependent.cuh`).
    pub const fn programmatic_on(mut self, arch: &Arch) -> Stage {
        self.programmatic = arch.sm >= 90;
        self
    }

    /// Returns the parameters in which each slot of a tensor map holds the map that this stage describes, as `encode`
    /// makes it.
    ///
    /// # Errors
    /// A map is invalid, its slot is misaligned or not in the parameters, or `encode` fails.
    pub fn with_tensor_maps<'a, E>(
        &self,
        params: &'a [u8],
        mut encode: impl FnMut(&TensorMap) -> Result<[u8; 128], E>,
    ) -> Result<Cow<'a, [u8]>, E>
    where
        E: From<TensorMapError>,
    {
        if self.tensor_maps.is_empty() {
            return Ok(Cow::Borrowed(params));
        }
        let mut out = params.to_vec();
        for (offset, map) in &self.tensor_maps {
            let bad = |why: String| TensorMapError { symbol: self.symbol, offset: *offset, why };
            if !offset.is_multiple_of(align_of::<TensorMapSlot>()) {
                return Err(bad("its offset is not a multiple of 64 bytes".into()).into());
            }
            map.validate().map_err(|e| bad(e.to_string()))?;
            let bytes = params.len();
            let slot = offset.checked_add(size_of::<TensorMapSlot>()).and_then(|end| out.get_mut(*offset..end));
            let slot = slot.ok_or_else(|| bad(format!("it lies beyond the {bytes} bytes of parameters")))?;
            slot.copy_from_slice(&encode(map)?);
        }
        Ok(Cow::Owned(out))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reel_sim::tensor_map::{DataType, Swizzle};

    use super::*;
    use crate::launch::{Addr, CType, Params};

    crate::params! {
        /// A parameter struct with a tensor map.
        struct Mapped { first: TensorMapSlot, dst: Addr, count: u64, more: [u32; 12] }
    }

    impl CType for [u32; 12] {
        const NAME: &'static str = "Twelve";
    }

    fn map(address: u64, inner: u32) -> Result<TensorMap, reel_sim::tensor_map::InvalidTensorMap> {
        TensorMap::tiled(DataType::F32, address, &[64, 8], &[256], &[inner, 8], Swizzle::None)
    }

    fn placed(offset: usize, map: TensorMap, params: &[u8]) -> Result<Vec<u8>, TensorMapError> {
        let stage = Stage { tensor_maps: vec![(offset, map)], ..Stage::one_dimensional("k", 1, 32) };
        stage.with_tensor_maps(params, |_| Ok([7; 128])).map(Cow::into_owned)
    }

    #[test]
    fn a_tensor_map_slot_is_declared_for_c() {
        assert!(Mapped::c_declaration().contains("TensorMapSlot first;"));
        assert_eq!(Mapped::FIELDS[0].offset % align_of::<TensorMapSlot>(), 0);
    }

    #[test]
    fn an_invalid_tensor_map_names_kernel_offset_and_rule() {
        let good = map(1 << 12, 32).unwrap();
        let says = |result: Result<Vec<u8>, TensorMapError>, words: &str| {
            let e = result.unwrap_err().to_string();
            assert!(e.starts_with("kernel k: the tensor map at byte") && e.contains(words), "{e}");
        };
        says(placed(32, good, &[0; 256]), "is not a multiple of 64");
        says(placed(192, good, &[0; 256]), "beyond the 256 bytes");
        says(placed(usize::MAX - 63, good, &[0; 256]), "beyond the 256 bytes");
        says(placed(0, TensorMap { address: 8, ..good }, &[0; 256]), "globalAddress 0x8 is not a multiple of 16");
        says(placed(0, TensorMap { strides: [200, 0, 0, 0], ..good }, &[0; 256]), "globalStrides[0]");
        says(placed(0, TensorMap { box_dims: [257, 8, 1, 1, 1], ..good }, &[0; 256]), "boxDim[0]");
    }

    proptest! {
        /// Encoding the tensor maps changes no bytes of the parameters outside the maps' slots.
        #[test]
        fn tensor_maps_are_written_to_their_slots(place in 0usize..3, params in proptest::collection::vec(0u8..7, 320)) {
            let out = placed(64 * place, map(1 << 12, 32).unwrap(), &params).unwrap();
            for (i, (new, old)) in out.iter().zip(&params).enumerate() {
                prop_assert_eq!(*new, if i / 64 == place || i / 64 == place + 1 { 7 } else { *old });
            }
        }
    }
}
