//! A group of completions of one prompt, and what each is worth: every reward, their sum, and the advantage within the group.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::accuracy::accuracy_reward;
use crate::advantage::group_advantages;
use crate::format::format_reward;
use crate::length::length_reward;
use crate::temporal::temporal_reward;
use crate::{ProblemType, Recipe, RewardWeights, ScaleRewards};

/// Completions of one prompt, with what is known of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoringGroup {
    /// The kind of problem; `None` for one that has no rule: accuracy is 0 then.
    pub problem_type: Option<ProblemType>,
    /// The truth, in its tags. `None` where the row has none and only own rewards count: neither accuracy nor format.
    pub solution: Option<String>,
    /// The completions.
    pub completions: Vec<String>,
    /// Tokens of each completion, the one that ends it counted; empty where not known: no length reward.
    pub lengths: Vec<usize>,
    /// Answers to shuffled frames; `None` where there were none: no temporal reward.
    pub shuffled: Option<Vec<String>>,
    /// The semantic reward of each completion ([`crate::semantic::semantic_reward`]) whether right or not; `None` where there is none.
    pub semantic: Option<Vec<f32>>,
    /// The user's own rewards by name, one number a completion. With any, the length reward is off.
    pub custom: Vec<(String, Vec<f32>)>,
}

/// How groups are scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardRules {
    /// Whose rules.
    pub recipe: Recipe,
    /// How much each reward counts.
    pub weights: RewardWeights,
    /// What advantages are divided by; `Batch` needs the other groups of the step, so here it is as `ScoringGroup`.
    pub scale: ScaleRewards,
}

/// What the completions of a group are worth, one number each; a list is empty where its reward does not apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// How right the answer is, from 0 to 1.
    pub accuracy: Vec<f32>,
    /// Whether the format is kept: 1 or 0.
    pub format: Vec<f32>,
    /// 0.3 for right answers of a group that does better with its frames in order.
    pub temporal: Vec<f32>,
    /// How well the thoughts of a right answer agree with the frames, from 0 to 1.
    pub semantic: Vec<f32>,
    /// 0.2 for right answers of the wanted length.
    pub length: Vec<f32>,
    /// The user's own rewards by name.
    pub custom: Vec<(String, Vec<f32>)>,
    /// The weighted sum of all.
    pub reward: Vec<f32>,
    /// The advantage within the group; empty for a completion alone.
    pub advantage: Vec<f32>,
}

impl ScoringGroup {
    /// Scores the group.
    ///
    /// # Panics
    ///
    /// Where a list that is there has not one number a completion: a defect of the caller.
    pub fn score(&self, rules: &RewardRules) -> Scores {
        let whole = |n: usize| n == self.completions.len();
        assert!(self.lengths.is_empty() || whole(self.lengths.len()), "lengths of {} completions", self.lengths.len());
        assert!(self.semantic.as_ref().is_none_or(|s| whole(s.len())), "semantic rewards are not one a completion");
        assert!(self.custom.iter().all(|(_, values)| whole(values.len())), "own rewards are not one a completion");
        let mut scores = Scores { custom: self.custom.clone(), ..Scores::default() };
        if let Some(solution) = &self.solution {
            self.score_answers(solution, rules.recipe, &mut scores);
        }
        scores.reward = scores.sum(self.completions.len(), &rules.weights);
        if self.completions.len() > 1 {
            let scale = if rules.scale == ScaleRewards::Batch { ScaleRewards::Group } else { rules.scale };
            scores.advantage = group_advantages(&scores.reward, self.completions.len(), scale);
        }
        scores
    }

    /// The recipes' rewards.
    fn score_answers(&self, solution: &str, recipe: Recipe, scores: &mut Scores) {
        let accuracy = |completion: &String| accuracy_reward(self.problem_type, completion, solution);
        scores.accuracy = self.completions.iter().map(accuracy).collect();
        scores.format = self.completions.iter().map(|c| format_reward(c)).collect();
        if let (Some(share), Some(shuffled)) = (recipe.temporal_min_ratio(), &self.shuffled) {
            let shuffled: Vec<f32> = shuffled.iter().map(accuracy).collect();
            scores.temporal = temporal_reward(&scores.accuracy, &shuffled, share);
        }
        if let Some(semantic) = &self.semantic {
            let right = scores.accuracy.iter().zip(semantic);
            scores.semantic = right.map(|(accuracy, s)| if *accuracy == 0.0 { 0.0 } else { *s }).collect();
        }
        if self.custom.is_empty() && !self.lengths.is_empty() {
            scores.length = length_reward(&scores.accuracy, &self.lengths);
        }
    }
}

impl Scores {
    /// The rewards that apply, by name, in the order in which Video-R1's code adds them, on which the last bit of a sum depends.
    pub fn components(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let fixed = [
            ("accuracy", &self.accuracy[..]),
            ("temporal", &self.temporal),
            ("format", &self.format),
            ("semantic", &self.semantic),
            ("length", &self.length),
        ];
        let own = self.custom.iter().map(|(name, values)| (name.as_str(), &values[..]));
        fixed.into_iter().chain(own).filter(|(_, values)| !values.is_empty())
    }

    fn sum(&self, n: usize, weights: &RewardWeights) -> Vec<f32> {
        let mut sums = vec![0.0; n];
        for (name, values) in self.components() {
            let weight = weights.weight(name);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
        }
        sums
    }

    /// All lists that are not empty, as they are written to files.
    fn lists(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let ends = [("reward", &self.reward[..]), ("advantage", &self.advantage)];
        self.components().chain(ends.into_iter().filter(|(_, values)| !values.is_empty()))
    }

    /// The scores of a completion alone: numbers in place of lists.
    pub fn single(&self) -> SingleScores<'_> {
        SingleScores(self)
    }
}

/// Written as an object of lists.
impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.lists().try_for_each(|(name, values)| map.serialize_entry(name, values))?;
        map.end()
    }
}

/// Written as an object of numbers, those of the first completion.
#[derive(Clone, Copy, Debug)]
pub struct SingleScores<'a>(&'a Scores);

impl Serialize for SingleScores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.0.lists().try_for_each(|(name, values)| map.serialize_entry(name, &values[0]))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> ScoringGroup {
        ScoringGroup {
            problem_type: Some(ProblemType::MultipleChoice),
            solution: Some("<answer>A</answer>".into()),
            completions: ["A", "B", "A"].map(|a| format!("<think>x</think><answer>{a}</answer>")).into(),
            lengths: vec![400; 3],
            ..ScoringGroup::default()
        }
    }

    #[test]
    fn what_applies_is_added_up() {
        let group = ScoringGroup { shuffled: Some(vec!["".into(); 2]), semantic: Some(vec![0.5; 3]), ..pair() };
        let with = |recipe| group.score(&RewardRules { recipe, ..RewardRules::default() });
        let paper = with(Recipe::Paper);
        assert_eq!(paper.semantic, [0.5, 0.0, 0.5]);
        assert_eq!(paper.reward, [1.0 + 0.3 + 1.0 + 0.5 + 0.2, 1.0, 1.0 + 0.3 + 1.0 + 0.5 + 0.2]);
        let names =
            |scores: &Scores| scores.components().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(names(&paper), "accuracy temporal format semantic length");
        assert_eq!(names(&with(Recipe::Videorft)), "accuracy format semantic length");
        let text = serde_json::to_string(&pair().score(&RewardRules::default())).unwrap();
        assert!(
            text.starts_with(
                r#"{"accuracy":[1.0,0.0,1.0],"format":[1.0,1.0,1.0],"length":[0.2,0.0,0.2],"reward":[2.2,"#
            )
        );
    }

    #[test]
    fn own_rewards_turn_length_off_and_can_be_alone() {
        let own = vec![("command".to_string(), vec![3.0, 0.0, -1.0])];
        let rules =
            RewardRules { weights: RewardWeights::parse("command=0.5,format=0").unwrap(), ..RewardRules::default() };
        let both = ScoringGroup { custom: own.clone(), ..pair() }.score(&rules);
        assert_eq!((both.length.len(), both.reward), (0, vec![2.5, 0.0, 0.5]));
        let alone = ScoringGroup { custom: own, solution: None, ..pair() }.score(&rules);
        assert_eq!((alone.accuracy.len(), alone.format.len(), alone.reward), (0, 0, vec![1.5, 0.0, -0.5]));
    }

    #[test]
    fn a_completion_alone_has_no_advantage() {
        let group = ScoringGroup { completions: vec!["<answer>A</answer>".into()], lengths: vec![], ..pair() };
        let scores = group.score(&RewardRules::default());
        assert_eq!(serde_json::to_string(&scores.single()).unwrap(), r#"{"accuracy":1.0,"format":0.0,"reward":1.0}"#);
    }

    proptest! {
        /// What docs/parity.md says that the temporal reward can do.
        #[test]
        fn a_bonus_of_all_right_answers_does_not_outlive_the_groups_scale(
            answers in prop::collection::vec(prop::sample::select(vec!["A", "B"]), 2..12),
            shuffled in prop::collection::vec(prop::sample::select(vec!["A", "B"]), 1..6),
            recipe in prop::sample::select(vec![Recipe::Paper, Recipe::VideoR1]),
        ) {
            let said = |list: &[&str]| list.iter().map(|a| format!("<think>x</think><answer>{a}</answer>")).collect();
            let plain = ScoringGroup { completions: said(&answers), lengths: vec![], ..pair() };
            let temporal = ScoringGroup { shuffled: Some(said(&shuffled)), ..plain.clone() };
            let both = |scale| [&plain, &temporal].map(|g| g.score(&RewardRules { recipe, scale, ..RewardRules::default() }));
            let times = |factor: f32, [without, with]: [Scores; 2], within: f32| {
                without.advantage.iter().zip(&with.advantage).all(|(a, b)| (factor * a - b).abs() < within)
            };
            prop_assert!(times(1.0, both(ScaleRewards::Group), 1e-3));
            let alone = both(ScaleRewards::None);
            let paid = alone[1].temporal.iter().any(|&r| r > 0.0);
            let factor = if paid { 1.3 } else { 1.0 };
            prop_assert!(times(factor, alone, 1e-5));
        }
    }

    #[test]
    fn scales() {
        let with = |scale| pair().score(&RewardRules { scale, ..RewardRules::default() }).advantage;
        assert_eq!(with(ScaleRewards::Batch), with(ScaleRewards::Group));
        let mean = (2.2f32 + 1.0 + 2.2) / 3.0;
        assert!((with(ScaleRewards::None)[1] - (1.0 - mean)).abs() < 1e-6);
    }
}
