//! Named ranges of host time: training step, micro-batch, phase, layer, op. A range begins with [`range`] (ops and
//! layers: [`in_op`], [`in_layer`]) and ends when its guard is dropped, so the ranges of a thread are nested.
//!
//! ```text
//! step 3
//! ├── data loading
//! ├── micro-batch 0
//! │   ├── forward
//! │   │   ├── decoder 0
//! │   │   │   ├── rms_norm
//! │   │   │   └── linear
//! │   │   └── decoder 1 …
//! │   └── backward
//! │       └── decoder 1 …       the layers and ops whose forward pass made the rule
//! └── optimizer
//! ```
//!
//! There are two listeners: the recorder of a trace (`recorder.rs`) and a profiling tool that speaks NVTX (`nvtx.rs`).
//! Without a listener a range costs one relaxed atomic load.

mod name;
mod nvtx;
mod origin;
mod recorder;
mod threads;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering};

pub use name::{LayerId, RangeName};
pub use nvtx::is_tool_attached;
pub use nvtx::{NVTX_INJECTION_VARIABLE, attach_nvtx_tool};
pub use origin::{LaunchOrigin, OriginGuard, current_origin, in_layer, in_op, with_origin};
pub use recorder::{
    RangeEvent, RangeId, SpanEvent, current_range, record_span, start_recording_ranges, take_recorded_ranges,
    take_recorded_spans,
};
pub use threads::{host_thread_names, host_thread_number};

/// The bit of [`LISTENERS`] for the recorder.
const RECORDER: u8 = 1;
/// The bit of [`LISTENERS`] for layers and ops in the recorder.
const DETAILS: u8 = 2;
/// The bit of [`LISTENERS`] for an attached NVTX profiling tool.
const NVTX: u8 = 4;

/// The listeners that receive ranges now, as a sum of bits.
static LISTENERS: AtomicU8 = AtomicU8::new(0);

/// A range of host time that has begun. It ends when this value is dropped, on the thread that began it.
#[derive(Debug)]
#[must_use = "the range ends when this value is dropped"]
pub struct RangeGuard {
    /// Whether the range was reported to an NVTX profiling tool, which must then be told the end too.
    in_nvtx: bool,
    recorded: Option<recorder::OpenRange>,
    /// A range belongs to one thread. This field prevents sending the guard to another thread.
    _thread: PhantomData<*const ()>,
}

impl RangeGuard {
    /// A range that is not reported to any listener.
    pub const NONE: RangeGuard = RangeGuard { in_nvtx: false, recorded: None, _thread: PhantomData };
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        if let Some(open) = self.recorded.take() {
            recorder::end_range(open);
        }
        if self.in_nvtx {
            nvtx::pop_range();
        }
    }
}

/// Begins a range on this thread.
#[inline]
pub fn range(name: RangeName) -> RangeGuard {
    match LISTENERS.load(Ordering::Relaxed) {
        0 => RangeGuard::NONE,
        listeners => begin(name, listeners),
    }
}

/// Begins the range of a launch, for a profiling tool only. The recorder gets launches from the profiler, with their
/// times on the device (`LaunchEvent` of `reel-device`).
#[inline]
pub fn begin_launch_range(name: &'static str) -> RangeGuard {
    match LISTENERS.load(Ordering::Relaxed) & NVTX {
        0 => RangeGuard::NONE,
        nvtx => begin(RangeName::Launch(name), nvtx),
    }
}

#[cold]
fn begin(name: RangeName, listeners: u8) -> RangeGuard {
    let in_nvtx = listeners & NVTX != 0;
    if in_nvtx {
        nvtx::push_range(&name);
    }
    let is_recorded = listeners & RECORDER != 0 && (listeners & DETAILS != 0 || !name.is_layer_op_or_launch());
    let recorded = if is_recorded { recorder::begin_range(name) } else { None };
    RangeGuard { in_nvtx, recorded, _thread: PhantomData }
}

/// Turns the recording of layers and ops on or off. They are recorded as long as the profiler records the timeline of
/// a device.
pub fn record_details(on: bool) {
    listen(DETAILS, on);
}

fn listen(bit: u8, on: bool) {
    if on {
        LISTENERS.fetch_or(bit, Ordering::Relaxed);
    } else {
        LISTENERS.fetch_and(!bit, Ordering::Relaxed);
    }
}
