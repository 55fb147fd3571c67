use super::{CopyParams, copy, formula, test_shapes};
use crate::DType::{BF16, F32};
use crate::checks::{TestArray, checks, normal_numbers, run};

checks!(copies_the_block_and_nothing_else);

fn copies_the_block_and_nothing_else() {
    for shape in test_shapes() {
        for dtype in [F32, BF16] {
            let src = TestArray::new(dtype, &normal_numbers(shape.rows * shape.src_cols, 1, 1.0));
            let dst = TestArray::new(dtype, &normal_numbers(shape.rows * shape.dst_cols, 2, 1.0));
            let want = formula::copy(&src.values(), &dst.values(), shape);
            let params = CopyParams {
                src: src.addr(),
                dst: dst.addr(),
                rows: shape.rows as u32,
                width: shape.width as u32,
                src_cols: shape.src_cols as u32,
                src_start: shape.src_start as u32,
                dst_cols: shape.dst_cols as u32,
                dst_start: shape.dst_start as u32,
            };
            run(&copy(dtype, &params), 2);
            assert_eq!(dst.values(), want, "{dtype} {shape:?}");
        }
    }
}
