//! The six benchmarks that both recipes are measured on. All share one scoring rule; VSI-Bench has an official figure of its own.

use crate::{EvalError, Result};

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// VSI-Bench: distances, sizes, counts and directions in rooms.
    VsiBench,
    /// VideoMMMU: lectures.
    VideoMmmu,
    /// MMVU: expert questions, the multiple-choice part.
    Mmvu,
    /// MVBench: twenty kinds of question about motion and order.
    MvBench,
    /// TempCompass: speed, direction, order, change.
    TempCompass,
    /// Video-MME: short, medium and long films.
    VideoMme,
}

impl Benchmark {
    /// All benchmarks, in the order in which the papers list them.
    pub const ALL: [Self; 6] =
        [Self::VsiBench, Self::VideoMmmu, Self::Mmvu, Self::MvBench, Self::TempCompass, Self::VideoMme];

    /// The benchmark of this name; the error lists the names that exist.
    pub fn parse(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|benchmark| benchmark.name() == name);
        found.ok_or_else(|| EvalError::Benchmark { name: name.to_string(), known: known() })
    }

    /// The name on the command line.
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

    /// For a benchmark whose official figure is a mean over tasks: the task that a category belongs to. VSI-Bench has its three
    /// grades of relative direction in three categories and counts them as one task.
    pub fn task(self, category: &str) -> Option<&str> {
        const DIRECTION: &str = "object_rel_direction";
        let grade = |rest: &str| rest.starts_with('_');
        (self == Self::VsiBench)
            .then(|| if category.strip_prefix(DIRECTION).is_some_and(grade) { DIRECTION } else { category })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for benchmark in Benchmark::ALL {
            assert_eq!(Benchmark::parse(benchmark.name()).unwrap(), benchmark);
        }
        let e = Benchmark::parse("nosuch").unwrap_err();
        assert!(e.is_usage() && e.to_string().contains("`nosuch`; use one of vsibench, videommmu"));
    }

    #[test]
    fn directions_are_one_task() {
        let task = |category| Benchmark::VsiBench.task(category);
        assert_eq!(task("object_rel_direction_hard"), Some("object_rel_direction"));
        assert_eq!(task("object_rel_distance"), Some("object_rel_distance"));
        assert_eq!(Benchmark::MvBench.task("object_rel_direction_hard"), None);
    }
}
