//! Compares ways of storing weights when the updates are far smaller than the resolution of bf16: fine-tuning at a
//! learning rate of 1e-6 with f32 weights, with bf16 weights over exact f32 master weights (moments in f32, bf16 and
//! 8 bits), and with bf16 weights alone.
//!
//! `cargo run --release -p reel-train --example precision -- DIR` writes `DIR/precision.json` and
//! `DIR/precision.svg`.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use reel_device::{DType, Device};
use reel_input::MediaOptions;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_model::qwen_vl::ForwardOptions;
use reel_runtime::optim::ParameterState;
use reel_runtime::{Cx, Tensor, ops};
use reel_samples::feed::SampleSource;
use reel_samples::sample::Sample;
use reel_train::options::GradientCheckpointing;
use reel_train::options::{LrScheduler, Optim, RunOptions};
use reel_train::runs::sft;
use reel_train::setup::DataSetup;
use reel_train::step::hyperparameters::Hyperparameters;
use reel_train::step::sft::step;
use reel_train::step::trainer::{MicroBatchInput, Trainer};
use reel_train::{Result, SftOptions};
use serde_json::{Value, json};

const STEPS: u64 = 3000;
/// Steps between two evaluations on the held-out rows.
const EVERY: u64 = 50;
const ROWS: usize = 16;
const HELD_OUT: usize = 64;
const LEARNING_RATE: f64 = 1e-6;

/// A way of storing the weights and the optimizer's moments.
struct WeightStorage {
    name: &'static str,
    dtype: DType,
    optim: Optim,
    /// Whether the low 16 bits of each f32 master weight are kept between steps. If not, every step starts from
    /// weights rounded to bf16.
    master: bool,
    colour: &'static str,
}

const STORAGES: [WeightStorage; 5] = [
    WeightStorage { name: "f32", dtype: DType::F32, optim: Optim::Adamw, master: true, colour: "#4c4c4c" },
    WeightStorage {
        name: "bf16 + master, f32 moments",
        dtype: DType::BF16,
        optim: Optim::Adamw,
        master: true,
        colour: "#1f77b4",
    },
    WeightStorage {
        name: "bf16 + master, bf16 moments",
        dtype: DType::BF16,
        optim: Optim::AdamwBf16,
        master: true,
        colour: "#2ca02c",
    },
    WeightStorage {
        name: "bf16 + master, 8-bit moments",
        dtype: DType::BF16,
        optim: Optim::Adamw8bit,
        master: true,
        colour: "#9467bd",
    },
    WeightStorage {
        name: "bf16 alone, f32 moments",
        dtype: DType::BF16,
        optim: Optim::Adamw,
        master: false,
        colour: "#d62728",
    },
];

/// The training result of one way of storing weights.
struct LossCurve {
    /// Pairs (step, loss on the held-out rows after that step): step 0, then every [`EVERY`] steps.
    loss: Vec<(u64, f64)>,
    /// L2 distance between the weights before and after the run, over all weights.
    distance: f64,
    /// Share (0 to 1) of the weights that differ after the run.
    moved: f64,
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("give the output folder as the argument")?);
    fs::create_dir_all(&out)?;
    let location = tempfile::tempdir()?;
    let model = location.path().join("model");
    init_model_folder(&InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 0 }, &model)?;
    let data = location.path().join("rows.jsonl");
    fs::write(&data, rows())?;

    let mut curves = Vec::new();
    for way in &STORAGES {
        let curve = train(way, &model, &data)?;
        let (first, last) = (curve.loss[0].1, curve.loss[curve.loss.len() - 1].1);
        println!(
            "{:30} loss {first:.4} -> {last:.4}, {:5.1} % of the weights changed, L2 norm of the change {:.4}",
            way.name,
            100.0 * curve.moved,
            curve.distance
        );
        curves.push(curve);
    }
    fs::write(out.join("precision.json"), format!("{:#}\n", record(&curves)))?;
    fs::write(out.join("precision.svg"), chart(&curves))?;
    Ok(())
}

/// Returns the training data as JSONL: one question per pair of numbers from 0 to 23, which asks for their sum, in a
/// fixed shuffled order.
fn rows() -> String {
    let pairs = (0..24 * 24).map(|i| i * 227 % (24 * 24)).map(|i| (i / 24, i % 24));
    let row = |(a, b): (usize, usize)| {
        json!({"messages": [
            {"role": "user", "content": format!("What is {a} + {b}?")},
            {"role": "assistant", "content": format!("<think>{a} and {b} make {}.</think><answer>{}</answer>", a + b, a + b)},
        ]})
        .to_string()
    };
    pairs.map(row).collect::<Vec<_>>().join("\n")
}

/// Trains with one way of storing weights. All ways start from the same weights and use the same rows.
fn train(way: &WeightStorage, model: &Path, data: &Path) -> std::result::Result<LossCurve, Box<dyn Error>> {
    let run = RunOptions {
        model: model.display().to_string(),
        data: data.to_path_buf(),
        learning_rate: LEARNING_RATE,
        lr_scheduler_type: LrScheduler::Constant,
        gradient_accumulation_steps: 1,
        gradient_checkpointing: GradientCheckpointing::None,
        optim: way.optim,
        ..Default::default()
    };
    let options = SftOptions { run, ..Default::default() };
    let device = Device::cpu(std::thread::available_parallelism()?.get());
    let media = MediaOptions::default();
    let samples = sft::open_samples(&options, &DataSetup { model, media: &media, seed: 0 })?;
    let all: Vec<Sample> = (0..samples.row_count()).map(|row| samples.sample(row)).collect::<Result<_, _>>()?;
    let (held_out, learned) = all.split_at(HELD_OUT);

    let config = &samples.bundle.config;
    let (mut trainer, _files) =
        Trainer::open(&device, config, model, way.dtype, Hyperparameters::new(&options, STEPS))?;
    let before = weights(&trainer)?;
    let mut curve = vec![(0, loss(&trainer, held_out)?)];
    let mut rows = learned.iter().cycle();
    for n in 1..=STEPS {
        step(&mut trainer, n, || Ok(Some(rows.by_ref().take(ROWS).cloned().collect())))?;
        if !way.master {
            trainer.optimizer.parameter_states().try_for_each(|(_, _, state)| clear_low_bits(state))?;
        }
        if n % EVERY == 0 {
            curve.push((n, loss(&trainer, held_out)?));
        }
    }
    let after = weights(&trainer)?;
    let differences = || before.iter().zip(&after).map(|(b, a)| f64::from(a - b));
    Ok(LossCurve {
        loss: curve,
        distance: differences().map(|d| d * d).sum::<f64>().sqrt(),
        moved: differences().filter(|d| *d != 0.0).count() as f64 / before.len() as f64,
    })
}

/// Clears the low bits of the master weights, so that each step starts from weights rounded to bf16.
fn clear_low_bits(state: &ParameterState) -> Result<()> {
    let mut low_bits = state.cells.iter().filter_map(|cell| cell.low.as_ref());
    low_bits.try_for_each(|low| Ok(low.write(&vec![0u16; low.count()])?))
}

/// Returns the mean loss over the learned tokens (the answers' tokens) of `rows`.
fn loss(t: &Trainer, rows: &[Sample]) -> Result<f64> {
    let packed = MicroBatchInput::new(&t.device, &t.model.config, rows)?;
    let cx = Cx::inference(&t.device, t.dtype);
    let learned = ForwardOptions { rows: Some(&packed.positions), ..Default::default() };
    let hidden = t.model.forward(&cx, &packed.batch, learned)?;
    let log_probs = ops::linear_log_prob(&cx, &hidden, t.model.text.lm_head()?, &packed.targets, 1.0)?.to_f32()?;
    Ok(-log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / log_probs.len() as f64)
}

fn weights(t: &Trainer) -> Result<Vec<f32>> {
    let all = t.model.parameters().map(Tensor::to_f32).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(all.concat())
}

fn record(curves: &[LossCurve]) -> Value {
    let ways = STORAGES.iter().zip(curves).map(|(way, curve)| {
        json!({"name": way.name, "weights_moved": curve.moved, "distance": curve.distance, "loss": curve.loss})
    });
    json!({
        "command": "cargo run --release -p reel-train --example precision -- DIR",
        "machine": Device::cpu(1).hardware().name,
        "what": "loss on rows held out (step, loss), supervised fine-tuning of a random tiny model",
        "learning_rate": LEARNING_RATE, "steps": STEPS, "rows_a_step": ROWS, "rows_held_out": HELD_OUT,
        "ways": ways.collect::<Vec<_>>(),
    })
}

fn chart(curves: &[LossCurve]) -> String {
    let (width, height, left, bottom) = (760.0, 340.0, 54.0, 30.0);
    let losses = || curves.iter().flat_map(|c| &c.loss).map(|p| p.1);
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(0.0, f64::max));
    let x = |step: u64| left + (width - left - 10.0) * step as f64 / STEPS as f64;
    let y = |loss: f64| 10.0 + (height - 10.0 - bottom) * (high - loss) / (high - low);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Loss over steps at a learning rate of {LEARNING_RATE:e}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        width + 16.0
    );
    for i in 0..5 {
        let loss = low + (high - low) * f64::from(i) / 4.0;
        let (at, text) = (y(loss), left - 8.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>",
            width - 10.0
        );
        let _ = writeln!(svg, "<text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>", at + 4.0);
    }
    for step in (0..=STEPS).step_by(STEPS as usize / 6) {
        let _ =
            writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", x(step), height - 10.0);
    }
    for (row, (way, curve)) in (0u8..).zip(STORAGES.iter().zip(curves)) {
        let points: Vec<String> = curve.loss.iter().map(|(s, l)| format!("{:.1},{:.1}", x(*s), y(*l))).collect();
        let at = 150.0 + 20.0 * f64::from(row);
        let (colour, points) = (way.colour, points.join(" "));
        let _ = writeln!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"{points}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{at}\" fill=\"{colour}\">{}</text>", left + 16.0, way.name);
    }
    svg + "</svg>\n"
}
