use super::{CopyParams, copy, formula, test_shapes};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, checks, normal_numbers, run};

checks!(copies_the_block_and_nothing_else);

fn copies_the_block_and_nothing_else() {
    for shape in test_shapes() {
        for dtype in [F32, BF16] {
            let [rows, width, src_cols, src_start, dst_cols, dst_start] = shape.map(|x| x as u32);
            let src = TestArray::new(dtype, &normal_numbers(shape[0] * shape[2], 1, 1.0));
            let dst = TestArray::new(dtype, &normal_numbers(shape[0] * shape[4], 2, 1.0));
            let want = formula::copy(&src.values(), &dst.values(), shape);
            let params =
                CopyParams { src: src.addr(), dst: dst.addr(), rows, width, src_cols, src_start, dst_cols, dst_start };
            run(&copy(dtype, &params), 2);
            assert_eq!(dst.values(), want, "{dtype} {shape:?}");
        }
    }
}
