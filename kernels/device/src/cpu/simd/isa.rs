//! Instruction sets: which ones this machine has, and which one device `cpu` uses.
//!
//! The choice is made once per process and holds for all of its matrix products, because two instruction sets add up a
//! sum in different orders. A choice by the number of rows would give a row different bits in a large and in a small
//! batch. Within `amx-f32`, k decides between tiles and multiply-adds; a row has the same k in every batch.
//!
//! | machine | default |
//! |---|---|
//! | AMX with bf16, which the system permits | `amx-f32` |
//! | AVX-512 with bf16 dot products, on a processor of `SLOW_DOT_PRODUCTS` | `avx512` |
//! | AVX-512 with bf16 dot products, on other processors | `avx512-bf16` |
//! | AVX-512 without them; AVX2 with FMA; neither | `avx512`; `avx2`; `plain` |
//!
//! The table is based on rates of single instructions on registers, in GFLOP/s of one thread, measured in November 2026
//! on one machine of each kind:
//!
//! | processor | f32 multiply-adds | bf16 dot products | AMX |
//! |---|---|---|---|
//! | Intel, Sapphire Rapids family | 235–238 | 117–120 | 3410–3730 |
//! | Intel, family 6 model 167 in a guest with AMX, perhaps Granite Rapids | 238–242 | 123 | 3140–3770 |
//! | Intel, Emerald Rapids | 178 | 177 | not available |
//! | AMD EPYC, Zen 5 (family 26) | 252–255 | 475–505 | – |
//! | AMD EPYC, Zen 4 (family 25 model 17) | 117–118 | 234–236 | – |

use std::sync::OnceLock;

/// Instruction sets for which the code of device `cpu` is compiled. Two instruction sets may add up a sum in different
/// orders; each of them always uses the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The compilation target's baseline instruction set.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL, DQ.
    Avx512,
    /// AVX-512 F, BW, VL, DQ and the bf16 dot product.
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`], and the tiles of AMX for products of two bf16 matrices.
    Amx,
    /// [`Isa::Amx`], and the tiles also for products with f32 matrices if k is at least 512. The f32 values are split
    /// into bf16 parts.
    AmxF32,
}

impl Isa {
    /// All instruction sets, from the least to the best. A machine that has an instruction set has all earlier ones,
    /// too.
    pub const ALL: [Isa; 6] = [Isa::Plain, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx, Isa::AmxF32];

    /// The name in [`ISA_VARIABLE`], `run.json` and `reel doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Amx => "amx",
            Isa::AmxF32 => "amx-f32",
        }
    }

    /// The instructions that compute products of two bf16 matrices, in words.
    pub fn bf16_product_instructions(self) -> &'static str {
        match self {
            Isa::Plain | Isa::Avx2 | Isa::Avx512 => "f32 multiply-adds of widened bf16",
            Isa::Avx512Bf16 => "bf16 dot products (vdpbf16ps)",
            Isa::Amx | Isa::AmxF32 => "AMX tiles (tdpbf16ps)",
        }
    }
}

/// The environment variable that selects an instruction set by its name.
pub const ISA_VARIABLE: &str = "REEL_CPU";

/// The instruction set that device `cpu` uses: the one that [`ISA_VARIABLE`] names, else the default of this machine.
/// It is chosen once per process. A program calls [`requested_isa`] at its start and refuses a wrong value; this
/// function ignores a wrong value.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| requested_isa().ok().flatten().unwrap_or_else(|| default_isa().isa))
}

/// The best instruction set of this machine.
pub fn best_isa() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(detect)
}

/// The instruction set of a machine for which [`ISA_VARIABLE`] names none, and the reason for this choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultIsa {
    /// The instruction set.
    pub isa: Isa,
    /// The reason for this choice, as a clause without a full stop.
    pub reason: String,
}

/// The default instruction set of this machine.
pub fn default_isa() -> DefaultIsa {
    #[cfg_attr(not(feature = "emulate-amx"), allow(unused_mut, reason = "changed only with the feature"))]
    let mut default = choose(best_isa(), amx_support().err(), intel_family_and_model());
    #[cfg(all(feature = "emulate-amx", target_arch = "x86_64", target_os = "linux"))]
    if default.isa >= Isa::Amx && super::amx::support().is_err() {
        default.reason += "; AMX is emulated, thousands of times slower";
    }
    default
}

/// Intel processors on which products with the bf16 dot product of AVX-512 are slower than with f32 multiply-adds.
struct SlowDotProduct {
    family: u32,
    models: &'static [u32],
    name: &'static str,
}

/// Measured on Sapphire Rapids: one `vdpbf16ps` every two cycles, which is half the rate of f32 multiply-adds. On
/// Emerald Rapids both have the same rate from registers, but matrix products of 128 rows and more take 1.5 to 1.8
/// times as long with dot products (tools/benches/results/intel-xeon/2026-11-22-bf16-unit.json). Granite Rapids has a
/// successor of the same core and was not measured. Cooper Lake has the instruction, too; it was not measured and is
/// not listed. Ice Lake does not have it.
const SLOW_DOT_PRODUCTS: [SlowDotProduct; 3] = [
    SlowDotProduct { family: 6, models: &[0x8f], name: "Sapphire Rapids" },
    SlowDotProduct { family: 6, models: &[0xcf], name: "Emerald Rapids" },
    SlowDotProduct { family: 6, models: &[0xad, 0xae], name: "Granite Rapids" },
];

/// Chooses by the table of the module's documentation. `no_amx` is the reason why AMX cannot be used, `None` if it can;
/// `intel` is the family and the model of an Intel processor.
fn choose(best: Isa, no_amx: Option<&str>, intel: Option<(u32, u32)>) -> DefaultIsa {
    let no_amx = no_amx.filter(|_| best >= Isa::Avx512).map_or(String::new(), |why| format!("; no AMX: {why}"));
    let slow = SLOW_DOT_PRODUCTS
        .iter()
        .find(|slow| intel.is_some_and(|(family, model)| family == slow.family && slow.models.contains(&model)));
    match (best, slow) {
        (Isa::Avx512Bf16, Some(slow)) => DefaultIsa {
            isa: Isa::Avx512,
            reason: format!(
                "on {} bf16 dot products ({}) are slower than f32 multiply-adds{no_amx}",
                slow.name,
                best.name()
            ),
        },
        _ => DefaultIsa { isa: best, reason: format!("the best of this machine{no_amx}") },
    }
}

/// The instruction set that [`ISA_VARIABLE`] names; `None` if the variable is not set or empty.
///
/// # Errors
/// The text says what is wrong: the name is unknown, or this machine lacks the instruction set.
pub fn requested_isa() -> Result<Option<Isa>, String> {
    std::env::var_os(ISA_VARIABLE).map_or(Ok(None), |name| parse_isa(&name.to_string_lossy(), best_isa()))
}

fn parse_isa(name: &str, best: Isa) -> Result<Option<Isa>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
        None => Err(format!("is {name:?}, which is not the name of an instruction set")),
        Some(isa) if isa > best => {
            let why = amx_support().err().filter(|_| isa >= Isa::Amx).map_or(String::new(), |why| format!(" ({why})"));
            Err(format!("is {name}, which this machine does not have{why}; its best is {}", best.name()))
        }
        Some(isa) => Ok(Some(isa)),
    }
}

/// Returns `Ok` if this process may use AMX with bf16, else the reason why not. The first call asks the system for
/// permission.
#[cfg(target_arch = "x86_64")]
fn amx_support() -> Result<(), &'static str> {
    #[cfg(all(feature = "emulate-amx", target_os = "linux"))]
    if super::amx_emulator::install() {
        return Ok(());
    }
    super::amx::support()
}

#[cfg(not(target_arch = "x86_64"))]
fn amx_support() -> Result<(), &'static str> {
    Err("the processor is not an x86-64 processor")
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
        (_, true, true) if amx_support().is_ok() => Isa::AmxF32,
        (_, true, true) => Isa::Avx512Bf16,
        (_, true, false) => Isa::Avx512,
        (true, _, _) => Isa::Avx2,
        _ => Isa::Plain,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Plain
}

/// The family and the model of an Intel processor; `None` on other processors.
#[cfg(target_arch = "x86_64")]
fn intel_family_and_model() -> Option<(u32, u32)> {
    let vendor = super::amx::cpuid(0, 0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    (name.as_flattened() == b"GenuineIntel").then(|| family_and_model(super::amx::cpuid(1, 0).eax))
}

#[cfg(not(target_arch = "x86_64"))]
fn intel_family_and_model() -> Option<(u32, u32)> {
    None
}

/// Whether Intel made this processor.
#[cfg(target_arch = "x86_64")]
pub fn is_intel() -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    *INTEL.get_or_init(|| intel_family_and_model().is_some())
}

/// Decodes family and model from EAX of CPUID leaf 1. Families 6 and 15 have four more bits of the model in a second
/// field, and family 15 more bits of the family.
fn family_and_model(eax: u32) -> (u32, u32) {
    let (family, model) = (eax >> 8 & 15, eax >> 4 & 15);
    let upper = eax >> 16 & 15;
    (
        if family == 15 { family + (eax >> 20 & 255) } else { family },
        if family == 6 || family == 15 { upper << 4 | model } else { model },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_instruction_sets_of_this_machine_are_accepted() {
        for best in Isa::ALL {
            for isa in Isa::ALL {
                let parsed = parse_isa(isa.name(), best);
                assert_eq!(parsed.is_ok(), isa <= best, "{parsed:?}");
                assert!(parsed.is_err() || parsed == Ok(Some(isa)));
            }
        }
        assert_eq!(parse_isa("", Isa::Plain), Ok(None));
        assert!(parse_isa("AVX", Isa::Avx512).unwrap_err().contains("is \"AVX\""));
        let refused = parse_isa("amx", Isa::Avx512).unwrap_err();
        assert!(refused.starts_with("is amx, which this machine does not have"), "{refused}");
        assert!(amx_support().err().is_none_or(|why| refused.contains(&format!(" ({why}); "))), "{refused}");
        assert!(best_isa() >= isa() && best_isa() >= default_isa().isa);
        assert_eq!(best_isa() == Isa::AmxF32, amx_support().is_ok());
    }

    #[test]
    fn default_follows_the_table() {
        // Each case has the processor's family and model, its best instruction set, and the expected default.
        let zen4 = None;
        for (intel, best, default) in [
            (zen4, Isa::Avx512Bf16, Isa::Avx512Bf16),
            (Some((6, 0x8f)), Isa::AmxF32, Isa::AmxF32),
            (Some((6, 0x8f)), Isa::Avx512Bf16, Isa::Avx512),
            (Some((6, 0xcf)), Isa::Avx512Bf16, Isa::Avx512),
            (Some((6, 0xad)), Isa::Avx512Bf16, Isa::Avx512),
            (Some((6, 0xae)), Isa::Avx512Bf16, Isa::Avx512),
            // Cooper Lake, which was not measured, and Ice Lake, which lacks the dot product.
            (Some((6, 0x55)), Isa::Avx512Bf16, Isa::Avx512Bf16),
            (Some((6, 0x6a)), Isa::Avx512, Isa::Avx512),
            (Some((6, 0x8f)), Isa::Avx2, Isa::Avx2),
            (None, Isa::Plain, Isa::Plain),
        ] {
            let no_amx = (best < Isa::Amx).then_some("the processor lacks it");
            let got = choose(best, no_amx, intel);
            assert_eq!(got.isa, default, "{intel:?} {best:?}: {got:?}");
            let is_slower = default != best && best < Isa::Amx;
            assert_eq!(got.reason.contains("slower than f32"), is_slower, "{got:?}");
            assert_eq!(got.reason.contains("no AMX: the processor lacks it"), no_amx.is_some() && best >= Isa::Avx512);
        }
    }

    #[test]
    fn family_and_model_are_decoded() {
        assert_eq!(family_and_model(0x0008_06f8), (6, 0x8f), "Sapphire Rapids");
        assert_eq!(family_and_model(0x000c_06f2), (6, 0xcf), "Emerald Rapids");
        assert_eq!(family_and_model(0x000a_06d1), (6, 0xad), "Granite Rapids");
        assert_eq!(family_and_model(0x00a1_0f11), (25, 0x11), "Zen 4");
    }
}
