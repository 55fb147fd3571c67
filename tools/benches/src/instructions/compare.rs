//! Compares the simulator's output of a case with the GPU's. For approximate instructions, also compares the errors
//! of both results with the error bound that PTX documents.

use super::InstructionCase;
use super::format::FloatFormat;
use serde_json::{Value, json};

/// How the results of the simulator and of a GPU differ on one case.
#[derive(Clone, Debug, Default)]
pub struct CaseComparison {
    /// Number of compared results over all lanes; packed numbers in one register count separately.
    pub results: usize,
    /// Number of results that differ and are not both NaN.
    pub different: usize,
    /// Number of results that are NaN on both sides but have different bits.
    pub nan_bits: usize,
    /// The first result that differs, with its inputs, as JSON.
    pub first: Option<Value>,
    /// The first result that is NaN on both sides with different bits, as JSON.
    pub first_nan: Option<Value>,
    /// The largest difference of two finite results, relative to the larger magnitude of the two.
    pub relative: f64,
    /// For an approximate instruction: the errors of the simulator and of the GPU.
    pub approximation: Option<[ApproximationErrors; 2]>,
    /// For a sum of products: the largest difference between simulator and GPU, relative to the sum of the products'
    /// magnitudes.
    pub sum: Option<f64>,
}

/// The errors of an approximate instruction over all inputs, on the simulator or on the GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApproximationErrors {
    /// The largest error, as a multiple of the allowed error.
    pub largest: f64,
    /// Number of results of another kind (NaN, infinite or finite) than the exact result.
    pub other_kind: usize,
    /// The lane with the largest error.
    pub lane: usize,
}

impl CaseComparison {
    /// Tells whether the simulator's results agree with the GPU's.
    pub fn results_agree(&self, case: &InstructionCase) -> bool {
        match (&self.approximation, self.sum) {
            (Some(both), _) => both.iter().all(|e| e.largest <= 1.0 && e.other_kind == 0),
            (_, Some(sum)) => sum <= case.tolerance,
            _ => self.different == 0,
        }
    }

    /// The comparison as one JSON line of the program's output.
    pub fn to_json_line(&self, case: &InstructionCase) -> Value {
        let mut record = json!({
            "name": case.name, "agree": self.results_agree(case), "lanes": case.lanes, "results": self.results,
            "different": self.different, "nan_bits": self.nan_bits,
        });
        if let Some(first) = &self.first {
            record["first"] = first.clone();
            record["relative"] = json!(self.relative);
        }
        if let Some(first) = &self.first_nan {
            record["first_nan"] = first.clone();
        }
        if let Some(both) = &self.approximation {
            for (who, e) in ["sim", "gpu"].into_iter().zip(both) {
                let lane = inputs(case, e.lane);
                record[format!("{who}_error")] =
                    json!({"of_allowed": e.largest, "at": lane, "other_kind": e.other_kind});
            }
        }
        if let Some(sum) = self.sum {
            record["relative_to_magnitudes"] = json!(sum);
            record["tolerance"] = json!(case.tolerance);
        }
        record
    }
}

fn inputs(case: &InstructionCase, lane: usize) -> Vec<String> {
    (0..case.sources.len()).map(|k| format!("{:#x}", case.operand_word(&case.input, k, lane))).collect()
}

/// Compares the outputs of the simulator and of a GPU. For a sum of products, `magnitudes` are the simulator's results
/// for the same input with all sign bits cleared.
pub fn compare_outputs(case: &InstructionCase, sim: &[u8], gpu: &[u8], magnitudes: Option<&[u8]>) -> CaseComparison {
    let mut all = CaseComparison { sum: magnitudes.map(|_| 0.0), ..CaseComparison::default() };
    let approximation = Approximation::documented(&case.name);
    let mut errors = [ApproximationErrors::default(); 2];
    for lane in 0..case.lanes {
        for (k, &format) in case.results.iter().enumerate() {
            let (s, g) = (case.operand_word(sim, k, lane), case.operand_word(gpu, k, lane));
            let (count, float) = format.packed_number_count_and_format().map_or((1, None), |(n, f)| (n, Some(f)));
            for part in 0..count {
                let cut = |word: u64| {
                    float.map_or(word, |f| word >> (f.bit_width() * part) & (u64::MAX >> (64 - f.bit_width())))
                };
                let (s, g) = (cut(s), cut(g));
                all.results += 1;
                let Some(f) = float else {
                    all.note(case, lane, k, s, g);
                    continue;
                };
                let (a, b) = (f.decode(s), f.decode(g));
                if let Some(approximation) = &approximation {
                    let args: Vec<f64> = (0..case.sources.len())
                        .map(|j| f.decode(cut(case.operand_word(&case.input, j, lane))))
                        .collect();
                    errors[0].add(approximation, f, &args, a, lane);
                    errors[1].add(approximation, f, &args, b, lane);
                }
                if let (Some(sum), Some(magnitudes)) = (&mut all.sum, magnitudes) {
                    let of = f.decode(cut(case.operand_word(magnitudes, k, lane)));
                    *sum = sum.max(if s == g { 0.0 } else { (a - b).abs() / of });
                }
                if s != g && a.is_nan() && b.is_nan() {
                    all.nan_bits += 1;
                    all.first_nan.get_or_insert_with(|| difference(case, lane, k, s, g));
                } else {
                    if s != g && a.is_finite() && b.is_finite() {
                        all.relative = all.relative.max((a - b).abs() / a.abs().max(b.abs()));
                    }
                    all.note(case, lane, k, s, g);
                }
            }
        }
    }
    all.approximation = approximation.map(|_| errors);
    all
}

impl CaseComparison {
    fn note(&mut self, case: &InstructionCase, lane: usize, k: usize, sim: u64, gpu: u64) {
        if sim != gpu {
            self.different += 1;
            self.first.get_or_insert_with(|| difference(case, lane, k, sim, gpu));
        }
    }
}

/// Returns, as JSON, the inputs of a lane and its result number `k` on the simulator and on the GPU.
fn difference(case: &InstructionCase, lane: usize, k: usize, sim: u64, gpu: u64) -> Value {
    let (sim, gpu) = (format!("{sim:#x}"), format!("{gpu:#x}"));
    json!({"lane": lane, "result": k, "inputs": inputs(case, lane), "sim": sim, "gpu": gpu})
}

/// The exact function of an approximate instruction, and the bound of its error that PTX documents.
struct Approximation {
    exact: fn(&[f64]) -> f64,
    /// Returns the allowed error, given the arguments and the exact value; `None` if PTX documents no bound.
    allowed: fn(&[f64], f64, FloatFormat) -> Option<f64>,
    /// True if the instruction treats subnormal arguments and results as 0.
    flush: bool,
    /// True if the instruction defines only the upper 32 bits of its f64 result.
    upper: bool,
}

/// Returns the distance between neighbouring numbers of format `f` (1 ulp) near `exact`.
fn unit(exact: f64, f: FloatFormat) -> f64 {
    let exponent = exact.abs().log2().floor().max(f64::from(1 - f.max_exponent()));
    2f64.powf(exponent - f64::from(f.fraction))
}

impl Approximation {
    /// Returns the function and the error bound that PTX documents for an instruction; `None` if it is not
    /// approximate.
    fn documented(name: &str) -> Option<Approximation> {
        let opcode = name.split(' ').next().unwrap_or(name);
        let parts: Vec<&str> = opcode.split('.').collect();
        let has = |p: &str| parts.contains(&p);
        if !(has("approx") || has("full")) {
            return None;
        }
        let flush = has("ftz") || has("bf16") && parts[0] == "ex2" || has("bf16x2") && parts[0] == "ex2";
        let wide = has("f64");
        let half = has("f16") || has("f16x2");
        let bfloat = has("bf16") || has("bf16x2");
        let exact: fn(&[f64]) -> f64 = match parts[0] {
            "div" => |x| x[0] / x[1],
            "rcp" => |x| 1.0 / x[0],
            "sqrt" => |x| x[0].sqrt(),
            "rsqrt" => |x| 1.0 / x[0].sqrt(),
            "ex2" => |x| x[0].exp2(),
            "lg2" => |x| x[0].log2(),
            "sin" => |x| x[0].sin(),
            "cos" => |x| x[0].cos(),
            "tanh" => |x| x[0].tanh(),
            _ => return None,
        };
        let allowed: fn(&[f64], f64, FloatFormat) -> Option<f64> = match parts[0] {
            "div" if has("full") => |_, y, f| Some(2.0 * unit(y, f)),
            "div" => |x, y, f| (2f64.powi(-126)..=2f64.powi(126)).contains(&x[1].abs()).then(|| 2.0 * unit(y, f)),
            // PTX documents only the upper 20 bits of the fraction of these f64 results, so an error below 2^-20 is
            // allowed.
            "rcp" | "rsqrt" if wide && flush => |_, y, _| Some(2f64.powi(-20) * y.abs()),
            "rsqrt" if wide => |_, y, f| Some(2f64.powi(-51) * y.abs() + unit(y, f)),
            "rcp" => |_, y, f| Some(unit(y, f)),
            "sqrt" => |_, y, f| Some(2f64.powi(-23) * y.abs() + 0.5 * unit(y, f)),
            "rsqrt" => |_, y, _| Some(2f64.powf(-22.9) * y.abs()),
            // PTX documents a relative error of 2^-9.9. One ulp is added because subnormal results of an H200 are off
            // by up to 1 ulp.
            "ex2" if half => |_, y, f| Some(2f64.powf(-9.9) * y.abs() + unit(y, f)),
            "ex2" if bfloat => |_, y, _| Some(2f64.powi(-7) * y.abs()),
            "ex2" => |_, y, f| Some(2.0 * unit(y, f)),
            "lg2" => |x, y, _| Some(2f64.powi(-22) * if (0.5..=2.0).contains(&x[0]) { 1.0 } else { y.abs() }),
            "sin" | "cos" => |x, _, _| match x[0].abs() / std::f64::consts::PI {
                turns if turns <= 2.0 => Some(2f64.powf(-20.5)),
                turns if turns <= 100.0 => Some(2f64.powf(-14.7)),
                _ => None,
            },
            _ if half => |_, _, _| Some(2f64.powf(-10.987)),
            // PTX documents the bound 2^-8 as a rounded number: the largest error of an H200 is slightly above it.
            _ if bfloat => |_, _, _| Some(2f64.powi(-8) * 1.001),
            _ => |_, y, _| Some(2f64.powi(-11) * y.abs()),
        };
        Some(Approximation { exact, allowed, flush, upper: wide && flush })
    }
}

impl ApproximationErrors {
    fn add(&mut self, approximation: &Approximation, f: FloatFormat, args: &[f64], got: f64, lane: usize) {
        let least = 2f64.powi(1 - f.max_exponent());
        let flushed = |x: &f64| if approximation.flush && x.abs() < least { 0f64.copysign(*x) } else { *x };
        let cut = |x: f64| if approximation.upper { f64::from_bits(x.to_bits() >> 32 << 32) } else { x };
        let args: Vec<f64> = args.iter().map(|x| cut(flushed(x))).collect();
        let exact = (approximation.exact)(&args);
        let Some(allowed) = (approximation.allowed)(&args, exact, f) else { return };
        let largest = f.decode(f.largest_finite());
        let same_kind = if exact.is_nan() {
            got.is_nan()
        } else if exact.abs() > largest * (1.0 - 2f64.powi(-(f.fraction as i32))) {
            got.is_infinite() && got.signum() == exact.signum() || exact.is_finite() && got.abs() >= largest * 0.999
        } else {
            got.is_finite()
        };
        if !same_kind {
            self.other_kind += 1;
        } else if got.is_finite() && exact.is_finite() && exact.abs() < largest {
            let slack = if approximation.flush && exact.abs() < 2.0 * least { least } else { 2f64.powi(-1074) };
            let error = (got - exact).abs() / (allowed + slack);
            if error > self.largest {
                (self.largest, self.lane) = (error, lane);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{THREADS_PER_BLOCK, instruction_cases, run};
    use super::*;

    fn outputs(name: &str) -> (InstructionCase, Vec<u8>) {
        let case = instruction_cases(name, THREADS_PER_BLOCK).into_iter().find(|c| c.name == name).expect(name);
        let sim = run::run_on_simulator(&case, &case.input).unwrap();
        (case, sim)
    }

    #[test]
    fn a_changed_bit_is_a_difference() {
        for (name, lane) in
            [("add.s32 r=rr", 0), ("fma.rn.bf16x2 y=yyy", 77), ("add.sat.f32 f=ff", THREADS_PER_BLOCK - 1)]
        {
            let (case, sim) = outputs(name);
            assert!(compare_outputs(&case, &sim, &sim, None).results_agree(&case));
            let mut other = sim.clone();
            other[8 * lane] ^= 1;
            let compared = compare_outputs(&case, &sim, &other, None);
            let nan = compared.nan_bits;
            assert_eq!((compared.different + nan, compared.results_agree(&case)), (1, nan == 1), "{name}");
        }
    }

    #[test]
    fn approximations_are_measured() {
        let (case, sim) = outputs("sin.approx.f32 f=f");
        assert!(compare_outputs(&case, &sim, &sim, None).results_agree(&case));
        let mut other = sim.clone();
        for word in other.chunks_exact_mut(8) {
            word[2] ^= 0x40;
        }
        let compared = compare_outputs(&case, &sim, &other, None);
        let [ours, theirs] = compared.approximation.unwrap();
        assert!(ours.largest <= 1.0 && theirs.largest > 1000.0 && !compared.results_agree(&case));
    }

    #[test]
    fn sums_are_measured_by_their_magnitudes() {
        let (case, sim) = outputs("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 Moderate");
        let magnitudes = run::run_on_simulator(&case, case.magnitudes.as_ref().unwrap()).unwrap();
        let mut other = sim.clone();
        let value = f32::from_le_bytes(sim[..4].try_into().unwrap());
        let of = f32::from_le_bytes(magnitudes[..4].try_into().unwrap());
        assert!(of >= value.abs());
        other[..4].copy_from_slice(&(value + of / 64.0).to_le_bytes());
        let compared = compare_outputs(&case, &sim, &other, Some(&magnitudes));
        let sum = compared.sum.unwrap();
        assert!((sum * 64.0 - 1.0).abs() < 1e-3 && !compared.results_agree(&case), "{sum}");
    }
}
