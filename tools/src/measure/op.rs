//! Times kernels, matrix products and the output layer by name, for `reel bench op NAME`.

use reel_device::{DType, Device, OpTotals};
use reel_kernels::catalogue::{SizeError, Sizes, example_products, variants_of};

use crate::error::{Error, Result};
use crate::measure::ceilings::Ceilings;
use crate::measure::machine::PublishedLimits;
use crate::measure::timing::{TimedKernel, TimingDevice};
use crate::measure::{catalogue, lm_head};

/// An op, kernel or matrix product that can be timed.
pub struct OpTimer<'a> {
    /// Name of the kernel, product or op, with its dtype where the name has none.
    pub name: String,
    /// Times the op and returns one [`TimedKernel`] per kernel, or one per direction (forward, backward).
    pub time: Box<dyn FnOnce() -> Result<Vec<TimedKernel>> + 'a>,
}

/// The error for `--size KEY=VALUE` if the timed op has no size of that KEY.
pub fn unknown_size_error(e: SizeError) -> Error {
    Error::usage(format!("--size {}", e.key), e.what, e.help)
}

/// Returns a timer for each thing that `name` selects (the output layer, matrix products, or kernels of the
/// catalogue). Each timer makes `runs` runs.
///
/// With a `dtype`, only kernels of that dtype are selected, and kernels that have no dtype because they work on
/// indices. With `variants`, each variant of a kernel is timed in turns with the kernel itself. On a GPU, matrix products
/// are timed by cuBLASLt and in turns by the kernel of this project, if it has one.
///
/// # Errors
/// Nothing has that name and dtype, or the op does not have a given size.
pub fn op_timers<'a>(
    name: &str,
    sizes: &Sizes,
    dtype: Option<DType>,
    runs: usize,
    variants: bool,
    device: &'a Device,
    timing_device: &'a TimingDevice,
) -> Result<Vec<OpTimer<'a>>> {
    let wanted = |of: Option<DType>| of.is_none() || dtype.is_none() || of == dtype;
    let mut timers: Vec<OpTimer<'a>> = Vec::new();
    if name == "linear_log_prob_products" {
        let shape = lm_head::LmHeadShape::from_sizes(sizes).map_err(unknown_size_error)?;
        for dtype in [DType::F32, DType::BF16].into_iter().filter(|t| wanted(Some(*t))) {
            let shape = shape.clone();
            let time = Box::new(move || lm_head::time_lm_head(device, &shape, dtype, runs));
            timers.push(OpTimer { name: format!("{name} in {dtype}"), time });
        }
    } else if name.starts_with("matmul") {
        let all = example_products(sizes).map_err(unknown_size_error)?;
        let found = all.into_iter().filter(|p| name == "matmul" || p.name == name);
        for product in found.filter(|p| wanted(Some(p.dtype))) {
            let name = product.name.to_string();
            let time = Box::new(move || timing_device.time_product(&product, runs, variants));
            timers.push(OpTimer { name, time });
        }
    } else {
        let usual = catalogue::find_example_calls(name)?;
        let names: Vec<&str> = usual.iter().map(|(_, e)| e.launch.kernel.name).collect();
        let all = usual[0].0.examples_with_sizes(sizes).map_err(unknown_size_error)?;
        let found = all.into_iter().filter(|e| names.contains(&e.launch.kernel.name));
        for example in found.filter(|e| wanted(catalogue::dtype_of_kernel(e.launch.kernel.name))) {
            let variants: Vec<_> = variants_of(example.launch.kernel).filter(|_| variants).collect();
            let name = match variants.len() {
                0 => example.launch.kernel.name.to_string(),
                n => format!("{} and its {n} variants", example.launch.kernel.name),
            };
            let time = Box::new(move || timing_device.time_variants(&example, &variants, runs));
            timers.push(OpTimer { name, time });
        }
    }
    if timers.is_empty() {
        if let Some(e) = dtype.and_then(|dtype| other_dtype_error(name, dtype, sizes)) {
            return Err(e);
        }
        let help = "give `matmul`, or a name from `reel kernels list` in the dtype that you want";
        return Err(Error::usage(
            name,
            "is not the name of a kernel, a matrix product or an op that can be timed",
            help,
        ));
    }
    Ok(timers)
}

/// The error for a kernel name that contains a dtype, such as `rms_norm_fwd_f32`, together with a different `dtype`.
/// `None` if `name` is neither a kernel nor a matrix product.
fn other_dtype_error(name: &str, dtype: DType, sizes: &Sizes) -> Option<Error> {
    let is_name = |name: &str| {
        catalogue::find_example_calls(name).is_ok()
            || example_products(sizes).is_ok_and(|all| all.iter().any(|product| product.name == name))
    };
    let of = catalogue::dtype_of_kernel(name).filter(|of| *of != dtype && is_name(name))?;
    let twin = format!("{}{dtype}", name.strip_suffix(&of.to_string())?);
    let help = match is_name(&twin) {
        true => format!("leave out --dtype, or give {twin}"),
        false => "leave out --dtype".to_string(),
    };
    Some(Error::usage(name, format!("is a kernel of {of}, not of {dtype}"), help))
}

/// The least possible seconds of a timed call on a machine with these ceilings. The caches were overwritten before, so
/// every byte comes from memory.
pub fn roofline_seconds(kernel: &TimedKernel, ceilings: &Ceilings) -> f64 {
    ceilings.roofline_seconds_from_memory(kernel.kernel, kernel.cost, kernel.dtype)
}

/// Least possible time divided by the measured median time: 1 if the call is as fast as the roofline allows, never
/// more. `None` if it was faster than the GPU's data sheet allows: then its operations or bytes are counted wrong.
pub fn roofline_share(kernel: &TimedKernel, ceilings: &Ceilings) -> Option<f64> {
    // The share exceeds 1 only if `raised_ceilings` could not raise the ceilings to the measured time because the
    // data sheet limits them.
    let share = roofline_seconds(kernel, ceilings) / kernel.timed.median_seconds();
    (share <= 1.0 + 1e-9).then(|| share.min(1.0))
}

/// Returns the ceilings, raised until they allow the measured time of the call, but not above `limits`.
pub fn raised_ceilings(kernel: &TimedKernel, ceilings: Ceilings, limits: Option<&PublishedLimits>) -> Ceilings {
    let from_memory = Ceilings { cache: None, ..ceilings };
    let (cost, seconds) = (kernel.cost, kernel.timed.median_seconds());
    let totals = OpTotals { launches: 1, cost, seconds, ..OpTotals::default() };
    let raised = from_memory.raised_to_measured_launches(kernel.kernel, &totals, kernel.dtype);
    let raised = limits.map_or(raised, |limits| raised.limited_to(&limits.rates));
    Ceilings { cache: ceilings.cache, ..raised }
}
