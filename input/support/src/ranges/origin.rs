//! The origin of a launch: the op and the layer of the model to which the launch belongs. Profiles and traces show
//! the origin beside the launch. Each op and each layer is also a range.
//!
//! Ops, layers and the tape set the origin of later launches on their thread. Each call returns a guard. Dropping the
//! guard restores the previous origin:
//!
//! ```text
//! let _layer = in_layer("decoder", 3);
//! let _op = in_op("rms_norm");
//! device.launch(..)                      # origin: rms_norm in decoder layer 3
//! ```

use std::cell::Cell;

use super::{LayerId, RangeGuard, RangeName, range};

/// The op and the layer to which a launch belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchOrigin {
    /// The name of the op. Empty for launches outside ops, such as those of the optimizer.
    pub op: &'static str,
    /// Whether the launch is part of the op's backward rule.
    pub is_backward: bool,
    /// The layer, if the launch belongs to one.
    pub layer: Option<LayerId>,
}

thread_local! {
    static CURRENT: Cell<LaunchOrigin> = const { Cell::new(LaunchOrigin { op: "", is_backward: false, layer: None }) };
}

/// Restores the previous origin of this thread's launches when it is dropped. Also ends the ranges of the op and the
/// layer that began with the guard.
#[derive(Debug)]
#[must_use = "the origin ends when this value is dropped"]
pub struct OriginGuard {
    outer: LaunchOrigin,
    /// The range of the op lies inside the range of the layer, so it is dropped first.
    _op: RangeGuard,
    _layer: RangeGuard,
}

impl Drop for OriginGuard {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
    }
}

/// Returns the origin that launches on this thread currently get.
pub fn current_origin() -> LaunchOrigin {
    CURRENT.get()
}

/// Sets the origin of this thread's launches until the guard is dropped. Begins a range for the layer and one for the
/// op, unless the current origin already has the same layer or op.
pub fn with_origin(origin: LaunchOrigin) -> OriginGuard {
    let outer = CURRENT.replace(origin);
    let layer = match origin.layer {
        Some(layer) if outer.layer != Some(layer) => range(RangeName::Layer(layer)),
        _ => RangeGuard::NONE,
    };
    let LaunchOrigin { op, is_backward, .. } = origin;
    let is_new = !op.is_empty() && (op, is_backward) != (outer.op, outer.is_backward);
    let op = if is_new { range(RangeName::Op { name: op, is_backward }) } else { RangeGuard::NONE };
    OriginGuard { outer, _op: op, _layer: layer }
}

/// Sets the layer of this thread's launches until the guard is dropped.
pub fn in_layer(stack: &'static str, index: usize) -> OriginGuard {
    with_origin(LaunchOrigin { layer: Some(LayerId { stack, index }), ..current_origin() })
}

/// Sets the op of this thread's launches until the guard is dropped. If an op calls another op, the launches of both
/// belong to the calling op.
pub fn in_op(op: &'static str) -> OriginGuard {
    let outer = current_origin();
    with_origin(if outer.op.is_empty() { LaunchOrigin { op, ..outer } } else { outer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_nest_and_restore() {
        let layer = Some(LayerId { stack: "decoder", index: 3 });
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
}
