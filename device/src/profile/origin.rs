//! The origin of a launch: the op and the layer of the model that the launch belongs to. Profiles and traces show it
//! beside the launch, together with the number of the host thread.
//!
//! Ops, layers and the tape set the origin of the launches that follow on their thread, until a guard is dropped:
//!
//! ```text
//! let _layer = in_layer("decoder", 3);
//! let _op = in_op("rms_norm");
//! device.launch(..)                      # origin: rms_norm in decoder layer 3
//! ```

use std::cell::{Cell, OnceCell};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A layer of one of the model's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOrigin {
    /// The stack: `decoder`, `vision`, …
    pub stack: &'static str,
    /// The layer's number, from 0.
    pub index: usize,
}

/// The op and the layer that a launch belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchOrigin {
    /// The op's name; empty for launches outside of ops, such as the optimizer's.
    pub op: &'static str,
    /// Whether the launch is part of the op's backward rule.
    pub is_backward: bool,
    /// The layer, if the launch belongs to one.
    pub layer: Option<LayerOrigin>,
}

thread_local! {
    static CURRENT: Cell<LaunchOrigin> = const { Cell::new(LaunchOrigin { op: "", is_backward: false, layer: None }) };
    static THREAD: OnceCell<usize> = const { OnceCell::new() };
}

/// The names of the host threads that have a number, at the index of their number.
static THREADS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Restores the earlier origin of this thread's launches when it is dropped.
#[derive(Debug)]
pub struct OriginGuard(LaunchOrigin);

impl Drop for OriginGuard {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Returns the origin that launches on this thread have now.
pub fn current_origin() -> LaunchOrigin {
    CURRENT.get()
}

/// Sets the origin of this thread's launches until the guard is dropped.
#[must_use]
pub fn with_origin(origin: LaunchOrigin) -> OriginGuard {
    OriginGuard(CURRENT.replace(origin))
}

/// Sets the layer of this thread's launches until the guard is dropped.
#[must_use]
pub fn in_layer(stack: &'static str, index: usize) -> OriginGuard {
    with_origin(LaunchOrigin { layer: Some(LayerOrigin { stack, index }), ..current_origin() })
}

/// Sets the op of this thread's launches until the guard is dropped. If an op calls another op, the launches of both
/// belong to the calling op.
#[must_use]
pub fn in_op(op: &'static str) -> OriginGuard {
    let outer = current_origin();
    with_origin(if outer.op.is_empty() { LaunchOrigin { op, ..outer } } else { outer })
}

/// Returns the number of this thread. Threads have the numbers 0, 1, … in the order of their first calls.
pub fn host_thread_number() -> usize {
    THREAD.with(|number| {
        *number.get_or_init(|| {
            let mut names = threads();
            let number = names.len();
            let name = std::thread::current().name().map(str::to_string);
            names.push(name.unwrap_or_else(|| format!("thread {number}")));
            number
        })
    })
}

/// Returns the names of the threads that have called [`host_thread_number`], at the index of their number.
pub fn host_thread_names() -> Vec<String> {
    threads().clone()
}

fn threads() -> MutexGuard<'static, Vec<String>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_nest_and_restore() {
        let layer = Some(LayerOrigin { stack: "decoder", index: 3 });
        {
            let _layer = in_layer("decoder", 3);
            let _op = in_op("lora_linear");
            {
                let _inner = in_op("matmul");
                let want = LaunchOrigin { op: "lora_linear", is_backward: false, layer };
                assert_eq!(current_origin(), want, "the inner op hides the outer one");
                let _layer = in_layer("decoder", 4);
                assert_eq!(current_origin().layer.map(|l| l.index), Some(4));
            }
            assert_eq!(current_origin().layer, layer);
        }
        assert_eq!(current_origin(), LaunchOrigin::default());
    }

    #[test]
    fn every_thread_has_its_own_number_and_name() {
        let here = host_thread_number();
        let spawned = std::thread::Builder::new().name("reader".into()).spawn(host_thread_number);
        let there = spawned.expect("a thread").join().expect("a number");
        assert!(here != there && here == host_thread_number());
        assert_eq!(host_thread_names()[there], "reader");
    }
}
