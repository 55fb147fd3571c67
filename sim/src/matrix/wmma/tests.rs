use super::*;
use std::collections::HashMap;

const SHAPES: [&str; 3] = ["m16n16k16", "m32n8k16", "m8n32k16"];

/// Returns the opcode of every form.
fn forms() -> Vec<String> {
    let mut forms = Vec::new();
    for layouts in ["row.col", "row.row", "col.col", "col.row"] {
        for shape in SHAPES {
            for types in
                ["f16.f16", "f32.f32", "f16.f32", "f32.f16", "f32.bf16.bf16.f32", "s32.s8.s8.s32", "s32.u8.u8.s32"]
            {
                forms.push(format!("wmma.mma.sync.aligned.{layouts}.{shape}.{types}"));
            }
        }
        forms.push(format!("wmma.mma.sync.aligned.{layouts}.m16n16k8.f32.tf32.tf32.f32"));
        forms.push(format!("wmma.mma.sync.aligned.{layouts}.m8n8k4.f64.f64.f64.f64.rn"));
    }
    forms.push("wmma.mma.sync.aligned.row.col.m8n8k32.s32.s4.s4.s32".into());
    forms.push("wmma.mma.sync.aligned.row.col.m8n8k32.s32.u4.u4.s32.satfinite".into());
    forms
}

/// Returns a matrix of small integers, which every format represents exactly.
fn matrix(rows: usize, columns: usize, seed: usize) -> Vec<Vec<i64>> {
    (0..rows).map(|r| (0..columns).map(|c| ((r * 7 + c * 3 + seed * r * c) % 4) as i64).collect()).collect()
}

/// Returns the bits of an integer in the format named `ty`.
fn encode(ty: &str, value: i64) -> u64 {
    match ty {
        "f16" => half::f16::from_f64(value as f64).to_bits() as u64,
        "bf16" => half::bf16::from_f64(value as f64).to_bits() as u64,
        "f32" | "tf32" => (value as f32).to_bits() as u64,
        "f64" => (value as f64).to_bits(),
        _ => value as u64,
    }
}

/// Returns the registers of a fragment that hold a matrix.
fn gather(fragment: &Fragment, ty: &str, matrix: &[Vec<i64>]) -> Vec<Lanes> {
    let rows = if fragment.element_bits() == 64 { 2 } else { 1 };
    let mut out = vec![[0u32; 32]; rows * fragment.distinct_register_count()];
    for (register, out) in out.chunks_exact_mut(rows).enumerate() {
        for lane in 0..32 {
            let word = (0..fragment.elements_per_register()).fold(0, |word, element| {
                let (row, column) = fragment.element_row_and_column(register, element, lane);
                word | encode(ty, matrix[row][column]) << (element as u32 * fragment.element_bits())
            });
            let flat = out.as_flattened_mut();
            if rows == 2 {
                flat[2 * lane] = word as u32;
                flat[2 * lane + 1] = (word >> 32) as u32;
            } else {
                flat[lane] = word as u32;
            }
        }
    }
    out
}

#[test]
fn products_of_integers_are_exact_in_every_form() {
    for form in forms() {
        let op = WmmaOp::decode(&form).unwrap_or_else(|| panic!("{form}"));
        let types: Vec<&str> = form.split('.').skip(7).collect();
        let (d_type, a_type, c_type) = match types[..] {
            [d, c] => (d, "f16", c),
            [d, a, _, c, ..] => (d, a, c),
            _ => panic!("{form}"),
        };
        let (m, n, k) = (op.shape.m as usize, op.shape.n as usize, op.shape.k as usize);
        let (a, b, c) = (matrix(m, k, 1), matrix(k, n, 2), matrix(m, n, 5));
        let fragments = &op.fragments;
        let [a_rows, b_rows, c_rows] =
            [gather(&fragments[0], a_type, &a), gather(&fragments[1], a_type, &b), gather(&fragments[2], c_type, &c)];
        let [a_refs, b_refs, c_refs] = [&a_rows, &b_rows, &c_rows].map(|rows| rows.iter().collect::<Vec<_>>());
        let d = op.multiply_add(&a_refs, &b_refs, &c_refs);
        let product: Vec<Vec<i64>> = (0..m)
            .map(|i| (0..n).map(|j| c[i][j] + (0..k).map(|x| a[i][x] * b[x][j]).sum::<i64>()).collect())
            .collect();
        assert_eq!(d, gather(&fragments[3], d_type, &product), "{form}");
    }
}

#[test]
fn bit_products_count_bits() {
    for (op, count) in [("xor", 128), ("and", 0)] {
        let op = WmmaOp::decode(&format!("wmma.mma.{op}.popc.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32")).unwrap();
        let d = op.multiply_add(&[&[u32::MAX; 32]], &[&[0; 32]], &[&[5; 32], &[7; 32]]);
        assert_eq!(d, [[5 + count; 32], [7 + count; 32]]);
    }
}

#[test]
fn fragment_holds_every_element_once() {
    let forms = SHAPES.iter().flat_map(|s| ["f16", "bf16", "s8", "u8"].map(|ty| (*s, ty)));
    let forms = forms.chain([("m16n16k8", "tf32"), ("m8n8k4", "f64"), ("m8n8k32", "s4"), ("m8n8k128", "b1")]);
    for (shape, ty) in forms {
        let shape = WmmaShape::from_ptx_shape(shape).unwrap();
        let sum = if ty == "f64" {
            "f64"
        } else if ty.contains('f') {
            "f32"
        } else {
            "s32"
        };
        let fragments = [(MatrixRole::A, ty), (MatrixRole::B, ty), (MatrixRole::C, sum)];
        for (operand, ty) in fragments {
            let fragment = Fragment::new(shape, operand, ty).unwrap();
            let mut seen: HashMap<(usize, usize), u32> = HashMap::new();
            for register in 0..fragment.distinct_register_count() {
                for lane in 0..32 {
                    let places = (0..fragment.elements_per_register())
                        .map(|e| fragment.element_row_and_column(register, e, lane));
                    let places: Vec<_> = places.collect();
                    let (rows, columns) = shape.extent(operand);
                    for &(row, column) in &places {
                        assert!(row < rows && column < columns);
                        *seen.entry((row, column)).or_default() += 1;
                    }
                    for column_major in [false, true] {
                        let stride = fragment.default_stride_elements(column_major) as usize;
                        let at = |&(r, c): &(usize, usize)| if column_major { c * stride + r } else { r * stride + c };
                        let side_by_side = places.windows(2).all(|pair| at(&pair[1]) == at(&pair[0]) + 1);
                        assert_eq!(
                            side_by_side,
                            fragment.is_contiguous_per_register(column_major),
                            "{shape:?} {operand:?} {ty}"
                        );
                    }
                }
            }
            let (rows, columns) = shape.extent(operand);
            assert!(seen.len() == rows * columns && seen.values().all(|&n| n == 1), "{shape:?} {operand:?} {ty}");
        }
    }
}

#[test]
fn rejects_forms_that_do_not_exist() {
    for opcode in [
        "wmma.mma.sync.aligned.row.col.m16n16k8.f32.bf16.bf16.f32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.f16.f32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f16.bf16.bf16.f16",
        "wmma.mma.sync.aligned.row.col.m8n8k4.f64.f64.f64.f64.rz",
        "wmma.mma.sync.aligned.row.row.m8n8k32.s32.s4.s4.s32",
        "wmma.mma.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32",
        "wmma.mma.sync.aligned.row.col.m16n16k16.f32",
    ] {
        assert_eq!(WmmaOp::decode(opcode), None, "{opcode}");
    }
}
