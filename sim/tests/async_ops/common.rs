//! Runs the kernels of `corpus_async` under many interleavings.

use reel_sim::exec::{self, CompletionTiming, ExecOptions, LaunchConfig, SimOutcome};
use reel_sim::finding::{Finding, FindingKind};
use reel_sim::layout::HEAP_BASE;
use reel_sim::matrix::wgmma::ProductCache;
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Number of scheduler seeds, and so of interleavings, with which each kernel runs per completion timing.
const SEEDS: u64 = 8;

const MOMENTS: [CompletionTiming; 3] = [CompletionTiming::Latest, CompletionTiming::Earliest, CompletionTiming::Random];

fn path(file: &str) -> String {
    format!("{}/tests/corpus_async/{file}", env!("CARGO_MANIFEST_DIR"))
}

pub fn load_program(file: &str) -> Program {
    Program::parse(&program_text(file)).expect("the corpus parses")
}

/// Returns the PTX text of a file of the corpus.
pub fn program_text(file: &str) -> String {
    std::fs::read_to_string(path(&format!("{file}.ptx"))).expect("the corpus has the file")
}

/// Returns the expected findings of a kernel's variant as (line, kind). In `FILE.cu`, a comment `// NAME 1: kind, 2:
/// kind` on a line means that variant 1 or 2 of kernel NAME has this finding there.
pub fn expected_lines_and_kinds(file: &str, name: &str, variant: u32) -> BTreeSet<(u32, &'static str)> {
    let text = std::fs::read_to_string(path(&format!("{file}.cu"))).expect("the corpus has the source");
    let mut out = BTreeSet::new();
    for (line, text) in (1..).zip(text.lines()) {
        let Some((_, comment)) = text.split_once(&format!("// {name} ")) else { continue };
        for part in comment.split(", ") {
            let Some((number, kind)) = part.split_once(": ") else { continue };
            if number.parse() == Ok(variant) {
                let kind = FindingKind::ALL
                    .into_iter()
                    .find(|k| k.name() == kind)
                    .expect("the comment names a kind of finding");
                out.insert((line, kind.name()));
            }
        }
    }
    out
}

/// Returns options that report a deadlock after fewer instructions without progress than by default, because these
/// kernels are short.
pub fn early_deadlock_options() -> ExecOptions {
    ExecOptions { patience: 1_000_000, ..ExecOptions::default() }
}

/// A function that allocates a kernel's buffers in simulated memory and returns the configuration of its launch.
pub type LaunchSetup<'a> = &'a dyn Fn(&mut SimMemory) -> LaunchConfig;

/// Returns the configuration of a launch without clusters and without dynamic shared memory.
pub fn launch_config(blocks: u32, threads_per_block: u32, params: Params) -> LaunchConfig {
    LaunchConfig {
        grid: [blocks, 1, 1],
        block: [threads_per_block, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
        params: params.0,
    }
}

/// The parameter bytes of a launch, laid out as in C.
#[derive(Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn append_aligned(mut self, align: usize, bytes: &[u8]) -> Params {
        let at = self.0.len().next_multiple_of(align);
        self.0.resize(at, 0);
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn append_u64(self, value: u64) -> Params {
        self.append_aligned(8, &value.to_le_bytes())
    }
    pub fn append_i32(self, value: i32) -> Params {
        self.append_aligned(4, &value.to_le_bytes())
    }
}

pub fn run_once(program: &Program, kernel: &str, options: &ExecOptions, setup: LaunchSetup) -> (SimOutcome, SimMemory) {
    let kernel = program.kernel(kernel).expect("the kernel is there");
    let mut memory = SimMemory::new();
    let launch = setup(&mut memory);
    let outcome = exec::run(program, &kernel, &launch, &mut memory, options).expect("the launch is good");
    (outcome, memory)
}

/// Runs the kernel as [`run_once`] does, and once more with the sums of wgmma products in `products`; checks that both
/// runs have the same findings, notes and buffers.
fn run_with_shared_products(
    program: &Program,
    kernel: &str,
    options: ExecOptions,
    products: &Arc<ProductCache>,
    setup: LaunchSetup,
) -> (Vec<Finding>, SimMemory) {
    let run = |options: &ExecOptions| {
        let (outcome, memory) = run_once(program, kernel, options, setup);
        let buffers: Vec<Vec<u8>> =
            memory.iter().map(|buffer| memory.buffer_bytes(buffer.base).expect("the buffer exists").to_vec()).collect();
        let list = outcome.findings.into_list();
        let text = format!("{list:?} {:?}", outcome.notes);
        ((text, buffers), list, memory)
    };
    let (own, ..) = run(&options);
    let (shared, list, memory) = run(&ExecOptions { products: Some(products.clone()), ..options });
    assert_eq!(shared.0, own.0, "{kernel}");
    assert!(shared.1 == own.1, "{kernel}: the buffers differ with shared products");
    (list, memory)
}

/// Runs the kernel with each seed and completion timing; checks that it has no finding, and calls `check` with the
/// memory after each run.
pub fn assert_no_finding(file: &str, kernel: &str, setup: LaunchSetup, check: &dyn Fn(&SimMemory)) {
    let (program, products) = (load_program(file), Arc::default());
    for completion in MOMENTS {
        for seed in 0..SEEDS {
            let options = ExecOptions { seed, completion, ..early_deadlock_options() };
            let (list, memory) = run_with_shared_products(&program, kernel, options, &products, setup);
            assert!(list.is_empty(), "{kernel} with {completion:?}, seed {seed}: {list:#?}");
            check(&memory);
        }
    }
}

/// Checks that at least one run reports the variant's bug at a line that the source marks for it. Other findings are
/// allowed, because a bug may have several consequences.
pub fn assert_planted_bug_is_reported(file: &str, name: &str, variant: u32, setup: LaunchSetup) {
    let expected = expected_lines_and_kinds(file, name, variant);
    assert!(!expected.is_empty(), "{file}.cu marks no line for {name} {variant}");
    let (program, products) = (load_program(file), Arc::default());
    let kernel = format!("{name}_{variant}");
    let mut found = BTreeSet::new();
    let mut messages = Vec::new();
    for completion in MOMENTS {
        for seed in 0..SEEDS {
            let options = ExecOptions { seed, completion, ..early_deadlock_options() };
            for f in run_with_shared_products(&program, &kernel, options, &products, setup).0 {
                if found.insert((f.line, f.kind.name())) {
                    messages.push(format!("{} line {}: {}", f.kind.name(), f.line, f.message));
                }
            }
        }
    }
    let all = messages.join("\n");
    assert!(!expected.is_disjoint(&found), "{kernel}: wanted one of {expected:?}, found\n{all}");
}

/// Returns 32-bit words that all differ.
pub fn distinct_words(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ i).collect()
}

pub fn le_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Returns buffer `n` of a kernel, counted from 0, as 32-bit words.
pub fn buffer_words(memory: &SimMemory, n: usize) -> Vec<u32> {
    let bytes = memory.iter().nth(n).and_then(|buffer| memory.buffer_bytes(buffer.base)).expect("the buffer exists");
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four"))).collect()
}

/// Returns the second buffer of a kernel, which is the output of most kernels, as 32-bit words.
pub fn output_words(memory: &SimMemory) -> Vec<u32> {
    buffer_words(memory, 1)
}

/// Returns buffer `n` of a kernel, counted from 0, as f32.
pub fn buffer_floats(memory: &SimMemory, n: usize) -> Vec<f32> {
    buffer_words(memory, n).into_iter().map(f32::from_bits).collect()
}

/// Sets up a launch of one block. The kernel's parameters are an input buffer of `words_in` distinct words, an output
/// buffer of `words_out` words, and the number `n`.
pub fn word_buffers_setup(
    words_in: usize,
    words_out: usize,
    threads: u32,
    n: i32,
) -> impl Fn(&mut SimMemory) -> LaunchConfig {
    move |memory| {
        let input = memory.alloc(le_bytes(&distinct_words(words_in)));
        let output = memory.alloc_uninitialized(4 * words_out);
        assert_eq!(input, HEAP_BASE);
        launch_config(1, threads, Params::default().append_u64(input).append_u64(output).append_i32(n))
    }
}

/// Returns element `i` of a sequence of small multiples of 1/4, chosen because sums of products of such numbers are
/// exact in f32.
pub fn multiple_of_quarter(i: usize) -> f32 {
    (((i * 7919) >> 3) % 17) as f32 / 4.0 - 2.0
}

pub fn bf16_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
}
