//! The command lines of the demo: the commands that the demo runs itself, and the commands that its page shows.

use std::path::Path;

use crate::benchmarks::{ClipBenchmark, EXTRACTION};
use crate::command_line::{CommandLine, quoted};
use crate::endpoint::MODELS;
use crate::pipeline::{
    BENCHMARK_FOLDER, CURATION_FOLDER, Demo, EVALUATION_FOLDER, EVALUATION_PAGE, GRPO_PAGE, LIST_FILE, dataset_file,
};

/// Maximum MiB of frames in the page of the evaluation.
const FRAMES_MIB: &str = "2";

impl Demo {
    /// The command that curates the list of clips with the models of the endpoint at `url`.
    pub fn curate_command(&self, url: &str) -> CommandLine {
        let command = CommandLine::new("curate")
            .path("--videos", &self.path_in_folder(LIST_FILE))
            .path("--media-root", &self.folder)
            .path("--out", &self.path_in_folder(CURATION_FOLDER));
        let command = MODELS.iter().fold(command, |command, (stage, model)| {
            command.with(&format!("--{stage}"), url).with("--name", format!("{stage}={model}"))
        });
        // Each chain is one sentence, and clips with the same answer have the same chain. The frames are not compared
        // with chains, because the demo's SigLIP has random weights.
        let command = command.with("--min-words", "4").with("--max-overlap", "1").switch("--no-similarity");
        command.switch("--keep-paths").with("--layout", "chat").with("--seed", self.seed.to_string())
    }

    /// The command that evaluates the model in the sub-folder `model`.
    pub fn eval_command(&self, model: &str) -> CommandLine {
        CommandLine::new("eval")
            .path("--model", &self.path_in_folder(model))
            .with("--benchmark", self.task_files())
            .path("--data", &self.path_in_folder(BENCHMARK_FOLDER))
            .path("--media-root", &self.folder)
            .path("--out", &self.evaluation_folder(model))
            .with("--extraction", EXTRACTION.name())
            .with("--temperature", "0")
            .with("--max-new-tokens", "48")
            // The same frames and pixels as in training, for the model that is evaluated before training.
            .with("--profile", "qwen")
            .with("--nframes", "8")
            .with("--min-pixels", "3136")
            .with("--max-pixels", "3136")
            // This page has no frames. One page with frames is written at the end.
            .with("--frames-mib", "0")
            .with("--seed", self.seed.to_string())
    }

    /// The command that writes the page of the answers after SFT and after GRPO, side by side.
    pub fn evaluation_page_command(&self) -> CommandLine {
        CommandLine::new("report")
            .switch(&self.evaluation_folder("sft").display().to_string())
            .path("--against", &self.evaluation_folder("grpo"))
            .with("--benchmark", self.task_files())
            .with("--frames-mib", FRAMES_MIB)
            .path("--out", &self.path_in_folder(EVALUATION_PAGE))
    }

    /// Shell commands that repeat the demo step by step. The last command asks `question` about `video`. `url` is the
    /// endpoint that answered curation's requests.
    pub(crate) fn shown_commands(&self, url: &str, video: &Path, question: &str) -> Vec<String> {
        let seed = self.seed.to_string();
        let init = |preset: &str, folder: &str| {
            let command = CommandLine::new("init").with("--preset", preset).with("--seed", &seed);
            command.path("--out", &self.path_in_folder(folder))
        };
        let train = |stage: &str, from: &str, data: &Path| {
            let command = CommandLine::new(stage)
                .path("--config", &self.path_in_folder(&format!("{stage}.toml")))
                .path("--model", &self.path_in_folder(from))
                .path("--data", data)
                .path("--media-root", &self.folder)
                .path("--out", &self.path_in_folder(stage))
                .with("--seed", &seed)
                .switch("--overwrite");
            self.steps.map_or(command.clone(), |steps| command.with("--max-steps", steps.to_string()))
        };
        let evaluate = |model: &str| self.eval_command(model).switch("--overwrite");
        let grpo = train("grpo", "sft", &self.path_in_folder("rl.jsonl"));
        let page = CommandLine::new("report").switch(&self.path_in_folder("grpo").display().to_string());
        let ask = CommandLine::new("generate").path("--model", &self.path_in_folder("grpo"));
        let commands = [
            init("tiny", "model"),
            init("siglip-tiny", "siglip"),
            self.curate_command(url).switch("--resume"),
            evaluate("model"),
            train("sft", "model", &self.path_in_folder(&dataset_file())),
            evaluate("sft"),
            grpo.path("--siglip", &self.path_in_folder("siglip")),
            evaluate("grpo"),
            page.path("--out", &self.path_in_folder(GRPO_PAGE)),
            self.evaluation_page_command(),
            ask.path("--video", video).with("--prompt", question),
        ];
        // `reel init` replaces no model.
        let models = ["model", "siglip"].map(|folder| quoted(&self.path_in_folder(folder).display().to_string()));
        let remove = format!("rm -r {}", models.join(" "));
        std::iter::once(remove).chain(commands.iter().map(CommandLine::for_shell)).collect()
    }

    /// The folder with the answers of the model in the sub-folder `model`.
    pub fn evaluation_folder(&self, model: &str) -> std::path::PathBuf {
        self.path_in_folder(EVALUATION_FOLDER).join(model)
    }

    /// The value of `--benchmark`.
    fn task_files(&self) -> String {
        let folder = self.path_in_folder(BENCHMARK_FOLDER);
        let file = |benchmark: ClipBenchmark| folder.join(format!("{}.toml", benchmark.name())).display().to_string();
        ClipBenchmark::ALL.map(file).join(",")
    }
}
