//! The names of ranges. A name is plain data, so making a name allocates no memory.

use std::fmt::{Display, Formatter, Result};

/// A layer of one of the model's layer stacks, such as the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerId {
    /// The stack: `decoder`, `vision`, …
    pub stack: &'static str,
    /// The layer's number, from 0.
    pub index: usize,
}

/// The name of a range: the kind of work and its number or name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeName {
    /// A training step, counted from 1.
    Step(u64),
    /// A micro-batch of a step, counted from 0.
    MicroBatch(usize),
    /// A part of a step, such as `forward`, `rollout` or `checkpoint`.
    Phase(&'static str),
    /// A layer of the model.
    Layer(LayerId),
    /// An op, forward or backward.
    Op {
        /// The op's name.
        name: &'static str,
        /// Whether the range is the backward rule of the op.
        is_backward: bool,
    },
    /// A launch, by the kernel's name.
    Launch(&'static str),
    /// Other work, such as loading weights.
    Task(&'static str),
}

impl RangeName {
    /// The values of [`Self::kind`], outermost first.
    pub const KINDS: [&'static str; 7] = ["step", "micro-batch", "phase", "layer", "op", "launch", "task"];

    /// The index of this kind of range in [`Self::KINDS`].
    pub(super) fn kind_index(&self) -> usize {
        match self {
            RangeName::Step(_) => 0,
            RangeName::MicroBatch(_) => 1,
            RangeName::Phase(_) => 2,
            RangeName::Layer(_) => 3,
            RangeName::Op { .. } => 4,
            RangeName::Launch(_) => 5,
            RangeName::Task(_) => 6,
        }
    }

    /// The kind of range: `step`, `layer`, …
    pub fn kind(&self) -> &'static str {
        Self::KINDS[self.kind_index()]
    }

    /// Whether a trace records this range only while it also records launches, because there are many ranges of this
    /// kind.
    pub(super) fn is_layer_op_or_launch(&self) -> bool {
        matches!(self, RangeName::Layer(_) | RangeName::Op { .. } | RangeName::Launch(_))
    }
}

impl Display for RangeName {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            RangeName::Step(n) => write!(f, "step {n}"),
            RangeName::MicroBatch(index) => write!(f, "micro-batch {index}"),
            RangeName::Layer(LayerId { stack, index }) => write!(f, "{stack} {index}"),
            RangeName::Op { name, is_backward: true } => write!(f, "{name} backward"),
            RangeName::Op { name, is_backward: false }
            | RangeName::Phase(name)
            | RangeName::Launch(name)
            | RangeName::Task(name) => f.write_str(name),
        }
    }
}
