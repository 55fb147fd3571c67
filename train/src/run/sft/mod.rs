//! Supervised fine-tuning: rows of conversations, learned token by token.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_model::input::{Bundle, MediaOptions, SecondPerGrid};

use crate::data::dataset::Dataset;
use crate::data::feed::{Batching, Feed};
use crate::data::labels::Labels;
use crate::data::sample::{Kept, Samples};
use crate::options::{Recipe, SftOptions};
use crate::run::replay::{self, Replayed};
use crate::run::{self, Taken, Work};
use crate::step::sft::step;
use crate::step::trainer::{StepResult, Trainer};
use crate::{Result, TrainError};

pub use crate::run::{Checked, Summary};

/// What a run is given.
pub type Setup<'a> = run::Setup<'a, SftOptions>;

/// Runs to the end, or to the point where `setup.stop` turns true.
pub fn run(setup: &Setup) -> Result<Summary> {
    run::run::<Sft>(setup)
}

/// Looks at every row and trains nothing.
pub fn check(setup: &Setup) -> Result<Checked> {
    run::check::<Sft>(setup)
}

/// Does step `step` of the run in `recorded` again: see [`replay`].
pub fn redo(setup: &Setup, recorded: &Path, step: u64, want: &str) -> Result<Replayed> {
    replay::replay::<Sft>(setup, recorded, step, want)
}

/// Rows learned token by token.
pub(crate) struct Sft<'a> {
    feed: Feed<Samples>,
    stop: &'a AtomicBool,
}

impl<'a> Work<'a> for Sft<'a> {
    type Options = SftOptions;
    type Rows = Samples;

    fn rows(setup: &Setup<'a>) -> Result<Samples> {
        samples(setup)
    }

    fn batching(options: &SftOptions, rows: usize) -> Batching {
        Batching {
            rows: options.per_device_train_batch_size,
            packing: options.packing,
            max_length: options.max_length,
            limit: "--max-length",
            end: options.end(rows),
            strict: options.strict,
        }
    }

    fn steps(options: &SftOptions, batches: u64) -> u64 {
        batches.div_ceil(options.gradient_accumulation_steps as u64)
    }

    /// Because that was asked for, or because packed rows cannot be counted otherwise.
    fn needs_every_row(options: &SftOptions) -> bool {
        options.check_data || options.packing && options.asked_steps().is_none()
    }

    fn begin(
        setup: &Setup<'a>,
        _: Arc<Samples>,
        feed: Feed<Samples>,
        _: &mut Trainer,
        _: Option<&Path>,
    ) -> Result<Self> {
        Ok(Self { feed, stop: setup.stop })
    }

    fn step(&mut self, trainer: &mut Trainer, n: u64, taken: &mut Taken) -> Result<Option<StepResult>> {
        step(trainer, n, || Ok(taken.next_of(&mut self.feed, self.stop)?.map(|batch| batch.samples)))
    }

    /// Nothing: its place in the data is the run's.
    fn save(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        Ok(Vec::new())
    }
}

/// The rows of the data file, as the model of the run learns from them.
pub fn samples(setup: &Setup) -> Result<Samples> {
    let options = setup.options;
    let bundle = Arc::new(Bundle::open(setup.model)?);
    let labels = Labels::new(options.label_rule(), &bundle.tokenizer).map_err(|token| {
        TrainError::option(
            "--labels",
            format!("this rule needs the token {token}, which the model's tokenizer lacks"),
            "choose another rule",
        )
    })?;
    let second_per_grid = if options.parity == Recipe::Paper { SecondPerGrid::True } else { SecondPerGrid::One };
    Ok(Samples {
        data: Dataset::open(&options.data)?,
        bundle,
        labels,
        media: MediaOptions { second_per_grid, ..setup.media.clone() },
        media_root: options.media_root(),
        parity: options.parity,
        kept: Kept::default(),
    })
}

#[cfg(test)]
mod tests;
