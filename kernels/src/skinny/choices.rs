//! Choices of the launch plans of skinny GEMM that depend on the GPU's architecture, and the number of rows up to which
//! these kernels compute a product.

use crate::tuning::choices_for_sm;

/// How blocks divide a product and copy its weight to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyScheme {
    /// Each lane copies the 16-byte units that it multiplies (`cp.async`), and the warps of a block divide the sums.
    Units,
    /// One warp copies tiles for the other warps by tensor copies (compute capability 9.0), if all addresses and the
    /// bytes of a row are multiples of 16 and x is bf16. Other operands are copied as in `Units`.
    Tiles,
}

/// The choices of skinny-GEMM launch plans on one GPU architecture.
pub struct PlanChoices {
    /// How blocks divide a product and copy the weight to shared memory.
    pub(super) scheme: CopyScheme,
    /// The condition for 32 columns per block instead of 16, in the scheme `Units`.
    pub(super) wide_blocks: MinWideBlocks,
    /// Maximum number of rows of x for which these kernels compute products with a bf16 weight; cuBLASLt computes
    /// products with more rows. `reel bench op` times `skinny` and `matmul` at a given size.
    pub max_rows: usize,
    /// Maximum number of rows of x that a product with a preceding norm normalises in the same launch, bit-identical
    /// to [`crate::rms_norm`]. Every block normalises all its rows again, so with more rows a separate launch for the
    /// norm is faster.
    pub norm_max_rows: usize,
    /// Maximum number of rows of x for which these kernels compute the output layer (logits) in decoding, like
    /// `max_rows` for other products.
    pub logits_max_rows: usize,
}

/// Products with at most this many rows use the first of the two numbers of [`MinWideBlocks`].
pub(super) const FEW_ROWS: u32 = 16;

/// Blocks have 32 columns instead of 16 if there are then at least this many blocks for every four multiprocessors. The
/// first number is for up to [`FEW_ROWS`] rows, the second for more rows, since each block reads all rows again.
pub(super) struct MinWideBlocks {
    /// With bf16 x and a bf16 weight.
    pub(super) bf16: [u64; 2],
    /// For a bf16 x and an int8 weight.
    pub(super) int8: [u64; 2],
    /// With f32 x.
    pub(super) f32: [u64; 2],
}

/// The choices by compute capability.
///
/// The choices for 8.0 are not measured: two blocks are resident per multiprocessor, and with up to 64 rows a weight is
/// read once. The choices for 9.0 follow times on an H200 (`tools/benches/results/h200/2026-11-27-kernels.json` and
/// `2026-11-27-models.json`): prototypes of the kernels by tiles read weights of 3584 to 37888 rows at 3.94 to 4.16
/// TB/s with up to 16 rows; kernels that copy units reached 2.1. More rows were not measured.
static TABLE: [(u32, PlanChoices); 2] = [
    (
        80,
        PlanChoices {
            scheme: CopyScheme::Units,
            wide_blocks: MinWideBlocks { bf16: [8, 3], int8: [8, 3], f32: [8, 3] },
            max_rows: 64,
            norm_max_rows: 16,
            logits_max_rows: 64,
        },
    ),
    (
        90,
        PlanChoices {
            scheme: CopyScheme::Tiles,
            wide_blocks: MinWideBlocks { bf16: [24, 3], int8: [3, 3], f32: [8, 3] },
            max_rows: 64,
            norm_max_rows: 64,
            logits_max_rows: 64,
        },
    ),
];

/// Returns the choices for a GPU; `sm` is its compute capability times ten.
pub fn plan_choices(sm: u32) -> &'static PlanChoices {
    choices_for_sm(&TABLE, sm)
}

#[cfg(test)]
mod tests {
    use reel_device::{Arch, Kernel};

    use super::super::FOLDER;
    use crate::catalogue::variants_of;
    use crate::folder::Sizes;

    #[test]
    fn a_plan_of_a_product_of_a_few_rows_is_that_of_a_variant() {
        for (batch, n) in [(1, 3584), (16, 3584), (64, 3584), (1, 18944), (16, 18944), (64, 18944), (1, 152_064)] {
            let sizes = [("batch", batch), ("n", n), ("k", 3584)].map(|(name, size)| (name.to_string(), size));
            let examples = FOLDER.examples_with_sizes(&Sizes::new(sizes).unwrap()).unwrap();
            for launch in examples.iter().map(|example| &example.launch) {
                for arch in [Arch::A100, Arch::H100] {
                    let plan = |kernel: &Kernel| (kernel.plan)(&launch.params, &arch);
                    let all: Vec<_> = variants_of(launch.kernel).map(|v| plan(v.kernel)).collect();
                    assert!(
                        all.is_empty() || all.contains(&plan(launch.kernel)),
                        "{batch} {n} {:?}: {all:?}",
                        launch.kernel
                    );
                    let tiles = all.iter().filter(|stages| !stages[0].tensor_maps.is_empty()).count();
                    assert_eq!(tiles > 0, arch.sm >= 90 && !all.is_empty(), "{:?}", launch.kernel);
                }
            }
        }
    }

    #[test]
    fn an_h100_plans_what_was_fastest_on_an_h200() {
        let skinny = |name: &str, batch: usize, n: usize| {
            let sizes = [("batch", batch), ("n", n), ("k", 3584)].map(|(name, size)| (name.to_string(), size as u64));
            let examples = FOLDER.examples_with_sizes(&Sizes::new(sizes).unwrap()).unwrap();
            let launch = &examples.iter().find(|e| e.launch.kernel.name == name).unwrap().launch;
            (launch.kernel.plan)(&launch.params, &Arch::H100)[0].symbol
        };
        let products = [
            ("skinny_linear_bf16", 3584, 64, Some(32)),
            ("skinny_linear_bf16", 18944, 144, Some(160)),
            ("skinny_linear_int8_bf16", 3584, 64, None),
            ("skinny_swiglu_bf16", 18944, 144, Some(160)),
            ("skinny_logits_bf16", 152_064, 144, Some(160)),
            ("skinny_qkv_bf16", 18944, 64, Some(32)),
        ];
        for (rows, tiles) in [(1, "x1"), (8, "x1"), (9, "x2"), (16, "x2"), (32, "x4"), (33, "x8"), (64, "x8")] {
            for (name, n, width, of_clusters) in products {
                let symbol = match of_clusters.filter(|_| rows > 16) {
                    Some(columns) => format!("{name}_clusters_{columns}"),
                    None => format!("{name}_{width}_{tiles}"),
                };
                assert_eq!(skinny(name, rows, n), symbol);
            }
        }
    }
}
