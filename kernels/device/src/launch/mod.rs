//! A launch as plain data: which kernel, with which parameters, and the operations and bytes that it needs at least.
//! Devices execute it. Devices are in a crate below the kernels and name no kernel: a launch carries the code that
//! executes it. A call of a kernel has its [`Kernel`], a matrix product its [`ProductCode`]; both are tables of
//! functions.
//!
//! [`params!`](crate::params) declares a kernel's parameters once, as a Rust struct and as the C declaration that a
//! CUDA compiler reads. [`kernel!`](crate::kernel) declares a [`Kernel`]: symbol, parameters, code for device `cpu`,
//! CUDA source and plan. A plan turns a call into the CUDA launches ([`Stage`]) for a GPU.

mod cost;
mod dtype;
mod matmul;
#[macro_use]
mod params;
mod row_keys;
mod source;
mod stage;
mod table;
pub mod view;

pub use cost::Cost;
pub use dtype::{DType, Element};
pub use matmul::{GROUP_ROWS, INT8_GROUP, Matmul, Operand, ProductCode, RightLayout, WeightGroups, group_elements};
pub use params::{Addr, CType, Padding, ParamField, Params, TensorMapSlot};
pub use row_keys::{CostOfKeys, RowKeyCounts};
pub use source::{Source, replace_file};
pub use stage::{Arch, Stage, TensorMapError};
pub use table::{AddressTable, ArrayEntry, Chunk, chunks};

use crate::Team;

/// A kernel; its name is the same in the source, in profiles and on the command line.
pub struct Kernel {
    /// The symbol, for example `rms_norm_fwd_bf16`.
    pub name: &'static str,
    /// Size of the kernel's parameter struct in bytes.
    pub params_size: usize,
    /// The fields of the kernel's parameter struct.
    pub fields: &'static [ParamField],
    /// Runs the kernel on device `cpu`; the bytes are its parameter struct.
    ///
    /// # Safety
    /// The bytes are this kernel's parameter struct, and every address in it points to memory of the size that the
    /// kernel documents.
    pub cpu: unsafe fn(&[u8], &Team),
    /// The CUDA source with the kernel's symbols, which a GPU and the simulator run.
    pub source: &'static Source,
    /// The CUDA launches that a call with these parameters needs on a GPU, in order; none if there is nothing to do.
    pub plan: fn(&[u8], &Arch) -> Vec<Stage>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Returns `f32` or `bf16`, whichever is the kernel for element type `dtype`.
///
/// # Panics
/// For types other than F32 and BF16.
pub fn kernel_for_dtype(dtype: DType, f32: &'static Kernel, bf16: &'static Kernel) -> &'static Kernel {
    match dtype {
        DType::F32 => f32,
        DType::BF16 => bf16,
        other => panic!("{} has kernels for f32 and bf16, not for {other}", f32.name),
    }
}

/// Declares a static [`Kernel`]: `kernel!(pub FWD_F32, "swiglu_fwd_f32", FwdParams, cpu::fwd::<f32>, &SOURCE, plan)`,
/// where `plan` is a `fn(&FwdParams, &Arch) -> Vec<Stage>` or a closure that captures nothing.
#[macro_export]
macro_rules! kernel {
    ($vis:vis $id:ident, $name:literal, $params:ty, $cpu:expr, $source:expr, $plan:expr) => {
        #[doc = concat!("`", $name, "`")]
        $vis static $id: $crate::launch::Kernel = {
            #[allow(unsafe_code)]
            unsafe fn run(bytes: &[u8], team: &$crate::Team) {
                let cpu: unsafe fn(&$params, &$crate::Team) = $cpu;
                let params: $params = bytemuck::pod_read_unaligned(bytes);
                // SAFETY: `Kernel::cpu` requires valid addresses of its caller.
                unsafe { cpu(&params, team) }
            }
            fn plan(bytes: &[u8], arch: &$crate::launch::Arch) -> Vec<$crate::launch::Stage> {
                let plan: fn(&$params, &$crate::launch::Arch) -> Vec<$crate::launch::Stage> = $plan;
                plan(&bytemuck::pod_read_unaligned(bytes), arch)
            }
            $crate::launch::Kernel {
                name: $name,
                params_size: size_of::<$params>(),
                fields: <$params as $crate::launch::Params>::FIELDS,
                cpu: run,
                source: $source,
                plan,
            }
        };
    };
}

/// A launch of a hand-written kernel.
#[derive(Clone, Debug)]
pub struct KernelLaunch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The kernel's parameter struct as bytes.
    pub params: Box<[u8]>,
    /// The floating-point operations and bytes of memory traffic that the call needs at least. If `keys` is set, this
    /// cost assumes that the rows have their maximum number of keys.
    pub cost: Cost,
    /// The part of `cost` that depends on the number of keys. It is set for a captured launch, whose rows get more keys
    /// from one replay to the next.
    pub keys: Option<CostOfKeys>,
    /// The operands that are tables of further operands: the names of their parameters, and their contents.
    pub tables: Vec<(&'static str, AddressTable)>,
}

impl KernelLaunch {
    /// The addresses of all operands that are not null: those in the parameters, then those in the tables.
    pub fn operands(&self) -> impl Iterator<Item = Addr> + '_ {
        let address = |f: &ParamField| Some(bytemuck::pod_read_unaligned(self.params.get(f.offset..f.offset + 8)?));
        let direct = self.kernel.fields.iter().filter(|f| f.address).filter_map(address);
        let direct = direct.filter(|address: &Addr| !address.is_null());
        direct.chain(self.tables.iter().flat_map(|(_, table)| table.addresses().map(|(_, address)| address)))
    }

    /// The table of addresses that this parameter points to, if it points to one.
    pub fn table_of(&self, param: &ParamField) -> Option<&AddressTable> {
        self.tables.iter().find(|(name, _)| *name == param.name).map(|(_, table)| table)
    }
}

/// A launch that a device executes.
#[derive(Clone, Debug)]
pub enum Launch {
    /// A call of a kernel.
    Kernel(KernelLaunch),
    /// A plain matrix product.
    Matmul(Matmul),
    /// Arranges a weight in groups of rows for products on the CPU.
    WeightGroups(WeightGroups),
}

impl Launch {
    /// Makes a launch of `kernel` with `params`.
    pub fn kernel<P: Params>(kernel: &'static Kernel, params: &P, cost: Cost) -> Launch {
        Launch::kernel_with_tables(kernel, params, cost, Vec::new())
    }

    /// Makes a launch of `kernel` with `params`. Some of these parameters are addresses of tables. `tables` has the
    /// name of each such parameter and the contents of its table.
    pub fn kernel_with_tables<P: Params>(
        kernel: &'static Kernel,
        params: &P,
        cost: Cost,
        tables: Vec<(&'static str, AddressTable)>,
    ) -> Launch {
        debug_assert_eq!(kernel.params_size, size_of::<P>(), "{}", kernel.name);
        Launch::Kernel(KernelLaunch { kernel, params: bytemuck::bytes_of(params).into(), cost, keys: None, tables })
    }

    /// The name of the launched kernel or matrix product in profiles.
    pub fn name(&self) -> &'static str {
        match self {
            Launch::Kernel(k) => k.kernel.name,
            Launch::Matmul(m) => m.name(),
            Launch::WeightGroups(_) => "weight_groups",
        }
    }

    /// The sizes of the launch by name: the whole numbers among a kernel's parameters that are not addresses, or the
    /// sizes of the matrices.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        match self {
            Launch::Kernel(k) => k.kernel.fields.iter().filter_map(|f| Some((f.name, f.size_in(&k.params)?))).collect(),
            Launch::Matmul(m) => vec![("m", m.m as u64), ("n", m.n as u64), ("k", m.k as u64)],
            Launch::WeightGroups(w) => vec![("n", w.n as u64), ("k", w.k as u64)],
        }
    }

    /// The floating-point operations and bytes of memory traffic that the launch needs at least, with the keys that its
    /// rows have now.
    pub fn cost(&self) -> Cost {
        let unused = match self {
            Launch::Kernel(KernelLaunch { keys: Some(keys), .. }) => keys.unused(),
            _ => Cost::default(),
        };
        let Cost { flops, bytes } = self.max_cost();
        Cost { flops: flops - unused.flops, bytes: bytes - unused.bytes }
    }

    /// The cost of the launch if its rows had their maximum number of keys.
    pub fn max_cost(&self) -> Cost {
        match self {
            Launch::Kernel(k) => k.cost,
            Launch::Matmul(m) => m.cost(),
            Launch::WeightGroups(w) => w.cost(),
        }
    }
}

/// Executes a launch on host memory with the code of device `cpu`.
///
/// # Safety
/// Every address in the launch points to host memory of the size that its kernel documents, and nothing else uses the
/// memory that the launch writes.
#[allow(unsafe_code)]
pub unsafe fn run_on_cpu(launch: &Launch, team: &Team) {
    match launch {
        // SAFETY: every address in the launch covers what its kernel documents.
        Launch::Kernel(k) => unsafe { (k.kernel.cpu)(&k.params, team) },
        // SAFETY: the operands' addresses cover the shapes of the product.
        Launch::Matmul(m) => unsafe { (m.code.cpu)(m, team) },
        // SAFETY: the addresses cover the weight and its groups.
        Launch::WeightGroups(w) => unsafe { (w.code.arrange)(w, team) },
    }
}
