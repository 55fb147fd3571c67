use half::bf16;
use reel_device::Addr;
use reel_device::DType::{BF16, F32};

use super::{CodeValues, Params, dequantize, formula, test_cases};
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, run};

checks!(has_the_bits_of_the_formula);

/// Integers with zero points, and values of any size without, in all kinds of blocks.
fn has_the_bits_of_the_formula() {
    for (case, (n, k, block_rows, block_columns, names_blocks)) in test_cases().into_iter().enumerate() {
        let integers = std::array::from_fn(|value| value as f32);
        let mut floats = [0.0; 16];
        floats.copy_from_slice(&normal_numbers(16, 2, 1.0));
        let with_zeros = [CodeValues::Table(integers), CodeValues::U8, CodeValues::I8].map(|values| (values, true));
        let without = [CodeValues::Table(floats), CodeValues::E4m3].map(|values| (values, false));
        for (values, has_zeros) in with_zeros.into_iter().chain(without) {
            let mut random = RandomChoices::new(case as u64 + 1);
            let mut integer = |end: usize| random.random_u64() as usize % end;
            let codes = (0..n * k).map(|_| integer(values.count()) as u8);
            let codes: Vec<u8> = codes.map(|code| if values.value(code).is_nan() { 0 } else { code }).collect();
            let blocks = k.div_ceil(block_columns);
            let column_blocks: Vec<i32> = (0..k).map(|_| integer(blocks) as i32).collect();
            let [n32, k32, rows, columns] = [n, k, block_rows, block_columns].map(|size| size as u32);
            let (packed, table): (Vec<u8>, Vec<f32>) = match values {
                CodeValues::Table(table) => (codes.chunks(k).flat_map(pack_row).collect(), table.to_vec()),
                _ => (codes.clone(), Vec::new()),
            };
            let mut p = Params {
                codes: addr(&packed),
                values: if table.is_empty() { Addr::NULL } else { addr(&table) },
                scales: Addr::NULL,
                zeros: Addr::NULL,
                column_blocks: if names_blocks { addr(&column_blocks) } else { Addr::NULL },
                y: Addr::NULL,
                n: n32,
                k: k32,
                block_rows: rows,
                block_columns: columns,
                blocks: blocks as u32,
                kind: values.kind(),
            };
            let scales = normal_numbers(p.scale_count(), 3, 0.02);
            let zeros: Vec<f32> = (0..p.scale_count()).map(|_| integer(values.count()) as f32).collect();
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
                run(&dequantize(dtype, &Params { y: y.addr(), ..p }), 3);
                let rounded = |&x: &f64| if dtype == F32 { x as f32 } else { bf16::from_f32(x as f32).to_f32() };
                let want: Vec<u32> = want.iter().map(rounded).map(f32::to_bits).collect();
                let got: Vec<u32> = y.values().iter().map(|x| x.to_bits()).collect();
                assert!(got == want, "{values:?} {dtype} {n} {k} in blocks of {block_rows} x {block_columns}");
            }
        }
    }
}

/// Packs the codes of a row, two a byte.
fn pack_row(codes: &[u8]) -> impl Iterator<Item = u8> {
    codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |upper| upper << 4))
}
