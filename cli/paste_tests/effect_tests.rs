//! Tests that an option which changes numbers, rows, steps, weights or answers in another program is never among those
//! without effect: it gets the same meaning, or it is refused. The values that reel has anyway are accepted.

use super::tests::{assert_corrected_command_is_accepted, expect_refused, expect_translated, outcome_of_line};

const SFT: &str = "sft --model_name_or_path m --dataset_name d --output_dir o --tf32 true";
const GRPO: &str = "grpo --model m --dataset d --output_dir o --use_vllm true";
const VERL: &str = "grpo algorithm.adv_estimator=grpo data.train_files=d actor_rollout_ref.model.path=m";
const EVAL: &str = "eval --model m --benchmark mmvu --data d --out o --verbose";

/// Options that change the result, each with what the message says of it.
const REFUSED: [(&str, &str, &str); 46] = [
    (SFT, "--resume_only_model true", "a checkpoint is resumed whole"),
    (SFT, "--ignore_data_skip true", "a checkpoint is resumed whole"),
    (SFT, "--dataloader_drop_last True", "leaves out the last rows"),
    (SFT, "--streaming true", "reads the rows in the order of the files"),
    (SFT, "--group_by_length", "rows of similar length"),
    (SFT, "--train_sampling_strategy group_by_length", "rows of similar length"),
    (SFT, "--packing_strategy wrapped", "packs whole rows"),
    (SFT, "--auto_find_batch_size true", "makes the batch smaller"),
    (SFT, "--accelerator_config a.json", "changes how rows become batches"),
    (SFT, "--sequence_parallel_size 2", "divides each row"),
    (SFT, "--max_model_len 4096", "use --max-length"),
    (SFT, "--greater_is_better True", "takes the lowest loss"),
    (SFT, "--callbacks lisa", "names code"),
    (SFT, "--plugins axolotl.integrations.liger.LigerPlugin,axolotl.integrations.kd.KDPlugin", "integrations.kd"),
    (SFT, "--loss_watchdog_threshold 5", "ends the run where the loss is high"),
    (SFT, "--load_args true", "args.json of a checkpoint"),
    (SFT, "--disable_auto_column_mapping true", "does not read the data in this way"),
    (SFT, "--wandb_entity us", "set WANDB_ENTITY"),
    (SFT, "--mlflow_experiment_name e", "docs/examples/report.py"),
    (SFT, "--use_chat_template false", "chat template are those of the model folder"),
    (SFT, "--report_to trackio", "names trackio"),
    (SFT, "--enable_reasoning true", "puts a field of the rows before the answers"),
    (GRPO, "--async_generate true", "samples with the weights of the step before"),
    (GRPO, "--do_sample false", "the temperature decides"),
    (GRPO, "--reward_funcs think_format_reward", "has think_format_reward, which is not a reward of reel"),
    (GRPO, "--reward_funcs f.py:f accuracy_reward", "has accuracy_reward, which is not a reward of reel"),
    (GRPO, "--vllm_max_model_len 512 --max_completion_length 512", "it cuts completions"),
    (VERL, "algorithm.use_pf_ppo=True", "does not have this term"),
    (VERL, "algorithm.filter_groups.metric=acc", "compares the whole rewards"),
    (VERL, "algorithm.filter_low=0.2", "leaves out a group"),
    (VERL, "actor_rollout_ref.actor.optim.num_cycles=1", "reel's AdamW has"),
    (VERL, "actor_rollout_ref.rollout.over_sample_rate=0.1", "leaves out the completions that take longest"),
    (VERL, "actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors=x", "does not know"),
    (VERL, "actor_rollout_ref.actor.checkpoint.load_contents=['model']", "a checkpoint is resumed whole"),
    (VERL, "actor_rollout_ref.model.external_lib=x", "loads code"),
    (VERL, "actor_rollout_ref.model.tokenizer_path=other", "reads the tokenizer"),
    (VERL, "reward_manager.name=dapo", "reel has the rewards"),
    (VERL, "trainer.logger=['console','mlflow']", "names mlflow"),
    (EVAL, "--judge gpt-4o", "another model decide"),
    (EVAL, "--use-verifier", "another model decide"),
    ("serve m", "--sampling-defaults openai", "the defaults of sampling"),
    ("serve m", "--generation-config vllm", "the defaults of sampling"),
    ("serve m", "--chat-template-content-format string", "changes the text of messages"),
    ("serve m", "--speculative-accept-threshold-single 0.5", "accepts tokens"),
    ("serve m", "--tokenizer-revision other", "names the revision"),
    ("serve m", "--structured-outputs-config.disable_any_whitespace true", "has disable_any_whitespace"),
];

#[test]
fn options_that_change_the_result_are_refused() {
    for (command, option, wanted) in REFUSED {
        let line = format!("{command} {option}");
        let message = expect_refused(outcome_of_line(&line), &line);
        assert!(message.contains(wanted), "{line}: {message}");
        assert_corrected_command_is_accepted(&line, &message, &[]);
    }
}

#[test]
fn options_with_a_counterpart_get_it() {
    for (command, option, wanted) in [
        (SFT, "--use_cpu True", "--device cpu"),
        (GRPO, "--max_ckpt_num 3", "--save-total-limit 3"),
        (GRPO, "--shuffle_dataset False", "--no-shuffle"),
        (VERL, "trainer.remove_previous_ckpt_in_save=True", "--save-total-limit 1"),
    ] {
        let line = format!("{command} {option}");
        let (words, _) = expect_translated(outcome_of_line(&line), &line);
        assert!(words.contains(wanted), "{line}: {words}");
    }
    // A run that resumes by itself resumes where the output folder has a checkpoint.
    let folder = tempfile::tempdir().unwrap();
    for option in ["trainer.resume_mode=auto", "trainer.find_last_checkpoint=true"] {
        let line = format!("{VERL} trainer.default_local_dir={} {option}", folder.path().display());
        let (words, notes) = expect_translated(outcome_of_line(&line), &line);
        let resumes = words.contains("--resume-from-checkpoint last");
        let checkpoint = folder.path().join("checkpoint-1");
        assert_eq!(resumes, checkpoint.exists(), "{words}");
        assert!(resumes || notes.iter().any(|note| note.contains("has no checkpoint")), "{notes:?}");
        std::fs::create_dir_all(checkpoint).unwrap();
    }
}

/// The values of the other program that reel has anyway, and those that switch the option off.
#[test]
fn values_that_reel_has_anyway_are_accepted() {
    for (command, options) in [
        (SFT, "--resume_only_model false --ignore_data_skip False --dataloader_drop_last False --streaming False"),
        (SFT, "--use_cpu False --packing_strategy bfd --sequence_parallel_size 1 --train_sampling_strategy random"),
        (SFT, "--shuffle_dataset False --pure_bf16 false --use_wandb false --group_by_length false"),
        (SFT, "--plugins axolotl.integrations.liger.LigerPlugin --wandb_entity null --use_swanlab false"),
        (GRPO, "--vllm_max_model_len 4096 --max_completion_length 512 --max_prompt_length 2048"),
        (GRPO, "--do_sample true --async_generate false --reward_funcs accuracy format"),
        (VERL, "trainer.resume_mode=disable algorithm.filter_low=0.01 algorithm.filter_groups.metric=seq_reward"),
        (VERL, "actor_rollout_ref.rollout.over_sample_rate=0 actor_rollout_ref.actor.optim.num_cycles=0.5"),
        (VERL, "actor_rollout_ref.actor.checkpoint.load_contents=['model','optimizer','extra']"),
        (VERL, "actor_rollout_ref.model.tokenizer_path=m data.tokenizer=null reward_manager.name=naive"),
        (EVAL, "--judge exact_matching"),
        ("serve m", "--sampling-defaults model --chat-template-content-format openai --tokenizer-revision main"),
        ("serve m", "--speculative-accept-threshold-single 1.0 --structured-outputs-config.backend xgrammar"),
    ] {
        let line = format!("{command} {options}");
        let (words, notes) = expect_translated(outcome_of_line(&line), &line);
        let unwanted = ["--no-shuffle", "bf16", "wandb", "cpu", "limit-mm"];
        assert!(unwanted.iter().all(|option| !words.contains(option)), "{line}: {words}");
        assert!(!options.contains("reward_funcs") || notes.iter().any(|n| n.contains("other rules")), "{notes:?}");
    }
    let (words, _) = expect_translated(outcome_of_line("serve m --language-model-only false"), "images");
    assert!(!words.contains("limit-mm-per-prompt"), "{words}");
}

/// A configuration file of DeepSpeed can train in another way than the options say.
#[test]
fn parts_of_deepspeed_that_change_the_training_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    let with = |config: &str| {
        std::fs::write(&path, config).unwrap();
        outcome_of_line(&format!("{SFT} --deepspeed {}", path.display()))
    };
    let adam =
        r#"{"zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"}, "scheduler": {"enabled": false}}"#;
    assert!(expect_translated(with(adam), "AdamW").0.contains("--zero-stage 3"));
    for (config, key) in [
        (r#"{"optimizer": {"type": "Lamb"}}"#, "optimizer"),
        (r#"{"scheduler": {"type": "WarmupLR"}}"#, "scheduler"),
        (r#"{"curriculum_learning": {"enabled": true}}"#, "curriculum_learning"),
    ] {
        let message = expect_refused(with(config), config);
        assert!(message.contains(&format!("has {key}, which changes the training")), "{message}");
        assert_corrected_command_is_accepted(config, &message, &[]);
    }
}
