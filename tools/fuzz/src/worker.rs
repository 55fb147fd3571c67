//! Runs the inputs of one fuzz target in this process and decides whether each input passes or fails.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::memory;
use crate::mutate::{self, Seed};
use crate::random::{self, Random};
use crate::targets::{FuzzTarget, InputRunner};
use crate::verdict;

/// Maximum processor time of an input, in this process and in child processes that ended while the input ran. Elapsed
/// time is not used, because it depends on the load of the machine.
pub const MAX_INPUT_TIME: Duration = Duration::from_secs(2);

/// Maximum heap bytes that an input may take.
const MAX_BYTES: usize = 512 << 20;

/// Stack size of the thread that runs the inputs: the default of Rust's threads, on which training parses rows.
const STACK_BYTES: usize = 2 << 20;

/// Number of failed inputs after which a worker ends early.
const MAX_FAILURES: usize = 10;

/// The file in the worker's folder that holds its [`WorkerStatus`].
pub const STATUS_FILE: &str = "status";
/// The file in the worker's folder with a report of each failure.
pub const FAILURES_FILE: &str = "failures";

/// When a campaign ends.
#[derive(Clone, Copy, Debug)]
pub enum CampaignLimit {
    /// After this many inputs.
    Inputs(u64),
    /// After this elapsed time.
    Time(Duration),
}

/// The inputs that a worker runs, and their time limit.
#[derive(Clone, Copy, Debug)]
pub struct CampaignPlan {
    /// The seed of all inputs.
    pub seed: u64,
    /// Index of the first input.
    pub first: u64,
    /// When to end.
    pub limit: CampaignLimit,
    /// The limit of an input's processor time; `None` accepts any.
    pub max_time: Option<Duration>,
}

/// The progress of a worker. The worker writes it to a file before each input, so that the supervisor knows which input
/// ended the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerStatus {
    /// Index of the input that runs now; after the last input, its index plus 1.
    pub index: u64,
    /// Number of inputs that parsers accepted.
    pub accepted: u64,
    /// Heap bytes of the input that took the most heap.
    pub peak_bytes: u64,
    /// Elapsed time of the slowest input, in microseconds.
    pub slowest_micros: u64,
    /// 1 when the worker has finished its plan, else 0.
    pub done: u64,
}

impl WorkerStatus {
    fn write(&self, file: &File) -> Result<()> {
        let fields = [self.index, self.accepted, self.peak_bytes, self.slowest_micros, self.done];
        Ok(file.write_all_at(fields.map(u64::to_le_bytes).as_flattened(), 0)?)
    }

    /// Reads the status that a worker wrote last; all zero if it wrote none.
    pub fn read(folder: &Path) -> Self {
        let bytes = fs::read(folder.join(STATUS_FILE)).unwrap_or_default();
        let mut fields = bytes.as_chunks::<8>().0.iter().map(|field| u64::from_le_bytes(*field));
        let mut next = || fields.next().unwrap_or(0);
        Self { index: next(), accepted: next(), peak_bytes: next(), slowest_micros: next(), done: next() }
    }
}

/// The message and the source location of the last panic of any thread.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Makes input number `index` of a fuzz target.
pub fn make_numbered_input(target: &FuzzTarget, seeds: &[Seed], seed: u64, index: u64) -> Vec<u8> {
    let mut random = Random::new(&[random::hash(target.name.as_bytes()), seed, index]);
    mutate::make_input(seeds, target.words, &mut random)
}

/// Runs the inputs of `plan` on a fuzz target. Writes the worker's status and its failures to files in `folder`.
pub fn run(target: &'static FuzzTarget, plan: CampaignPlan, folder: &Path) -> Result<()> {
    on_small_stack(|| {
        let status_file = File::create(folder.join(STATUS_FILE))?;
        let mut failures = OpenOptions::new().create(true).append(true).open(folder.join(FAILURES_FILE))?;
        let mut status = WorkerStatus { index: plan.first, ..WorkerStatus::default() };
        let seeds = (target.seeds)()?;
        let mut judge = (target.open)()?;
        if plan.first == 0 {
            for (number, seed) in seeds.iter().enumerate() {
                // A seed must be valid: inputs made from a seed that the parser refuses test little.
                let judged = judge_once(&mut judge, &mutate::join_parts(&seed.0));
                if !judged.accepted {
                    let file =
                        describe_failure(target, plan.seed, number as u64, &mutate::join_parts(&seed.0), "is refused")?;
                    bail!("seed {number} of the target: {:?}\n{file}", judged.problem);
                }
            }
        }
        let (begun, mut failed) = (Instant::now(), 0);
        let is_left = |index| match plan.limit {
            CampaignLimit::Inputs(inputs) => index < inputs,
            CampaignLimit::Time(time) => begun.elapsed() < time,
        };
        while is_left(status.index) && failed < MAX_FAILURES {
            status.write(&status_file)?;
            let input = make_numbered_input(target, &seeds, plan.seed, status.index);
            let judged = judge_input(&mut judge, &input, plan.max_time);
            status.accepted += u64::from(judged.accepted);
            status.peak_bytes = status.peak_bytes.max(judged.peak_bytes as u64);
            status.slowest_micros = status.slowest_micros.max(judged.time.as_micros() as u64);
            if let Some(problem) = judged.problem {
                failed += 1;
                writeln!(failures, "{}", describe_failure(target, plan.seed, status.index, &input, &problem)?)?;
            }
            status.index += 1;
        }
        status.done = 1;
        status.write(&status_file)
    })
}

/// Runs one input and prints the outcome. Returns false if the input failed.
pub fn run_one_input(target: &'static FuzzTarget, input: Vec<u8>, max_time: Option<Duration>) -> Result<bool> {
    verdict::PRINTS_MESSAGES.store(true, Ordering::Relaxed);
    let judged = on_small_stack(|| Ok(judge_input(&mut (target.open)()?, &input, max_time)))?;
    let outcome = if judged.accepted { "accepted" } else { "refused" };
    println!("{outcome}, {:.1} ms, {:.1} MiB", judged.time.as_secs_f64() * 1e3, judged.peak_bytes as f64 / 1048576.0);
    judged.problem.iter().for_each(|problem| println!("{problem}"));
    Ok(judged.problem.is_none())
}

/// Writes a failing input to a file. Returns a report with the fuzz target, the seed, the index of the input, the
/// problem, and the command that runs the input again.
pub fn describe_failure(target: &FuzzTarget, seed: u64, index: u64, input: &[u8], problem: &str) -> Result<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    let name = format!("{}-{seed}-{index}", target.name);
    let write = || fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(&name), input));
    write().with_context(|| folder.join(&name).display().to_string())?;
    let file = PathBuf::from("target/fuzz").join(&name);
    let problem = problem.replace('\n', " ");
    Ok(format!(
        "FAILED: target {}, seed {seed}, input {index}: {problem}\n  to repeat it: ./x fuzz {} --input {}",
        target.name,
        target.name,
        file.display()
    ))
}

fn on_small_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    panic::set_hook(Box::new(|info| {
        // Panics in a decoding or template worker do not reach this hook. The worker's error message quotes the panic,
        // and `check_error_message` refuses this message.
        let _ = PANIC.lock().map(|mut last| *last = Some(info.to_string()));
    }));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| {
            let last = PANIC.lock().ok().and_then(|last| last.clone());
            anyhow!("the harness panicked: {}", last.unwrap_or_default())
        })?
    })
}

/// The outcome of an input, with the memory and the time that the input took.
struct Judged {
    accepted: bool,
    peak_bytes: usize,
    time: Duration,
    problem: Option<String>,
}

fn judge_input(judge: &mut InputRunner, input: &[u8], max_time: Option<Duration>) -> Judged {
    let before = processor_time();
    let mut judged = judge_once(judge, input);
    let time = processor_time().saturating_sub(before);
    if judged.problem.is_none() && max_time.is_some_and(|limit| time > limit) {
        judged.problem = Some(format!("takes {:.1} s of processor time", time.as_secs_f64()));
    }
    judged
}

/// The processor time of this process and of its children that have ended: fields 14 to 17 of /proc/self/stat, in
/// hundredths of a second.
fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Field 2, the program's name, may contain spaces, so the text is split after the parenthesis that ends this field.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

fn judge_once(judge: &mut InputRunner, input: &[u8]) -> Judged {
    let live = memory::start_measurement();
    let begun = Instant::now();
    let verdict = panic::catch_unwind(AssertUnwindSafe(|| judge(input)));
    let time = begun.elapsed();
    let peak_bytes = memory::peak_bytes_since(live);
    let panicked = PANIC.lock().ok().and_then(|mut last| last.take());
    let accepted = matches!(verdict, Ok(Ok(true)));
    let problem = match (panicked, verdict) {
        (Some(panic), _) => Some(panic),
        (None, Ok(Err(complaint))) => Some(complaint),
        (None, Err(_)) => Some("panicked without a message".to_string()),
        (None, Ok(Ok(_))) if peak_bytes > MAX_BYTES => Some(format!("takes {} MiB of heap", peak_bytes >> 20)),
        (None, Ok(Ok(_))) => None,
    };
    Judged { accepted, peak_bytes, time, problem }
}
