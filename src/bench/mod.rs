//! `reel bench`: how fast a model reads, answers and learns on this machine, where the time goes, and which share of what the machine
//! allows that is; and whether two such results differ.

mod clocks;
mod compare;
mod head;
mod measure;
mod model;
mod op;
mod ops;
mod page;
mod parts;
mod rollout;
mod stats;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::common::Common;
use crate::fail::bad_usage;

/// Measure how fast a model reads a prompt, makes tokens, draws completions or learns, or how fast a kernel is.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  reel bench prefill --model tiny --tokens 128 --json > a.json
  reel bench prefill --model tiny --tokens 128 --threads 1 --json > b.json
  reel bench --compare a.json b.json")]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    /// Instead of measuring: say whether B is faster than A
    ///
    /// The ratio is that of the medians of the rounds' times, with a 99 % interval from 10000 bootstrap samples of a fixed seed. B is
    /// called faster or slower where an exact permutation test of the rounds' rank sums, two-sided, rejects chance at 1 %, the interval
    /// leaves 1 out, and the medians differ by more than 1 %; otherwise there is no difference. Five rounds each are the fewest that can
    /// tell. Rounds of one run share its machine's state, which such a test cannot see: for small differences compare several runs.
    #[arg(long, value_names = ["A.json", "B.json"], num_args = 2)]
    compare: Option<Vec<PathBuf>>,
}

/// What is measured.
#[derive(Subcommand, Debug)]
enum What {
    /// Reading a prompt, up to the logits of its last token
    Prefill(model::Prefill),
    /// Making tokens, one after the other
    Decode(model::Decode),
    /// Completions of one prompt, sampled at temperature 1, as a step of GRPO draws them
    ///
    /// The prompt is read once for all of them; then they decode together, to a fixed length: end tokens do not end them. Tokens of the
    /// completions count, the prompt's time does too. `parts` splits the profiled round into prefill and decode.
    Rollout(rollout::Rollout),
    /// Steps of full fine-tuning on texts: forward, backward, AdamW
    ///
    /// All sequences are packed into one micro-batch. `mfu` is the model's operations over the step's time and the data sheet's dense
    /// bf16 rate of the GPU; null where that is not in the table. The model's operations are 6 for each token and weight of a matrix that
    /// it is multiplied by, and causal attention. What is computed again for want of memory does not count, nor does the vision tower,
    /// which texts do not use. `busy` is the sum of the launches' times over the time of the profiled step; `parts` splits that step
    /// into forward, backward (with what it computes again) and optimizer; `planned_peak_bytes` is what `reel plan` counts for it.
    Train(train::Train),
    /// A kernel, a folder's, plain products or the output layer by itself, on cpu or cuda
    Op(op::Op),
}

impl Bench {
    /// Measures and prints, or compares.
    pub fn run(&self, common: &Common) -> Result<()> {
        match (&self.compare, &self.what) {
            (Some(files), None) => compare::run(common, &files[0], &files[1]),
            (None, Some(What::Prefill(c))) => c.run(common),
            (None, Some(What::Decode(c))) => c.run(common),
            (None, Some(What::Rollout(c))) => c.run(common),
            (None, Some(What::Train(c))) => c.run(common),
            (None, Some(What::Op(c))) => c.run(common),
            (Some(_), Some(_)) => Err(bad_usage("--compare", "compares and does not measure", "give two files alone")),
            (None, None) => {
                let cure = "give prefill, decode, rollout, train or op, or --compare A.json B.json";
                Err(bad_usage("bench", "nothing to measure", cure))
            }
        }
    }
}

/// Options of everything that is measured on a model.
#[derive(Args, Debug)]
struct Rounds {
    /// The model folder, or a hub id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Sequences at a time
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Rounds that count; one comes before them, and one after them says where the time goes
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Also write a page: where the time goes, clocks, memory
    #[arg(long, value_name = "OUT.html")]
    html: Option<PathBuf>,
}

/// Refuses amounts that measure nothing.
fn some(amounts: &[(&str, usize)]) -> Result<()> {
    match amounts.iter().find(|(_, n)| *n == 0) {
        Some((option, _)) => Err(bad_usage(option, "0 measures nothing", "give 1 or more")),
        None => Ok(()),
    }
}
