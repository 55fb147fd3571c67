use half::bf16;
use reel_device::Addr;
use reel_device::DType::{BF16, F32};

use super::{CodeBits, Params, dequantize, formula, test_cases};
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, run};

checks!(has_the_bits_of_the_formula);

/// Integers with zero points, and values of any size without, in all kinds of blocks.
fn has_the_bits_of_the_formula() {
    for (case, (n, k, block_rows, block_columns, names_blocks)) in test_cases().into_iter().enumerate() {
        for bits in [CodeBits::Four, CodeBits::Eight] {
            for has_zeros in [true, false] {
                let mut random = RandomChoices::new(case as u64 + 1);
                let mut integer = |end: usize| random.random_u64() as usize % end;
                let codes: Vec<u8> = (0..n * k).map(|_| integer(bits.values()) as u8).collect();
                let blocks = k.div_ceil(block_columns);
                let column_blocks: Vec<i32> = (0..k).map(|_| integer(blocks) as i32).collect();
                let values: Vec<f32> = match has_zeros {
                    true => (0..bits.values()).map(|value| value as f32).collect(),
                    false => normal_numbers(bits.values(), 2, 1.0),
                };
                let [n32, k32, rows, columns] = [n, k, block_rows, block_columns].map(|size| size as u32);
                let packed: Vec<u8> = match bits {
                    CodeBits::Eight => codes.clone(),
                    CodeBits::Four => codes.chunks(k).flat_map(pack_row).collect(),
                };
                let mut p = Params {
                    codes: addr(&packed),
                    values: addr(&values),
                    scales: Addr::NULL,
                    zeros: Addr::NULL,
                    column_blocks: if names_blocks { addr(&column_blocks) } else { Addr::NULL },
                    y: Addr::NULL,
                    n: n32,
                    k: k32,
                    block_rows: rows,
                    block_columns: columns,
                    blocks: blocks as u32,
                    reserved: 0,
                };
                let scales = normal_numbers(p.scale_count(), 3, 0.02);
                let zeros: Vec<f32> = (0..p.scale_count()).map(|_| integer(bits.values()) as f32).collect();
                p.scales = addr(&scales);
                let zeros = if has_zeros { &zeros[..] } else { &[] };
                if has_zeros {
                    p.zeros = addr(zeros);
                }
                let block_of = |row: usize, column: usize| match (names_blocks, block_rows) {
                    (true, rows) => row / rows * blocks + column_blocks[column] as usize,
                    (false, 0) => (row * k + column) / block_columns,
                    (false, rows) => row / rows * blocks + column / block_columns,
                };
                let want = formula::dequantize(&codes, [n, k], &values, (&scales, zeros), block_of);
                for dtype in [F32, BF16] {
                    let y = TestArray::output(dtype, n * k);
                    run(&dequantize(bits, dtype, &Params { y: y.addr(), ..p }), 3);
                    let rounded = |&x: &f64| if dtype == F32 { x as f32 } else { bf16::from_f32(x as f32).to_f32() };
                    let want: Vec<u32> = want.iter().map(rounded).map(f32::to_bits).collect();
                    let got: Vec<u32> = y.values().iter().map(|x| x.to_bits()).collect();
                    assert!(got == want, "{bits:?} {dtype} {n} {k} in blocks of {block_rows} x {block_columns}");
                }
            }
        }
    }
}

/// Packs the codes of a row, two a byte.
fn pack_row(codes: &[u8]) -> impl Iterator<Item = u8> {
    codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |upper| upper << 4))
}
