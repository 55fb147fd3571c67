//! The command lines of the demo: the commands that the demo runs itself, and the commands that its page shows.

use std::path::Path;

use crate::showcase::benchmarks::{ClipBenchmark, EXTRACTION};
use crate::showcase::command_line::{CommandLine, shell_quoted};
use crate::showcase::endpoint::STAND_IN_MODELS;
use crate::showcase::pipeline::{
    BENCHMARK_FOLDER, CURATION_FOLDER, Demo, EVALUATION_FOLDER, EVALUATION_PAGE, QUESTION_LIST_FILE, TRAINING_PAGE,
};
use crate::showcase::tool_rows::TOOL_STAGE;

/// Maximum MiB of frames in the page of the evaluation.
const FRAMES_MIB: &str = "2";

impl Demo {
    /// The command that curates the list of clips with the models of the endpoint at `url`.
    pub fn curate_command(&self, url: &str) -> CommandLine {
        let command = CommandLine::new("curate")
            .with_path("--videos", &self.path_in_folder(QUESTION_LIST_FILE))
            .with_path("--media-root", &self.folder)
            .with_path("--out", &self.path_in_folder(CURATION_FOLDER));
        let command = STAND_IN_MODELS.iter().fold(command, |command, (stage, model)| {
            command.with_option(&format!("--{stage}"), url).with_option("--name", format!("{stage}={model}"))
        });
        // The filters must accept short and equal chains: each chain is one sentence, and clips with the same answer
        // have the same chain. Chains are not compared with frames, because the demo's SigLIP has random weights.
        let command =
            command.with_option("--min-words", "4").with_option("--max-overlap", "1").with_switch("--no-similarity");
        command.with_switch("--keep-paths").with_option("--layout", "chat").with_option("--seed", self.seed.to_string())
    }

    /// The command that evaluates the model in the sub-folder `model`.
    pub fn eval_command(&self, model: &str) -> CommandLine {
        let command = CommandLine::new("eval")
            .with_path("--model", &self.path_in_folder(model))
            .with_option("--benchmark", self.task_files())
            .with_path("--data", &self.path_in_folder(BENCHMARK_FOLDER))
            .with_path("--media-root", &self.folder)
            .with_path("--out", &self.evaluation_folder(model));
        self.with_eval_options(command, 8, 48)
    }

    /// Adds the options of all evaluations, with this number of frames in a prompt and of tokens in an answer.
    pub(crate) fn with_eval_options(&self, command: CommandLine, frames: u32, max_new_tokens: u32) -> CommandLine {
        command
            .with_option("--extraction", EXTRACTION.name())
            .with_option("--temperature", "0")
            .with_option("--max-new-tokens", max_new_tokens.to_string())
            // The same frames and pixels as in training, for the model that is evaluated before training.
            .with_option("--profile", "qwen")
            .with_option("--nframes", frames.to_string())
            .with_option("--min-pixels", self.frame_pixels().to_string())
            .with_option("--max-pixels", self.frame_pixels().to_string())
            // The pages of single evaluations have no frames. One page with frames is written at the end of the demo.
            .with_option("--frames-mib", "0")
            .with_option("--seed", self.seed.to_string())
    }

    /// The command that writes the page of the answers after SFT and after GRPO, side by side.
    pub fn evaluation_page_command(&self) -> CommandLine {
        CommandLine::new("report")
            .with_switch(&self.evaluation_folder("sft").display().to_string())
            .with_path("--against", &self.evaluation_folder("grpo"))
            .with_option("--benchmark", self.task_files())
            .with_option("--frames-mib", FRAMES_MIB)
            .with_path("--out", &self.path_in_folder(EVALUATION_PAGE))
    }

    /// The command that writes the page of all training runs.
    pub(crate) fn training_page_command(&self) -> CommandLine {
        let run = |stage: &str| self.path_in_folder(stage).display().to_string();
        let command =
            ["sft", "grpo", TOOL_STAGE].iter().fold(CommandLine::new("report"), |c, s| c.with_switch(&run(s)));
        command.with_path("--out", &self.path_in_folder(TRAINING_PAGE))
    }

    /// Shell commands that repeat the demo step by step. The last command asks `question` about `video`. `url` is the
    /// endpoint that answered curation's requests.
    pub(crate) fn shown_commands(&self, url: &str, video: &Path, question: &str) -> Vec<String> {
        let seed = self.seed.to_string();
        let init = |preset: &str, folder: &str| {
            let command = CommandLine::new("init").with_option("--preset", preset).with_option("--seed", &seed);
            command.with_path("--out", &self.path_in_folder(folder))
        };
        let train = |command: &str, stage: &str, from: &str| {
            let (data, media_root) = self.data_and_media_root(stage);
            let command = CommandLine::new(command)
                .with_path("--config", &self.path_in_folder(&format!("{stage}.toml")))
                .with_path("--model", &self.path_in_folder(from))
                .with_path("--data", &data)
                .with_path("--media-root", &media_root)
                .with_path("--out", &self.path_in_folder(stage))
                .with_option("--seed", &seed)
                .with_switch("--overwrite");
            self.steps.map_or(command.clone(), |steps| command.with_option("--max-steps", steps.to_string()))
        };
        let evaluate = |model: &str| self.eval_command(model).with_switch("--overwrite");
        let grpo = train("grpo", "grpo", "sft");
        let ask = CommandLine::new("generate").with_path("--model", &self.path_in_folder("grpo"));
        let commands = [
            init(self.preset().name(), "model"),
            init("siglip-tiny", "siglip"),
            self.curate_command(url).with_switch("--resume"),
            evaluate("model"),
            train("sft", "sft", "model"),
            evaluate("sft"),
            grpo.with_path("--siglip", &self.path_in_folder("siglip")),
            evaluate("grpo"),
            train("sft", TOOL_STAGE, "model"),
            self.tool_eval_command(true).with_switch("--overwrite"),
            self.tool_eval_command(false).with_switch("--overwrite"),
            self.training_page_command(),
            self.evaluation_page_command(),
            ask.with_path("--video", video).with_option("--prompt", question),
        ];
        // `reel init` replaces no model.
        let models = ["model", "siglip"].map(|folder| shell_quoted(&self.path_in_folder(folder).display().to_string()));
        let remove = format!("rm -r {}", models.join(" "));
        std::iter::once(remove).chain(commands.iter().map(CommandLine::shell_text)).collect()
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
