//! Launches, and the devices that execute them: `cpu` runs the kernels' Rust code, `cuda` their CUDA on a GPU, `sim`
//! their CUDA on the simulator, and `dry` only counts bytes and operations.
//!
//! - What is a launch? Plain data: [`launch`].
//! - What does a program call? [`Device`] allocates a [`Buffer`], runs a [`Launch`], captures a [`CapturedGraph`], and
//!   has a [`Profiler`]. Each device implements `Backend` (`backend.rs`).
//! - Which training step, layer and op does the host work on? A [`range()`] says it to traces and to profiling tools.
//! - How do the ranks of a job exchange device memory? [`NcclCollectives`].
//! - What power does a GPU draw, and is it throttled? [`gpu_sensor`].
//! - How does CUDA become machine code? [`compile`].
//! - How does a launch run on a GPU, real or fake? [`cuda`]; on the simulator: [`simulate`]; on the CPU: [`Team`] and
//!   [`cpu`].
//!
//! The kernels are in a crate above this one. This crate names no kernel; a launch carries the code that executes it.

mod backend;
mod capabilities;
pub mod compile;
pub mod cpu;
pub mod cuda;
mod dry;
mod error;
mod exchanges;
pub mod gpu_sensor;
mod handle;
mod host_memory;
pub mod launch;
mod mapped_file;
mod memory;
mod profile;
mod sim;
pub mod simulate;
mod team;

pub use backend::{Hardware, MatmulLibrary};
pub use capabilities::{Capabilities, Kernels};
pub use cuda::{MIN_WAVE_SHARE, MatmulImplementation};
pub use error::{DeviceError, Result, format_bytes};
pub use exchanges::ExchangeStatus;
pub use handle::{
    Buffer, CapturedGraph, Device, DeviceRange, Download, GraphCache, NcclCollectives, PendingExchange, PhaseGuard,
    Profiler,
};
pub use host_memory::{free_host_bytes, resident_host_bytes};
pub use launch::{Addr, Arch, Cost, DType, Element, Kernel, KernelLaunch, Launch, Source, Stage};
pub use mapped_file::MappedFile;
pub use memory::{MEMORY_CATEGORIES, MemoryCategory, MemorySample, MemoryUse};
pub use profile::{
    HostCall, LaunchEvent, OpTotals, OperandRead, OperandReads, PlannedLaunches, PlannedProduct, PlannedProducts,
    PlannedStage,
};
pub use reel_support::ranges::{
    LaunchOrigin, LayerId, NVTX_INJECTION_VARIABLE, OriginGuard, RangeEvent, RangeGuard, RangeId, RangeName,
    attach_nvtx_tool, current_origin, host_thread_names, host_thread_number, in_layer, in_op, range,
    start_recording_ranges, take_recorded_ranges, with_origin,
};
pub use sim::SimOptions;
pub use team::Team;
