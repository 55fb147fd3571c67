//! The list of built-in reward functions. Names in options, messages, scores and metrics come from this list.

/// A built-in reward function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltInReward {
    /// Correctness of the answer.
    Accuracy,
    /// Whether ordered frames help more than shuffled ones.
    Temporal,
    /// Whether the completion has the required form.
    Format,
    /// Similarity of the reasoning to the frames.
    Semantic,
    /// Bonus for an answer that is neither short nor long.
    Length,
    /// Form of an answer that is JSON.
    Structure,
    /// Penalty of a completion near the maximum length.
    Overlong,
}

impl BuiltInReward {
    /// All functions, first those of Video-R1 in the order in which its code adds them. The last bit of the sum depends
    /// on this order.
    pub const ALL: [Self; 7] =
        [Self::Accuracy, Self::Temporal, Self::Format, Self::Semantic, Self::Length, Self::Structure, Self::Overlong];

    /// The name in options and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Temporal => "temporal",
            Self::Format => "format",
            Self::Semantic => "semantic",
            Self::Length => "length",
            Self::Structure => "structure",
            Self::Overlong => "overlong",
        }
    }

    /// Whether lists of reward functions (`--reward-funcs`, as TRL and ms-swift have it) may name this one. The others
    /// have options of their own.
    pub fn is_listed_by_name(self) -> bool {
        match self {
            Self::Accuracy | Self::Format => true,
            Self::Temporal | Self::Semantic | Self::Length | Self::Structure | Self::Overlong => false,
        }
    }

    /// The names of the functions that lists of reward functions may name.
    pub fn listed_names() -> impl Iterator<Item = &'static str> + Clone {
        Self::ALL.into_iter().filter(|reward| reward.is_listed_by_name()).map(Self::name)
    }
}
