//! Counts the bytes of live buffers by what they are for. The count is the same on every device.

use std::sync::Mutex;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// Parameters.
    Weights,
    /// Gradients of parameters.
    Gradients,
    /// Moments and low halves of master copies.
    Optimizer,
    /// Results of ops, and gradients of them.
    Activations,
    /// Keys and values of sequences being generated.
    KvCache,
    /// Ids, positions, pixels, offsets.
    Inputs,
    /// Scratch of a single op.
    Workspace,
}

/// Every category, in the order of reports.
pub const CATEGORIES: [Category; 7] = [
    Category::Weights,
    Category::Gradients,
    Category::Optimizer,
    Category::Activations,
    Category::KvCache,
    Category::Inputs,
    Category::Workspace,
];

impl Category {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Gradients => "gradients",
            Category::Optimizer => "optimizer",
            Category::Activations => "activations",
            Category::KvCache => "kv_cache",
            Category::Inputs => "inputs",
            Category::Workspace => "workspace",
        }
    }
}

/// Bytes in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Now.
    pub current: usize,
    /// At the highest since the last reset.
    pub peak: usize,
    /// By category at that highest moment, in the order of reports.
    pub at_peak: Vec<(&'static str, usize)>,
}

#[derive(Default)]
struct Counts {
    current: [usize; CATEGORIES.len()],
    at_peak: [usize; CATEGORIES.len()],
    peak: usize,
}

#[derive(Default)]
pub(super) struct Memory(Mutex<Counts>);

impl Memory {
    pub(super) fn add(&self, category: Category, bytes: usize) {
        let mut c = self.lock();
        c.current[category as usize] += bytes;
        let total = c.current.iter().sum();
        if total > c.peak {
            c.peak = total;
            c.at_peak = c.current;
        }
    }

    pub(super) fn sub(&self, category: Category, bytes: usize) {
        self.lock().current[category as usize] -= bytes;
    }

    pub(super) fn reset_peak(&self) {
        let mut c = self.lock();
        c.peak = c.current.iter().sum();
        c.at_peak = c.current;
    }

    pub(super) fn usage(&self) -> MemoryUse {
        let c = self.lock();
        MemoryUse {
            current: c.current.iter().sum(),
            peak: c.peak,
            at_peak: CATEGORIES.iter().map(|&k| (k.name(), c.at_peak[k as usize])).collect(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
