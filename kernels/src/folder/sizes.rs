//! Sizes for example calls from the command line, such as `tokens=4096` or `head_dim=64`, which replace default
//! sizes.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// The sizes of example calls: given values, and defaults for the rest.
#[derive(Debug, Default)]
pub struct Sizes {
    given: BTreeMap<String, u64>,
    /// The keys that example calls have asked for, in the order of the requests, and the value that each call got.
    asked: RefCell<Vec<(&'static str, u64)>>,
}

/// A size on the command line that an example call does not have or cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {what}; {help}")]
pub struct SizeError {
    /// The key of the size, such as `tokens`.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to give instead.
    pub help: String,
}

impl SizeError {
    /// Makes an error that prints as "`key` `what`; `help`".
    pub fn new(key: &str, what: impl Into<String>, help: impl Into<String>) -> SizeError {
        SizeError { key: key.into(), what: what.into(), help: help.into() }
    }
}

/// All sizes must be below this limit, because kernels count tokens, heads and columns with 32 bits.
const MAX_SIZE: u64 = 1 << 31;
/// The largest number of elements of a call. Kernels count elements with 64 bits.
const MAX_ELEMENTS: u64 = 1 << 40;

impl Sizes {
    /// Makes sizes from `(key, value)` pairs.
    ///
    /// # Errors
    /// A key that is given twice.
    pub fn new(given: impl IntoIterator<Item = (String, u64)>) -> Result<Sizes, SizeError> {
        let mut sizes = Sizes::default();
        for (key, value) in given {
            if sizes.given.insert(key.clone(), value).is_some() {
                return Err(SizeError::new(&key, "is given twice", "give it once"));
            }
        }
        Ok(sizes)
    }

    /// Whether any size was given.
    pub fn has_given_sizes(&self) -> bool {
        !self.given.is_empty()
    }

    /// Returns the value that a size had in the calls that were made with these sizes, or 0 if no call asked for it.
    pub fn value_used_by_calls(&self, key: &str) -> u64 {
        self.asked.borrow().iter().find(|(known, _)| *known == key).map_or(0, |(_, value)| *value)
    }

    /// Returns the given value of a size, or `default` if none was given.
    pub(crate) fn get(&self, key: &'static str, default: u32) -> u32 {
        self.get_u64(key, default.into()).min(MAX_SIZE) as u32
    }

    /// Returns the given value of a size that counts elements, or `default` if none was given.
    pub(crate) fn get_u64(&self, key: &'static str, default: u64) -> u64 {
        let value = self.given.get(key).copied().unwrap_or(default);
        let mut asked = self.asked.borrow_mut();
        if !asked.iter().any(|(known, _)| *known == key) {
            asked.push((key, value));
        }
        value
    }

    /// Returns the keys and values that calls have asked for, as text: `tokens=4096 heads=28`.
    pub(crate) fn to_text(&self) -> String {
        self.asked.borrow().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// Checks that every given key is known: the calls made with `defaults` asked for it. Checks also that kernels
    /// support its value.
    pub(crate) fn check_given_sizes(&self, folder: &str, defaults: &Sizes) -> Result<(), SizeError> {
        let asked = defaults.asked.borrow();
        let keys: Vec<&str> = asked.iter().map(|(key, _)| *key).collect();
        for (key, &value) in &self.given {
            if !keys.contains(&key.as_str()) {
                let help = match keys.is_empty() {
                    true => "its example calls have fixed sizes: leave out the size".to_string(),
                    false => format!("it has {}", keys.join(", ")),
                };
                return Err(SizeError::new(key, format!("is no size of {folder}"), help));
            }
            let max = if key == "count" { MAX_ELEMENTS } else { MAX_SIZE - 1 };
            if !(1..=max).contains(&value) && key != "causal" {
                return Err(SizeError::new(key, format!("is {value}"), format!("give 1 to {max}")));
            }
        }
        let value_of = |key: &str| {
            let default = asked.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
            self.given.get(key).copied().or(default)
        };
        if let Some(causal) = value_of("causal").filter(|c| *c > 1) {
            return Err(SizeError::new("causal", format!("is {causal}"), "give 1 (causal) or 0 (not causal)"));
        }
        if let (Some(heads), Some(kv_heads)) = (value_of("heads"), value_of("kv_heads"))
            && heads % kv_heads.max(1) != 0
        {
            let what = format!("is {heads}, which is not a multiple of kv_heads = {kv_heads}");
            return Err(SizeError::new("heads", what, "give a multiple of kv_heads"));
        }
        match value_of("head_dim").filter(|d| *d > 256) {
            Some(d) => Err(SizeError::new("head_dim", format!("is {d}"), "give 1 to 256")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reel_device::{Arch, KernelLaunch};

    use super::*;
    use crate::catalogue::{FOLDERS, example_products, find_kernel_folder};

    fn sizes(given: &[(&str, u64)]) -> Sizes {
        Sizes::new(given.iter().map(|&(key, value)| (key.to_string(), value))).unwrap()
    }

    #[test]
    fn without_sizes_examples_are_the_defaults() {
        for folder in FOLDERS {
            let (default, own) = (folder.examples(), folder.examples_with_sizes(&Sizes::default()).unwrap());
            assert_eq!(default.len(), own.len());
            for (a, b) in default.iter().zip(&own) {
                assert!(a.size == b.size && a.launch.params == b.launch.params && a.launch.cost == b.launch.cost);
            }
        }
    }

    #[test]
    fn rejects_unknown_and_invalid_sizes() {
        let of = |name: &str, given: &[(&str, u64)]| {
            find_kernel_folder(name).unwrap().examples_with_sizes(&sizes(given)).unwrap_err().to_string()
        };
        assert!(
            of("attention", &[("vocab", 5)]).contains("no size of attention; it has tokens, heads, kv_heads, head_dim")
        );
        assert!(of("attention", &[("tokens", 0)]).contains("tokens is 0; give 1 to"));
        assert!(of("attention", &[("tokens", 1 << 31)]).contains("tokens is 2147483648"));
        assert!(of("attention", &[("heads", 27)]).contains("not a multiple of kv_heads = 4"));
        assert!(of("paged_attention", &[("kv_heads", 0)]).contains("kv_heads is 0"));
        assert!(of("attention", &[("head_dim", 257)]).contains("give 1 to 256"));
        assert!(of("attention", &[("causal", 2)]).contains("causal is 2"));
        assert!(of("rope", &[("tokens", 5)]).contains("fixed size"));
        assert!(example_products(&sizes(&[("m", 0)])).unwrap_err().to_string().contains("m is 0"));
        assert!(Sizes::new([("m".to_string(), 1), ("m".to_string(), 2)]).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn products_have_the_shapes_of_a_linear_layer() {
        let all = example_products(&sizes(&[("m", 5), ("n", 3), ("k", 7)])).unwrap();
        let bf16: Vec<_> = all.iter().filter(|p| p.name.ends_with("bf16")).collect();
        let shapes: Vec<_> = bf16.iter().map(|p| (p.product.name(), p.product.m, p.product.n, p.product.k)).collect();
        assert_eq!(shapes, [("matmul_fwd", 5, 3, 7), ("matmul_dx", 5, 7, 3), ("matmul_dw", 3, 7, 5)]);
        assert!(all.iter().all(|p| p.product.cost().flops == 210.0 && p.size == "m=5 n=3 k=7"));
    }

    proptest! {
        /// Given sizes change the cost and the size text of the calls, and the launch plans stay within the limits of
        /// a GPU.
        #[test]
        fn sizes_reach_the_calls(
            tokens in 1u64..5000, groups in 1u64..5, kv_heads in 1u64..5, head_dim in 1u64..257, causal in 0u64..2,
            vocab in 1u64..200_000, hidden in 1u64..9000,
        ) {
            let heads = groups * kv_heads;
            let given = [("tokens", tokens), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim), ("causal", causal)];
            for e in find_kernel_folder("attention").unwrap().examples_with_sizes(&sizes(&given)).unwrap() {
                let pairs = if causal == 1 { tokens * (tokens + 1) / 2 } else { tokens * tokens };
                let forward = (4 * head_dim * heads * pairs) as f64;
                prop_assert!(e.launch.cost.flops == forward || e.launch.cost.flops == 2.5 * forward);
                let words = format!("tokens={tokens} ");
                prop_assert!(e.size.contains(&words), "{}", e.size);
                planned(&e.launch);
            }
            for e in find_kernel_folder("rms_norm").unwrap().examples_with_sizes(&sizes(&[("tokens", tokens), ("hidden", hidden)])).unwrap() {
                prop_assert!(e.launch.cost.bytes >= (2 * tokens * hidden) as f64 * 2.0);
                planned(&e.launch);
            }
            let given = [("rows", tokens), ("vocab", vocab)];
            for e in find_kernel_folder("log_prob").unwrap().examples_with_sizes(&sizes(&given)).unwrap() {
                prop_assert!(e.launch.cost.bytes >= (4 * tokens * vocab) as f64);
                planned(&e.launch);
            }
        }
    }

    fn planned(launch: &KernelLaunch) {
        for arch in [Arch::A100, Arch::H100] {
            for stage in (launch.kernel.plan)(&launch.params, &arch) {
                assert!(stage.grid.iter().all(|&n| n > 0) && stage.shared <= arch.shared_per_block, "{stage:?}");
            }
        }
    }
}
