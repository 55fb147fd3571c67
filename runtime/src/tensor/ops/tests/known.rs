//! Tests of the ops `*_with_known_output`. They do not compute their output, and have the same gradients as the ops
//! that compute it.

use super::*;
use crate::ops::{
    Lora, attention_with_known_output, linear, linear_with_known_output, lora_linear, lora_linear_with_known_output,
    swiglu_linear, swiglu_linear_with_known_output, write_rows,
};

/// The number of rows and the numbers of columns of the inputs.
const M: usize = 7;
const K: usize = 6;
const N: usize = 4;

/// An op on parameters. If a tensor is given, the op takes it as its known output.
type WithKnown = fn(&Cx, &[Tensor], Option<Tensor>) -> Result<Tensor>;

/// Runs an op. Returns its output, and the gradients of a loss: a sum of the output's elements with different weights.
fn run(shapes: &[[usize; 2]], op: WithKnown, known: Option<&[f32]>) -> (Vec<f32>, Vec<Vec<f32>>) {
    let device = Device::cpu(2);
    let parameter = |(i, shape): (usize, &[usize; 2])| {
        let values = pseudo_random_numbers(shape[0] * shape[1], 3 + i as u32);
        let shape: &[usize] = if shape[0] == 1 { &shape[1..] } else { shape };
        let t = Tensor::from_f32(&device, shape, DType::F32, &values, MemoryCategory::Weights).unwrap();
        t.into_parameter(&format!("p{i}")).unwrap()
    };
    let inputs: Vec<Tensor> = shapes.iter().enumerate().map(parameter).collect();
    let (cx, mut grads) = (Cx::training(&device, DType::F32), Grads::new());
    let known = known.map(|y| Tensor::from_f32(&device, &[M, N], DType::F32, y, MemoryCategory::Inputs).unwrap());
    let y = op(&cx, &inputs, known).unwrap();
    let loss = loss_of(&cx, &y);
    cx.backward(&loss, 1.0, &mut grads).unwrap();
    let gradients = (0..inputs.len()).map(|i| grads.get(&format!("p{i}")).unwrap().to_f32().unwrap()).collect();
    (y.to_f32().unwrap(), gradients)
}

fn loss_of(cx: &Cx, y: &Tensor) -> Tensor {
    let loss = Tensor::from_f32(cx.device(), &[1], DType::F32, &[0.0], MemoryCategory::Inputs).unwrap();
    let dy = pseudo_random_numbers(y.count(), 90);
    let dy = Tensor::from_f32(cx.device(), y.shape(), DType::F32, &dy, MemoryCategory::Inputs).unwrap();
    let ky = y.clone();
    cx.record("loss", &[y], loss, move |bw| bw.add_grad(&ky, dy))
}

#[test]
fn products_of_known_outputs_have_the_same_gradients() {
    let plain: WithKnown = |cx, p, known| match known {
        Some(y) => linear_with_known_output(cx, &p[0], &p[1], Some(&p[2]), y),
        None => linear(cx, &p[0], &p[1], Some(&p[2])),
    };
    let with_adapter: WithKnown = |cx, p, known| {
        let lora = Lora { down: p[3].clone(), up: p[4].clone(), scale: 0.5 };
        match known {
            Some(y) => lora_linear_with_known_output(cx, &p[0], &p[1], Some(&p[2]), &lora, y),
            None => lora_linear(cx, &p[0], &p[1], Some(&p[2]), &lora),
        }
    };
    let after_swiglu: WithKnown = |cx, p, known| match known {
        Some(y) => swiglu_linear_with_known_output(cx, &p[0], &p[1], Some(&p[2]), y),
        None => swiglu_linear(cx, &p[0], &p[1], Some(&p[2])),
    };
    let weights = [[N, K], [1, N]];
    let adapter = [[2, K], [N, 2]];
    let cases: [(&str, Vec<[usize; 2]>, WithKnown); 3] = [
        ("linear", [&[[M, K]][..], &weights].concat(), plain),
        ("lora_linear", [&[[M, K]][..], &weights, &adapter].concat(), with_adapter),
        ("swiglu_linear", [&[[M, 2 * K]][..], &weights].concat(), after_swiglu),
    ];
    for (name, shapes, op) in cases {
        let computed = run(&shapes, op, None);
        assert_eq!(run(&shapes, op, Some(&computed.0)), computed, "{name}");
        // A known output is returned unchanged, even if its values are wrong.
        let other = vec![3.0; M * N];
        assert_eq!(run(&shapes, op, Some(&other)).0, other, "{name}");
    }
}

#[test]
fn known_outputs_of_another_shape_or_dtype_are_refused() {
    let (device, f32) = (Device::cpu(1), DType::F32);
    let cx = Cx::training(&device, f32);
    let of = |shape: &[usize], dtype| Tensor::empty(&device, shape, dtype, MemoryCategory::Inputs).unwrap();
    let (x, w) = (of(&[M, K], f32), of(&[N, K], f32));
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let linear = |y| message(linear_with_known_output(&cx, &x, &w, None, y));
    assert!(
        linear(of(&[M, K], f32)).contains("known output has shape [7, 6], expected [7, 4]"),
        "{}",
        linear(of(&[M, K], f32))
    );
    assert!(linear(of(&[M, N], DType::BF16)).contains("known output has dtype bf16, expected f32"));
    let (q, k) = (of(&[5, 4, 8], f32), of(&[5, 2, 8], f32));
    let seqs = CuSeqlens::from_lengths(&device, &[5]).unwrap();
    let known = |o, lse| message(attention_with_known_output(&cx, [&q, &k, &k], &seqs, (o, lse)));
    assert!(known(of(&[5, 4, 4], f32), of(&[5, 4], f32)).contains("known output has shape"));
    assert!(known(of(&[5, 4, 8], f32), of(&[5, 2], f32)).contains("known lse has shape [5, 2], expected [5, 4]"));
    assert!(known(of(&[5, 4, 8], f32), of(&[5, 4], DType::BF16)).contains("known lse has dtype bf16"));
    let index = Tensor::from_i32(&device, &[M], &[0; M]).unwrap();
    let error = write_rows(&cx, &x, &index, &of(&[9, 8], f32), 3).unwrap_err().to_string();
    assert!(error.contains("columns 3 .. 9 exceed the 8 columns of the destination"), "{error}");
}

#[test]
fn rows_are_written_into_some_columns() {
    let device = Device::cpu(2);
    let cx = Cx::inference(&device, DType::F32);
    let from = |shape: &[usize], values: &[f32]| {
        Tensor::from_f32(&device, shape, DType::F32, values, MemoryCategory::Inputs).unwrap()
    };
    let (to, x) = (from(&[4, 3], &[0.0; 12]), from(&[3, 1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let x = x.reshape(&[3, 2]).unwrap();
    write_rows(&cx, &x, &Tensor::from_i32(&device, &[3], &[2, -1, 0]).unwrap(), &to, 1).unwrap();
    assert_eq!(to.to_f32().unwrap(), [0.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]);
}
