//! Computes rewards and advantages of a group of completions by the rules of the VideoRFT and Video-R1 papers.
//!
//!     cargo run --release --example 05_rewards

use reel_samples::rewards::{ProblemType, RewardRules, ScoringGroup};

fn main() {
    let group = ScoringGroup {
        problem_type: ProblemType::parse("multiple choice").ok(),
        solution: Some("<answer>B</answer>".into()),
        completions: vec![
            "<think>The ball leaves on the right.</think><answer>B</answer>".into(),
            "<think>I guess.</think><answer>A</answer>".into(),
            "B".into(),
        ],
        lengths: vec![12, 6, 1],
        ..ScoringGroup::default()
    };
    let scores = group.score(&RewardRules::default());
    for (name, values) in scores.named_rewards() {
        println!("{name:>10} {values:?}");
    }
    println!("{:>10} {:?}", "reward", scores.reward);
    println!("{:>10} {:?}", "advantage", scores.advantage);
    assert!(scores.reward[0] > scores.reward[1]);
}

#[test]
fn runs() {
    main();
}
