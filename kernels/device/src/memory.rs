//! Counts the bytes of live buffers by category. The counts are the same on every device.

use std::sync::Mutex;
use std::time::Instant;

/// The purpose of a buffer. Memory use is counted by category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryCategory {
    /// Parameters of the model.
    Weights,
    /// Gradients of parameters.
    Gradients,
    /// Moments of the optimizer, and the low 16 bits of the f32 master weights.
    Optimizer,
    /// Outputs of ops, and their gradients.
    Activations,
    /// The KV cache: keys and values of sequences that are being generated.
    KvCache,
    /// Inputs of the model: ids, positions, pixels, offsets.
    Inputs,
    /// Temporary memory of a single op.
    Workspace,
}

/// All memory categories, in the order of reports.
pub const MEMORY_CATEGORIES: [MemoryCategory; 7] = [
    MemoryCategory::Weights,
    MemoryCategory::Gradients,
    MemoryCategory::Optimizer,
    MemoryCategory::Activations,
    MemoryCategory::KvCache,
    MemoryCategory::Inputs,
    MemoryCategory::Workspace,
];

impl MemoryCategory {
    /// The category's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            MemoryCategory::Weights => "weights",
            MemoryCategory::Gradients => "gradients",
            MemoryCategory::Optimizer => "optimizer",
            MemoryCategory::Activations => "activations",
            MemoryCategory::KvCache => "kv_cache",
            MemoryCategory::Inputs => "inputs",
            MemoryCategory::Workspace => "workspace",
        }
    }

    /// The command-line options that reduce memory of this category.
    pub const fn memory_saving_options(self) -> &'static str {
        match self {
            MemoryCategory::Weights | MemoryCategory::Gradients => "use --dtype bf16, or a smaller model",
            MemoryCategory::Optimizer => "use --optim adamw-bf16 or adamw-8bit",
            MemoryCategory::KvCache => {
                "generate fewer completions at a time, or shorter ones; with a server lower --kv-memory"
            }
            MemoryCategory::Activations | MemoryCategory::Inputs | MemoryCategory::Workspace => {
                "lower --max-length, the batch size or --max-pixels"
            }
        }
    }
}

/// Bytes of device memory in use: now and at the peak, in total and by category.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes in use now.
    pub current: usize,
    /// The highest number of bytes in use since the last reset.
    pub peak: usize,
    /// Bytes in use now by category, in the order of reports.
    pub now: Vec<(&'static str, usize)>,
    /// Bytes by category at the moment of the highest total, in the order of reports.
    pub at_peak: Vec<(&'static str, usize)>,
}

/// The bytes of device memory that were in use at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySample {
    /// The time of the measurement.
    pub at: Instant,
    /// Bytes by category, in the order of [`MEMORY_CATEGORIES`].
    pub bytes: [usize; MEMORY_CATEGORIES.len()],
}

#[derive(Default)]
struct Counts {
    current: [usize; MEMORY_CATEGORIES.len()],
    at_peak: [usize; MEMORY_CATEGORIES.len()],
    peak: usize,
    recording: bool,
    samples: Vec<MemorySample>,
}

impl Counts {
    fn sample(&mut self) {
        if self.recording {
            self.samples.push(MemorySample { at: Instant::now(), bytes: self.current });
        }
    }
}

#[derive(Default)]
pub(crate) struct MemoryCounters(Mutex<Counts>);

impl MemoryCounters {
    pub(crate) fn add(&self, category: MemoryCategory, bytes: usize) {
        let mut c = self.lock();
        c.current[category as usize] += bytes;
        let total = c.current.iter().sum();
        if total > c.peak {
            c.peak = total;
            c.at_peak = c.current;
        }
        c.sample();
    }

    pub(crate) fn subtract(&self, category: MemoryCategory, bytes: usize) {
        let mut c = self.lock();
        c.current[category as usize] -= bytes;
        c.sample();
    }

    /// Turns the recording of memory use over time on or off. The first sample has the bytes in use at the time of
    /// turning it on.
    pub(crate) fn record_samples(&self, on: bool) {
        let mut c = self.lock();
        let begins = on && !c.recording;
        c.recording = on;
        if begins {
            c.sample();
        }
    }

    pub(crate) fn samples(&self) -> Vec<MemorySample> {
        self.lock().samples.clone()
    }

    pub(crate) fn clear_samples(&self) {
        self.lock().samples.clear();
    }

    pub(crate) fn reset_peak(&self) {
        let mut c = self.lock();
        c.peak = c.current.iter().sum();
        c.at_peak = c.current;
    }

    pub(crate) fn usage(&self) -> MemoryUse {
        let c = self.lock();
        let named = |counts: &[usize]| MEMORY_CATEGORIES.iter().map(|&k| (k.name(), counts[k as usize])).collect();
        MemoryUse { current: c.current.iter().sum(), peak: c.peak, now: named(&c.current), at_peak: named(&c.at_peak) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
