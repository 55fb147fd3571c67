use std::fs;
use std::sync::LazyLock;

use clap::{Arg, Command};
use reel_train::runs::paste::table::{self, OptionClass};
use reel_train::runs::paste::{CommandEnvironment, TranslationOutcome, translate_command};

/// Returns the parser of the command line. It is built once, because building takes longer than parsing.
pub(super) fn parser() -> &'static Command {
    static PARSER: LazyLock<Command> = LazyLock::new(crate::cli::command);
    &PARSER
}

pub(super) fn outcome_of_words(words: &[String], environment: &[(String, String)]) -> TranslationOutcome {
    let variable = |name: &str| environment.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
    let environment = CommandEnvironment {
        variable: &variable,
        processes: 1,
        read_config_file: &crate::read_config_file,
        usage_error: &crate::fail::usage_error_message,
    };
    translate_command(parser(), words, &environment)
}

/// Returns the argument of `command` whose long name, as a field name, is `name`.
pub(super) fn reel_argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| argument.get_long().is_some_and(|long| long.replace('-', "_") == name))
}

pub(super) fn outcome_of_line(words: &str) -> TranslationOutcome {
    outcome_of_words(&words.split(' ').map(String::from).collect::<Vec<_>>(), &[])
}

/// Returns the words of a translated command and its notes; panics if the command is refused.
pub(super) fn expect_translated(outcome: TranslationOutcome, shown: &str) -> (String, Vec<String>) {
    match outcome {
        TranslationOutcome::Translated { words, notes } => (words.join(" "), notes),
        TranslationOutcome::Unchanged => panic!("unchanged: {shown}"),
        TranslationOutcome::Refused { message } => panic!("{shown}: {message}"),
    }
}

/// Returns the error message of a refused command; panics if the command is accepted.
pub(super) fn expect_refused(outcome: TranslationOutcome, shown: &str) -> String {
    match outcome {
        TranslationOutcome::Refused { message } => message,
        other => panic!("{shown}: {other:?}"),
    }
}

/// Returns the words of the corrected command in an error message, after the program's name, split as a shell splits
/// them.
pub(super) fn corrected_words(message: &str) -> Vec<String> {
    let start = message.find("\n  reel ").expect("a corrected command") + 3;
    let text = message[start..].split("\nnote: ").next().unwrap_or_default().replace("\\\n", " ");
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            '\\' if !quoted => word.extend(characters.next()),
            c if c.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words.split_off(1)
}

/// Checks that the corrected command in an error message is accepted unchanged and has only options of reel.
pub(super) fn assert_corrected_command_is_accepted(id: &str, message: &str, environment: &[(String, String)]) {
    let words = corrected_words(message);
    let again = outcome_of_words(&words, environment);
    assert!(!matches!(again, TranslationOutcome::Refused { .. }), "{id}: {message}\n{again:?}");
    let parsed = parser().clone().try_get_matches_from(std::iter::once("reel".to_string()).chain(words));
    assert!(parsed.is_ok(), "{id}: {message}\n{}", parsed.unwrap_err());
}

#[test]
fn name_and_value_are_judged_together() {
    let sft = |words: &str| outcome_of_line(&format!("sft --model m --data d --out o {words}"));
    for (words, wanted) in [
        ("--finetuning_type full", ""),
        ("--finetuning_type lora --lora_rank 8", "--lora-r 8"),
        ("--bf16 false --use_liger False", "--dtype f32"),
        ("--bf16 True", "--dtype bf16"),
        ("--fp16 False", ""),
        ("--save_strategy no", "--save-steps 0"),
        ("--save_strategy steps --save_steps 9", "--save-steps 9"),
        ("--gradient_checkpointing True", "--gradient-checkpointing full"),
        ("--optim paged_adamw_8bit", "--optim adamw-8bit"),
        ("--report_to all", "--report-to tensorboard,wandb"),
        ("--warmup_steps 0.1 --use_vllm false", "--warmup-ratio 0.1"),
        ("--resume_from_checkpoint True --tf32 true", ""),
        ("--tune_mm_vision False --tune_mm_mlp True --tune_mm_llm True", "--freeze-vision true --freeze-merger false"),
        ("--freeze_llm True --freeze_vit false", "--freeze-llm true"),
        ("--cutoff_len 9", "--max-length 9 --truncation-strategy right"),
        ("--use_peft --bf16", "--dtype bf16 --lora-r 16 --lora-alpha 32"),
        ("--load_in_4bit false --push_to_hub False --eval_strategy no --streaming false", ""),
        (
            "--tuner_type lora --target_modules all-linear --freeze_vit true",
            "--lora-r 8 --lora-alpha 32 --freeze-vision true",
        ),
        ("--lr 1e-5 --epochs 2", "--learning-rate 1e-5 --num-train-epochs 2"),
        (
            "--train_type lora --lora_rank 8 --target_modules q_proj v_proj",
            "--lora-r 8 --lora-target-modules q_proj,v_proj --lora-alpha 32",
        ),
    ] {
        let (got, _) = expect_translated(sft(words), words);
        let got = got.replacen("sft --model m --data d --out o", "", 1);
        assert_eq!(got.trim(), wanted, "{words}");
    }
    let (words, notes) = expect_translated(sft("--resume_from_checkpoint True"), "resume");
    assert!(!words.contains("resume"), "{words}");
    assert!(notes.iter().any(|note| note.contains("--out has no checkpoint")), "{notes:?}");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("checkpoint-1")).unwrap();
    let words =
        format!("sft --model m --data d --output_dir {} --resume_from_checkpoint True", folder.path().display());
    assert!(expect_translated(outcome_of_line(&words), &words).0.ends_with("--resume-from-checkpoint last"));
    for (words, problem) in [
        ("--finetuning_type freeze", "--finetuning_type freeze: reel trains all weights, or LoRA adapters"),
        ("--fp16 True", "--fp16 True: reel computes in bf16 or f32; use --dtype bf16"),
        ("--optim adafactor", "--optim adafactor: reel's optimizer is AdamW"),
        ("--torch_dtype float16", "--torch_dtype float16: reel computes in bf16 or f32"),
        ("--lora_dropout 0.05", "--lora_dropout 0.05: reel trains without dropout; leave it out"),
        ("--save_steps 0.5", "--save_steps 0.5: is a share of all steps"),
        ("--load_in_4bit true", "--load_in_4bit true: quantizes the linear layers of the vision tower, too"),
        (
            "--lr_scheduler_type cosine_with_min_lr",
            "--lr_scheduler_type cosine_with_min_lr: reel's cosine schedule ends",
        ),
        (
            "--report_to tensorboard swanlab",
            "--report_to tensorboard,swanlab: names swanlab, and reel reports to tensorboard",
        ),
        ("--report_to mlflow --bf16", "--report_to mlflow: names mlflow, and reel reports to tensorboard"),
        ("--report-to mlflow", "--report-to mlflow: names mlflow, and reel reports to tensorboard"),
        ("--use_mlflow true", "--use_mlflow true: reel reports to TensorBoard and Weights & Biases"),
        ("--dataloader_drop_last True", "--dataloader_drop_last True: leaves out the last rows"),
        ("--bf16 --frobnicate 3", "--frobnicate 3: is not an option of reel sft, nor known"),
        ("--bf16 --learning_rat 3", "--learning_rat 3: is not an option of reel sft; did you mean --learning-rate?"),
    ] {
        let message = expect_refused(sft(words), words);
        assert!(message.contains(&format!("\n  {problem}")), "{words}: {message}");
        assert_corrected_command_is_accepted(words, &message, &[]);
    }
}

#[test]
fn batches_and_rewards_of_grpo_have_the_meaning_of_the_program() {
    let grpo =
        |words: &str| expect_translated(outcome_of_line(&format!("grpo --model m --data d --out o {words}")), words);
    let (words, notes) = grpo("--use_vllm true --per_device_train_batch_size 1 --num_generations 8");
    assert!(
        words.ends_with("--per-device-train-batch-size 8 --num-generations 8 --gradient-accumulation-steps 1"),
        "{words}"
    );
    assert!(notes.iter().any(|note| note.contains("TRL and ms-swift count completions of all processes")), "{notes:?}");
    let (words, notes) = grpo(
        "--use_vllm true --temporal true --len_control true --per_device_train_batch_size 2 --gradient_accumulation_steps 3",
    );
    assert!(words.ends_with("--per-device-train-batch-size 16 --gradient-accumulation-steps 3"), "{words}");
    assert!(notes.iter().any(|note| note.contains("Video-R1 and VideoRFT count prompts")), "{notes:?}");
    let (words, _) =
        grpo("--use_vllm true --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --num_generations 4");
    let wanted = "--per-device-train-batch-size 4 --gradient-accumulation-steps 4 --num-generations 4";
    assert!(words.ends_with(wanted), "{words}");
    let (words, _) = grpo("--reward_funcs accuracy format --reward_weights 1 0.5");
    assert!(words.ends_with("--reward-weights accuracy=1,format=0.5 --len-control false"), "{words}");
    let message =
        expect_refused(outcome_of_line("grpo --model m --data d --out o --reward_funcs accuracy cosine"), "cosine");
    assert!(message.contains("has cosine, which is not a reward of reel"), "{message}");
    // A command with reel's own option names is not translated: reel's own rule applies.
    assert_eq!(
        outcome_of_line("grpo --model m --data d --out o --per-device-train-batch-size 1"),
        TranslationOutcome::Unchanged
    );
}

#[test]
fn nested_keys_are_translated() {
    let words = "grpo data.train_files=d actor_rollout_ref.model.path=m actor_rollout_ref.rollout.n=4 \
                 actor_rollout_ref.actor.ppo_mini_batch_size=3 algorithm.adv_estimator=grpo trainer.logger=['console','wandb'] \
                 actor_rollout_ref.actor.use_kl_loss=False trainer.save_freq=-1 +trainer.nnodes=1";
    let (got, _) = expect_translated(outcome_of_line(words), words);
    for part in [
        "--data d",
        "--model m",
        "--num-generations 4",
        "--per-device-train-batch-size 4 --gradient-accumulation-steps 3",
        "--report-to wandb",
        "--beta 0",
        "--save-steps 0",
        "--out checkpoints/project/experiment",
    ] {
        assert!(got.contains(part), "{part}: {got}");
    }
    let message = expect_refused(
        outcome_of_line("grpo data.train_files=d actor_rollout_ref.model.path=m algorithm.adv_estimator=gae"),
        "gae",
    );
    assert!(message.contains("algorithm.adv_estimator=gae: reel's advantages are GRPO's"), "{message}");
}

#[test]
fn servers_and_load_tests_are_translated() {
    let (words, _) = expect_translated(
        outcome_of_line("serve m --max-model-len 4k --tensor-parallel-size 1 --max-num-seqs 8"),
        "serve",
    );
    assert_eq!(words, "serve --model m --max-model-len 4000 --tensor-parallel-size 1 --batch-size 8");
    let message = expect_refused(outcome_of_line("serve m --host 0.0.0.0"), "host");
    assert!(message.contains("--host 0.0.0.0: can be reached from other machines"), "{message}");
    assert!(corrected_words(&message).contains(&"--no-auth".to_string()), "{message}");
    let key = [("VLLM_API_KEY".to_string(), "k".to_string())];
    let words: Vec<String> = "serve m --host 0.0.0.0".split(' ').map(String::from).collect();
    expect_translated(outcome_of_words(&words, &key), "with a key");
    let (words, _) = expect_translated(
        outcome_of_line("bench serve --host 0.0.0.0 --port 8001 --backend openai --random-input-len 9"),
        "bench",
    );
    assert_eq!(words, "bench serve --prompt-tokens 9 --url http://127.0.0.1:8001 --endpoint completions");
}

#[test]
fn commands_of_reel_are_not_touched() {
    for words in [
        "sft --model m --data d --out o --lora-r 8 --lora-target-modules all-linear --report-to wandb,tensorboard",
        "sft --model m --data d --out o --optim adamw-8bit --eval-steps 5 --eval-benchmark mmvu",
        "grpo --model m --data d --out o --reward-weights accuracy=2 --top-k 0 --warmup-steps 3",
        "grpo --model m --data d --out o --reward-funcs a.py:f --reward-funcs accuracy --reward-weights 1,2",
        "sft --model m --data d --out o --val-size 0.1 --eval-steps 5 --metric-for-best-model eval_loss",
        "serve --model m --host 0.0.0.0",
        "eval --model m --benchmark mmvu --data d --out o",
        "eval compare a b",
        "resize --hight 3",
        "bench --compare a b",
        "sft --help --use_vllm",
        "frobnicate",
    ] {
        assert_eq!(outcome_of_line(words), TranslationOutcome::Unchanged, "{words}");
    }
}

#[test]
fn validation_rows_and_reward_functions_keep_their_meaning() {
    let sft = |more: &str| {
        expect_translated(outcome_of_line(&format!("sft --model m --data d --out o --bf16 true {more}")), more).0
    };
    let words = sft("--split_dataset_ratio 0.05 --eval_strategy steps --eval_steps 100 --save_steps 200");
    assert!(words.contains("--val-size 0.05") && words.contains("--eval-steps 100"), "{words}");
    assert!(!words.contains("--metric-for-best-model"), "{words}");
    let words = sft("--val_size 0.1 --eval_steps 300");
    assert!(words.contains("--eval-steps 300") && words.contains("--metric-for-best-model none"), "{words}");
    let words = sft("--val_dataset v.jsonl --per_device_eval_batch_size 4 --metric_for_best_model eval_loss");
    assert!(words.contains("--eval-file v.jsonl") && words.contains("--metric-for-best-model eval_loss"), "{words}");
    assert!(!sft("--eval_steps 300").contains("--eval-steps"), "no rows to evaluate");
    let line_of_grpo = "grpo --model m --data d --out o --reward_funcs my.py:f accuracy --reward_weights 1 0.5";
    let (words, _) = expect_translated(outcome_of_line(line_of_grpo), "grpo");
    assert!(words.contains("--reward-funcs my.py:f,accuracy --reward-weights 1,0.5"), "{words}");
}

#[test]
fn variables_of_the_environment_set_options() {
    let set = [("VIDEO_MAX_PIXELS", "50176"), ("FPS_MAX_FRAMES", "12"), ("NFRAMES", "x"), ("NPROC_PER_NODE", "8")];
    let set = set.map(|(name, value)| (name.to_string(), value.to_string()));
    let words: Vec<String> = "sft --model m --data d --out o --max-frames 6".split(' ').map(String::from).collect();
    let (got, notes) = expect_translated(outcome_of_words(&words, &set), "variables");
    assert!(got.ends_with("--max-frames 6 --video-max-pixels 50176"), "{got}");
    assert_eq!(notes, ["note: taken from environment variables: --video-max-pixels 50176 (VIDEO_MAX_PIXELS)"]);
    let words: Vec<String> = [words, vec!["--tf32".into()]].concat();
    let (_, notes) = expect_translated(outcome_of_words(&words, &set), "processes");
    let wanted = "--gpus 8; with any number of them --gradient-accumulation-steps 8 keeps";
    assert!(notes.iter().any(|note| note.contains(wanted)), "{notes:?}");
}

#[test]
fn defaults_of_the_program_are_stated_once() {
    let (_, notes) = expect_translated(
        outcome_of_line("sft --model m --data d --out o --use_liger_kernel --dataset_num_proc 4"),
        "trl",
    );
    let stated: Vec<_> = notes.iter().filter(|note| note.contains(" have another default in TRL: ")).collect();
    assert_eq!(stated.len(), 1, "{notes:?}");
    assert!(
        stated[0].contains("--learning-rate 1e-6 (learning_rate 2e-5)") || stated[0].contains("0.000001"),
        "{stated:?}"
    );
    assert!(!stated[0].contains("--out"), "{stated:?}");
}

/// Rows that are too long are cut, skipped or split as in the program that the command was written for. With packing,
/// `--max-length` gets that program's default.
#[test]
fn long_rows_are_treated_as_in_the_program() {
    let sft =
        |words: &str| expect_translated(outcome_of_line(&format!("sft --model m --data d --out o {words}")), words).0;
    let cut = "--truncation-strategy right";
    assert!(sft("--max_seq_length 64").contains(cut));
    assert!(sft("--max_length 64 --dataset_num_proc 4 --use_liger_kernel").contains(cut));
    assert!(!sft("--max_length 64 --tuner_type lora --freeze_vit true").contains("truncation"));
    assert!(!sft("--sequence_len 64 --micro_batch_size 1").contains("truncation"));
    let adapted = sft("--adapter lora --lora_r 32 --sequence_len 64 --micro_batch_size 1");
    assert!(adapted.contains("--lora-r 32"), "{adapted}");
    let packed = sft("--packing --use_liger_kernel --dataset_num_proc 4");
    assert!(packed.contains("--max-length 1024"), "{packed}");
}

/// DeepSpeed's stage 3 becomes ZeRO-3. The KL term and the second clip bound depend on several options together.
#[test]
fn stages_divergence_and_bounds_are_read_together() {
    let sft =
        |words: &str| expect_translated(outcome_of_line(&format!("sft --model m --data d --out o {words}")), words).0;
    for words in ["--deepspeed zero3", "--deepspeed scripts/zero3_offload.json", "--fsdp full_shard,auto_wrap"] {
        assert!(sft(words).contains("--zero-stage 3"), "{words}");
    }
    assert!(!sft("--deepspeed scripts/zero2.json").contains("zero-stage"));
    let verl = "grpo data.train_files=d actor_rollout_ref.model.path=m actor_rollout_ref.rollout.n=4";
    let actor = "actor_rollout_ref.actor";
    let accepted_verl = |more: &str| expect_translated(outcome_of_line(&format!("{verl} {more}")), more).0;
    assert!(accepted_verl(&format!("{actor}.kl_loss_coef=0.01")).contains("--beta 0"));
    let with_kl = accepted_verl(&format!("{actor}.use_kl_loss=True {actor}.kl_loss_coef=0.01"));
    assert!(with_kl.contains("--beta 0.01"), "{with_kl}");
    let easyr1 = "grpo data.train_files=d worker.actor.model.model_path=m worker.rollout.n=4 algorithm.kl_coef=0.1";
    for (words, problem) in [
        (format!("{verl} {actor}.use_kl_loss=True {actor}.kl_loss_type=k1"), "kl_loss_type=k1: is not reel's estimate"),
        (
            format!("{easyr1} algorithm.use_kl_loss=true algorithm.kl_penalty=kl"),
            "kl_penalty=kl: is not reel's estimate",
        ),
        (format!("{easyr1} algorithm.use_kl_loss=false"), "use_kl_loss=false: puts the KL term into the reward"),
        (format!("{verl} {actor}.clip_ratio_c=3 {actor}.ppo_epochs=2"), "clip_ratio_c=3: is a second bound"),
    ] {
        let message = expect_refused(outcome_of_line(&words), &words);
        assert!(message.contains(problem), "{words}: {message}");
        assert_corrected_command_is_accepted(&words, &message, &[]);
    }
    let words = format!("{verl} {actor}.clip_ratio_c=3");
    let (_, notes) = expect_translated(outcome_of_line(&words), &words);
    let wanted = "clip_ratio_c (bounds of the probability ratio, which is 1";
    assert!(notes.iter().any(|note| note.contains(wanted)), "{notes:?}");
    expect_translated(
        outcome_of_line(&format!("{easyr1} algorithm.disable_kl=true algorithm.use_kl_loss=false")),
        "no KL term",
    );
}

/// If a file and the command line set the same option under different names, the command line wins and one note says
/// so.
#[test]
fn the_command_line_wins_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    fs::write(
        &file,
        "finetuning_type: lora\nlora_rank: 8\nlearning_rate: 1.0e-4\nfreeze_vision_tower: true\nseed: 1\n",
    )
    .unwrap();
    let words = format!("sft --model m --data d --out o --config {} --lr 2e-5 --freeze_vit false", file.display());
    let (got, notes) = expect_translated(outcome_of_line(&words), &words);
    assert!(got.contains("--learning-rate 2e-5") && got.contains("--lora-r 8") && got.contains("--seed 1"), "{got}");
    assert!(!got.contains("--freeze-vision"), "{got}");
    let wanted = "note: the command line overrides run.yaml: learning_rate: 0.0001, freeze_vision_tower: true";
    assert!(notes.iter().any(|note| note == wanted), "{notes:?}");
}

/// A tracker that reel does not have is refused with the way on also in a file that has only reel's own keys.
#[test]
fn other_trackers_in_a_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    for (value, is_refused) in [("mlflow", true), ("[tensorboard, swanlab]", true), ("[tensorboard, wandb]", false)] {
        fs::write(&file, format!("model: m\ndata: d\nout: o\nreport_to: {value}\n")).unwrap();
        let line = format!("sft --config {}", file.display());
        match is_refused {
            true => {
                let message = expect_refused(outcome_of_line(&line), value);
                assert!(message.contains("run.yaml: report_to") && message.contains("--report-command"), "{message}");
            }
            false => assert!(matches!(outcome_of_line(&line), TranslationOutcome::Unchanged), "{value}"),
        }
    }
}

/// Translates JSON values of vLLM's options, vLLM's configuration file, and names of models and data sets.
#[test]
fn nested_values_are_translated() {
    let words: Vec<String> = ["serve", "m", "--mm-processor-kwargs", "{\"max_pixels\": 50176}", "--media-io-kwargs"]
        .into_iter()
        .chain(["{\"video\": {\"num_frames\": 16}}", "--language-model-only", "--tokenizer", "m"])
        .map(String::from)
        .collect();
    let (got, _) = expect_translated(outcome_of_words(&words, &[]), "vLLM");
    assert_eq!(got, "serve --model m --max-pixels 50176 --nframes 16 --limit-mm-per-prompt image=0,video=0");
    let message = expect_refused(outcome_of_line("serve m --tokenizer other"), "tokenizer");
    assert!(
        message.contains("--tokenizer other: reel reads the tokenizer and config.json of the model folder"),
        "{message}"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vllm.yaml");
    fs::write(&file, "model: m\nport: 8001\nmax-model-len: 4k\n").unwrap();
    let (got, _) = expect_translated(outcome_of_line(&format!("serve --config {}", file.display())), "file");
    assert_eq!(got, "serve --model m --port 8001 --max-model-len 4000");
    let sft = |words: &str| expect_translated(outcome_of_line(&format!("sft --model m --out o {words}")), words).0;
    assert_eq!(
        sft("--dataset_name a/b --dataset_config c --dataset_train_split test"),
        "sft --model m --out o --data a/b#c@test"
    );
    let (got, _) =
        expect_translated(outcome_of_line("sft trainer.logger=[console,wandb] --model m --data d --out o"), "hydra");
    assert!(got.contains("--report-to wandb"), "{got}");
    let (got, _) =
        expect_translated(outcome_of_line("serve m --model-name q --server-port 9 --session-len 64"), "LMDeploy");
    assert_eq!(got, "serve --model m --port 9 --max-model-len 64 --served-model-name q");
}

/// Every option that the option table sets is an option of the command.
#[test]
fn the_table_names_options_that_exist() {
    let root = parser();
    for row in table::ROWS.iter() {
        for command in &row.commands {
            let paths: &[&str] = match *command {
                "train" => &["sft", "grpo"],
                "bench" => &["bench serve"],
                "all" => continue,
                own => &[own],
            };
            let has = |path: &str, option: &str| {
                let parser = path.split(' ').fold(root, |parser, name| parser.find_subcommand(name).expect(path));
                reel_argument(parser, option).is_some()
            };
            for target in row.target_option_names() {
                assert!(paths.iter().any(|path| has(path, target)), "{:?}: {target}", row.names);
            }
        }
    }
}

/// `docs/coming-from.md` contains the tables of options and defaults.
#[test]
fn the_documentation_has_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coming-from.md");
    let page = fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once("<!-- tables -->\n").expect("the mark of the tables");
    let wanted = format!("{before}<!-- tables -->\n{}", tables());
    if rest != tables() && std::env::var_os("REEL_WRITE_DOCS").is_some() {
        fs::write(path, wanted).unwrap();
        return;
    }
    assert!(rest == tables(), "docs/coming-from.md differs from the tables; run ./x tables");
}

/// Returns the option table as Markdown, grouped by class, followed by the table of defaults.
fn tables() -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for class in [OptionClass::Same, OptionClass::Harmless, OptionClass::Result, OptionClass::Off] {
        let title = match class {
            OptionClass::Same => "Same meaning: accepted",
            OptionClass::Harmless => "No effect here: accepted, named in one note",
            OptionClass::Result => "Changes the result: refused",
            OptionClass::Off => "Off: as absent",
        };
        let _ = write!(text, "\n## {title}\n\n| options | programs | commands | in reel |\n|---|---|---|---|\n");
        for row in table::ROWS.iter().filter(|row| row.class == class) {
            let names = row.names.iter().map(|(name, value)| match value {
                Some(value) => format!("`{name}={value}`"),
                None => format!("`{name}`"),
            });
            let names = names.collect::<Vec<_>>().join(" ");
            let becomes: Vec<String> = row
                .becomes
                .iter()
                .filter(|b| !b.starts_with('@'))
                .map(|b| format!("`{}`", b.replace("?=", "=").replace("=$", "")))
                .collect();
            let reel = match (becomes.is_empty(), row.reason.is_empty()) {
                (true, true) if row.becomes.is_empty() => "as reel does".to_string(),
                (true, true) => "by its value".to_string(),
                (false, true) => becomes.join(" "),
                _ => row.reason.replace('|', "/"),
            };
            let programs = row.programs.iter().map(|p| if *p == "guess" { "(users)" } else { p }).collect::<Vec<_>>();
            let _ = writeln!(text, "| {names} | {} | {} | {reel} |", programs.join(", "), row.commands.join(", "));
        }
    }
    let _ = write!(text, "\n## Defaults that differ\n");
    for (program, version) in table::PROGRAMS.iter() {
        let _ =
            write!(text, "\n`{program}`: {version}\n\n| command | option of reel | default there |\n|---|---|---|\n");
        for default in table::DEFAULTS.iter().filter(|default| default.program == *program) {
            let option = match default.option {
                "-" => "none".to_string(),
                option => format!("`--{} {}`", option.replace('_', "-"), default.value),
            };
            let _ = writeln!(text, "| {} | {option} | {} |", default.command, default.words);
        }
    }
    text
}
