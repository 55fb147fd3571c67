//! How far a predicted time can be trusted: what it rests on, and the range in which the time of a run is expected.
//!
//! ```text
//! source of the prediction                      range of the op's time
//! measured, code unchanged                      ± 10 % of the predicted time
//! measured, code changed since, or similar      from 0.9 × the lesser to 1.1 × the greater of predicted and last measured
//! prototype                                     the same
//! model                                         the same; if the op was never measured, up to 2 × the predicted time
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
    /// A measurement of this kernel on this GPU.
    Measured,
    /// A measurement of the kernel before its code changed, or of a similar kernel.
    EarlierCode,
    /// A measurement of a prototype of the kernel.
    Prototype,
    /// A model of the kernel's code.
    Model,
    /// The ceilings of the GPU alone.
    Ceiling,
}

impl TimeSource {
    /// All sources, the most reliable first.
    pub const ALL: [Self; 5] = [Self::Measured, Self::EarlierCode, Self::Prototype, Self::Model, Self::Ceiling];

    /// The source's name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::EarlierCode => "earlier code",
            Self::Prototype => "prototype",
            Self::Model => "modelled",
            Self::Ceiling => "ceilings",
        }
    }
}

impl PredictedTime {
    /// What this prediction rests on.
    pub fn source(&self) -> TimeSource {
        match (self.basis, &self.recorded) {
            (PredictionBasis::Model, _) => TimeSource::Model,
            (PredictionBasis::Ceiling, _) | (PredictionBasis::Record, None) => TimeSource::Ceiling,
            (_, Some(r)) if r.prototype.is_some() || r.own_speed.is_some() => TimeSource::Prototype,
            (_, Some(r)) if r.changed || r.similar.is_some() => TimeSource::EarlierCode,
            (_, Some(_)) => TimeSource::Measured,
        }
    }

    /// The shortest and the longest time in seconds that is expected; `None` if only the least possible time is known.
    pub fn range_seconds(&self) -> Option<[f64; 2]> {
        let last = self.last_measured.as_ref().map(|r| r.seconds);
        let (least, most) = match (self.source(), last) {
            (TimeSource::Ceiling, _) => return None,
            (TimeSource::Model, None) => (self.seconds, MODEL_ERROR / (1.0 + MEASURED_SPREAD) * self.seconds),
            (TimeSource::Measured, _) | (_, None) => (self.seconds, self.seconds),
            (_, Some(last)) => (self.seconds.min(last), self.seconds.max(last)),
        };
        let least = ((1.0 - MEASURED_SPREAD) * least).max(self.floor_seconds.min(self.seconds));
        Some([least, (1.0 + MEASURED_SPREAD) * most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::RecordedTime;

    fn recorded(seconds: f64, prototype: Option<&str>, changed: bool) -> RecordedTime {
        let (date, size, prototype) = ("2026-11-27".to_string(), String::new(), prototype.map(str::to_string));
        RecordedTime {
            seconds,
            share: 0.5,
            date,
            similar: None,
            size,
            prototype,
            own_speed: None,
            other_size: false,
            changed,
        }
    }

    fn predicted(seconds: f64, basis: PredictionBasis, recorded: Option<RecordedTime>) -> PredictedTime {
        let last_measured = recorded.clone();
        PredictedTime { seconds, basis, floor_seconds: 0.5, recorded, last_measured, modelled: None }
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
        check(&predicted(1.0, Record, Some(recorded(1.0, None, false))), TimeSource::Measured, Some([0.9, 1.1]));
        let changed = predicted(1.0, Record, Some(recorded(1.0, None, true)));
        check(&changed, TimeSource::EarlierCode, Some([0.9, 1.1]));
        let prototype = PredictedTime {
            last_measured: Some(recorded(2.0, None, true)),
            ..predicted(1.0, Record, Some(recorded(1.0, Some("p"), false)))
        };
        check(&prototype, TimeSource::Prototype, Some([0.9, 2.2]));
        check(&predicted(1.0, Model, Some(recorded(0.8, None, true))), TimeSource::Model, Some([0.72, 1.1]));
        check(&predicted(1.0, Model, None), TimeSource::Model, Some([0.9, 2.0]));
        // No time is below that of the ceilings.
        check(&predicted(0.52, Model, None), TimeSource::Model, Some([0.5, 1.04]));
        check(&predicted(0.5, Ceiling, None), TimeSource::Ceiling, None);
    }
}
