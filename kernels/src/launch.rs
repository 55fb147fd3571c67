//! A launch as plain data: which kernel, with which parameters, at what cost.
//!
//! [`params!`](crate::params) declares a kernel's parameters once: the Rust struct and, from the same fields, the C
//! declaration that a CUDA compiler reads. [`kernel!`](crate::kernel) ties a symbol to its parameters and its cpu code.

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
        for declaration in self.params {
            text += &declaration();
        }
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
}

impl Stage {
    /// A launch of `blocks` × `threads` in one dimension, without dynamic shared memory.
    pub const fn linear(symbol: &'static str, blocks: u32, threads: u32) -> Stage {
        Stage { symbol, grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1, 1, 1], shared: 0 }
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
