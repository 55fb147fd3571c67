//! A predicted time, and how far it can be trusted: what it rests on, and the range in which the time of a run is
//! expected.
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

use std::fmt;

use crate::measure::kernel_model::ModelledTime;

/// The spread of measured times of the same kernel and size, as a share.
const MEASURED_SPREAD: f64 = 0.1;
/// The factor by which the time of a kernel that was never measured may exceed the modelled time.
const MODEL_ERROR: f64 = 2.0;

/// The predicted time of all launches of an op.
#[derive(Clone, Debug)]
pub struct PredictedTime {
    /// Predicted time in seconds.
    pub seconds: f64,
    /// Which source most of the predicted time comes from.
    pub basis: PredictionBasis,
    /// Shares of the predicted time by what they rest on, in the order of [`TimeSource::ALL`].
    pub shares: [f64; TimeSource::ALL.len()],
    /// Least time in seconds by the ceilings.
    pub floor_seconds: f64,
    /// The time predicted from the last measurement of the kernel on this GPU, even if its code has changed since, or
    /// of a similar kernel.
    pub recorded: Option<RecordedTime>,
    /// The time predicted by the model of the kernel, if the GPU has a record and the launches have a plan.
    pub modelled: Option<ModelledTime>,
}

/// The source of a predicted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionBasis {
    /// The ceilings alone: the least possible time.
    Ceiling,
    /// A share of the ceilings that was measured.
    Record,
    /// The model of the kernel's code.
    Model,
}

/// A time that is predicted by the share of the ceilings that a recorded launch reached.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedTime {
    /// Time in seconds.
    pub seconds: f64,
    /// Share of the ceilings that the recorded launch reached.
    pub share: f64,
    /// Day of the record.
    pub date: String,
    /// Name of the recorded kernel, if it is a similar kernel and not the op itself.
    pub similar: Option<String>,
    /// Size of the recorded launch.
    pub size: String,
    /// Whether the size of the recorded launch differs from the planned size by more than a factor of 4.
    pub other_size: bool,
    /// Whether the CUDA code of the op's folder has changed since the record.
    pub changed: bool,
}

impl fmt::Display for RecordedTime {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.2} of {}", self.share, self.date)?;
        if let Some(kernel) = &self.similar {
            write!(f, " of {kernel}")?;
        }
        if self.other_size {
            f.write_str(", measured at another size")?;
        }
        if self.changed {
            f.write_str(", code changed since")?;
        }
        Ok(())
    }
}

impl PredictionBasis {
    /// The source's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            PredictionBasis::Ceiling => "ceiling",
            PredictionBasis::Record => "record",
            PredictionBasis::Model => "model",
        }
    }
}

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

impl RecordedTime {
    /// Whether this very kernel was timed.
    pub fn is_of_this_kernel(&self) -> bool {
        !self.changed && self.similar.is_none()
    }
}

impl PredictedTime {
    /// The predicted time of an op on a GPU without a record.
    pub fn by_ceilings(floor_seconds: f64) -> PredictedTime {
        PredictedTime {
            seconds: floor_seconds,
            basis: PredictionBasis::Ceiling,
            shares: [0.0, 0.0, 0.0, 1.0],
            floor_seconds,
            recorded: None,
            modelled: None,
        }
    }

    /// Share of the ceilings that the prediction assumes.
    pub fn assumed_share_of_ceilings(&self) -> f64 {
        self.floor_seconds / self.seconds
    }

    /// The predicted seconds from one source. [`PredictionBasis::Record`]: the recorded time, even if the code has
    /// changed. [`PredictionBasis::Model`]: the modelled time. If this time is missing, the least time by the
    /// ceilings.
    pub fn seconds_by(&self, basis: PredictionBasis) -> f64 {
        let seconds = match basis {
            PredictionBasis::Ceiling => None,
            PredictionBasis::Record => self.recorded.as_ref().map(|r| r.seconds),
            PredictionBasis::Model => self.modelled.as_ref().map(|m| m.seconds).or_else(|| self.seconds_by_library()),
        };
        seconds.unwrap_or(self.floor_seconds)
    }

    /// The recorded time, for a matrix product of a library, which the model does not cover.
    fn seconds_by_library(&self) -> Option<f64> {
        self.recorded.as_ref().map(|r| r.seconds)
    }

    /// The predicted time of one of `steps` steps: all times are divided by `steps`.
    #[must_use]
    pub fn per_step(mut self, steps: f64) -> PredictedTime {
        self.seconds /= steps;
        self.floor_seconds /= steps;
        self.recorded.iter_mut().for_each(|r| r.seconds /= steps);
        self.modelled.iter_mut().for_each(|m| m.divide_times(steps));
        self
    }

    /// The source of the predicted time as text, such as `record 0.23 of 2026-01-01`.
    pub fn basis_text(&self) -> String {
        let record = self.recorded.as_ref().map_or("no record".to_string(), |r| format!("record {r}"));
        let limit = |m: &ModelledTime| {
            format!(
                "model ({}{})",
                m.main_bottleneck().name(),
                if m.has_instruction_counts() { "" } else { ", code not counted" }
            )
        };
        match (self.basis, &self.modelled) {
            (PredictionBasis::Model, Some(m)) => format!("{}; {record}", limit(m)),
            (PredictionBasis::Record, _) => record,
            _ => "ceiling".to_string(),
        }
    }

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
