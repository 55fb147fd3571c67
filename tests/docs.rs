//! The documentation is correct: every command in README and `docs/` runs as printed, every link has a target, and
//! prose fits 120 columns.
//!
//! The lines of a fenced block that opens with `sh` are run one by one in a folder (`Workshop`) with the files that
//! the page mentions. A block that opens with `sh skip: REASON` is not run, and its reason is printed.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{golden, reel, run};

/// A fenced code block of a page.
struct Block {
    /// Number of the line with the opening fence in the page, counted from 1.
    line: usize,
    /// The text after the opening fence, such as `sh`.
    info: String,
    /// The lines between the fences.
    lines: Vec<String>,
}

/// Returns the fenced code blocks of a Markdown text.
fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (i, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some(Block { line: i + 1, info: info.trim().into(), lines: Vec::new() }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.into()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block has no end");
    blocks
}

/// Returns the shell commands of a block, each with its line number in the page. A line that ends with a backslash is
/// joined to the next line.
fn commands(block: &Block) -> Vec<(usize, String)> {
    let mut commands: Vec<(usize, String)> = Vec::new();
    let mut joined = false;
    for (i, line) in block.lines.iter().enumerate() {
        let (text, more) = line.strip_suffix('\\').map_or((line.as_str(), false), |text| (text, true));
        match commands.last_mut().filter(|_| joined) {
            Some((_, command)) => command.push_str(text),
            None if text.trim().is_empty() => {}
            None => commands.push((block.line + 1 + i, text.to_string())),
        }
        joined = more;
    }
    commands
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the paths of all documentation pages, relative to the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from("README.md"), "docs/examples/README.md".into(), "sim/README.md".into()];
    for entry in fs::read_dir(repository().join("docs")).expect("docs/ is there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "md") {
            pages.push(Path::new("docs").join(path.file_name().expect("a name")));
        }
    }
    pages.sort();
    pages
}

/// A temporary folder with the files that the commands on the pages read.
struct Workshop(tempfile::TempDir);

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        // Puts the tiny model into the hub cache under the id of the published model.
        let cached = at("hub/models--Qwen--Qwen2.5-VL-3B-Instruct");
        fs::create_dir_all(cached.join("refs")).expect("a folder");
        fs::create_dir_all(cached.join("snapshots")).expect("a folder");
        fs::write(cached.join("refs/main"), "0123abc").expect("written");
        let model = cached.join("snapshots/0123abc").display().to_string();
        run(["init", "--preset", "tiny", "--seed", "0", "--out", &model]).ok();
        fs::create_dir(at("clips")).expect("a folder");
        // The video is a clip of nine frames: the commands demonstrate options, and a longer video would take
        // minutes.
        let clip = golden("clips/h264_709.mp4");
        fs::create_dir_all(at("benchmarks/videoholmes/videos")).expect("a folder");
        for name in ["clips/7.mp4", "holiday.mp4", "benchmarks/videoholmes/videos/a.mp4"] {
            fs::copy(&clip, at(name)).expect("copied");
        }
        fs::create_dir(at("docs")).expect("a folder");
        std::os::unix::fs::symlink(repository().join("docs/examples"), at("docs/examples")).expect("a link");
        std::os::unix::fs::symlink(repository().join("kernels"), at("kernels")).expect("a link");
        for (name, text) in FILES {
            fs::write(at(name), text).expect("written");
        }
        Self(folder)
    }

    /// Returns a shell command with `reel` in PATH and a hub cache that has the tiny model.
    fn shell(&self, command: &str) -> Command {
        let reel = reel();
        let bin = Path::new(reel.get_program()).parent().expect("a folder").to_path_buf();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(self.0.path()).env("PATH", path);
        shell.envs(reel.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("HF_HUB_CACHE", self.0.path().join("hub"));
        shell
    }
}

/// Names and contents of small files that the commands on the pages read.
const FILES: [(&str, &str); 8] = [
    (
        "benchmarks/videoholmes/test_Video-Holmes.json",
        r#"[{"video ID": "a", "Question ID": 1, "Question Type": "TA", "Question": "What comes first?", "Options": {"A": "the ball", "B": "the box"}, "Answer": "A"}]"#,
    ),
    (
        "rows.jsonl",
        r#"{"problem": "Which way does the ball roll?", "data_type": "video", "problem_type": "free-form", "path": "./clips/7.mp4", "process": "<think>It begins at the left edge and ends at the right.</think>", "solution": "<answer>right</answer>"}
{"problem": "Is a ball in the video?", "data_type": "video", "problem_type": "free-form", "path": "./clips/7.mp4", "process": "<think>I see a ball.</think>", "solution": "<answer>yes</answer>"}
"#,
    ),
    (
        "chat.json",
        r#"[{"role": "user", "content": [{"type": "video", "video": "holiday.mp4"}, {"type": "text", "text": "What is this?"}]}]"#,
    ),
    (
        "my_rewards.py",
        "def brevity(prompts, completions, **columns):\n    return [1 / (1 + len(str(text))) for text in completions]\n",
    ),
    (
        "my_tools.py",
        "def transcript(start: float, end: float, row=None):\n    \"\"\"Returns what is said.\"\"\"\n    return row['problem']\n",
    ),
    (
        "completions.jsonl",
        r#"{"problem_type": "free-form", "solution": "<answer>right</answer>", "completion": "<think>It rolls.</think><answer>right</answer>"}
"#,
    ),
    (
        "predictions.jsonl",
        r#"{"problem_type": "multiple choice", "solution": "<answer>A</answer>", "output": "<answer>A</answer>", "category": "order"}
"#,
    ),
    (
        "k.cu",
        r#"extern "C" __global__ void saxpy(const float* x, float* y, float a, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"#,
    ),
];

/// Runs the shell commands of a page in order, in one folder.
fn run_page(page: &str) {
    let text = fs::read_to_string(repository().join(page)).expect("a page");
    let workshop = Workshop::new();
    let (mut ran, mut skipped) = (0, 0);
    for block in blocks(&text) {
        if let Some(reason) = block.info.strip_prefix("sh skip:") {
            println!("skipped: {page}:{}: {}", block.line, reason.trim());
            skipped += 1;
            continue;
        }
        if block.info != "sh" {
            assert!(!block.info.starts_with("sh"), "{page}:{}: unknown kind of code block: {}", block.line, block.info);
            continue;
        }
        for (line, command) in commands(&block) {
            if command.contains("k.cu") && reel_device::compile::check_nvrtc().is_err() {
                println!("skipped: {page}:{line}: no CUDA compiler");
                continue;
            }
            let out = workshop.shell(&command).output().expect("sh starts");
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{page}:{line}: {command}\n{}\nstderr: {stderr}", out.status);
            ran += 1;
        }
    }
    assert!(ran + skipped > 0, "{page}: the page has no commands");
}

#[test]
fn commands_of_readme_run_as_printed() {
    run_page("README.md");
}

/// The first commands of README need only the program and the files of the repository: no model and no CUDA compiler.
#[test]
fn first_commands_of_readme_need_no_download() {
    let text = fs::read_to_string(repository().join("README.md")).expect("a page");
    assert!(text.lines().count() <= 90, "README.md: has more than 90 lines");
    let all = blocks(&text);
    let first = all.iter().find(|block| block.info == "sh").expect("commands");
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("docs")).expect("a folder");
    std::os::unix::fs::symlink(repository().join("docs/examples"), folder.path().join("docs/examples"))
        .expect("a link");
    let shell = Workshop(folder);
    let mut names = Vec::new();
    for (line, command) in commands(first) {
        let out =
            shell.shell(&command).env("HF_HUB_OFFLINE", "1").env("CUDA_HOME", "/none").output().expect("sh starts");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "README.md:{line}: {command}\n{}\nstderr: {stderr}", out.status);
        names.extend(command.split(' ').nth(1).map(str::to_string));
        if command.starts_with("reel sim run") {
            let stdout = String::from_utf8_lossy(&out.stdout);
            let last = stdout.lines().last().unwrap_or_default();
            assert!(last.ends_with("no defects found in 8 interleavings"), "{stdout}");
        }
    }
    assert_eq!(names, ["init", "sft", "generate", "plan", "sim"]);
}

#[test]
fn commands_of_the_research_guide_run_as_printed() {
    run_page("docs/guide-research.md");
}

#[test]
fn commands_of_the_evaluation_page_run_as_printed() {
    run_page("docs/evaluation.md");
}

#[test]
fn commands_of_the_curation_page_run_as_printed() {
    run_page("docs/curation.md");
}

#[test]
fn commands_of_the_page_for_users_of_other_programs_run_as_printed() {
    run_page("docs/coming-from.md");
}

#[test]
fn commands_of_the_performance_guide_run_as_printed() {
    run_page("docs/guide-performance.md");
}

#[test]
fn commands_of_the_kernel_guide_run_as_printed() {
    run_page("docs/guide-kernels.md");
}

#[test]
fn commands_of_the_simulator_page_run_as_printed() {
    run_page("docs/simulator.md");
}

#[test]
fn commands_of_the_command_line_page_run_as_printed() {
    run_page("docs/command-line.md");
}

#[test]
fn commands_of_add_a_kernel_run_as_printed() {
    run_page("docs/add-a-kernel.md");
}

#[test]
fn commands_of_the_cluster_page_run_as_printed() {
    run_page("docs/cluster.md");
}

#[test]
fn pages_with_commands_are_all_tested() {
    const TESTED: [&str; 11] = [
        "docs/coming-from.md",
        "docs/cluster.md",
        "docs/curation.md",
        "docs/evaluation.md",
        "docs/add-a-kernel.md",
        "docs/command-line.md",
        "README.md",
        "docs/guide-research.md",
        "docs/guide-performance.md",
        "docs/guide-kernels.md",
        "docs/simulator.md",
    ];
    for page in pages() {
        let text = fs::read_to_string(repository().join(&page)).expect("a page");
        let name = page.display().to_string();
        let has_commands = blocks(&text).iter().any(|b| b.info == "sh");
        assert!(
            !has_commands || TESTED.contains(&name.as_str()),
            "{name}: has commands, but is not listed in TESTED, so no test runs them"
        );
    }
}

#[test]
fn quoted_code_stands_in_its_file() {
    let folded = |lines: &mut dyn Iterator<Item = &str>| lines.map(str::trim).collect::<Vec<_>>().join("\n");
    let mut quoted = 0;
    for page in pages() {
        let text = fs::read_to_string(repository().join(&page)).expect("a page");
        for block in blocks(&text) {
            let Some((_, file)) = block.info.split_once(" from ") else { continue };
            let source = fs::read_to_string(repository().join(file)).expect("the quoted file");
            let quote = folded(&mut block.lines.iter().map(String::as_str));
            let found = folded(&mut source.lines()).contains(&quote);
            assert!(found, "{}:{}: the quoted code is not in {file}", page.display(), block.line);
            quoted += 1;
        }
    }
    assert!(quoted > 0, "no page quotes code");
}

/// Returns the line number (counted from 1), text and target of each link in a Markdown text.
fn links(text: &str) -> Vec<(usize, String, String)> {
    let mut links = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            let label = rest[..at].rfind('[').map_or("", |from| &rest[from + 1..at]);
            let target = rest[at + 2..].split(')').next().unwrap_or("");
            links.push((i + 1, label.to_string(), target.to_string()));
            rest = &rest[at + 2..];
        }
    }
    links
}

#[test]
fn links_lead_to_files_and_lines() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(repository().join(&page)).expect("a page");
        for (line, label, target) in links(&text) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((&target, ""));
            let path = repository().join(page.parent().unwrap_or(Path::new(""))).join(file);
            if !path.exists() {
                wrong.push(format!("{}:{line}: the link's target {target} does not exist", page.display()));
                continue;
            }
            let Some(number) = fragment.strip_prefix('L').and_then(|n| n.parse::<usize>().ok()) else { continue };
            // The text of a link to a line is an identifier in backticks, which that line must contain.
            let name = label.trim_matches('`').rsplit("::").next().unwrap_or("").trim_end_matches("()");
            let source = fs::read_to_string(&path).expect("a source file");
            let lines: Vec<&str> = source.lines().collect();
            if !lines.get(number - 1).is_some_and(|l| l.contains(name)) {
                let found = lines
                    .iter()
                    .position(|l| l.contains(&format!("fn {name}")) || l.contains(&format!("struct {name}")));
                let hint = found.map_or("it is not in that file".into(), |at| format!("it is at line {}", at + 1));
                wrong.push(format!("{}:{line}: the link says that `{name}` is at {target}; {hint}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every word in backticks that looks like a path in this repository (with a folder and an extension) exists.
#[test]
fn files_that_pages_name_exist() {
    const ROOTS: [&str; 13] = [
        "cli/", "docs/", "engine/", "eval/", "input/", "kernels/", "model/", "runtime/", "serve/", "sim/", "tests/",
        "tools/", "train/",
    ];
    let mut wrong = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(repository().join(&page)).expect("a page");
        for (i, line) in text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                let path = word.split(&[' ', ':', '*', '{'][..]).next().unwrap_or("");
                // `rewards/NAME` (with the placeholder NAME) and `eval/loss` are names of metrics, not files.
                let whole = path.len() == word.len() && !path.ends_with("NAME") && path != "eval/loss";
                if whole && ROOTS.iter().any(|root| path.starts_with(root)) && !repository().join(path).exists() {
                    wrong.push(format!("{}:{}: names the file {path}, which does not exist", page.display(), i + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn prose_fits_120_columns() {
    let mut wide = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(repository().join(&page)).expect("a page");
        let mut code = false;
        for (i, line) in text.lines().enumerate() {
            code ^= line.starts_with("```");
            // Table rows are exempt, because they cannot be wrapped.
            if !code && !line.starts_with('|') && !line.starts_with("![") && line.chars().count() > 120 {
                wide.push(format!("{}:{}", page.display(), i + 1));
            }
        }
    }
    assert!(wide.is_empty(), "lines of more than 120 characters: {}", wide.join(" "));
}
