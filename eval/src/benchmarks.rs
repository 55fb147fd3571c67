//! The six benchmarks of VideoRFT and Video-R1. All use the same scoring rule; VSI-Bench also has an official mean
//! over tasks.

use reel_diagnostic::Diagnostic;

use crate::{EvalError, Result};

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// VSI-Bench: distances, sizes, counts and directions in rooms.
    VsiBench,
    /// VideoMMMU: questions about lectures.
    VideoMmmu,
    /// MMVU: expert questions, multiple choice only.
    Mmvu,
    /// MVBench: twenty kinds of questions about motion and order.
    MvBench,
    /// TempCompass: questions about speed, direction, order and change.
    TempCompass,
    /// Video-MME: questions about short, medium and long videos.
    VideoMme,
}

impl Benchmark {
    /// All benchmarks, in the order of the result tables of the VideoRFT and Video-R1 papers.
    pub const ALL: [Self; 6] =
        [Self::VsiBench, Self::VideoMmmu, Self::Mmvu, Self::MvBench, Self::TempCompass, Self::VideoMme];

    /// Parses the name of a benchmark.
    ///
    /// # Errors
    /// The name is unknown; the error lists all names.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|benchmark| benchmark.name() == name);
        found.ok_or_else(|| {
            let help = format!("use one of {}", Self::ALL.map(Self::name).join(", "));
            EvalError::Option(Diagnostic::new("--benchmark", format!("unknown benchmark `{name}`"), help))
        })
    }

    /// The benchmark's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::VsiBench => "vsibench",
            Self::VideoMmmu => "videommmu",
            Self::Mmvu => "mmvu",
            Self::MvBench => "mvbench",
            Self::TempCompass => "tempcompass",
            Self::VideoMme => "videomme",
        }
    }

    /// The task to which a row category belongs, for benchmarks whose official score is a mean over tasks
    /// (VSI-Bench); `None` for the others. The three difficulty levels of relative direction are three categories but
    /// one task.
    pub fn task_of_category(self, category: &str) -> Option<&str> {
        const DIRECTION: &str = "object_rel_direction";
        let is_level = |rest: &str| rest.starts_with('_');
        (self == Self::VsiBench)
            .then(|| if category.strip_prefix(DIRECTION).is_some_and(is_level) { DIRECTION } else { category })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmark_names_round_trip() {
        for benchmark in Benchmark::ALL {
            assert_eq!(Benchmark::from_name(benchmark.name()).unwrap(), benchmark);
        }
        let e = Benchmark::from_name("nosuch").unwrap_err();
        assert!(e.is_usage_error() && e.to_string().contains("`nosuch`; use one of vsibench, videommmu"));
    }

    #[test]
    fn direction_categories_are_one_task() {
        let task = |category| Benchmark::VsiBench.task_of_category(category);
        assert_eq!(task("object_rel_direction_hard"), Some("object_rel_direction"));
        assert_eq!(task("object_rel_distance"), Some("object_rel_distance"));
        assert_eq!(Benchmark::MvBench.task_of_category("object_rel_direction_hard"), None);
    }
}
