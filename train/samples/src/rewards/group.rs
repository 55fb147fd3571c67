//! Scores a group of completions of one prompt: all reward functions, their weighted sum, and the advantages within
//! the group.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::rewards::accuracy::{is_video, score_answer};
use crate::rewards::advantage::group_advantages;
use crate::rewards::answer::extract_answer;
use crate::rewards::format::format_reward;
use crate::rewards::length::length_reward;
use crate::rewards::malformed::Malformed;
use crate::rewards::overlong::OverlongPenalty;
use crate::rewards::problem::{AnswerRules, ProblemFields};
use crate::rewards::structure::structure_reward;
use crate::rewards::temporal::temporal_reward;
use crate::rewards::{BuiltInReward, CustomReports, ProblemType, RewardWeights, ScaleRewards};

/// Completions of one prompt with all data that the reward functions need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoringGroup {
    /// The kind of problem; `None` for an unknown kind, whose accuracy is 0.
    pub problem_type: Option<ProblemType>,
    /// The correct answer in `<answer>` tags. If `None`, only custom rewards apply, not the built-in ones such as
    /// accuracy and format.
    pub solution: Option<String>,
    /// What else the row says about the problem.
    pub fields: ProblemFields,
    /// The texts of the completions.
    pub completions: Vec<String>,
    /// Number of tokens of each completion, including the end token. If empty, there is no length reward.
    pub lengths: Vec<usize>,
    /// Completions that the model generated from the same frames in shuffled order. If `None`, there is no temporal
    /// reward.
    pub shuffled: Option<Vec<String>>,
    /// The semantic reward of each completion ([`crate::rewards::semantic_reward`]). Values for wrong answers are
    /// included; scoring sets them to 0. If `None`, there is no semantic reward.
    pub semantic: Option<Vec<f32>>,
    /// Custom rewards by name, with one number per completion; NaN if the reward does not apply to the completion. If
    /// there are any custom rewards, the length reward is off.
    pub custom: Vec<(String, Vec<f32>)>,
    /// What the custom rewards report besides rewards.
    pub reports: CustomReports,
}

/// How groups are scored: recipe, weights and scaling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RewardRules {
    /// The rules by which answers are scored.
    pub answers: AnswerRules,
    /// Whether the structure reward applies to kinds of problem whose answers are JSON (`--structure-reward`).
    pub has_structure_reward: bool,
    /// The penalty of long completions (`--overlong-cache`).
    pub overlong: Option<OverlongPenalty>,
    /// Weight of each reward function.
    pub weights: RewardWeights,
    /// The standard deviation by which rewards are divided to get advantages. `Batch` and `Ema` need all groups of a
    /// step, so scoring a single group uses `Group` instead.
    pub scale: ScaleRewards,
}

/// The scores of the completions of a group, one number per completion. A list is empty if its reward function does
/// not apply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Correctness of the answer, from 0 to 1.
    pub accuracy: Vec<f32>,
    /// 1 if the completion has the required format, else 0.
    pub format: Vec<f32>,
    /// 0.3 for correct answers if the group's mean accuracy with ordered frames is high enough relative to that with
    /// shuffled frames ([`crate::rewards::temporal`]), else 0.
    pub temporal: Vec<f32>,
    /// Similarity of a correct answer's reasoning to the frames, from 0 to 1; 0 for a wrong answer.
    pub semantic: Vec<f32>,
    /// 0.2 for correct answers of 320 to 512 tokens, else 0.
    pub length: Vec<f32>,
    /// 0 to 0.5 for the form of an answer that is JSON ([`crate::rewards::structure`]).
    pub structure: Vec<f32>,
    /// -1 to 0 for the length of a completion ([`OverlongPenalty`]).
    pub overlong: Vec<f32>,
    /// Custom rewards by name, with one number per completion.
    pub custom: Vec<(String, Vec<f32>)>,
    /// What the custom rewards report besides rewards.
    pub reports: CustomReports,
    /// Why the answer of a completion could not be read, so that its accuracy is 0; empty if all could.
    pub malformed: Vec<Option<Malformed>>,
    /// Weighted sum of the rewards that apply; NaN for a completion to which no custom reward and no built-in reward
    /// with a weight applies.
    pub reward: Vec<f32>,
    /// Advantage within the group; empty for a single completion, 0 for a completion without a reward.
    pub advantage: Vec<f32>,
}

impl ScoringGroup {
    /// Scores the group by all reward functions that apply.
    ///
    /// # Panics
    ///
    /// A given list does not have one number per completion, which is a bug of the caller.
    pub fn score(&self, rules: &RewardRules) -> Scores {
        let fits = |n: usize| n == self.completions.len();
        assert!(self.lengths.is_empty() || fits(self.lengths.len()), "{} lengths", self.lengths.len());
        assert!(
            self.semantic.as_ref().is_none_or(|s| fits(s.len())),
            "the number of semantic rewards differs from that of completions"
        );
        assert!(
            self.custom.iter().all(|(_, values)| fits(values.len())),
            "the number of custom rewards differs from that of completions"
        );
        let mut scores = Scores { custom: self.custom.clone(), reports: self.reports.clone(), ..Scores::default() };
        if let Some(solution) = &self.solution {
            self.score_answers(solution, rules, &mut scores);
        }
        if let Some(penalty) = rules.overlong {
            scores.overlong = self.lengths.iter().map(|&tokens| penalty.of(tokens)).collect();
        }
        scores.reward = scores.weighted_sum(self.completions.len(), &rules.weights);
        if self.completions.len() > 1 {
            let scale = if rules.scale == ScaleRewards::Batch { ScaleRewards::Group } else { rules.scale };
            scores.advantage = group_advantages(&[&scores.reward], scale).remove(0);
        }
        scores
    }

    /// Computes the rewards that compare the completions with the solution.
    fn score_answers(&self, solution: &str, rules: &RewardRules, scores: &mut Scores) {
        let kind = self.problem_type;
        let score = |completion: &String| score_answer(kind, completion, solution, &self.fields, rules.answers);
        let answers: Vec<Result<f32, Malformed>> = self.completions.iter().map(score).collect();
        scores.accuracy = answers.iter().map(|answer| answer.unwrap_or(0.0)).collect();
        if answers.iter().any(Result::is_err) {
            scores.malformed = answers.into_iter().map(Result::err).collect();
        }
        scores.format = self.completions.iter().map(|c| format_reward(c)).collect();
        if let (Some(min_ratio), Some(shuffled)) = (rules.answers.recipe.temporal_min_ratio(), &self.shuffled) {
            let shuffled: Vec<f32> = shuffled.iter().map(|completion| score(completion).unwrap_or(0.0)).collect();
            scores.temporal = temporal_reward(&scores.accuracy, &shuffled, min_ratio);
        }
        if let Some(kind) = kind.filter(|_| rules.has_structure_reward) {
            let is_video = is_video(&self.fields, extract_answer(solution));
            let structure = |completion: &String| structure_reward(kind, completion, solution, is_video);
            scores.structure = self.completions.iter().filter_map(structure).collect();
        }
        if let Some(semantic) = &self.semantic {
            let pairs = scores.accuracy.iter().zip(semantic);
            scores.semantic = pairs.map(|(accuracy, s)| if *accuracy == 0.0 { 0.0 } else { *s }).collect();
        }
        if self.custom.is_empty() && !self.lengths.is_empty() {
            scores.length = length_reward(&scores.accuracy, &self.lengths);
        }
    }
}

impl Scores {
    /// Returns the list of a built-in reward function.
    pub fn of(&self, reward: BuiltInReward) -> &[f32] {
        match reward {
            BuiltInReward::Accuracy => &self.accuracy,
            BuiltInReward::Temporal => &self.temporal,
            BuiltInReward::Format => &self.format,
            BuiltInReward::Semantic => &self.semantic,
            BuiltInReward::Length => &self.length,
            BuiltInReward::Structure => &self.structure,
            BuiltInReward::Overlong => &self.overlong,
        }
    }

    /// Returns the lists of the reward functions that apply, with their names, in the order in which they are added.
    pub fn named_rewards(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let fixed = BuiltInReward::ALL.map(|reward| (reward.name(), self.of(reward)));
        let custom = self.custom.iter().map(|(name, values)| (name.as_str(), &values[..]));
        fixed.into_iter().chain(custom).filter(|(_, values)| !values.is_empty())
    }

    /// Returns whether the completions of the group have different rewards, so that the group has advantages other
    /// than 0. Completions without a reward do not count.
    pub fn rewards_differ(&self) -> bool {
        let mut known = self.reward.iter().filter(|reward| !reward.is_nan());
        known.next().is_some_and(|first| known.any(|other| other != first))
    }

    fn weighted_sum(&self, n: usize, weights: &RewardWeights) -> Vec<f32> {
        let built_in = self.named_rewards().count().saturating_sub(self.custom.len());
        let always =
            self.custom.is_empty() || self.named_rewards().take(built_in).any(|(name, _)| weights.weight(name) != 0.0);
        let has_reward = |i: usize| always || self.custom.iter().any(|(_, values)| !values[i].is_nan());
        let mut sums: Vec<f32> = (0..n).map(|i| if has_reward(i) { 0.0 } else { f32::NAN }).collect();
        for (name, values) in self.named_rewards() {
            let weight = weights.weight(name);
            let applied = sums.iter_mut().zip(values).filter(|(_, value)| !value.is_nan());
            applied.for_each(|(sum, value)| *sum += weight * value);
        }
        sums
    }

    /// Returns the names and values of all lists that are not empty, in the order of output files.
    fn lists(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let ends = [("reward", &self.reward[..]), ("advantage", &self.advantage)];
        self.named_rewards().chain(ends.into_iter().filter(|(_, values)| !values.is_empty()))
    }

    /// Returns the scores of a single completion, which serialize as numbers instead of lists.
    pub fn first_completion_scores(&self) -> FirstCompletionScores<'_> {
        FirstCompletionScores(self)
    }
}

/// Serializes as an object with one list of numbers per reward function.
impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.lists().try_for_each(|(name, values)| map.serialize_entry(name, values))?;
        if !self.malformed.is_empty() {
            map.serialize_entry("malformed", &self.malformed)?;
        }
        map.end()
    }
}

/// The scores of the first completion. They serialize as an object of numbers, with the reason of a malformed answer.
#[derive(Clone, Copy, Debug)]
pub struct FirstCompletionScores<'a>(&'a Scores);

impl Serialize for FirstCompletionScores<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.0.lists().try_for_each(|(name, values)| map.serialize_entry(name, &values[0]))?;
        if let Some(Some(reason)) = self.0.malformed.first() {
            map.serialize_entry("malformed", reason)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::Recipe;
    use proptest::prelude::*;

    fn group_of_three() -> ScoringGroup {
        ScoringGroup {
            problem_type: Some(ProblemType::MultipleChoice),
            solution: Some("<answer>A</answer>".into()),
            completions: ["A", "B", "A"].map(|a| format!("<think>x</think><answer>{a}</answer>")).into(),
            lengths: vec![400; 3],
            ..ScoringGroup::default()
        }
    }

    #[test]
    fn reward_is_the_sum_of_applicable_functions() {
        let group =
            ScoringGroup { shuffled: Some(vec!["".into(); 2]), semantic: Some(vec![0.5; 3]), ..group_of_three() };
        let with = |recipe| {
            group.score(&RewardRules {
                answers: AnswerRules { recipe, ..AnswerRules::default() },
                ..RewardRules::default()
            })
        };
        let paper = with(Recipe::Paper);
        assert_eq!(paper.semantic, [0.5, 0.0, 0.5]);
        assert_eq!(paper.reward, [1.0 + 0.3 + 1.0 + 0.5 + 0.2, 1.0, 1.0 + 0.3 + 1.0 + 0.5 + 0.2]);
        let names =
            |scores: &Scores| scores.named_rewards().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(names(&paper), "accuracy temporal format semantic length");
        assert_eq!(names(&with(Recipe::Videorft)), "accuracy format semantic length");
        let text = serde_json::to_string(&group_of_three().score(&RewardRules::default())).unwrap();
        assert!(
            text.starts_with(
                r#"{"accuracy":[1.0,0.0,1.0],"format":[1.0,1.0,1.0],"length":[0.2,0.0,0.2],"reward":[2.2,"#
            )
        );
    }

    #[test]
    fn custom_rewards_turn_length_off_and_need_no_solution() {
        let (custom, names) = (vec![("command".to_string(), vec![3.0, 0.0, -1.0])], ["command".to_string()]);
        let rules = RewardRules {
            weights: RewardWeights::parse("command=0.5,format=0", &names).unwrap(),
            ..RewardRules::default()
        };
        let with_solution = ScoringGroup { custom: custom.clone(), ..group_of_three() }.score(&rules);
        assert_eq!((with_solution.length.len(), with_solution.reward), (0, vec![2.5, 0.0, 0.5]));
        let without = ScoringGroup { custom, solution: None, ..group_of_three() }.score(&rules);
        assert_eq!((without.accuracy.len(), without.format.len(), without.reward), (0, 0, vec![1.5, 0.0, -0.5]));
    }

    #[test]
    fn a_completion_to_which_no_reward_applies_has_no_advantage() {
        let nan = f32::NAN;
        let score = |custom: &[(&str, [f32; 3])], solution: Option<String>, weights: &str| {
            let names: Vec<String> = custom.iter().map(|(name, _)| name.to_string()).collect();
            let weights = RewardWeights::parse(weights, &names).unwrap();
            let custom = custom.iter().map(|(name, values)| (name.to_string(), values.to_vec())).collect();
            let group = ScoringGroup { custom, solution, ..group_of_three() };
            group.score(&RewardRules { weights, scale: ScaleRewards::None, ..RewardRules::default() })
        };
        let text = |custom: &[(&str, [f32; 3])], solution, weights: &str| {
            let scores = score(custom, solution, weights);
            serde_json::to_string(&(&scores.reward, &scores.advantage)).unwrap()
        };
        let (f, solution) = (("f", [nan, 2.0, 1.0]), group_of_three().solution);
        assert_eq!(text(&[f], None, "f=1"), "[[null,2.0,1.0],[0.0,0.5,-0.5]]");
        // A number of another function is a reward, also with the weight 0; built-in functions count by their weight.
        assert_eq!(text(&[f, ("g", [nan, nan, 3.0])], None, "f=1,g=2"), "[[null,2.0,7.0],[0.0,-2.5,2.5]]");
        assert_eq!(text(&[f, ("g", [9.0, nan, nan])], None, "f=1,g=0"), "[[0.0,2.0,1.0],[-1.0,1.0,0.0]]");
        assert_eq!(text(&[f], solution.clone(), "f=1"), "[[2.0,3.0,3.0],[-0.66666675,0.33333325,0.33333325]]");
        assert_eq!(text(&[f], solution, "f=1,accuracy=0,format=0"), "[[null,2.0,1.0],[0.0,0.5,-0.5]]");
        assert_eq!(text(&[("f", [nan; 3])], None, "f=1"), "[[null,null,null],[0.0,0.0,0.0]]");
        let differ = |values| score(&[("f", values)], None, "f=1").rewards_differ();
        assert!(differ([nan, 2.0, 1.0]) && !differ([nan, 2.0, 2.0]) && !differ([nan, 2.0, nan]) && !differ([nan; 3]));
        assert!(serde_json::to_string(&score(&[f], None, "f=1")).unwrap().starts_with(r#"{"f":[null,2.0,1.0],"#));
    }

    #[test]
    fn single_completion_has_no_advantage() {
        let group =
            ScoringGroup { completions: vec!["<answer>A</answer>".into()], lengths: vec![], ..group_of_three() };
        let scores = group.score(&RewardRules::default());
        assert_eq!(
            serde_json::to_string(&scores.first_completion_scores()).unwrap(),
            r#"{"accuracy":1.0,"format":0.0,"reward":1.0}"#
        );
    }

    proptest! {
        /// If the rewards of a group take only two different values, the temporal reward does not change advantages
        /// that are divided by the group's standard deviation. Unscaled advantages become 1.3 times as large
        /// (docs/parity.md, "Effect of the temporal reward").
        #[test]
        fn temporal_reward_cancels_when_advantages_are_scaled_by_group(
            answers in prop::collection::vec(prop::sample::select(vec!["A", "B"]), 2..12),
            shuffled in prop::collection::vec(prop::sample::select(vec!["A", "B"]), 1..6),
            recipe in prop::sample::select(vec![Recipe::Paper, Recipe::VideoR1]),
        ) {
            let completions = |list: &[&str]| list.iter().map(|a| format!("<think>x</think><answer>{a}</answer>")).collect();
            let plain = ScoringGroup { completions: completions(&answers), lengths: vec![], ..group_of_three() };
            let temporal = ScoringGroup { shuffled: Some(completions(&shuffled)), ..plain.clone() };
            let score_both = |scale| [&plain, &temporal].map(|g| g.score(&RewardRules { answers: AnswerRules { recipe, ..AnswerRules::default() }, scale, ..RewardRules::default() }));
            let is_scaled_by = |factor: f32, [without, with]: [Scores; 2], tolerance: f32| {
                without.advantage.iter().zip(&with.advantage).all(|(a, b)| (factor * a - b).abs() < tolerance)
            };
            // If all rewards are equal, the f32 mean may be off by some 2^-22. As in torch, this error is divided by
            // a standard deviation of about 0 plus 1e-4. 11 rewards of 2.3 each have advantages of 2e-3.
            prop_assert!(is_scaled_by(1.0, score_both(ScaleRewards::Group), 1e-2));
            let unscaled = score_both(ScaleRewards::None);
            let paid = unscaled[1].temporal.iter().any(|&r| r > 0.0);
            let factor = if paid { 1.3 } else { 1.0 };
            prop_assert!(is_scaled_by(factor, unscaled, 1e-5));
        }
    }

    #[test]
    fn batch_scale_equals_group_scale_for_one_group() {
        let with = |scale| group_of_three().score(&RewardRules { scale, ..RewardRules::default() }).advantage;
        assert_eq!(with(ScaleRewards::Batch), with(ScaleRewards::Group));
        let mean = (2.2f32 + 1.0 + 2.2) / 3.0;
        assert!((with(ScaleRewards::None)[1] - (1.0 - mean)).abs() < 1e-6);
    }
}
