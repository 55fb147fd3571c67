//! How far a predicted time can be trusted: what it rests on, and the range in which the time of a run is expected.
//!
//! ```text
//! source of the prediction                      range of the op's time
//! measured: this kernel, with this code         ± 10 % of the predicted time
//! prototype, modelled                           from 0.9 × the lesser to 1.1 × the greater of predicted and last
//!                                               measured; never measured: up to 2 × the predicted time
//! ceilings                                      no range: the time is the least possible one
//! ```
//!
//! No time in a range is below the ceilings' time. 10 % is the spread between records of the same kernel and size. The
//! model has been low by a factor of up to 2, for the decode steps of 2026-11-27 (docs/guide-performance.md).

use crate::pricing::{PredictedTime, PredictionBasis};

/// The spread of measured times of the same kernel and size, as a share.
const MEASURED_SPREAD: f64 = 0.1;
/// The factor by which the time of a kernel that was never measured may exceed the modelled time.
const MODEL_ERROR: f64 = 2.0;

/// What a predicted time rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// This very kernel was timed on this GPU.
    Measured,
    /// A prototype with the kernel's schedule was timed on this GPU at the launch's size.
    Prototype,
    /// A model of the kernel, or the time of earlier code or of a similar kernel.
    Model,
    /// The ceilings of the GPU alone.
    Ceiling,
}

impl TimeSource {
    /// All sources, the most reliable first.
    pub const ALL: [Self; 4] = [Self::Measured, Self::Prototype, Self::Model, Self::Ceiling];

    /// The source's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Prototype => "prototype",
            Self::Model => "modelled",
            Self::Ceiling => "ceilings",
        }
    }
}

impl PredictedTime {
    /// The shares of the whole time by their sources, if a library takes `library_seconds` in addition to `seconds`.
    /// The times of libraries are measured.
    pub(crate) fn shares_with_library(&self, library_seconds: f64) -> [f64; TimeSource::ALL.len()] {
        let is_measured = self.recorded.as_ref().is_some_and(|r| r.is_of_this_kernel());
        let seconds = match (self.basis, &self.modelled) {
            (PredictionBasis::Record, _) if is_measured => [self.seconds, 0.0, 0.0, 0.0],
            (PredictionBasis::Ceiling, _) => [0.0, 0.0, 0.0, self.seconds],
            (PredictionBasis::Model, Some(m)) => [0.0, m.prototype_seconds, self.seconds - m.prototype_seconds, 0.0],
            (PredictionBasis::Model | PredictionBasis::Record, _) => [0.0, 0.0, self.seconds, 0.0],
        };
        let all = (self.seconds + library_seconds).max(f64::MIN_POSITIVE);
        [seconds[0] + library_seconds, seconds[1], seconds[2], seconds[3]].map(|part| part / all)
    }

    /// What most of this prediction rests on.
    pub fn source(&self) -> TimeSource {
        let by_share = |a: &(usize, TimeSource), b: &(usize, TimeSource)| self.shares[a.0].total_cmp(&self.shares[b.0]);
        TimeSource::ALL.into_iter().enumerate().max_by(by_share).map_or(TimeSource::Ceiling, |(_, source)| source)
    }

    /// The shortest and the longest time in seconds that is expected; `None` if only the least possible time is known.
    pub fn range_seconds(&self) -> Option<[f64; 2]> {
        let last = self.recorded.as_ref().map(|r| r.seconds);
        let (least, most) = match (self.source(), last) {
            (TimeSource::Ceiling, _) => return None,
            (TimeSource::Measured, _) => (self.seconds, self.seconds),
            (_, None) => (self.seconds, MODEL_ERROR / (1.0 + MEASURED_SPREAD) * self.seconds),
            (_, Some(last)) => (self.seconds.min(last), self.seconds.max(last)),
        };
        let least = ((1.0 - MEASURED_SPREAD) * least).max(self.floor_seconds.min(self.seconds));
        Some([least, (1.0 + MEASURED_SPREAD) * most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_model::ModelledTime;
    use crate::pricing::RecordedTime;

    fn recorded(seconds: f64, changed: bool) -> RecordedTime {
        let (date, size) = ("2026-11-27".to_string(), String::new());
        RecordedTime { seconds, share: 0.5, date, similar: None, size, other_size: false, changed }
    }

    fn predicted(seconds: f64, basis: PredictionBasis, recorded: Option<RecordedTime>) -> PredictedTime {
        let (shares, modelled) = ([0.0; 4], Some(ModelledTime { seconds, ..ModelledTime::default() }));
        let price = PredictedTime { seconds, basis, shares, floor_seconds: 0.5, recorded, modelled };
        PredictedTime { shares: price.shares_with_library(0.0), ..price }
    }

    #[test]
    fn the_range_follows_from_the_source_and_the_last_measured_time() {
        use PredictionBasis::{Ceiling, Model, Record};
        let check = |time: &PredictedTime, source: TimeSource, wanted: Option<[f64; 2]>| {
            assert_eq!(time.source(), source);
            match (time.range_seconds(), wanted) {
                (Some(got), Some(want)) => {
                    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12), "{time:?}: {got:?}");
                }
                (got, want) => assert_eq!(got, want),
            }
        };
        check(&predicted(1.0, Record, Some(recorded(1.0, false))), TimeSource::Measured, Some([0.9, 1.1]));
        check(&predicted(1.0, Record, Some(recorded(1.0, true))), TimeSource::Model, Some([0.9, 1.1]));
        check(&predicted(1.0, Model, Some(recorded(0.8, true))), TimeSource::Model, Some([0.72, 1.1]));
        check(&predicted(1.0, Model, None), TimeSource::Model, Some([0.9, 2.0]));
        // No time is below that of the ceilings.
        check(&predicted(0.52, Model, None), TimeSource::Model, Some([0.5, 1.04]));
        check(&predicted(0.5, Ceiling, None), TimeSource::Ceiling, None);
    }

    #[test]
    fn the_shares_of_a_time_are_those_of_its_launches() {
        let modelled = Some(ModelledTime { seconds: 2.0, prototype_seconds: 1.5, ..ModelledTime::default() });
        let price = PredictedTime { modelled, ..predicted(2.0, PredictionBasis::Model, Some(recorded(4.0, true))) };
        assert_eq!(price.shares_with_library(0.0), [0.0, 0.75, 0.25, 0.0]);
        assert_eq!(price.shares_with_library(2.0), [0.5, 0.375, 0.125, 0.0]);
    }
}
