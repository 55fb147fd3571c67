//! Runs the commands of `reel` one after the other on a model of a published size with random weights, and checks the
//! output of each command: `./x real-size`.
//!
//! ```text
//! init → doctor → generate, score (16 frames of video) → sft with LoRA, killed after its first checkpoint, resumed →
//! replay → merge → grpo with 2 completions (temporal, LoRA), replay → plan = peak of both runs → eval → serve
//! ```
//!
//! Prints a table of wall time and peak memory by command. With `--record` it writes the table as a record for
//! `tools/benches/results`. Exits with 1 at the first command that fails or whose output is wrong.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use reel_input::config::Family;
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// The program to run
    #[arg(long, default_value = "target/release/reel")]
    reel: PathBuf,
    /// Folder for models and runs, which must be new or empty; it is removed at the end. Model 3b needs space for two
    /// copies of its weights (15 GB) and for checkpoints
    #[arg(long, default_value = "target/real-size")]
    folder: PathBuf,
    /// A video of at least 16 frames
    #[arg(long, default_value = "tests/golden/train/sft_videorft_mp4/media/clip.mp4")]
    clip: PathBuf,
    /// Model family: qwen2.5 or qwen3
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// Model size, a preset of `reel init`; tiny or qwen3-tiny try this program [default: 3b or qwen3-2b]
    #[arg(long)]
    preset: Option<String>,
    /// JSON file for the results
    #[arg(long)]
    record: Option<PathBuf>,
}

impl Arguments {
    fn preset(&self) -> &str {
        let default = match self.family {
            Family::Qwen25Vl => "3b",
            Family::Qwen3Vl => "qwen3-2b",
        };
        self.preset.as_deref().unwrap_or(default)
    }
}

/// Frames of a video, and the largest and smallest number of vision tokens of a frame (112 × 84 pixels in Qwen2.5-VL).
/// Such small videos let two cores without bf16 instructions finish in 20 minutes; everything that depends on the model
/// has its real size.
const FRAMES: u32 = 16;
const FRAME_TOKENS: [u64; 2] = [12, 8];
const LORA: &str = "--lora-r 16 --lora-target-modules all-linear";
/// Number of requests to the server, and number of clients that send them at the same time.
const REQUESTS: usize = 20;
const CLIENTS: usize = 4;

/// The largest and the smallest number of pixels of a frame.
fn pixels(family: Family) -> [u64; 2] {
    FRAME_TOKENS.map(|tokens| tokens * family.token_pixels())
}

/// What went wrong, as one line.
type Outcome<T> = Result<T, String>;

/// One line of the table.
struct Row {
    command: &'static str,
    seconds: f64,
    peak_bytes: u64,
    note: String,
}

struct RealSize {
    reel: PathBuf,
    folder: PathBuf,
    family: Family,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    match run(&arguments) {
        Ok(rows) => {
            println!("all commands agree; {:.0} s", begun.elapsed().as_secs_f64());
            let written = arguments.record.as_ref().map(|path| {
                let text = format!("{:#}\n", record(&arguments, &rows, begun.elapsed().as_secs_f64()));
                fs::write(path, text).map_err(|e| format!("{}: cannot be written: {e}", path.display()))
            });
            match written {
                Some(Err(error)) => failed(&error),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Outcome<Vec<Row>> {
    let folder = std::path::absolute(&arguments.folder).map_err(|e| e.to_string())?;
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(format!("{}: is not empty; remove it, or give another --folder", folder.display()));
    }
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    fs::copy(&arguments.clip, folder.join("clip.mp4")).map_err(|e| format!("{}: {e}", arguments.clip.display()))?;
    let reel = std::path::absolute(&arguments.reel).map_err(|e| e.to_string())?;
    println!("{:<26} {:>8} {:>9}  result", "command", "seconds", "peak GB");
    let mut all = RealSize { reel, folder, family: arguments.family, rows: Vec::new() };
    let done = all.commands(arguments.preset());
    let removed = fs::remove_dir_all(&all.folder).map_err(|e| format!("{}: {e}", all.folder.display()));
    done.and(removed)?;
    Ok(all.rows)
}

impl RealSize {
    /// The options for [`FRAMES`] and [`FRAME_TOKENS`].
    fn video(&self) -> String {
        let [most, least] = pixels(self.family);
        format!("--nframes {FRAMES} --max-pixels {most} --min-pixels {least}")
    }

    fn commands(&mut self, preset: &str) -> Outcome<()> {
        let video = self.video();
        self.write_rows()?;
        self.row("init", &format!("init --preset {preset} --out model"), |_, _| Ok(String::new()))?;
        self.row("doctor", "doctor --json", |_, said| parsed(said).map(|_| String::new()))?;
        let generate =
            format!("generate --model model --messages m.json --max-new-tokens 8 --temperature 0 --json {video}");
        self.row("generate, 16 frames", &generate, |_, said| {
            let got = parsed(said)?;
            let tokens = got["token_ids"].as_array().map_or(0, Vec::len);
            let prompt = got["prompt_tokens"].as_u64().unwrap_or(0);
            (tokens > 0 && prompt > 100)
                .then(|| format!("{prompt} tokens in, {tokens} out"))
                .ok_or_else(|| format!("expected a video's tokens and an answer, got {got}"))
        })?;
        let score = format!("score --model model --messages m.json --out score.safetensors --json {video}");
        self.row("score, 16 frames", &score, |_, said| {
            let mean = parsed(said)?["mean_logprob"].as_f64().filter(|mean| mean.is_finite() && *mean < 0.0);
            mean.map(|mean| format!("mean log-probability {mean:.3}")).ok_or("no mean log-probability".to_string())
        })?;
        self.supervised()?;
        self.reinforced()?;
        self.row(
            "eval, one question",
            &format!("eval --model model --benchmark videoholmes --data bench --limit 1 --out scores --max-new-tokens 8 {video}"),
            |at, _| {
                let lines = fs::read_to_string(at.join("scores/videoholmes.jsonl")).map_err(|e| e.to_string())?;
                let row = parsed(lines.lines().next().unwrap_or_default())?;
                let answered = row.get("output").is_some_and(Value::is_string);
                answered.then(String::new).ok_or_else(|| format!("the question has no answer: {row}"))
            },
        )?;
        self.serve()
    }

    /// Runs `sft` with LoRA on video: it is killed after its first checkpoint and resumed. Then runs `replay`, `plan`
    /// and `merge` on the result.
    fn supervised(&mut self) -> Outcome<()> {
        let video = self.video();
        let options = format!(
            "--model model --data sft.json {LORA} --max-steps 2 --gradient-accumulation-steps 1 \
             --per-device-train-batch-size 1 --learning-rate 1e-4 {video}"
        );
        let sft = format!("sft --out tuned --save-steps 1 --quiet {options}");
        self.row_until("sft, killed after step 1", &sft, |at| at.join("tuned/checkpoint-1").exists())?;
        let resume = format!("{sft} --resume-from-checkpoint last");
        self.row("sft, resumed", &resume, |at, _| two_steps(&at.join("tuned")))?;
        self.row("replay of step 2", "replay tuned --step 2", |_, said| Ok(said.trim().to_string()))?;
        let peak = peak_of_run(&self.folder.join("tuned"))?;
        self.row("plan sft", &format!("plan sft --device cpu --json {options}"), |_, said| same_peak(peak, said))?;
        self.row("merge", "merge --model model --adapter tuned --out merged", |at, _| {
            let bytes = |folder: &str| folder_bytes(&at.join(folder));
            let (before, after) = (bytes("model"), bytes("merged"));
            let same = before.abs_diff(after) < 1 << 24;
            same.then(String::new).ok_or_else(|| format!("merged has {after} bytes, the base model {before}"))
        })?;
        fs::remove_dir_all(self.folder.join("merged")).map_err(|e| format!("merged: {e}"))
    }

    /// Runs a T-GRPO step with LoRA on video, then `replay` and `plan` for this step.
    fn reinforced(&mut self) -> Outcome<()> {
        let video = self.video();
        let options = format!(
            "--model model --data grpo.json {LORA} --max-steps 1 --gradient-accumulation-steps 1 --temporal \
             --num-generations 2 --per-device-train-batch-size 2 --max-completion-length 8 --min-completion-length 8 \
             --learning-rate 1e-5 {video}"
        );
        let grpo = format!("grpo --out policy --save-steps 1 --quiet {options}");
        self.row("grpo, 2 completions", &grpo, |at, _| {
            let steps = metrics(&at.join("policy"))?;
            (steps.len() == 1).then(String::new).ok_or_else(|| format!("{} steps, not one", steps.len()))
        })?;
        self.row("replay of step 1", "replay policy --step 1", |_, said| Ok(said.trim().to_string()))?;
        let peak = peak_of_run(&self.folder.join("policy"))?;
        self.row("plan grpo", &format!("plan grpo --device cpu --json {options}"), |_, said| same_peak(peak, said))
    }

    /// Sends requests to a server, [`CLIENTS`] at a time; the last one has a video.
    fn serve(&mut self) -> Outcome<()> {
        let begun = Instant::now();
        let mut command = self.command("serve --model model --device cpu --port 0 --kv-memory 2048 --quiet");
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("serve: {e}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("serve: no stdout")?;
        let mut server = Server(child);
        BufReader::new(stdout).read_line(&mut line).map_err(|e| format!("serve: {e}"))?;
        let address = line.trim().rsplit_once("://").ok_or_else(|| format!("serve: said {line:?}"))?.1.to_string();
        let ready = begun.elapsed().as_secs_f64();
        let clip = fs::read(self.folder.join("clip.mp4")).map_err(|e| format!("clip.mp4: {e}"))?;
        let clip = format!("data:video/mp4;base64,{}", STANDARD.encode(clip));
        let results: Vec<Outcome<()>> = std::thread::scope(|scope| {
            let client = |first: usize| {
                let (address, clip) = (&address, &clip);
                let pixels = pixels(self.family);
                scope
                    .spawn(move || (first..REQUESTS).step_by(CLIENTS).try_for_each(|n| ask(address, (clip, pixels), n)))
            };
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            clients.into_iter().map(|c| c.join().unwrap_or_else(|_| Err("a client panicked".into()))).collect()
        });
        results.into_iter().collect::<Outcome<()>>()?;
        let peak_bytes = peak_bytes(server.0.id());
        server.0.kill().map_err(|e| format!("serve: {e}"))?;
        let note = format!("{REQUESTS} requests of 8 tokens, {CLIENTS} at a time; ready after {ready:.1} s");
        self.add(Row { command: "serve", seconds: begun.elapsed().as_secs_f64(), peak_bytes, note });
        Ok(())
    }

    fn write_rows(&self) -> Outcome<()> {
        let asked = json!({"role": "user", "content": [
            {"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "Which way does it move?"}]});
        let answer = json!({"role": "assistant", "content": "It moves to the left, and then it stops."});
        let question = json!({"video ID": "clip", "Question ID": 1, "Question Type": "TA", "Question": "Which way?",
            "Options": {"A": "left", "B": "right"}, "Answer": "A"});
        let write = |name: &str, value: Value| {
            let path = self.folder.join(name);
            fs::write(&path, value.to_string()).map_err(|e| format!("{}: {e}", path.display()))
        };
        fs::create_dir_all(self.folder.join("bench/videos")).map_err(|e| format!("bench: {e}"))?;
        fs::copy(self.folder.join("clip.mp4"), self.folder.join("bench/videos/clip.mp4")).map_err(|e| e.to_string())?;
        write("bench/test_Video-Holmes.json", json!([question]))?;
        write("m.json", json!([asked]))?;
        let row = json!({"messages": [asked, answer]});
        write("sft.json", json!([row, row]))?;
        write(
            "grpo.json",
            json!([{"prompt": [asked], "solution": "<answer>A</answer>", "problem_type": "multiple choice"}]),
        )
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.reel);
        command.current_dir(&self.folder).args(words.split_whitespace());
        command.env("HF_HUB_OFFLINE", "1").env("CUDA_VISIBLE_DEVICES", "").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end and adds a row to the table. `check` gets the working folder and the command's stdout,
    /// and returns the row's note.
    fn row(&mut self, name: &'static str, words: &str, check: impl Fn(&Path, &str) -> Outcome<String>) -> Outcome<()> {
        let begun = Instant::now();
        let said = fs::File::create(self.folder.join("stdout")).map_err(|e| e.to_string())?;
        let errors = fs::File::create(self.folder.join("stderr")).map_err(|e| e.to_string())?;
        let mut command = self.command(words);
        let mut child = command.stdout(said).stderr(errors).spawn().map_err(|e| format!("{name}: {e}"))?;
        let mut peak = 0;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                break status;
            }
            peak = peak_bytes(child.id()).max(peak);
            std::thread::sleep(Duration::from_millis(10));
        };
        let read = |file: &str| fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        if !status.success() {
            return Err(format!("{name}: {status}: {}", read("stderr").trim()));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let note = check(&self.folder, &read("stdout")).map_err(|e| format!("{name}: {e}"))?;
        self.add(Row { command: name, seconds, peak_bytes: peak, note });
        Ok(())
    }

    /// Runs a command until `reached` is true for the working folder, then kills the command.
    fn row_until(&mut self, name: &'static str, words: &str, reached: impl Fn(&Path) -> bool) -> Outcome<()> {
        let begun = Instant::now();
        let mut child = self.command(words).stdout(Stdio::null()).spawn().map_err(|e| format!("{name}: {e}"))?;
        let mut peak = 0;
        while !reached(&self.folder) {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Err(format!("{name}: ended with {status} before it could be killed"));
            }
            peak = peak_bytes(child.id()).max(peak);
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().and_then(|()| child.wait()).map_err(|e| format!("{name}: {e}"))?;
        self.add(Row { command: name, seconds: begun.elapsed().as_secs_f64(), peak_bytes: peak, note: String::new() });
        Ok(())
    }

    fn add(&mut self, row: Row) {
        let Row { command, seconds, peak_bytes, note } = &row;
        println!("{command:<26} {seconds:>8.1} {:>9.2}  {note}", *peak_bytes as f64 / 1e9);
        self.rows.push(row);
    }
}

/// A server process, which is killed when `Server` is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends chat request number `n`, and checks its answer. The last request has the video `clip`, a `data:` URI.
fn ask(address: &str, (clip, [most, least]): (&str, [u64; 2]), n: usize) -> Outcome<()> {
    let content = match n + 1 == REQUESTS {
        true => json!([
            {"type": "video_url", "video_url": {
                "url": clip, "nframes": FRAMES, "max_pixels": most, "min_pixels": least}},
            {"type": "text", "text": "Which way?"}]),
        false => json!(format!("What is {n} + {n}?")),
    };
    let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 8}).to_string();
    let talk = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = talk().map_err(|e| format!("serve: request {n}: {e}"))?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let answered = head.starts_with("HTTP/1.1 200") && body.contains("\"completion_tokens\"");
    answered.then_some(()).ok_or_else(|| format!("serve: request {n}: {}", reply.lines().next().unwrap_or("no answer")))
}

/// The highest resident memory of a process so far (`VmHWM`), including the pages of mapped weights that it has read; 0
/// if the process has ended.
fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn parsed(text: &str) -> Outcome<Value> {
    serde_json::from_str(text).map_err(|e| format!("{e} in {text:?}"))
}

/// The lines of metrics.jsonl in the output folder of a run.
fn metrics(run: &Path) -> Outcome<Vec<Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).map_err(|e| format!("metrics.jsonl: {e}"))?;
    text.lines().map(parsed).collect()
}

fn two_steps(run: &Path) -> Outcome<String> {
    let steps: Vec<u64> = metrics(run)?.iter().filter_map(|line| line["step"].as_u64()).collect();
    (steps == [1, 2]).then(String::new).ok_or_else(|| format!("metrics.jsonl has the steps {steps:?}, not 1 and 2"))
}

/// The highest `peak_bytes` of a run.
fn peak_of_run(run: &Path) -> Outcome<u64> {
    metrics(run)?.iter().filter_map(|line| line["peak_bytes"].as_u64()).max().ok_or("no peak_bytes".to_string())
}

/// Checks that a plan's `peak_bytes` equals the peak of the run.
fn same_peak(run: u64, plan: &str) -> Outcome<String> {
    let plan = parsed(plan)?["peak_bytes"].as_u64().ok_or("the plan has no peak_bytes")?;
    match plan == run {
        true => Ok(format!("{:.2} GB, the same as the run", plan as f64 / 1e9)),
        false => Err(format!("the plan has a peak of {plan} bytes, the run had {run}")),
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

/// The record of a run, for `tools/benches/results`.
fn record(arguments: &Arguments, rows: &[Row], seconds: f64) -> Value {
    let said = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string()).filter(|text| !text.is_empty())
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |key: &str| {
        let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value)
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    json!({
        "machine": format!(
            "{}, family {} model {}, {} cores, {} GiB",
            of_cpu("model name"), of_cpu("cpu family"), of_cpu("model"),
            std::thread::available_parallelism().map_or(0, usize::from), total.unwrap_or(0) >> 20,
        ),
        "date": said("date", &["+%F"]),
        "commit": said("git", &["rev-parse", "--short", "HEAD"]),
        "command": format!("./x real-size --preset {}", arguments.preset()),
        "preset": arguments.preset(),
        "seconds": seconds.round(),
        "commands": rows.iter().map(|row| json!({
            "command": row.command, "seconds": (row.seconds * 10.0).round() / 10.0, "peak_bytes": row.peak_bytes,
            "note": row.note,
        })).collect::<Vec<_>>(),
    })
}
