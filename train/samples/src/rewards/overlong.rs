//! The soft overlong penalty of DAPO (Q. Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
//! arXiv 2503.14476, equation 13).

use crate::error::{Error, Result};

/// The soft overlong penalty: the lengths between which it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlongPenalty {
    max_length: usize,
    cache: usize,
}

impl OverlongPenalty {
    /// A penalty that grows over the last `cache` tokens (`--overlong-cache`) before `max_length` tokens
    /// (`--max-completion-length`).
    ///
    /// # Errors
    /// `cache` is 0 or more than `max_length`.
    pub fn new(cache: usize, max_length: usize) -> Result<Self> {
        let error = |what| Err(Error::usage("--overlong-cache", what, "give 1 to --max-completion-length tokens"));
        match cache {
            0 => error("is 0".to_string()),
            _ if cache > max_length => error(format!("is {cache}, more than --max-completion-length {max_length}")),
            _ => Ok(Self { max_length, cache }),
        }
    }

    /// The penalty of a completion of `length` tokens, from -1 to 0: 0 up to `max_length - cache` tokens, then
    /// `(max_length - cache - length) / cache`, and -1 above `max_length`.
    pub fn of(self, length: usize) -> f32 {
        let excess = length.saturating_sub(self.max_length - self.cache).min(self.cache);
        (0.0 - excess as f64 / self.cache as f64) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalty_grows_over_the_cache() {
        let penalty = OverlongPenalty::new(256, 1024).unwrap();
        for (length, want) in [(0, 0.0), (768, 0.0), (769, -1.0 / 256.0), (896, -0.5), (1024, -1.0), (9999, -1.0)] {
            assert_eq!(penalty.of(length), want, "{length}");
        }
        assert_eq!(OverlongPenalty::new(8, 8).unwrap().of(4), -0.5);
        for (cache, max) in [(0, 100), (200, 100)] {
            assert!(OverlongPenalty::new(cache, max).unwrap_err().to_string().starts_with("--overlong-cache: is "));
        }
    }
}
