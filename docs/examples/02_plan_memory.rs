//! Plans memory with the device `dry`, which runs the code of a forward and backward pass without computing and
//! reports the memory that the pass would need.
//!
//! ```text
//!     cargo run --release --example 02_plan_memory
//! ```

use std::error::Error;

use reel_device::{DType, Device, Kernels, MemoryCategory};
use reel_runtime::{Cx, Grads, Tensor, ops};

/// Peak bytes of one training step of a two-layer MLP on `tokens` tokens of width `width`.
fn peak_bytes(device: &Device, tokens: usize, width: usize) -> Result<usize, Box<dyn Error>> {
    device.reset_peak();
    let zeros = |shape: &[usize]| Tensor::empty(device, shape, DType::F32, MemoryCategory::Weights);
    let x = zeros(&[tokens, width])?;
    let up = zeros(&[4 * width, width])?.into_parameter("up")?;
    let down = zeros(&[width, 4 * width])?.into_parameter("down")?;
    let (mut grads, cx) = (Grads::new(), Cx::training(device, DType::F32));
    let hidden = ops::gelu(&cx, &ops::linear(&cx, &x, &up, None)?)?; // [tokens, 4 · width]
    let y = ops::linear(&cx, &hidden, &down, None)?; // [tokens, width]
    let weights = Tensor::empty(device, &[tokens * width], DType::F32, MemoryCategory::Inputs)?;
    let loss = ops::weighted_sum(&cx, &y.reshape(&[tokens * width])?, &weights)?;
    cx.backward(&loss, 1.0, &mut grads)?;
    Ok(device.memory().peak)
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::dry(Kernels::Cuda);
    let mut last = 0;
    for tokens in [1024, 8192, 65536] {
        let bytes = peak_bytes(&device, tokens, 3584)?;
        println!("{tokens} tokens: {:.2} GiB", bytes as f64 / (1u64 << 30) as f64);
        assert!(bytes > last);
        last = bytes;
    }
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example runs");
}
