//! The context of a forward pass: the device, the dtype of activations and, when training, the tape.
//!
//! An op allocates its output with [`Cx::empty`], launches a kernel with [`Cx::launch`], and returns the output through
//! [`Cx::record`] together with its backward rule:
//!
//! ```text
//! fn relu(cx, x):
//!     y = cx.empty(x.shape(), x.dtype())
//!     cx.launch(relu_kernel(x, y))
//!     return cx.record("relu", inputs = [x], y, backward = |bw| {
//!         dy = bw.take_dy()                 # gradient of y
//!         dx = bw.empty_like(x)
//!         bw.launch(relu_backward_kernel(x, dy, dx))
//!         bw.add_grad(x, dx)                     # add to the gradient of x
//!     })
//! ```

use std::fmt::Debug;
use std::rc::Rc;

use reel_device::{DType, Device, Launch, LaunchOrigin, MemoryCategory, current_origin, with_origin};

use super::Tensor;
use super::tape::{BackwardContext, BackwardEvent, Grads, RECOMPUTE, Tape, WeightUnit};
use crate::error::{Result, RuntimeError};

/// What the backward pass computes again instead of keeping it in memory (gradient checkpointing). Results have the
/// same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Nothing is computed again.
    #[default]
    None,
    /// The outputs of norms, of SwiGLU and of the tanh form of GELU, which take much memory and few operations.
    Selective,
    /// Every layer, from its input ([`Cx::recompute`]).
    Full,
}

/// Provides the memory of weights that are gathered before they are used ([`super::OnDemandMemory`]).
pub trait GatheredWeights: Debug {
    /// Makes sure that the weights of `unit` have their memory. Frees the weights of other units.
    ///
    /// # Errors
    /// Another rank has failed; the device is out of memory; `unit` is used in another order than that of a forward
    /// pass.
    fn gather(&self, unit: WeightUnit) -> Result<()>;
}

/// The device, the dtype of activations and, when training, the tape. Ops take it as their first argument.
#[derive(Debug)]
pub struct Cx {
    device: Device,
    dtype: DType,
    tape: Option<Tape>,
    checkpointing: Checkpointing,
    /// Gathers the weights of units; `None` if all weights stay in memory.
    weights: Option<Rc<dyn GatheredWeights>>,
}

impl Cx {
    /// A context without a tape. `dtype` is the dtype of activations, F32 or BF16.
    pub fn inference(device: &Device, dtype: DType) -> Cx {
        Cx { device: device.clone(), dtype, tape: None, checkpointing: Checkpointing::None, weights: None }
    }

    /// A context with an empty tape, which records what [`Cx::backward`] needs.
    pub fn training(device: &Device, dtype: DType) -> Cx {
        let tape = Some(Tape::default());
        Cx { device: device.clone(), dtype, tape, checkpointing: Checkpointing::None, weights: None }
    }

    /// Returns this context with another kind of gradient checkpointing.
    pub fn with_checkpointing(self, checkpointing: Checkpointing) -> Cx {
        Cx { checkpointing, ..self }
    }

    /// Returns this context for a model whose weights are gathered by `weights`.
    pub fn with_gathered_weights(self, weights: Option<Rc<dyn GatheredWeights>>) -> Cx {
        Cx { weights, ..self }
    }

    /// Makes sure that the weights of `unit` are in memory, for the following ops. These ops must use the weights
    /// only in the forward pass.
    ///
    /// # Errors
    /// The errors of [`GatheredWeights::gather`].
    pub fn begin_weight_unit(&self, unit: WeightUnit) -> Result<()> {
        self.weights.as_ref().map_or(Ok(()), |weights| weights.gather(unit))
    }

    /// Calls `f`, whose ops use the weights of `unit` in the forward and in the backward pass. The weights are in
    /// memory during `f`. The backward pass reports [`BackwardEvent::Begins`] before the backward rules of these ops.
    ///
    /// # Errors
    /// The errors of [`GatheredWeights::gather`] and of `f`.
    pub fn with_weight_unit<T, E: From<RuntimeError>>(
        &self,
        unit: WeightUnit,
        f: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self.weights.is_none() {
            return f();
        }
        self.begin_weight_unit(unit)?;
        let before = self.tape.as_ref().map_or(0, Tape::len);
        let result = f()?;
        if let Some(tape) = self.tape.as_ref().filter(|tape| tape.len() > before) {
            tape.end_weight_unit(unit);
        }
        Ok(result)
    }

    /// What the backward pass computes again. Models that keep only the inputs of their layers
    /// ([`Checkpointing::Full`]) call [`Cx::recompute`].
    pub fn checkpointing(&self) -> Checkpointing {
        self.checkpointing
    }

    /// Returns a context with the same device and dtype but without a tape, like `torch.no_grad()`.
    pub fn without_tape(&self) -> Cx {
        Cx::inference(&self.device, self.dtype)
    }

    /// The device that ops compute on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether ops are recorded on a tape.
    pub fn is_training(&self) -> bool {
        self.tape.is_some()
    }

    /// Allocates the output of an op, without initialising it.
    pub fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::empty(&self.device, shape, dtype, MemoryCategory::Activations)
    }

    /// Executes a launch on the device.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        Ok(self.device.launch(launch)?)
    }

    /// Returns the `output` of an op and records its `backward` rule if any of `inputs` needs a gradient. Every op
    /// returns its result through this function, so no op lacks a backward rule by accident.
    ///
    /// `backward` takes the gradient of the output ([`BackwardContext::take_dy`]) and adds to the gradients of the
    /// inputs ([`BackwardContext::add_grad`]).
    pub fn record(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        output: Tensor,
        backward: impl FnOnce(&mut BackwardContext<'_>) -> Result<()> + 'static,
    ) -> Tensor {
        let [output] = self.record_all(name, inputs, [output], backward);
        output
    }

    /// Records an op with two outputs, as [`Cx::record`] does for one output. Either output may stay without a
    /// gradient ([`BackwardContext::take_dy_pair`]).
    pub fn record_pair(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        (a, b): (Tensor, Tensor),
        backward: impl FnOnce(&mut BackwardContext<'_>) -> Result<()> + 'static,
    ) -> (Tensor, Tensor) {
        self.record_all(name, inputs, [a, b], backward).into()
    }

    /// Records an op with any number of outputs, as [`Cx::record`] does for one output. Each output may stay without
    /// a gradient ([`BackwardContext::take_dys`]).
    pub fn record_all<const N: usize>(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        outputs: [Tensor; N],
        backward: impl FnOnce(&mut BackwardContext<'_>) -> Result<()> + 'static,
    ) -> [Tensor; N] {
        match &self.tape {
            Some(tape) if inputs.iter().any(|t| t.needs_grad()) => {
                let outputs = outputs.each_ref().map(Tensor::detach_requiring_grad);
                tape.push(name, inputs, &outputs.each_ref(), backward);
                outputs
            }
            _ => outputs,
        }
    }

    /// Returns `y`, the output of the op `op`. With [`Checkpointing::Selective`], backward rules that save y call
    /// `compute` again instead of keeping the memory of y. `compute` returns the same bits and may hold only tensors
    /// that stay in memory anyway.
    pub(super) fn recompute_if_selective(
        &self,
        op: &'static str,
        y: Tensor,
        compute: impl Fn(&Cx) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Tensor {
        if self.checkpointing != Checkpointing::Selective {
            return y;
        }
        self.recompute_in_backward(op, y, compute)
    }

    /// Like [`Cx::recompute_if_selective`], with all kinds of checkpointing.
    pub(super) fn recompute_in_backward(
        &self,
        op: &'static str,
        y: Tensor,
        compute: impl Fn(&Cx) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Tensor {
        if !self.is_training() {
            return y;
        }
        let (device, dtype, layer) = (self.device.clone(), self.dtype, current_origin().layer);
        y.with_recomputation(move || {
            let _origin = with_origin(LaunchOrigin { op, is_backward: false, layer });
            compute(&Cx::inference(&device, dtype))
        })
    }

    /// Gradient checkpointing: runs `f` and keeps only `inputs`. The backward pass runs `f` again to get its
    /// intermediate results.
    ///
    /// # Errors
    /// The errors of `f`.
    pub fn recompute(
        &self,
        inputs: &[&Tensor],
        f: impl Fn(&Cx, &[Tensor]) -> Result<Tensor> + 'static,
    ) -> Result<Tensor> {
        let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        let Some(tape) = &self.tape else { return f(self, &inputs) };
        let output = f(&self.without_tape(), &inputs)?.detach_requiring_grad();
        let (device, dtype, kept) = (self.device.clone(), self.dtype, inputs.clone());
        let refs: Vec<&Tensor> = inputs.iter().collect();
        tape.push(RECOMPUTE, &refs, &[&output], move |bw| {
            let cx = Cx::training(&device, dtype);
            let leaves: Vec<Tensor> =
                kept.iter().map(|t| if t.needs_grad() { t.detach_requiring_grad() } else { t.clone() }).collect();
            let again = f(&cx, &leaves)?;
            let dy = bw.take_dy();
            let tape = cx.tape.as_ref().map(Tape::take_nodes).unwrap_or_default();
            let leaf_grads = bw.backward_recomputed(tape, &again, dy)?;
            drop(again);
            for (input, leaf) in kept.iter().zip(&leaves) {
                if let Some(g) = leaf_grads.get(leaf) {
                    bw.add_grad(input, g)?;
                }
            }
            Ok(())
        });
        Ok(output)
    }

    /// Runs the tape backwards from `loss` (one f32 element, whose gradient is `scale`) and adds the gradients to
    /// `grads`. The tape is empty afterwards.
    ///
    /// # Errors
    /// A parameter that was used but got no gradient, by name; a loss that depends on no parameter; out of memory.
    pub fn backward(&self, loss: &Tensor, scale: f32, grads: &mut Grads) -> Result<()> {
        self.backward_with(loss, scale, grads, &mut |_, _| Ok(()))
    }

    /// Like [`Cx::backward`], but also calls `observe` during the pass: with the names of the parameters whose
    /// gradients are finished, and before the ops of each unit of weights. If `grads` had no gradient before the
    /// pass, `observe` may use the finished gradients and [release](Grads::release) them. Otherwise some gradients
    /// are added to the earlier ones only at the end of the pass.
    ///
    /// # Errors
    /// The errors of [`Cx::backward`]; an error of `observe`.
    pub fn backward_with<E: From<RuntimeError>>(
        &self,
        loss: &Tensor,
        scale: f32,
        grads: &mut Grads,
        observe: &mut impl FnMut(BackwardEvent, &mut Grads) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let tape = self.tape.as_ref().map(Tape::take_nodes).unwrap_or_default();
        if !loss.needs_grad() {
            return Err(RuntimeError::NothingToTrain.into());
        }
        let dy = Tensor::from_f32(&self.device, &[1], DType::F32, &[scale], MemoryCategory::Activations)?;
        grads.begin_pass(tape.parameters_of_several_ops());
        tape.backward(loss, dy, grads, observe)?;
        Ok(grads.end_pass(&self.device)?)
    }
}
