//! The context of a forward pass: the device, the dtype of activations and, when training, the tape.

use reel_kernels::{DType, Launch};

use super::Tensor;
use super::tape::{Backward, Grads, Tape};
use crate::device::{Category, Device};
use crate::error::Result;

/// What ops are given: where to compute, in which dtype, and whether to remember how.
#[derive(Debug)]
pub struct Cx {
    device: Device,
    dtype: DType,
    tape: Option<Tape>,
}

impl Cx {
    /// Computes without remembering. `dtype` is that of activations, F32 or BF16.
    pub fn inference(device: &Device, dtype: DType) -> Cx {
        Cx { device: device.clone(), dtype, tape: None }
    }

    /// Computes and remembers what [`Cx::backward`] needs.
    pub fn training(device: &Device, dtype: DType) -> Cx {
        Cx { device: device.clone(), dtype, tape: Some(Tape::default()) }
    }

    /// The same device and dtype, without a tape: what is computed here is a constant to the gradient.
    pub fn without_tape(&self) -> Cx {
        Cx::inference(&self.device, self.dtype)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Dtype of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether a tape runs.
    pub fn is_training(&self) -> bool {
        self.tape.is_some()
    }

    /// Room for an op's result.
    ///
    /// # Errors
    /// Out of memory.
    pub fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::empty(&self.device, shape, dtype, Category::Activations)
    }

    /// Executes a launch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        self.device.launch(launch)
    }

    /// Hands out an op's `output`, remembering its `backward` when any of `inputs` needs a gradient. The only way for an
    /// op to make its result, so that no op is without a backward by accident.
    ///
    /// `backward` is given the gradient of the output and adds to those of the inputs.
    pub fn record(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        output: Tensor,
        backward: impl FnOnce(&mut Backward<'_>) -> Result<()> + 'static,
    ) -> Tensor {
        match &self.tape {
            Some(tape) if inputs.iter().any(|t| t.needs_grad()) => {
                let output = output.needing_grad();
                tape.push(name, inputs, &[&output], backward);
                output
            }
            _ => output,
        }
    }

    /// [`Cx::record`] for an op with two results, of which either may get a gradient ([`Backward::take_two`]).
    pub fn record_two(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        (a, b): (Tensor, Tensor),
        backward: impl FnOnce(&mut Backward<'_>) -> Result<()> + 'static,
    ) -> (Tensor, Tensor) {
        match &self.tape {
            Some(tape) if inputs.iter().any(|t| t.needs_grad()) => {
                let (a, b) = (a.needing_grad(), b.needing_grad());
                tape.push(name, inputs, &[&a, &b], backward);
                (a, b)
            }
            _ => (a, b),
        }
    }

    /// Runs `f` keeping only `inputs`; its inner results are computed again during backward.
    ///
    /// # Errors
    /// What `f` reports.
    pub fn recompute(
        &self,
        inputs: &[&Tensor],
        f: impl Fn(&Cx, &[Tensor]) -> Result<Tensor> + 'static,
    ) -> Result<Tensor> {
        let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        let Some(tape) = &self.tape else { return f(self, &inputs) };
        let output = f(&self.without_tape(), &inputs)?.needing_grad();
        let (device, dtype, kept) = (self.device.clone(), self.dtype, inputs.clone());
        let refs: Vec<&Tensor> = inputs.iter().collect();
        tape.push("recompute", &refs, &[&output], move |bw| {
            let cx = Cx::training(&device, dtype);
            let leaves: Vec<Tensor> =
                kept.iter().map(|t| if t.needs_grad() { t.needing_grad() } else { t.clone() }).collect();
            let again = f(&cx, &leaves)?;
            let dy = bw.take_dy();
            let tape = cx.tape.as_ref().map(Tape::take).unwrap_or_default();
            let leaf_grads = tape.backward(&again, dy, bw.grads())?;
            drop(again);
            for (input, leaf) in kept.iter().zip(&leaves) {
                if let Some(g) = leaf_grads.get(leaf) {
                    bw.add(input, g)?;
                }
            }
            Ok(())
        });
        Ok(output)
    }

    /// Runs the tape backwards from `loss` (one f32 element, gradient `scale`), adding to `grads`. The tape is used up.
    ///
    /// # Errors
    /// A parameter that was used and got no gradient, by name; out of memory.
    pub fn backward(&self, loss: &Tensor, scale: f32, grads: &mut Grads) -> Result<()> {
        let tape = self.tape.as_ref().map(Tape::take).unwrap_or_default();
        if !loss.needs_grad() {
            return Err(crate::RuntimeError::NothingToTrain);
        }
        let dy = Tensor::from_f32(&self.device, &[1], DType::F32, &[scale], Category::Activations)?;
        tape.backward(loss, dy, grads)?;
        Ok(())
    }
}
