//! Compares fused ops with the separate ops that they replace: random shapes, both dtypes, on cpu and on sim.

use proptest::prelude::*;
use reel_device::Element;

use super::*;

type Values = Vec<f32>;

/// The output of an op, and the gradient of each input by name.
#[derive(Debug)]
struct Outcome {
    y: Values,
    grads: BTreeMap<String, Values>,
}

/// Runs `f` on parameters of these shapes, forward and backward. The loss is a weighted sum of all outputs of `f`.
fn outcome(
    device: &Device,
    dtype: DType,
    shapes: &[&[usize]],
    seed: u32,
    f: impl Fn(&Cx, &[Tensor]) -> Result<Vec<Tensor>>,
) -> Outcome {
    let parameter = |(i, s): (usize, &&[usize])| {
        let values = pseudo_random_numbers(s.iter().product(), seed + i as u32);
        let t = Tensor::from_f32(device, s, dtype, &values, MemoryCategory::Weights).unwrap();
        t.into_parameter(&format!("p{i}")).unwrap()
    };
    let leaves: Vec<Tensor> = shapes.iter().enumerate().map(parameter).collect();
    // `f` gets reshaped views of the parameters. Views count as activations, which the fused ops get inside a model.
    let cx = Cx::training(device, dtype);
    let inputs: Vec<Tensor> = leaves.iter().map(|p| p.reshape(p.shape()).unwrap()).collect();
    let results = f(&cx, &inputs).unwrap();
    let mut y = Vec::new();
    let mut total = None;
    for (i, part) in results.iter().enumerate() {
        y.extend(part.to_f32().unwrap());
        let n = part.count();
        let w = Tensor::from_f32(
            device,
            &[n],
            DType::F32,
            &pseudo_random_numbers(n, 90 + i as u32),
            MemoryCategory::Inputs,
        )
        .unwrap();
        let one = weighted_sum(&cx, &widened(&cx, part), &w).unwrap();
        total = Some(match total {
            None => one,
            Some(t) => add(&cx, &t, &one).unwrap(),
        });
    }
    let mut grads = Grads::new();
    cx.backward(&total.unwrap(), 1.0, &mut grads).unwrap();
    Outcome { y, grads: grads.iter().map(|(k, g)| (k.to_string(), g.to_f32().unwrap())).collect() }
}

/// Widens x to f32; the backward rule rounds the gradient to the dtype of x. Only the tests need such an op.
fn widened(cx: &Cx, x: &Tensor) -> Tensor {
    let flat = x.reshape(&[x.count()]).unwrap();
    if x.dtype() == DType::F32 {
        return flat;
    }
    let y =
        Tensor::from_f32(cx.device(), flat.shape(), DType::F32, &x.to_f32().unwrap(), MemoryCategory::Inputs).unwrap();
    let kx = flat.clone();
    cx.record("widened", &[&flat], y, move |bw| {
        let dy = bw.take_dy();
        let dx = Tensor::from_f32(bw.device(), kx.shape(), kx.dtype(), &dy.to_f32()?, MemoryCategory::Activations)?;
        bw.add_grad(&kx, dx)
    })
}

/// Asserts that outputs have equal bits and gradients differ by a few roundings at most.
fn agree(what: &str, got: &Outcome, want: &Outcome, dtype: DType) {
    assert!(got.y.iter().zip(&want.y).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: values differ");
    gradients_agree(what, got, want, if dtype == DType::F32 { 1e-6 } else { 1e-2 });
}

fn gradients_agree(what: &str, got: &Outcome, want: &Outcome, limit: f64) {
    assert!(got.grads.keys().eq(want.grads.keys()), "{what}: {:?} {:?}", got.grads.keys(), want.grads.keys());
    for (name, g) in &got.grads {
        let off = relative_distance(g, &want.grads[name]);
        assert!(off <= limit, "{what}: gradient of {name} off by {off:.2e}, allowed {limit:.0e}");
    }
}

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn norm_and_residual(device: &Device, rows: usize, cols: usize, seed: u32) {
    for dtype in DTYPES {
        let what = format!("{} {dtype} [{rows}, {cols}]", device.name());
        let shapes: [&[usize]; 3] = [&[rows, cols], &[rows, cols], &[cols]];
        let fused = outcome(device, dtype, &shapes, seed, |cx, x| {
            let (sum, y) = rms_norm_add(cx, &x[0], &x[1], &x[2], 1e-6)?;
            Ok(vec![sum, y])
        });
        let plain = outcome(device, dtype, &shapes, seed, |cx, x| {
            let sum = add(cx, &x[0], &x[1])?;
            Ok(vec![sum.clone(), rms_norm(cx, &sum, &x[2], 1e-6)?])
        });
        agree(&format!("rms_norm_add {what}"), &fused, &plain, dtype);
        // Gradient checkpointing uses a second implementation: one op adds the residual, another computes the norm.
        // The bits must be equal.
        let cut = outcome(device, dtype, &shapes, seed, |cx, x| {
            let (stream, y) = rms_norm_branch(cx, &add(cx, &x[0], &x[1])?, &x[2], 1e-6)?;
            Ok(vec![stream, y])
        });
        assert!(cut.y == fused.y && cut.grads == fused.grads, "rms_norm_branch {what}");
    }
}

/// A pseudo-random permutation of `0 .. n`.
fn permutation(n: usize, seed: u32) -> Vec<i32> {
    let keys = pseudo_random_numbers(n, seed);
    let mut order: Vec<i32> = (0..n as i32).collect();
    order.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
    order
}

fn merged_patches(device: &Device, squares: usize, cols: usize, seed: u32) {
    let rows = 4 * squares;
    let order = permutation(rows, seed);
    for dtype in DTYPES {
        let shapes: [&[usize]; 2] = [&[rows, cols], &[cols]];
        let fused = outcome(device, dtype, &shapes, seed, |cx, x| {
            Ok(vec![patch_merge(cx, &x[0], &index(cx, &order)?, &x[1], 1e-6, 4)?])
        });
        let plain = outcome(device, dtype, &shapes, seed, |cx, x| {
            let normed = rms_norm(cx, &gather_rows(cx, &x[0], &index(cx, &order)?)?, &x[1], 1e-6)?;
            Ok(vec![normed.reshape(&[squares, 4 * cols])?])
        });
        agree(&format!("patch_merge {} {dtype} [{rows}, {cols}]", device.name()), &fused, &plain, dtype);
    }
}

/// Compares `embedding_with_vision_tokens` with rows copied on the host: `text` tokens of a table and `vision` vision
/// tokens, in a shuffled order.
fn text_and_vision_tokens(device: &Device, text: usize, vision: usize, hidden: usize, seed: u32) {
    let tokens = text + vision;
    let ids: Vec<i32> = (0..tokens).map(|t| (t * 7 % 5) as i32).collect();
    let order = permutation(tokens, seed);
    let vision_index: Vec<i32> = order.iter().map(|&at| if (at as usize) < vision { at } else { -1 }).collect();
    for dtype in DTYPES {
        let shapes: [&[usize]; 2] = [&[5, hidden], &[vision, hidden]];
        let got = outcome(device, dtype, &shapes, seed, |cx, x| {
            // In a model, vision tokens are an activation, never a parameter.
            let vision = add(cx, &x[1], &x[1])?;
            Ok(vec![embedding_with_vision_tokens(cx, &x[0], &index(cx, &ids)?, &vision, &index(cx, &vision_index)?)?])
        });
        let round = |x: f32| if dtype == DType::F32 { x } else { <half::bf16 as Element>::from_f32(x).to_f32() };
        let input =
            |i: usize| pseudo_random_numbers(shapes[i].iter().product(), seed + i as u32).into_iter().map(round);
        let (table, features): (Values, Values) = (input(0).collect(), input(1).collect());
        let dy: Values = pseudo_random_numbers(tokens * hidden, 90).into_iter().map(round).collect();
        let (mut y, mut d_table, mut d_features) = (Vec::new(), vec![0.0; 5 * hidden], vec![0.0; vision * hidden]);
        for (t, (&id, &v)) in ids.iter().zip(&vision_index).enumerate() {
            for c in 0..hidden {
                let (row, column) = (v.max(0) as usize * hidden + c, id as usize * hidden + c);
                if v >= 0 {
                    y.push(2.0 * features[row]);
                    d_features[row] = 2.0 * dy[t * hidden + c];
                } else {
                    y.push(table[column]);
                    d_table[column] += dy[t * hidden + c];
                }
            }
        }
        let want = Outcome { y, grads: [("p0".into(), d_table), ("p1".into(), d_features)].into() };
        agree(&format!("embedding_with_vision_tokens {} {dtype}", device.name()), &got, &want, dtype);
    }
}

/// Compares the fused patch embedding with the separate ops, which store normalised pixels and run if the weight has
/// another dtype.
fn frames(device: &Device, videos: &[[usize; 3]], [patch, merge, embed]: [usize; 3], seed: u32) {
    let patching = PatchingParams {
        rescale: 1.0 / 255.0,
        mean: [0.48, 0.46, 0.41],
        std: [0.27, 0.26, 0.28],
        patch,
        temporal: 2,
        merge,
    };
    let side = patch * merge;
    let put = |cx: &Cx| -> Result<Vec<DeviceFrames>> {
        let one = |&[count, rows, columns]: &[usize; 3]| {
            let size = [count, rows * side, columns * side];
            let levels: Vec<u8> = pseudo_random_numbers(3 * size.iter().product::<usize>(), seed)
                .iter()
                .map(|x| (x * 127.5 + 127.6) as u8)
                .collect();
            DeviceFrames::new(cx.device(), &levels, size, &patching)
        };
        videos.iter().map(one).collect()
    };
    let row = 3 * 2 * patch * patch;
    // Weight values that both dtypes represent exactly.
    let values: Values = pseudo_random_numbers(embed * row, seed)
        .iter()
        .map(|&x| <half::bf16 as Element>::from_f32(x).to_f32())
        .collect();
    let weight = |cx: &Cx, dtype| Tensor::from_f32(cx.device(), &[embed, row], dtype, &values, MemoryCategory::Weights);
    for (dtype, other) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
        let what = format!("patch_embedding {} {dtype} {videos:?}", device.name());
        let cx = Cx::inference(device, dtype);
        let of =
            |w| patch_embedding(&cx, &put(&cx).unwrap(), &weight(&cx, w).unwrap(), None).unwrap().to_f32().unwrap();
        let (got, want) = (of(dtype), of(other));
        let limit = if dtype == DType::F32 { 1e-6 } else { 4e-3 };
        assert!(relative_distance(&got, &want) <= limit, "{what}: {:.2e}", relative_distance(&got, &want));
        // The gradient of the weight must equal the gradient of a matrix product with stored pixels.
        let gradient = |w: DType| {
            let cx = Cx::training(device, dtype);
            let w = weight(&cx, w).unwrap().into_parameter("w").unwrap();
            let y = patch_embedding(&cx, &put(&cx).unwrap(), &w, None).unwrap();
            let n = y.count();
            let to = Tensor::from_f32(device, &[n], DType::F32, &pseudo_random_numbers(n, 91), MemoryCategory::Inputs)
                .unwrap();
            let total = weighted_sum(&cx, &widened(&cx, &y), &to).unwrap();
            let mut grads = Grads::new();
            cx.backward(&total, 1.0, &mut grads).unwrap();
            grads.get("w").unwrap().to_f32().unwrap()
        };
        let off = relative_distance(&gradient(dtype), &gradient(other));
        assert!(off <= 1e-5, "{what}: gradient off by {off:.2e}");
    }
}

/// Computes the log-probabilities, entropies and gradients of the output layer, with and without entropies, and
/// compares them with the formula in f64.
fn head(device: &Device, [rows, vocab, hidden]: [usize; 3], inv_temperature: f32, seed: u32) {
    let targets: Vec<i32> = (0..rows as i32).map(|r| (r * 5 + 1) % (vocab as i32 + 1) - 1).collect();
    let shapes: [&[usize]; 2] = [&[rows, hidden], &[vocab, hidden]];
    for dtype in DTYPES {
        let what = format!("{} {dtype} [{rows}, {vocab}, {hidden}]", device.name());
        let round = |x: f32| if dtype == DType::F32 { x } else { <half::bf16 as Element>::from_f32(x).to_f32() };
        let operand =
            |i: usize| pseudo_random_numbers(shapes[i].iter().product(), seed + i as u32).into_iter().map(round);
        let (h, w): (Values, Values) = (operand(0).collect(), operand(1).collect());
        let (mut lps, mut entropies) = (Vec::new(), Vec::new());
        // Each gradient element, and the sum of the absolute values of its terms.
        let (mut dh, mut dw) = (vec![[0.0f64; 2]; h.len()], vec![[0.0f64; 2]; w.len()]);
        let weights = pseudo_random_numbers(rows, 90);
        for r in 0..rows {
            let row = &h[r * hidden..(r + 1) * hidden];
            let dot =
                |j: usize| w[j * hidden..(j + 1) * hidden].iter().zip(row).map(|(a, b)| *a as f64 * *b as f64).sum();
            let z: Vec<f64> = (0..vocab)
                .map(|j| {
                    let dot: f64 = dot(j);
                    dot * inv_temperature as f64
                })
                .collect();
            let row_max = z.iter().copied().fold(f64::MIN, f64::max);
            let lse = row_max + z.iter().map(|z| (z - row_max).exp()).sum::<f64>().ln();
            let entropy: f64 = z.iter().map(|z| -(z - lse).exp() * (z - lse)).sum();
            let counted = targets[r] >= 0;
            lps.push(if counted { (z[targets[r] as usize] - lse) as f32 } else { 0.0 });
            entropies.push(if counted { entropy as f32 } else { 0.0 });
            for j in (0..vocab).filter(|_| counted) {
                let p = (z[j] - lse).exp();
                let hit = f64::from(u8::from(j as i32 == targets[r]));
                let d = weights[r] as f64 * inv_temperature as f64;
                for c in 0..hidden {
                    for (gradient, factor) in
                        [(&mut dh[r * hidden + c], w[j * hidden + c]), (&mut dw[j * hidden + c], row[c])]
                    {
                        gradient[0] += d * (hit - p) * factor as f64;
                        gradient[1] += (d * (hit + p) * factor as f64).abs();
                    }
                }
            }
        }
        let close = |name: &str, got: &[f32], want: &[f32]| {
            let off = got.iter().zip(want).map(|(g, w)| (g - w).abs() / (1.0 + w.abs())).fold(0.0, f32::max);
            assert!(got.len() == want.len() && off <= 1e-5, "{name} {what}: off by {off:.2e}");
        };
        let got_entropies = std::cell::RefCell::new(Vec::new());
        let got = outcome(device, dtype, &shapes, seed, |cx, x| {
            let targets = index(cx, &targets)?;
            let (lp, entropy) = linear_log_prob_with_entropy(cx, &x[0], &x[1], &targets, inv_temperature)?;
            *got_entropies.borrow_mut() = entropy.to_f32()?;
            Ok(vec![lp])
        });
        close("log-probability", &got.y, &lps);
        close("entropy", &got_entropies.borrow(), &entropies);
        // The terms of an element can cancel: with one row, dh is the target's weight row minus the average row. So
        // errors are compared with the sum of absolute terms. In bf16 the gradient of each logit is rounded, and so
        // is each result: together two relative errors of at most 2^-8 each.
        let limit = if dtype == DType::F32 { 1e-5 } else { 1.01 / 128.0 };
        let gradients_close = |name: &str, got: &Outcome| {
            for (parameter, want) in [("p0", &dh), ("p1", &dw)] {
                let got = &got.grads[parameter];
                assert_eq!(got.len(), want.len(), "{name} {what}: gradient of {parameter}");
                for (i, (&g, &[value, terms])) in got.iter().zip(want).enumerate() {
                    let off = (g as f64 - value).abs();
                    assert!(
                        off <= limit * terms,
                        "{name} {what}: gradient {i} of {parameter} is {g}, expected {value}; absolute terms {terms}"
                    );
                }
            }
        };
        gradients_close("with entropies,", &got);
        let got = outcome(device, dtype, &shapes, seed, |cx, x| {
            Ok(vec![linear_log_prob(cx, &x[0], &x[1], &index(cx, &targets)?, inv_temperature)?])
        });
        close("log-probability without entropies", &got.y, &lps);
        gradients_close("without entropies,", &got);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rms_norm_add_equals_add_and_rms_norm(rows in 0usize..70, cols in 1usize..80, seed in 1u32..1000) {
        norm_and_residual(&Device::cpu(2), rows, cols, seed);
    }

    #[test]
    fn patch_merge_equals_gather_and_rms_norm(squares in 0usize..20, cols in 1usize..80, seed in 1u32..1000) {
        merged_patches(&Device::cpu(2), squares, cols, seed);
    }

    #[test]
    fn embedding_with_equals_a_copy_of_rows(text in 0usize..20, vision in 0usize..20, hidden in 1usize..40, seed in 1u32..1000) {
        text_and_vision_tokens(&Device::cpu(2), text, vision, hidden, seed);
    }

    #[test]
    fn patch_embedding_equals_a_product_with_pixels(
        videos in prop::collection::vec([0usize..4, 1usize..4, 1usize..4], 1..3),
        sizes in [1usize..5, 1usize..3, 1usize..20],
        seed in 1u32..1000,
    ) {
        frames(&Device::cpu(2), &videos, sizes, seed);
    }

    #[test]
    fn linear_log_prob_equals_the_formula(rows in 0usize..20, vocab in 1usize..90, hidden in 1usize..40, t in 0.3f32..2.0, seed in 1u32..1000) {
        head(&Device::cpu(2), [rows, vocab, hidden], t, seed);
    }
}

#[test]
fn fused_ops_agree_on_sim() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let sim = Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap();
    for (rows, cols) in [(0, 8), (1, 1), (1, 19), (67, 40), (5, 64)] {
        norm_and_residual(&sim, rows, cols, 3);
        merged_patches(&sim, rows, cols, 4);
    }
    for (text, vision, hidden) in [(0, 3, 5), (4, 0, 8), (1, 1, 16), (7, 6, 9)] {
        text_and_vision_tokens(&sim, text, vision, hidden, 5);
    }
    frames(&sim, &[[3, 2, 1], [0, 1, 1], [1, 1, 2]], [14, 2, 24], 7);
    frames(&sim, &[[1, 1, 1]], [1, 1, 1], 8);
    for shape in [[0, 7, 8], [1, 1, 1], [1, 130, 24], [9, 70, 33]] {
        head(&sim, shape, 0.7, 6);
    }
}

/// The batch has more rows than a tile of logits.
#[test]
fn tiles_of_rows_have_the_bits_of_rows_alone() {
    let device = Device::cpu(2);
    let (rows, vocab, hidden) = (66_000, 300, 3);
    let targets: Vec<i32> = (0..rows).map(|r| r * 11 % vocab).collect();
    let (rows, vocab) = (rows as usize, vocab as usize);
    let shapes: [&[usize]; 2] = [&[rows, hidden], &[vocab, hidden]];
    let before = device.memory().current;
    device.reset_peak();
    let all = outcome(&device, DType::F32, &shapes, 2, |cx, x| {
        Ok(vec![linear_log_prob(cx, &x[0], &x[1], &index(cx, &targets)?, 1.0)?])
    });
    // The logits are few enough to be kept for the backward pass.
    let (peak, logits) = (device.memory().peak - before, rows * vocab * 4);
    assert!(peak < logits + (72 << 20) && logits > (75 << 20), "{peak} bytes for logits");
    // The rows are f32 and the weight is bf16.
    let w: Values = pseudo_random_numbers(vocab * hidden, 3)
        .iter()
        .map(|&x| <half::bf16 as Element>::from_f32(x).to_f32())
        .collect();
    let mixed = |dtype: DType| {
        outcome(&device, DType::F32, &shapes[..1], 2, |cx, x| {
            let w = Tensor::from_f32(cx.device(), shapes[1], dtype, &w, MemoryCategory::Weights)?;
            Ok(vec![linear_log_prob(cx, &x[0], &w, &index(cx, &targets)?, 1.0)?])
        })
    };
    let (got, want) = (mixed(DType::BF16), mixed(DType::F32));
    assert!(relative_distance(&got.y, &want.y) <= 1e-6);
    gradients_agree("a bf16 weight", &got, &want, 1e-5);
    let few = outcome(&device, DType::F32, &[&[rows, hidden], shapes[1]], 2, |cx, x| {
        let rows = index(cx, &[0, 55_923, 55_924, 65_999])?;
        let of = |r: i32| targets[r as usize];
        let few = index(cx, &[of(0), of(55_923), of(55_924), of(65_999)])?;
        let rows = gather_rows(cx, &x[0], &rows)?;
        Ok(vec![linear_log_prob(cx, &rows, &x[1], &few, 1.0)?])
    });
    assert_eq!(few.y, [0, 55_923, 55_924, 65_999].map(|r: usize| all.y[r]));
}

/// Runs each SigLIP op with 0 rows and with 1 row, in both dtypes.
#[test]
fn siglip_ops_accept_zero_rows_and_one_row() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let sim = Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap();
    for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        for rows in [0, 1] {
            let shapes: [&[usize]; 5] = [&[rows, 8], &[8], &[8], &[1, 8], &[1, 8]];
            let [got, want] = [&sim, &Device::cpu(1)].map(|device| {
                let cx = &Cx::inference(device, dtype);
                let input = |i: usize| {
                    let values = pseudo_random_numbers(shapes[i].iter().product(), 3 + i as u32);
                    Tensor::from_f32(device, shapes[i], dtype, &values, MemoryCategory::Inputs).unwrap()
                };
                let [x, w, b, pos, q] = [0, 1, 2, 3, 4].map(input);
                let normed = layer_norm(cx, &add_position_embeddings(cx, &x, &pos).unwrap(), &w, &b, 1e-6).unwrap();
                let keys = normalise_rows(cx, &gelu_tanh(cx, &normed).unwrap()).unwrap();
                let keys = keys.reshape(&[rows, 1, 8]).unwrap();
                let pictures = CuSeqlens::from_lengths(device, &[0, rows]).unwrap();
                pool_attention(cx, &q, &keys, &keys, &pictures).unwrap().to_f32().unwrap()
            });
            assert!(relative_distance(&got, &want) <= limit, "{dtype}, {rows} rows: {got:?} {want:?}");
        }
    }
}

#[test]
fn layer_norm_and_gelu_tanh_have_gradients_of_zero_rows_and_of_one_row() {
    let Some(()) = reel_device::compile::skip_without_nvrtc() else { return };
    let sim = Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap();
    for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        for rows in [0, 1] {
            let [got, want] = [&sim, &Device::cpu(1)].map(|device| {
                outcome(device, dtype, &[&[rows, 8], &[8], &[8]], 3, |cx, x| {
                    Ok(vec![gelu_tanh(cx, &layer_norm(cx, &x[0], &x[1], &x[2], 1e-6)?)?])
                })
            });
            let what = format!("{dtype}, {rows} rows");
            assert!(relative_distance(&got.y, &want.y) <= limit, "{what}: {:?} {:?}", got.y, want.y);
            gradients_agree(&what, &got, &want, limit * 10.0);
        }
    }
}

/// An op without a backward rule refuses an operand that needs a gradient: otherwise the gradient would be lost.
#[test]
fn siglip_ops_refuse_gradients() {
    let device = Device::cpu(1);
    let cx = Cx::training(&device, DType::F32);
    let x = Tensor::from_f32(&device, &[1, 8], DType::F32, &[0.5; 8], MemoryCategory::Weights).unwrap();
    let [frozen, trained] = [x.clone(), x.into_parameter("x").unwrap()];
    let keys = frozen.reshape(&[1, 1, 8]).unwrap();
    let images = CuSeqlens::from_lengths(&device, &[1]).unwrap();
    let results = |x: &Tensor| {
        [
            add_position_embeddings(&cx, &frozen, x),
            normalise_rows(&cx, x),
            pool_attention(&cx, x, &keys, &keys, &images),
        ]
    };
    assert!(results(&frozen).iter().all(Result::is_ok));
    for result in results(&trained) {
        let text = result.expect_err("an error").to_string();
        assert!(text.contains("needs a gradient"), "{text}");
    }
}

/// Rollouts and training must give the same bits: a decode step normalises and rotates heads in one launch, training in
/// two.
#[test]
fn decode_steps_normalise_heads_with_the_bits_of_training() {
    let mut devices = vec![Device::cpu(2)];
    if let Some(()) = reel_device::compile::skip_without_nvrtc() {
        devices.push(Device::sim(reel_device::SimOptions { threads: 1, ..Default::default() }).unwrap());
    }
    for (device, dtype) in devices.iter().flat_map(|device| DTYPES.map(|dtype| (device, dtype))) {
        for (tokens, [heads, kv_heads, d]) in [(1, [6, 2, 128]), (70, [3, 1, 128]), (5, [2, 2, 32]), (3, [4, 2, 80])] {
            let tensor = |shape: &[usize], seed: u32| {
                let values = pseudo_random_numbers(shape.iter().product(), seed);
                Tensor::from_f32(device, shape, dtype, &values, MemoryCategory::Inputs).unwrap()
            };
            let [q, k, v] = [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(h, seed)| tensor(&[tokens, h, d], seed));
            let (w_q, w_k) = (tensor(&[d], 4), tensor(&[d], 5));
            let norms = HeadNorms { q: &w_q, k: &w_k, eps: 1e-6, unrotated: None };
            let cx = Cx::inference(device, dtype);
            let cache = kv::SmallKvCache::new(&cx, dtype, [tokens, kv_heads, d]);
            let [got_q, got_keys, _] = cache.results(|to| {
                rotate_and_cache(&cx, tensor(q.shape(), 1), (&k, &v), KvDestination { head_norms: Some(norms), ..to })
            });
            let cx = Cx::training(device, dtype);
            let [q, k] = [(&q, &w_q), (&k, &w_k)].map(|(x, w)| rms_norm(&cx, x, w, norms.eps).unwrap());
            let (q, k) = apply_rotary(&cx, &q, &k, cache.destination().rotary).unwrap();
            let what = format!("{dtype}, {tokens} tokens, heads of {d}");
            assert_eq!(got_q, q.to_f32().unwrap(), "{what}");
            let (row, blocks) = (kv_heads * d, tokens.div_ceil(KvPages::BLOCK_TOKENS));
            for (t, key) in k.to_f32().unwrap().chunks(row).enumerate() {
                // The sequence has the blocks in descending order.
                let block = blocks - 1 - t / KvPages::BLOCK_TOKENS;
                let slot = block * KvPages::BLOCK_TOKENS + t % KvPages::BLOCK_TOKENS;
                assert_eq!(&got_keys[slot * row..][..row], key, "{what}, token {t}");
            }
        }
    }
}
