//! What the autograd tape knows about a tensor: its shape and dtype, and where its gradient goes. A [`TensorMeta`]
//! has no memory. A backward rule that needs no values of a tensor holds its [`TensorMeta`], so that the memory can
//! be freed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reel_device::DType;

/// What the backward pass does with the gradient of a tensor.
#[derive(Clone, Debug)]
pub(super) enum GradRole {
    /// The tensor needs no gradient.
    None,
    /// The tensor depends on a trained parameter: its gradient is propagated.
    Needed,
    /// The tensor is a trained parameter with this name: its gradient is accumulated in f32.
    Parameter(Arc<str>),
    /// The tensor is a trained parameter: the rows of part `index` of a joined tensor.
    Part { joined: Arc<JoinedParameters>, index: usize },
    /// The tensor consists of the rows of several trained parameters.
    Joined(Arc<JoinedParameters>),
}

/// Parameters whose rows follow each other in one tensor, so that one matrix product uses all of them.
#[derive(Debug)]
pub(super) struct JoinedParameters {
    /// The name and the number of rows of each parameter.
    pub(super) parts: Vec<(Arc<str>, usize)>,
    /// The shape of the joined tensor; its first dimension is the sum of the rows.
    pub(super) shape: Vec<usize>,
}

/// A tensor without its memory: shape, dtype, and its place on the autograd tape.
#[derive(Clone, Debug)]
pub struct TensorMeta {
    pub(super) id: u64,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) grad: GradRole,
    /// The shape without the padding, if the tensor is padded with zeros (`padding.rs`).
    pub(super) unpadded: Option<Vec<usize>>,
}

impl TensorMeta {
    /// Creates the metadata of a new tensor, with a new id.
    pub(super) fn new(shape: &[usize], dtype: DType, grad: GradRole) -> TensorMeta {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        TensorMeta { id: NEXT.fetch_add(1, Ordering::Relaxed), shape: shape.to_vec(), dtype, grad, unpadded: None }
    }

    /// The number by which the autograd tape identifies this tensor. [`super::Tensor::reshape`] keeps it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.count() * self.dtype.size()
    }

    /// Whether the backward pass computes a gradient for this tensor.
    pub fn needs_grad(&self) -> bool {
        !matches!(self.grad, GradRole::None)
    }

    /// The name of the parameter if the tensor is a single trained parameter; otherwise `None`.
    pub fn parameter_name(&self) -> Option<&str> {
        match &self.grad {
            GradRole::Parameter(name) => Some(name),
            GradRole::Part { joined, index } => joined.parts.get(*index).map(|(name, _)| &**name),
            _ => None,
        }
    }

    /// Whether the tensor is a trained parameter or consists of several trained parameters.
    pub fn is_trained(&self) -> bool {
        matches!(self.grad, GradRole::Parameter(_) | GradRole::Part { .. } | GradRole::Joined(_))
    }

    /// The names of the trained parameters that the tensor consists of.
    pub(super) fn parameter_names(&self) -> Vec<Arc<str>> {
        match &self.grad {
            GradRole::None | GradRole::Needed => Vec::new(),
            GradRole::Parameter(name) => vec![name.clone()],
            GradRole::Part { joined, index } => vec![joined.parts[*index].0.clone()],
            GradRole::Joined(joined) => joined.parts.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}
