//! A launch as plain data: which kernel, with which parameters, at what cost.
//!
//! [`params!`](crate::params) declares a kernel's parameters once: the Rust struct and, from the same fields, the C
//! declaration that a CUDA compiler reads. [`kernel!`](crate::kernel) ties a symbol to its parameters and its cpu code.

use std::borrow::Cow;

use reel_sim::tensor_map::TensorMap;

use crate::{Cost, DType, Team, matmul::Matmul};

/// An address in the memory of whatever device runs the launch; 0 is "absent".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Addr(pub u64);

impl Addr {
    /// The absent operand.
    pub const NULL: Addr = Addr(0);

    /// Whether the operand is absent.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// `bytes` further on.
    pub const fn offset(self, bytes: usize) -> Addr {
        Addr(self.0 + bytes as u64)
    }
}

/// One field of a parameter struct, as the C declaration needs it.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Its C type.
    pub c_type: &'static str,
    /// Its offset in bytes.
    pub offset: usize,
    /// It is an [`Addr`].
    pub address: bool,
}

/// A Rust type that has an exact C counterpart of the same size and alignment.
pub trait CType {
    /// The name in CUDA C++.
    const NAME: &'static str;
    /// Whether it is an address.
    const ADDRESS: bool = false;
}
impl CType for Addr {
    const NAME: &'static str = "unsigned long long";
    const ADDRESS: bool = true;
}
impl CType for u64 {
    const NAME: &'static str = "unsigned long long";
}
impl CType for u32 {
    const NAME: &'static str = "unsigned int";
}
impl CType for i32 {
    const NAME: &'static str = "int";
}
impl CType for f32 {
    const NAME: &'static str = "float";
}

/// A tensor map's place in a parameter struct. It stays as it is in the call's parameters: a plan describes the map
/// ([`Stage::tensor_maps`]), and the device that launches encodes it here. First in the struct, or after other maps: it is aligned to 64
/// bytes (PTX ISA, "Tensor-map").
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMapSlot([u8; 128]);

impl TensorMapSlot {
    /// One that no map was put in yet.
    pub const EMPTY: TensorMapSlot = TensorMapSlot([0; 128]);
}

impl CType for TensorMapSlot {
    const NAME: &'static str = "TensorMapSlot";
}

/// What [`TensorMapSlot`] is in CUDA C++.
const TENSOR_MAP_SLOT: &str = "struct alignas(64) TensorMapSlot { unsigned char bytes[128]; };\n";

/// A parameter struct declared by [`params!`](crate::params).
pub trait Params: bytemuck::Pod {
    /// The struct's name.
    const NAME: &'static str;
    /// Its fields in order.
    const FIELDS: &'static [Field];

    /// The C declaration, with static asserts on the size and on every offset.
    fn c_declaration() -> String {
        let name = Self::NAME;
        let mut text = format!("struct {name} {{\n");
        for f in Self::FIELDS {
            text += &format!("  {} {};\n", f.c_type, f.name);
        }
        text += "};\n";
        text += &format!("static_assert(sizeof({name}) == {}, \"{name}\");\n", size_of::<Self>());
        for f in Self::FIELDS {
            text +=
                &format!("static_assert(offsetof({name}, {n}) == {o}, \"{name}.{n}\");\n", n = f.name, o = f.offset);
        }
        text
    }
}

/// Declares a kernel's parameters: a `repr(C)` struct without padding, at most 4 KiB.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $ty),* }
        const _: () = assert!(size_of::<$name>() <= 4096);
        impl $crate::launch::Params for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::launch::Field] = &[$($crate::launch::Field {
                name: stringify!($field),
                c_type: <$ty as $crate::launch::CType>::NAME,
                offset: std::mem::offset_of!($name, $field),
                address: <$ty as $crate::launch::CType>::ADDRESS,
            }),*];
        }
    };
}

/// A kernel: one name from source to profiler.
pub struct Kernel {
    /// The symbol, for example `rms_norm_fwd_bf16`.
    pub name: &'static str,
    /// Bytes of its parameter struct.
    pub params_size: usize,
    /// The C declaration of its parameter struct.
    pub params_declaration: fn() -> String,
    /// The fields of its parameter struct.
    pub fields: &'static [Field],
    /// What the cpu device runs.
    ///
    /// # Safety
    /// The bytes are this kernel's parameter struct, and every address in it covers what the kernel documents.
    pub cpu: unsafe fn(&[u8], &Team),
    /// What a GPU and the simulator run; absent while the kernel has no CUDA source.
    pub cuda: Option<Cuda>,
}

/// The CUDA source of one kernel folder: one translation unit, whatever the number of kernels in it.
pub struct Source {
    /// The folder's name, for example `rms_norm`.
    pub name: &'static str,
    /// The plain rung, `sm80.cu`: runs on Ampere and everything later.
    pub sm80: &'static str,
    /// The C declarations of the parameter structs that the source uses.
    pub params: &'static [fn() -> String],
}

impl Source {
    /// The whole text that a CUDA compiler reads: parameter structs, then the source. Its `#include "cuh/…"` lines name
    /// [`crate::cuh::HEADERS`].
    pub fn text(&self) -> String {
        // NVRTC has no builtin by the usual name; nvcc's own headers define the macro.
        let mut text = String::from(
            "#ifdef __CUDACC_RTC__\n#define offsetof(T, field) __INTADDR__(&(((T*)0)->field))\n\
             #elif !defined(offsetof)\n#define offsetof(T, field) __builtin_offsetof(T, field)\n#endif\n",
        );
        let declarations: String = self.params.iter().map(|declaration| declaration()).collect();
        if declarations.contains(<TensorMapSlot as CType>::NAME) {
            text += TENSOR_MAP_SLOT;
        }
        text += &declarations;
        text += &format!("#line 1 \"{}/sm80.cu\"\n", self.name);
        text + self.sm80
    }
}

/// A kernel's CUDA side: where its source is and how a call of it becomes launches.
#[derive(Clone, Copy)]
pub struct Cuda {
    /// The translation unit that holds the symbols.
    pub source: &'static Source,
    /// The launches that a call with these parameters needs, in order; none where there is nothing to do.
    pub plan: fn(&[u8], &Arch) -> Vec<Stage>,
}

/// What a plan may depend on of the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Compute capability, 80, 86, 89 or 90.
    pub sm: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_per_block: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

impl Arch {
    /// A100.
    pub const A100: Arch = Arch { sm: 80, shared_per_block: 163 << 10, multiprocessors: 108 };
    /// RTX 3090 and its kind.
    pub const SM86: Arch = Arch { sm: 86, shared_per_block: 99 << 10, multiprocessors: 82 };
    /// RTX 4090, L40S and their kind.
    pub const SM89: Arch = Arch { sm: 89, shared_per_block: 99 << 10, multiprocessors: 128 };
    /// H100 and H200.
    pub const H100: Arch = Arch { sm: 90, shared_per_block: 227 << 10, multiprocessors: 132 };
}

/// A tensor map that a launch cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{symbol}: the tensor map at offset {offset} of the parameters: {why}; its plan is wrong")]
pub struct TensorMapError {
    /// The kernel.
    pub symbol: &'static str,
    /// Bytes from the start of the parameters.
    pub offset: usize,
    /// The rule.
    pub why: String,
}

/// One launch of one symbol with the call's parameter struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The `extern "C"` name.
    pub symbol: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; all 1 without.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// All blocks are resident at once, so that they may wait for each other.
    pub cooperative: bool,
    /// Blocks may start before the launch before this one has ended: the kernel waits by `griddepcontrol.wait` before it touches
    /// what that one wrote. From compute capability 9.0 on.
    pub programmatic: bool,
    /// Tensor maps that the device puts into the parameters, each with the offset of its [`TensorMapSlot`].
    pub tensor_maps: Vec<(usize, TensorMap)>,
}

impl Stage {
    /// A launch of `blocks` × `threads` in one dimension, without dynamic shared memory.
    pub const fn linear(symbol: &'static str, blocks: u32, threads: u32) -> Stage {
        Stage {
            symbol,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster: [1, 1, 1],
            shared: 0,
            cooperative: false,
            programmatic: false,
            tensor_maps: Vec::new(),
        }
    }

    /// The parameters with this stage's tensor maps in their places, each encoded by `encode`.
    ///
    /// # Errors
    /// A map that breaks a rule, or has no place in the parameters: field and rule.
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
                return Err(bad("not at a multiple of 64 bytes".into()).into());
            }
            map.validate().map_err(|e| bad(e.to_string()))?;
            let bytes = params.len();
            let place = offset.checked_add(size_of::<TensorMapSlot>()).and_then(|end| out.get_mut(*offset..end));
            let place = place.ok_or_else(|| bad(format!("beyond the {bytes} bytes of parameters")))?;
            place.copy_from_slice(&encode(map)?);
        }
        Ok(Cow::Owned(out))
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Of two kernels the one for `dtype`.
///
/// # Panics
/// For anything but F32 and BF16: a mistake in the caller, which no input can cause.
pub(crate) fn by_dtype(dtype: DType, f32: &'static Kernel, bf16: &'static Kernel) -> &'static Kernel {
    match dtype {
        DType::F32 => f32,
        DType::BF16 => bf16,
        other => panic!("{} is for f32 and bf16, not for {other}", f32.name),
    }
}

/// Declares a static [`Kernel`]: `kernel!(pub FWD_F32, "swiglu_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, plan)`, where
/// `plan` is a `fn(&FwdParams, &Arch) -> Vec<Stage>` or a closure that captures nothing.
#[macro_export]
macro_rules! kernel {
    ($vis:vis $id:ident, $name:literal, $params:ty, $cpu:expr, $source:expr, $plan:expr) => {
        $crate::kernel!(@ $vis $id, $name, $params, $cpu, Some($crate::launch::Cuda {
            source: $source,
            plan: {
                fn plan(bytes: &[u8], arch: &$crate::launch::Arch) -> Vec<$crate::launch::Stage> {
                    let plan: fn(&$params, &$crate::launch::Arch) -> Vec<$crate::launch::Stage> = $plan;
                    plan(&bytemuck::pod_read_unaligned(bytes), arch)
                }
                plan
            },
        }));
    };
    ($vis:vis $id:ident, $name:literal, $params:ty, $cpu:expr) => {
        $crate::kernel!(@ $vis $id, $name, $params, $cpu, None);
    };
    (@ $vis:vis $id:ident, $name:literal, $params:ty, $cpu:expr, $cuda:expr) => {
        #[doc = concat!("`", $name, "`")]
        $vis static $id: $crate::launch::Kernel = {
            #[allow(unsafe_code)]
            unsafe fn run(bytes: &[u8], team: &$crate::Team) {
                let cpu: unsafe fn(&$params, &$crate::Team) = $cpu;
                let params: $params = bytemuck::pod_read_unaligned(bytes);
                // SAFETY: the caller vouches for the addresses, as `Kernel::cpu` asks.
                unsafe { cpu(&params, team) }
            }
            $crate::launch::Kernel {
                name: $name,
                params_size: size_of::<$params>(),
                params_declaration: <$params as $crate::launch::Params>::c_declaration,
                fields: <$params as $crate::launch::Params>::FIELDS,
                cpu: run,
                cuda: $cuda,
            }
        };
    };
}

/// A launch of one of our kernels.
#[derive(Clone, Debug)]
pub struct KernelLaunch {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// Its parameter struct as bytes.
    pub params: Box<[u8]>,
    /// The least it must do.
    pub cost: Cost,
}

/// What a device executes.
#[derive(Clone, Debug)]
pub enum Launch {
    /// One of our kernels.
    Kernel(KernelLaunch),
    /// A plain matrix product.
    Matmul(Matmul),
}

impl Launch {
    /// A launch of `kernel` with `params`.
    pub fn kernel<P: Params>(kernel: &'static Kernel, params: &P, cost: Cost) -> Launch {
        debug_assert_eq!(kernel.params_size, size_of::<P>(), "{}", kernel.name);
        Launch::Kernel(KernelLaunch { kernel, params: bytemuck::bytes_of(params).into(), cost })
    }

    /// The symbol that profiles and tests name.
    pub fn name(&self) -> &'static str {
        match self {
            Launch::Kernel(k) => k.kernel.name,
            Launch::Matmul(m) => m.name(),
        }
    }

    /// The least that this launch must do.
    pub fn cost(&self) -> Cost {
        match self {
            Launch::Kernel(k) => k.cost,
            Launch::Matmul(m) => m.cost(),
        }
    }
}

/// Executes a launch on host memory.
///
/// # Safety
/// Every address in the launch is a host address that covers what its kernel documents, and nothing else uses what it writes.
#[allow(unsafe_code)]
pub unsafe fn run_on_cpu(launch: &Launch, team: &Team) {
    match launch {
        // SAFETY: the caller's promise.
        Launch::Kernel(k) => unsafe { (k.kernel.cpu)(&k.params, team) },
        // SAFETY: the caller's promise.
        Launch::Matmul(m) => unsafe { crate::matmul::cpu::run(m, team) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reel_sim::tensor_map::{DataType, Swizzle};

    crate::params! {
        /// With a map among its fields.
        struct Mapped { first: TensorMapSlot, dst: Addr, count: u64, more: [u32; 12] }
    }

    impl CType for [u32; 12] {
        const NAME: &'static str = "Twelve";
    }

    fn map(address: u64, inner: u32) -> Result<TensorMap, reel_sim::tensor_map::InvalidTensorMap> {
        TensorMap::tiled(DataType::F32, address, &[64, 8], &[256], &[inner, 8], Swizzle::None)
    }

    fn placed(offset: usize, map: TensorMap, params: &[u8]) -> Result<Vec<u8>, TensorMapError> {
        let stage = Stage { tensor_maps: vec![(offset, map)], ..Stage::linear("k", 1, 32) };
        stage.with_tensor_maps(params, |_| Ok([7; 128])).map(Cow::into_owned)
    }

    #[test]
    fn a_place_is_declared_for_c() {
        assert!(Mapped::c_declaration().contains("TensorMapSlot first;"));
        assert_eq!(Mapped::FIELDS[0].offset % align_of::<TensorMapSlot>(), 0);
    }

    #[test]
    fn a_map_that_cannot_be_names_kernel_field_and_rule() {
        let good = map(1 << 12, 32).unwrap();
        let says = |result: Result<Vec<u8>, TensorMapError>, words: &str| {
            let e = result.unwrap_err().to_string();
            assert!(e.starts_with("k: the tensor map at offset") && e.contains(words), "{e}");
        };
        says(placed(32, good, &[0; 256]), "not at a multiple of 64");
        says(placed(192, good, &[0; 256]), "beyond the 256 bytes");
        says(placed(usize::MAX - 63, good, &[0; 256]), "beyond the 256 bytes");
        says(placed(0, TensorMap { address: 8, ..good }, &[0; 256]), "globalAddress 0x8 is not a multiple of 16");
        says(placed(0, TensorMap { strides: [200, 0, 0, 0], ..good }, &[0; 256]), "globalStrides[0]");
        says(placed(0, TensorMap { box_dims: [257, 8, 1, 1, 1], ..good }, &[0; 256]), "boxDim[0]");
    }

    proptest! {
        /// The maps' places are written, and nothing else is.
        #[test]
        fn maps_go_to_their_places(place in 0usize..3, params in proptest::collection::vec(0u8..7, 320)) {
            let out = placed(64 * place, map(1 << 12, 32).unwrap(), &params).unwrap();
            for (i, (new, old)) in out.iter().zip(&params).enumerate() {
                prop_assert_eq!(*new, if i / 64 == place || i / 64 == place + 1 { 7 } else { *old });
            }
        }
    }
}
