//! Uses tensors, the tape and an optimizer to fit `y = x Wᵀ` by gradient descent to targets of known weights.
//!
//!     cargo run --release --example 01_gradients

use std::error::Error;

use reel_device::{DType, Device, MemoryCategory};
use reel_runtime::optim::{AdamW, AdamWParams, MomentFormat};
use reel_runtime::{Cx, Grads, Tensor, ops};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::cpu(2);
    let tensor =
        |shape: &[usize], data: &[f32]| Tensor::from_f32(&device, shape, DType::F32, data, MemoryCategory::Weights);

    // x holds 4 samples of 2 features. The targets were computed with W = [3, -1].
    let x = tensor(&[4, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, -1.0])?;
    let negative_targets = tensor(&[4, 1], &[-3.0, 1.0, -2.0, -7.0])?;
    let w = tensor(&[1, 2], &[0.0, 0.0])?.into_parameter("w")?;

    let mut optimizer = AdamW::new(std::slice::from_ref(&w), MomentFormat::F32, 0)?;
    let mut grads = Grads::new();
    for step in 1..=400 {
        grads.clear();
        let cx = Cx::training(&device, DType::F32);
        let error = ops::add(&cx, &ops::linear(&cx, &x, &w, None)?, &negative_targets)?; // [4, 1]
        // The gradient of the mean of the four squared errors with respect to an error is error / 2. The loss here is
        // the sum of the errors times these constants, so its backward pass starts from the same gradient.
        let weights: Vec<f32> = error.to_f32()?.iter().map(|e| e / 2.0).collect();
        let loss = ops::weighted_sum(&cx, &error.reshape(&[4])?, &tensor(&[4], &weights)?)?;
        cx.backward(&loss, 1.0, &mut grads)?;
        let clip = optimizer.norm_and_clip_factor(&device, &grads, 10.0)?; // [gradient norm, factor]
        let rate = AdamWParams { learning_rate: 0.05, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
        optimizer.step(&grads, &clip, |_| rate)?;
        if step % 100 == 0 {
            println!("step {step}: loss {:.6}, W {:?}", loss.to_f32()?[0], w.to_f32()?);
        }
    }
    let fitted = w.to_f32()?;
    assert!((fitted[0] - 3.0).abs() < 1e-2 && (fitted[1] + 1.0).abs() < 1e-2, "{fitted:?}");
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example runs");
}
