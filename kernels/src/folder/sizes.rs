//! Sizes of one's own for the catalogue's calls: `tokens=4096`, `head_dim=64`.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a call's sizes are: those given, else the catalogue's.
#[derive(Debug, Default)]
pub struct Sizes {
    given: BTreeMap<String, u64>,
    /// Keys that were asked for, in their order, with what they are.
    asked: RefCell<Vec<(&'static str, u64)>>,
}

/// A size that a call cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {what}; {cure}")]
pub struct SizeError {
    /// Which one.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to give instead.
    pub cure: String,
}

impl SizeError {
    /// `key` `what`; `cure`.
    pub fn new(key: &str, what: impl Into<String>, cure: impl Into<String>) -> SizeError {
        SizeError { key: key.into(), what: what.into(), cure: cure.into() }
    }
}

/// The largest size: kernels count in 32 bits.
const MOST: u64 = 1 << 31;
/// The largest number of elements, which are counted in 64.
const MOST_ELEMENTS: u64 = 1 << 40;

impl Sizes {
    /// Of `(key, value)` pairs.
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

    /// Whether any was given.
    pub fn any(&self) -> bool {
        !self.given.is_empty()
    }

    /// The size of this key in the calls that were made with these sizes; 0 where none asked for it.
    pub fn known(&self, key: &str) -> u64 {
        self.asked.borrow().iter().find(|(known, _)| *known == key).map_or(0, |(_, value)| *value)
    }

    /// The size of this key.
    pub(crate) fn get(&self, key: &'static str, usual: u32) -> u32 {
        self.count(key, usual.into()).min(MOST) as u32
    }

    /// The number of elements of this key.
    pub(crate) fn count(&self, key: &'static str, usual: u64) -> u64 {
        let value = self.given.get(key).copied().unwrap_or(usual);
        let mut asked = self.asked.borrow_mut();
        if !asked.iter().any(|(known, _)| *known == key) {
            asked.push((key, value));
        }
        value
    }

    /// Keys and values that the calls asked for: `tokens=4096 heads=28`.
    pub(crate) fn words(&self) -> String {
        self.asked.borrow().iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// Whether what was given is what the calls that were made with `usual` asked for, and such as kernels take.
    pub(crate) fn check(&self, folder: &str, usual: &Sizes) -> Result<(), SizeError> {
        let asked = usual.asked.borrow();
        let keys: Vec<&str> = asked.iter().map(|(key, _)| *key).collect();
        for (key, &value) in &self.given {
            if !keys.contains(&key.as_str()) {
                let cure = match keys.is_empty() {
                    true => "its size is that of `reel kernels list`".to_string(),
                    false => format!("it has {}", keys.join(", ")),
                };
                return Err(SizeError::new(key, format!("is no size of {folder}"), cure));
            }
            let most = if key == "count" { MOST_ELEMENTS } else { MOST - 1 };
            if !(1..=most).contains(&value) && key != "causal" {
                return Err(SizeError::new(key, format!("is {value}"), format!("give 1 to {most}")));
            }
        }
        let of = |key: &str| {
            let usual = asked.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
            self.given.get(key).copied().or(usual)
        };
        if let Some(causal) = of("causal").filter(|c| *c > 1) {
            return Err(SizeError::new("causal", format!("is {causal}"), "give 1 for causal order, 0 for none"));
        }
        if let (Some(heads), Some(kv_heads)) = (of("heads"), of("kv_heads"))
            && heads % kv_heads.max(1) != 0
        {
            let what = format!("is {heads}, no multiple of kv_heads, which is {kv_heads}");
            return Err(SizeError::new("heads", what, "give whole groups"));
        }
        match of("head_dim").filter(|d| *d > 256) {
            Some(d) => Err(SizeError::new("head_dim", format!("is {d}"), "give 1 to 256, which kernels are made for")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{FOLDERS, folder, products};
    use crate::{Arch, KernelLaunch};
    use proptest::prelude::*;

    fn sizes(given: &[(&str, u64)]) -> Sizes {
        Sizes::new(given.iter().map(|&(key, value)| (key.to_string(), value))).unwrap()
    }

    #[test]
    fn without_sizes_calls_are_the_catalogues() {
        for folder in FOLDERS {
            let (usual, own) = (folder.examples(), folder.examples_with_sizes(&Sizes::default()).unwrap());
            assert_eq!(usual.len(), own.len());
            for (a, b) in usual.iter().zip(&own) {
                assert!(a.size == b.size && a.launch.params == b.launch.params && a.launch.cost == b.launch.cost);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let of = |name: &str, given: &[(&str, u64)]| {
            folder(name).unwrap().examples_with_sizes(&sizes(given)).unwrap_err().to_string()
        };
        assert!(
            of("attention", &[("vocab", 5)]).contains("no size of attention; it has tokens, heads, kv_heads, head_dim")
        );
        assert!(of("attention", &[("tokens", 0)]).contains("tokens is 0; give 1 to"));
        assert!(of("attention", &[("tokens", 1 << 31)]).contains("tokens is 2147483648"));
        assert!(of("attention", &[("heads", 27)]).contains("no multiple of kv_heads, which is 4"));
        assert!(of("paged_attention", &[("kv_heads", 0)]).contains("kv_heads is 0"));
        assert!(of("attention", &[("head_dim", 257)]).contains("give 1 to 256"));
        assert!(of("attention", &[("causal", 2)]).contains("causal is 2"));
        assert!(of("rope", &[("tokens", 5)]).contains("its size is that of"));
        assert!(products(&sizes(&[("m", 0)])).unwrap_err().to_string().contains("m is 0"));
        assert!(Sizes::new([("m".to_string(), 1), ("m".to_string(), 2)]).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn products_are_those_of_a_layer() {
        let all = products(&sizes(&[("m", 5), ("n", 3), ("k", 7)])).unwrap();
        let bf16: Vec<_> = all.iter().filter(|p| p.name.ends_with("bf16")).collect();
        let shapes: Vec<_> = bf16.iter().map(|p| (p.product.name(), p.product.m, p.product.n, p.product.k)).collect();
        assert_eq!(shapes, [("matmul_fwd", 5, 3, 7), ("matmul_dx", 5, 7, 3), ("matmul_dw", 3, 7, 5)]);
        assert!(all.iter().all(|p| p.product.cost().flops == 210.0 && p.size == "m=5 n=3 k=7"));
    }

    proptest! {
        /// A size is that of the cost and of the words, and gives plans that a GPU takes.
        #[test]
        fn sizes_reach_the_calls(
            tokens in 1u64..5000, groups in 1u64..5, kv_heads in 1u64..5, head_dim in 1u64..257, causal in 0u64..2,
            vocab in 1u64..200_000, hidden in 1u64..9000,
        ) {
            let heads = groups * kv_heads;
            let given = [("tokens", tokens), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim), ("causal", causal)];
            for e in folder("attention").unwrap().examples_with_sizes(&sizes(&given)).unwrap() {
                let pairs = if causal == 1 { tokens * (tokens + 1) / 2 } else { tokens * tokens };
                let forward = (4 * head_dim * heads * pairs) as f64;
                prop_assert!(e.launch.cost.flops == forward || e.launch.cost.flops == 2.5 * forward);
                let words = format!("tokens={tokens} ");
                prop_assert!(e.size.contains(&words), "{}", e.size);
                planned(&e.launch);
            }
            for e in folder("rms_norm").unwrap().examples_with_sizes(&sizes(&[("tokens", tokens), ("hidden", hidden)])).unwrap() {
                prop_assert!(e.launch.cost.bytes >= (2 * tokens * hidden) as f64 * 2.0);
                planned(&e.launch);
            }
            let given = [("tokens", tokens), ("hidden", hidden), ("vocab", vocab)];
            for e in folder("linear_log_prob").unwrap().examples_with_sizes(&sizes(&given)).unwrap() {
                prop_assert!(e.launch.cost.flops <= 2.0 * (tokens * hidden * vocab) as f64);
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
