//! Checks the operations that are fused with products (norm, residual, SwiGLU, rotation). They are bit-identical to
//! the separate launches that training uses.

use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{Given, NORM_CASES_M_N_K, WeightFormat, bits};
use crate::checks::{TestArray, run, run_once};
use crate::skinny::{Params, linear, swiglu};
use crate::{elementwise, swiglu as swiglu_alone};

pub(super) fn a_residual_is_added_as_by_a_launch_of_its_own() {
    for_all_types(|dtype, kind, case| {
        let given = Given::new(dtype, kind, case);
        let count = case.0 * case.1;
        let [product, want, got] = [(); 3].map(|()| TestArray::output(dtype, count));
        let without =
            Params { w2: Addr::NULL, scale2: Addr::NULL, bias: given.bias.addr(), ..given.params(&product, case.0) };
        run_once(&linear(dtype, kind, &without));
        let (a, b) = (product.addr(), given.residual.addr());
        run_once(&elementwise::add(dtype, &elementwise::AddParams { a, b, y: want.addr(), count: count as u64 }));
        run(&linear(dtype, kind, &Params { residual: b, y: got.addr(), ..without }), 2);
        assert!(bits(&got) == bits(&want), "{dtype} {kind:?} {case:?}");
    });
}

pub(super) fn swiglu_has_the_bits_of_products_and_of_a_launch_of_its_own() {
    for_all_types(|dtype, kind, case| {
        let given = Given::new(dtype, kind, case);
        let (m, n, _) = case;
        let [gate, up, want, got] = [(); 4].map(|()| TestArray::output(dtype, m * n));
        let both = given.params(&got, m);
        for (w, scale, y) in [(both.w, both.scale, &gate), (both.w2, both.scale2, &up)] {
            let one = Params { w, scale, y: y.addr(), w2: Addr::NULL, scale2: Addr::NULL, ..both };
            run_once(&linear(dtype, kind, &one));
        }
        let (count, cols) = ((m * n) as u64, n as u64);
        let (gate, up, y) = (gate.addr(), up.addr(), want.addr());
        run_once(&swiglu_alone::fwd(dtype, &swiglu_alone::FwdParams { gate, up, y, count, cols, stride: cols }));
        run(&swiglu(dtype, kind, &both), 2);
        assert!(bits(&got) == bits(&want), "{dtype} {kind:?} {case:?}");
    });
}

fn for_all_types(mut f: impl FnMut(DType, WeightFormat, (usize, usize, usize))) {
    for dtype in [F32, BF16] {
        for kind in [WeightFormat::Bf16, WeightFormat::Int8] {
            NORM_CASES_M_N_K.into_iter().for_each(|case| f(dtype, kind, case));
        }
    }
}
