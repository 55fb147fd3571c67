//! Runs launches of checks on a GPU, and compares their results with the simulator's.
#![allow(unsafe_code)]

use half::bf16;
use reel_device::cuda::{Buffer, CudaError, Gpu};
use reel_device::launch::KernelLaunch;

use super::arrays::{ArrayOperand, CheckArray, arrays_of_launch, parameter_operands, table_operands};
use super::{RUNNING, on_sim};

/// The difference between a launch's results on a GPU and on the simulator.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuComparison {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Number of elements of the arrays that the launch may have written.
    pub elements: usize,
    /// Number of elements whose bits differ.
    pub different: usize,
    /// The largest relative L2 distance between the two results of any array. It is infinite if NaN or infinities are
    /// at different indices, or if integers differ.
    pub distance: f64,
}

/// Guard bytes before and after each array, which a kernel must not write.
const GUARD: usize = 256;
/// The byte that fills guards and unwritten arrays. Elements of every float type then read as NaN.
const PATTERN: u8 = 0xff;

/// The GPU copy of an array, with guard bytes before and after it. Its address has the same remainder modulo 256 as
/// the address of the host array.
struct Placed {
    array: CheckArray,
    buffer: Buffer,
    start: usize,
}

impl Placed {
    fn new(gpu: &Gpu, array: CheckArray) -> Result<Placed, CudaError> {
        let start = GUARD + array.at as usize % 256;
        let buffer = gpu.alloc(start + array.bytes + GUARD)?;
        gpu.fill(&buffer, PATTERN)?;
        if array.written {
            gpu.upload(&buffer, start, &array.read())?;
        }
        Ok(Placed { array, buffer, start })
    }

    /// Downloads the array from the GPU.
    ///
    /// # Panics
    /// If a guard was overwritten.
    fn result(&self, gpu: &Gpu, kernel: &str) -> Result<Vec<u8>, CudaError> {
        let mut all = vec![0; self.buffer.len()];
        gpu.download(&self.buffer, 0, &mut all)?;
        let end = self.start + self.array.bytes;
        let mut outside = all[..self.start].iter().chain(&all[end..]);
        assert!(
            outside.all(|&b| b == PATTERN),
            "{kernel}: wrote outside an array of {} bytes with elements of type {}",
            self.array.bytes,
            self.array.element
        );
        Ok(all[self.start..end].to_vec())
    }
}

/// Runs a launch on the GPU.
///
/// # Panics
/// If the GPU fails, or a kernel writes outside an array.
pub fn run(gpu: &Gpu, launch: &KernelLaunch) {
    let arrays = arrays_of_launch(launch);
    let (seed, compare) = RUNNING.with_borrow(|r| (r.setup.seed, r.setup.compare));
    let simulated = compare.then(|| on_sim::simulated_array_contents(launch, &arrays, seed.wrapping_mul(8)));
    let results = match on_gpu(gpu, launch, &arrays) {
        Ok(results) => results,
        Err(e) => panic!("{}: {e}", launch.kernel.name),
    };
    if let Some(simulated) = simulated {
        let compared = compare_all(launch.kernel.name, &arrays, &results, &simulated);
        RUNNING.with_borrow_mut(|r| r.ran.compared.push(compared));
    }
    for (array, result) in arrays.iter().zip(&results) {
        array.write(result);
    }
}

fn on_gpu(gpu: &Gpu, launch: &KernelLaunch, arrays: &[CheckArray]) -> Result<Vec<Vec<u8>>, CudaError> {
    let placed = arrays.iter().map(|a| Placed::new(gpu, *a)).collect::<Result<Vec<_>, _>>()?;
    let place = |array: &CheckArray| {
        placed.iter().find(|p| p.array == *array).expect("the GPU has a copy of every operand's array")
    };
    let with_addresses_of_copies = |mut bytes: Vec<u8>, operands: Vec<ArrayOperand>| {
        for ArrayOperand { offset, array, array_offset } in operands {
            let place = place(&array);
            let address = place.buffer.address() + (place.start + array_offset) as u64;
            bytes[offset..offset + 8].copy_from_slice(&address.to_le_bytes());
        }
        bytes
    };
    let operands = parameter_operands(launch);
    let mut tables = Vec::new();
    for operand in &operands {
        let field = launch.kernel.fields.iter().find(|f| f.offset == operand.offset);
        if let Some(table) = field.and_then(|f| launch.table_of(f)) {
            let bytes = with_addresses_of_copies(table.bytes().to_vec(), table_operands(table));
            let to = place(&operand.array);
            gpu.upload(&to.buffer, to.start + operand.array_offset, &bytes)?;
            tables.push(operand.array);
        }
    }
    let params = with_addresses_of_copies(launch.params.to_vec(), operands);
    for _ in 0..RUNNING.with_borrow(|r| r.repeats) {
        // SAFETY: the addresses point to GPU copies of the check's arrays, which live until after the wait.
        unsafe { gpu.launch(launch.kernel, &params)? }
    }
    gpu.synchronize()?;
    // A kernel does not write its tables. The host array is returned for them, because the tables on the GPU hold
    // other addresses.
    let result = |p: &Placed| {
        let bytes = p.result(gpu, launch.kernel.name)?;
        Ok(if tables.contains(&p.array) { p.array.read() } else { bytes })
    };
    placed.iter().map(result).collect()
}

fn compare_all(kernel: &'static str, arrays: &[CheckArray], got: &[Vec<u8>], want: &[Vec<u8>]) -> GpuComparison {
    let mut all = GpuComparison { kernel, elements: 0, different: 0, distance: 0.0 };
    for ((array, got), want) in arrays.iter().zip(got).zip(want) {
        let before = array.read();
        if *got == before && *want == before {
            continue;
        }
        let values = |bytes: &[u8]| -> Option<Vec<f64>> {
            Some(match array.element {
                "f32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64).collect(),
                "f64" => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight"))).collect(),
                e if e.ends_with("bf16") => {
                    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
                }
                _ => return None,
            })
        };
        let size = match array.element {
            "f64" | "i64" | "u64" => 8,
            "f32" | "i32" | "u32" => 4,
            "i8" | "u8" => 1,
            e if e.ends_with("f16") || e.ends_with("16") => 2,
            _ => 1,
        };
        let different = got.chunks(size).zip(want.chunks(size)).filter(|(g, w)| g != w).count();
        all.elements += got.len() / size;
        all.different += different;
        let distance = match (values(got), values(want)) {
            (Some(got), Some(want)) => distance(&got, &want),
            _ if different == 0 => 0.0,
            _ => f64::INFINITY,
        };
        all.distance = all.distance.max(distance);
    }
    all
}

/// Returns the relative L2 distance of `got` from `want`. It is infinite if NaN or infinite values differ.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        if g.is_finite() && w.is_finite() {
            difference += (g - w) * (g - w);
            size += w * w;
        } else if !(g == w || g.is_nan() && w.is_nan()) {
            return f64::INFINITY;
        }
    }
    if difference == 0.0 { 0.0 } else { (difference / if size > 0.0 { size } else { 1.0 }).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances() {
        assert_eq!(distance(&[1.0, f64::NAN], &[1.0, f64::NAN]), 0.0);
        assert_eq!(distance(&[1.0, 2.0], &[1.0, f64::NAN]), f64::INFINITY);
        assert_eq!(distance(&[f64::INFINITY], &[f64::NEG_INFINITY]), f64::INFINITY);
        assert_eq!(distance(&[3.0, 4.5], &[3.0, 4.0]), 0.1);
        assert_eq!(distance(&[0.5], &[0.0]), 0.5);
    }
}
