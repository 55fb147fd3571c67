//! Tests that a product with a quantised B has the bits of one with the dequantised B.

use super::*;
use crate::checks::{RandomChoices, run};
use crate::dequantize::{CodeValues, Params, dequantize};

#[test]
#[allow(unsafe_code)]
fn quantised_weights_have_the_bits_of_dequantised_ones() {
    let shapes =
        [(1, 40, 64), (1, 2500, 33), (3, 65, 100), (64, 33, 1031), (33, 70, 8), (2, 5, 0), (0, 4, 8), (4, 0, 8)];
    let integers = CodeValues::Table(std::array::from_fn(|code| code as f32));
    for (case, (m, n, k)) in shapes.into_iter().enumerate() {
        for (values, dtypes) in
            [(integers, [BF16, BF16, BF16]), (CodeValues::I8, [F32, F32, F32]), (integers, [F32, F32, BF16])]
        {
            let mut random = RandomChoices::new(case as u64 + 1);
            let codes: Vec<u8> = (0..n * values.row_bytes(k)).map(|_| random.random_u64() as u8).collect();
            let table: Vec<f32> = (0..16).map(|code| values.value(code)).collect();
            let blocks = k.div_ceil(24);
            let (scales, zeros) = (normal_numbers(n * blocks, 3, 0.1), normal_numbers(n * blocks, 4, 2.0));
            let zeros: Vec<f32> = zeros.iter().map(|zero| zero.round()).collect();
            let plain = TestArray::output(dtypes[1], n * k);
            let p = Params {
                codes: addr(&codes),
                values: if matches!(values, CodeValues::Table(_)) { addr(&table) } else { Addr::NULL },
                scales: addr(&scales),
                zeros: addr(&zeros),
                column_blocks: Addr::NULL,
                y: plain.addr(),
                n: n as u32,
                k: k as u32,
                block_rows: 1,
                block_columns: 24,
                blocks: blocks as u32,
                kind: values.kind(),
            };
            run(&dequantize(dtypes[1], &p), 1);
            let description = [Params { y: Addr::NULL, ..p }];
            let c = Case { m, n, k, dtypes, transposed: [false; 2], bias: true, accumulate: false, scale: 1.0 };
            let x = Inputs { b: plain.values(), ..inputs(&c, case as u64) };
            let machine = isas().into_iter().filter(|&isa| isa <= best_isa());
            for (isa, threads) in machine.flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let product = |b: Option<Addr>| {
                    with_arrays(&c, &x.a, &x.b, &x.bias, &x.old, |p| {
                        let quantized = |addr| Matmul {
                            b: Operand { addr, ..p.b },
                            b_layout: RightLayout::Quantized { bytes: 0 },
                            ..*p
                        };
                        // SAFETY: the arrays have the shapes of the case, and the description is that of B.
                        unsafe { cpu::run_on(isa, &b.map_or(*p, quantized), &Team::new(threads)) }
                    })
                };
                let (want, got) = (product(None), product(Some(addr(&description))));
                same(&format!("{isa:?} {values:?} {c:?}"), &want, &got).unwrap();
            }
        }
    }
}
