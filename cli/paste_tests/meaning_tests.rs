//! Tests that options of other programs keep their meaning or are refused: no option that changes the result is
//! dropped.

use std::fs;

use super::tests::{
    assert_corrected_command_is_accepted, corrected_words, expect_refused, expect_translated, outcome_of_line,
    outcome_of_words,
};

/// Translates a command line of another program; returns the translated words, joined by spaces.
fn words_of(line: &str) -> String {
    expect_translated(outcome_of_line(line), line).0
}

/// Translates a command line of another program; returns the notes as one text.
fn notes_of(line: &str) -> String {
    expect_translated(outcome_of_line(line), line).1.join("\n")
}

/// Checks that reel refuses each command with the error text in the same row, and accepts the corrected command.
fn all_refused(prefix: &str, rows: &[(&str, &str)]) {
    for (words, problem) in rows {
        let line = format!("{prefix} {words}");
        let message = expect_refused(outcome_of_line(&line), &line);
        assert!(message.contains(problem), "{line}: {message}");
        assert_corrected_command_is_accepted(&line, &message, &[]);
    }
}

const VERL: &str = "grpo data.train_files=d actor_rollout_ref.model.path=m actor_rollout_ref.rollout.n=4";
const EASYR1: &str = "grpo data.train_files=d worker.actor.model.model_path=m worker.rollout.n=4";
const TWO_U_ONE: &str = "sft --model_id m --data_path d --output_dir o --lora_enable True --freeze_llm True";

/// If a command does not set the rank and alpha of its LoRA adapter, they get the defaults of the program that the
/// command was written for.
#[test]
fn adapters_have_the_programs_defaults() {
    for (line, wanted) in [
        ("sft --model m --dataset d --output_dir o --tuner_type lora --lora_rank 16 --freeze_vit true", "32"),
        ("sft --model_name_or_path m --dataset_name d --output_dir o --use_peft --lora_r 64 --packing", "32"),
        (&format!("{VERL} actor_rollout_ref.model.lora_rank=32"), "16"),
        (&format!("{EASYR1} worker.actor.model.lora.rank=32"), "64"),
        (&format!("{TWO_U_ONE} --freeze_vision_tower True --lora_rank 32"), "16"),
        (&format!("{TWO_U_ONE} --freeze_vision_tower True"), "16"),
        ("sft --model_name_or_path m --dataset_use d --output_dir o --lora_enable True --data_flatten True", "128"),
    ] {
        let (words, notes) = expect_translated(outcome_of_line(line), line);
        assert!(words.contains(&format!("--lora-alpha {wanted}")), "{line}: {words}");
        assert!(notes.iter().any(|note| note.contains("default for LoRA")), "{line}: {notes:?}");
    }
    assert!(words_of(&format!("{TWO_U_ONE} --freeze_vision_tower True")).contains("--lora-r 64"));
    // LLaMA-Factory's default alpha is twice the rank, as in reel, so no alpha is added. A command with reel's own
    // option names gets reel's default.
    let line = "sft --model_name_or_path m --dataset d.json --output_dir o --finetuning_type lora --lora_rank 8";
    assert!(!words_of(line).contains("--lora-alpha"));
    assert!(!words_of("sft --model m --data d --out o --lora-r 8 --bf16").contains("--lora-alpha"));
}

/// QLoRA of ms-swift and 2U1 quantises what `--quantize nf4` does. Other programs quantise the vision tower, too.
#[test]
fn quantised_weights_are_those_of_the_program() {
    let swift = "sft --model m --dataset d --output_dir o --tuner_type lora --freeze_vit true --quant_method bnb";
    let two_u_one = format!("{TWO_U_ONE} --freeze_vision_tower True");
    for line in [
        format!("{swift} --quant_bits 4"),
        format!("{swift} --quant_bits 4 --bnb_4bit_quant_type nf4 --bnb_4bit_use_double_quant true"),
        format!("{swift} --quant_bits 4 --bnb_4bit_compute_dtype bfloat16 --bnb_4bit_quant_storage uint8"),
        format!("{two_u_one} --bits 4 --double_quant True --quant_type nf4"),
    ] {
        assert!(words_of(&line).contains("--quantize nf4"), "{line}");
    }
    assert!(!words_of(&format!("{two_u_one} --bits 16 --double_quant True")).contains("--quantize"));
    let none = "is a kind of quantized weights that reel does not have";
    let single = "leaves the scales of 4-bit weights as they are";
    all_refused(
        &swift.replace(" --quant_method bnb", ""),
        &[
            ("--quant_method hqq --quant_bits 4", none),
            ("--quant_method fp8", none),
            ("--quant_method bnb --quant_bits 8", none),
            ("--quant_method bnb --quant_bits 4 --bnb_4bit_quant_type fp4", none),
            ("--quant_method bnb --quant_bits 4 --bnb_4bit_compute_dtype float32", none),
            ("--quant_method bnb --quant_bits 4 --bnb_4bit_use_double_quant false", single),
        ],
    );
    all_refused(
        &two_u_one,
        &[("--bits 8", none), ("--bits 4 --double_quant False", single), ("--quant_type fp4", none)],
    );
    let tower = "quantizes the linear layers of the vision tower, too";
    let llama = "sft --model_name_or_path m --dataset d.json --output_dir o --finetuning_type lora --quantization_bit";
    all_refused(llama, &[("4", tower), ("8", none), ("4 --double_quantization false", single)]);
    let line =
        "sft --model_name_or_path m --dataset_name d --output_dir o --use_peft --load_in_4bit --use_bnb_nested_quant";
    let message = expect_refused(outcome_of_line(line), line);
    assert!(message.contains(tower) && corrected_words(&message).join(" ").contains("--quantize nf4"), "{message}");
}

/// With `vision_lora` of the program 2U1, the frozen vision tower gets an adapter. Layers whose names are excluded
/// must be layers that get no adapter in reel either.
#[test]
fn the_tower_gets_an_adapter_if_the_program_gives_it_one() {
    let frozen = "--freeze_vision_tower True --freeze_merger True";
    let words = words_of(&format!("{TWO_U_ONE} {frozen} --vision_lora True"));
    assert!(words.contains("--lora-target-modules all-linear") && !words.contains("freeze-vision"), "{words}");
    let words = words_of(&format!("{TWO_U_ONE} {frozen} --vision_lora True --lora_namespan_exclude ['visual']"));
    assert!(!words.contains("all-linear"), "{words}");
    let words = words_of(&format!("{TWO_U_ONE} {frozen} --lora_namespan_exclude ['lm_head','embed_tokens']"));
    assert!(words.contains("--freeze-vision true"), "{words}");
    all_refused(
        TWO_U_ONE,
        &[
            ("--lora_namespan_exclude ['lm_head','k_proj']", "excludes k_proj from LoRA"),
            ("--num_lora_modules 3", "adapts only the last layers"),
            ("--freeze_vision_tower True --freeze_merger False", "trains the merger's own weights"),
            ("--freeze_vision_tower False", "trains the tower's own weights"),
            ("--vision_lora True --freeze_vision_tower True --lora_namespan_exclude ['merger']", "excludes the merger"),
        ],
    );
    let lora = format!("{VERL} actor_rollout_ref.model.lora_rank=8");
    assert!(words_of(&lora).contains("--lora-target-modules all-linear"));
    assert!(!words_of(&format!("{lora} actor_rollout_ref.model.exclude_modules=.*visual.*")).contains("all-linear"));
    all_refused(&lora, &[("actor_rollout_ref.model.exclude_modules=visual|k_proj", "excludes k_proj from LoRA")]);
}

/// Keys of verl and EasyR1 that change the result are translated or refused. Patterns in the option table match no
/// unknown keys.
#[test]
fn keys_that_change_the_result_are_not_dropped() {
    assert!(words_of(&format!("{EASYR1} trainer.total_episodes=3")).contains("--num-train-epochs 3"));
    assert!(
        words_of(&format!("{VERL} actor_rollout_ref.rollout.response_length=7")).contains("--max-completion-length 7")
    );
    let rollout = "+actor_rollout_ref.rollout";
    for (key, problem) in [
        ("trainer.val_only=True", "only validates"),
        ("trainer.critic_warmup=5", "trains a critic before the model"),
        ("trainer.nothing=1", "is a key that reel does not know"),
        ("data.nothing=1", "is a key that reel does not know"),
        ("+data.sampling_ratios=[0.5,0.5]", "sets how data sets are mixed"),
        (&format!("{rollout}.repetition_penalty=1.3"), "completions are sampled by temperature"),
        (&format!("{rollout}.min_p=0.1"), "completions are sampled by temperature"),
        (&format!("{rollout}.stop=['</answer>']"), "completions are sampled by temperature"),
        (&format!("{rollout}.max_tokens=4"), "use --max-completion-length"),
        (&format!("{rollout}.nothing=4"), "is a key that reel does not know"),
        ("actor_rollout_ref.ref.model.path=other", "is a key that reel does not know"),
    ] {
        all_refused(VERL, &[(key, problem)]);
    }
    let harmless = "trainer.val_only=False trainer.critic_warmup=0 trainer.val_before_train=False trainer.nnodes=1 \
                    data.return_raw_chat=True actor_rollout_ref.rollout.repetition_penalty=1.0 \
                    actor_rollout_ref.rollout.engine_kwargs.vllm.swap_space=4 actor_rollout_ref.rollout.mode=async";
    words_of(&format!("{VERL} {}", harmless.split_whitespace().collect::<Vec<_>>().join(" ")));
    all_refused("grpo --model m --dataset d --output_dir o --use_vllm true", &[("--vllm_nothing 3", "does not know")]);
    // A `key=value` word after an option is not taken as a value of that option.
    all_refused("grpo --model m --data d --out o", &[("trainer.val_only=True", "only validates")]);
    all_refused("sft --model_name_or_path m --dataset_name d --output_dir o --packing", &[("--do_train False", "off")]);
}

/// The KL term of a verl command gets verl's coefficient. The older key names of EasyR1 also set its KL term.
#[test]
fn the_divergence_has_the_programs_coefficient() {
    let actor = "actor_rollout_ref.actor";
    assert!(words_of(&format!("{VERL} {actor}.use_kl_loss=True")).contains("--beta 0.001"));
    assert!(words_of(&format!("{VERL} {actor}.use_kl_loss=False")).contains("--beta 0"));
    let old = format!("{EASYR1} worker.actor.use_kl_loss=true worker.actor.kl_loss_coef=1.0e-3 algorithm.kl_coef=0.0");
    let words =
        words_of(&format!("{old} worker.actor.kl_loss_type=low_var_kl worker.actor.ulysses_sequence_parallel_size=1"));
    assert!(words.contains("--beta 0.001") || words.contains("--beta 1.0e-3"), "{words}");
    all_refused(&old, &[("worker.reward.compute_score=math", "reel has the rewards")]);
}

/// The batch sizes of Video-R1, R1-V and Visual-RFT count prompts; those of TRL count completions.
#[test]
fn batches_count_what_the_program_counts() {
    let grpo = "grpo --model_name_or_path m --dataset_name d --output_dir o";
    let batch = |per: usize, steps: usize, generations: usize| {
        format!(
            "--per_device_train_batch_size {per} --gradient_accumulation_steps {steps} --num_generations {generations}"
        )
    };
    for (more, (per, steps, generations), wanted) in [
        ("--temporal false --len_control true --bf16 true", (2, 2, 2), (4, 2)),
        ("--max_pixels 401408 --bf16", (1, 2, 8), (8, 2)),
        ("--max_pixels 401408 --bf16", (8, 2, 8), (64, 2)),
        ("--use_vllm true --max_pixels 401408 --bf16", (1, 4, 8), (8, 1)),
        ("--bf16", (8, 2, 8), (8, 2)),
        ("--bf16", (1, 8, 8), (8, 1)),
    ] {
        let line = format!("{grpo} {more} {}", batch(per, steps, generations));
        let words = words_of(&line);
        for option in [
            format!("--per-device-train-batch-size {}", wanted.0),
            format!("--gradient-accumulation-steps {}", wanted.1),
        ] {
            assert!(words.contains(&option), "{line}: {option}: {words}");
        }
    }
}

/// If a list option is given twice, the last list replaces the first one, as in Python's argument parsers.
#[test]
fn the_last_list_of_rewards_counts() {
    let line =
        "grpo --model m --dataset d --output_dir o --use_vllm true --reward_funcs accuracy --reward_funcs format";
    let (words, notes) = expect_translated(outcome_of_line(line), line);
    assert!(words.contains("--reward-weights accuracy=0,format=1"), "{words}");
    assert!(notes.iter().any(|note| note.contains("the last list counts")), "{notes:?}");
}

/// The limits of a server keep their meaning under the option names of `swift deploy` and llama.cpp, and with dots in
/// the names.
#[test]
fn limits_of_servers_are_translated() {
    let words: Vec<String> =
        "serve --model m --infer_backend vllm --vllm_max_model_len 8192 --vllm_tensor_parallel_size 2 \
                              --vllm_limit_mm_per_prompt"
            .split_whitespace()
            .map(String::from)
            .chain(["{\"image\": 5, \"video\": 2}".to_string()])
            .collect();
    let (got, _) = expect_translated(outcome_of_words(&words, &[]), "swift deploy");
    let wanted = "--max-model-len 8192 --tensor-parallel-size 2 --limit-mm-per-prompt {\"image\": 5, \"video\": 2}";
    assert!(got.contains(wanted), "{got}");
    for (line, wanted) in [
        ("serve -m m -c 4096 -np 2", "serve --model m --max-model-len 4096 --batch-size 2"),
        ("serve --model m -O 3 --enforce-eager", "serve --model m"),
        ("serve --model m -O3 -n 2", "serve --model m"),
        ("serve m --limit-mm-per-prompt.image 4", "serve --model m --limit-mm-per-prompt {\"image\":4}"),
        (
            "serve m --mm-processor-kwargs.max_pixels 50176 --media-io-kwargs.video.num_frames 8",
            "serve --model m --max-pixels 50176 --nframes 8",
        ),
        (
            "serve m --limit-mm-per-prompt.image 4 --limit-mm-per-prompt.video 1",
            "serve --model m --limit-mm-per-prompt {\"image\":4,\"video\":1}",
        ),
        ("serve --model-path m --chat-template qwen2-vl --enable-memory-saver", "serve --model m"),
    ] {
        assert_eq!(words_of(line), wanted, "{line}");
    }
    all_refused(
        "serve --model m",
        &[
            ("-q awq", "--quantize int8, nf4 and fp8"),
            ("--mmproj x.gguf -c 8192", "the weights of the vision tower"),
            ("--load-format dummy", "reads the safetensors files"),
            ("--enable-reasoning", "include_reasoning"),
            ("--vllm_nothing 3 --infer_backend vllm", "nor known as an option of another program"),
        ],
    );
    // One-letter options of reel (`-v`) are placed before the subcommand.
    assert_eq!(words_of("serve --model m -v --enforce-eager"), "-v serve --model m");
}

/// A corrected command never contains an API key, nor a word that looks like a key.
#[test]
fn keys_are_not_shown() {
    let message = expect_refused(outcome_of_line("serve m --api-key secret1 secret2 --reasoning-parser x"), "key");
    assert!(!message.contains("secret") && !message.contains("--api-key KEY"), "{message}");
    assert!(corrected_words(&message).ends_with(&["--api-key-file".to_string(), "FILE".to_string()]), "{message}");
    assert!(message.contains("FILE is a file with one key per line"), "{message}");
    assert_corrected_command_is_accepted("key", &message, &[]);
}

/// An evaluation of several benchmarks uses one number of frames for all of them.
#[test]
fn evaluations_take_several_names() {
    let folder = tempfile::tempdir().unwrap();
    let eval = format!("--out o --media-root {}", folder.path().display());
    let message = expect_refused(
        outcome_of_line(&format!(
            "eval --data MVBench_MP4_1fps TempCompass_64frame --model Qwen2.5-VL-3B-Instruct {eval}"
        )),
        "frames",
    );
    assert!(message.contains("TempCompass_64frame: has other frames of a video than MVBench_MP4_1fps"), "{message}");
    assert_corrected_command_is_accepted("frames", &message, &[]);
    assert!(corrected_words(&message).contains(&"mvbench".to_string()), "{message}");
    let message = expect_refused(
        outcome_of_line(&format!("eval --data MVBench_8frame TempCompass_8frame --model A B {eval}")),
        "models",
    );
    assert!(message.contains("--model A,B: names several models"), "{message}");
    assert!(corrected_words(&message).contains(&"mvbench,tempcompass".to_string()), "{message}");
    let lmms =
        "eval --model qwen2_5_vl --model_args=pretrained=m,fps=1,max_num_frames=8 --tasks videomme --output_path o";
    assert!(words_of(&format!("{lmms} --data .")).contains("--fps 1 --max-frames 8"));
    let lmms = lmms.replace("fps=1,", "");
    assert!(words_of(&format!("{lmms} --data .")).contains("--nframes 8"));
    assert!(!words_of("eval --model m --data . --benchmark mvbench --out o --nframe 8 --fps -1").contains("--fps"));
}

/// Data set names of other programs are looked up in their lists. Suffixes that select a part of a data set are
/// translated or refused.
#[test]
fn places_of_data_are_translated() {
    let folder = tempfile::tempdir().unwrap();
    let info = "{\"demo\": {\"file_name\": \"demo.json\"}, \"hub\": {\"hf_hub_url\": \"a/b\", \"subset\": \"c\"}}";
    fs::write(folder.path().join("dataset_info.json"), info).unwrap();
    let at = folder.path().display();
    let sft =
        format!("sft --model_name_or_path m --output_dir o --stage sft --finetuning_type full --dataset_dir {at}");
    let line = format!("{sft} --dataset demo,hub");
    assert!(words_of(&line).contains(&format!("--data {at}/demo.json,a/b#c")));
    assert!(notes_of(&line).contains("(demo of "));
    all_refused(&sft, &[("--dataset other", "has no dataset_info.json with the data set other")]);
    let swift = "sft --model m --output_dir o --tuner_type lora --freeze_vit true";
    for (data, wanted) in [
        ("swift/refcoco:grounding#1000", "--data swift/refcoco#grounding"),
        ("a/b:all", "--data a/b "),
        ("HF::a/b:x/y", "--data a/b#x,a/b#y"),
        ("a.jsonl:0.7,b.jsonl:0.3", "--data a.jsonl:0.7,b.jsonl:0.3"),
    ] {
        let words = words_of(&format!("{swift} --dataset {data}"));
        assert!(words.contains(wanted), "{data}: {words}");
    }
    assert!(words_of(&format!("{swift} --dataset a/b:c#1000")).contains("--max-samples 1000"));
    let qwen = "sft --model_name_or_path m --output_dir o --data_flatten True";
    all_refused(qwen, &[("--dataset_use llava.json%50", "takes 50 % of the rows")]);
    assert!(words_of(&format!("{qwen} --dataset_use llava.json%100")).ends_with("--data llava.json"));
    assert!(words_of(&format!("{qwen} --dataset_use d --base_interval 2")).contains("--fps 0.5"));
}

/// Special cases: two options that set one number, DeepSpeed's ZeRO stages, and options whose values are JSON
/// objects.
#[test]
fn pairs_and_objects_are_judged_by_their_values() {
    let swift = "sft --model m --dataset d --output_dir o --tuner_type full --num_train_epochs 3";
    assert!(words_of(&format!("{swift} --max_epochs 5")).contains("--num-train-epochs 3"));
    all_refused(swift, &[("--max_epochs 2", "ends the run before its 3 epochs")]);
    let alone = swift.replace(" --num_train_epochs 3", " --max_epochs 2");
    assert!(words_of(&alone).contains("--num-train-epochs 2"));
    for stage in ["0", "1"] {
        let line = format!("sft --model m --data d --out o --zero-stage {stage}");
        assert!(!words_of(&line).contains("zero-stage"), "{line}");
    }
    let with = |option: &str, value: &str| {
        let line = "sft --model_name_or_path m --dataset_name d --output_dir o --use_liger_kernel";
        let words = line.split(' ').chain([option, value]).map(String::from).collect::<Vec<_>>();
        outcome_of_words(&words, &[])
    };
    let (words, _) =
        expect_translated(with("--model_kwargs", "{\"fps_max_frames\": 12, \"max_pixels\": 602112}"), "kwargs");
    assert!(words.contains("--max-frames 12 --image-max-pixels 602112"), "{words}");
    let message = expect_refused(with("--model_kwargs", "{\"rope_theta\": 12}"), "kwargs");
    assert!(message.contains("has rope_theta"), "{message}");
    expect_translated(with("--dataset_kwargs", "{\"skip_prepare_dataset\": true}"), "dataset");
    let message = expect_refused(with("--dataset_kwargs", "{\"append_concat_token\": true}"), "dataset");
    assert!(message.contains("has append_concat_token"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("axolotl.yaml");
    fs::write(&file, "base_model: m\ndatasets:\n  - path: d.jsonl\n    type: chat_template\n    field_messages: messages\noutput_dir: o\nmicro_batch_size: 1\n").unwrap();
    let line = format!("sft --config {}", file.display());
    assert!(notes_of(&line).contains("at most 100"), "{}", notes_of(&line));
    all_refused(
        "sft --model m --dataset d --output_dir o --tuner_type full",
        &[("--external_plugins x.py", "loads code")],
    );
}

/// The note about different defaults lists the other program's defaults, but no option that the command sets.
#[test]
fn defaults_that_differ_are_listed() {
    let swift = "sft --model m --dataset d --output_dir o --tuner_type lora --freeze_vit false";
    let notes = notes_of(swift);
    assert!(!notes.contains("freeze_vit true") && notes.contains("lora_dropout 0.05"), "{notes}");
    let full = notes_of("sft --model m --dataset d --output_dir o --tuner_type full");
    assert!(full.contains("freeze_vit true") && !full.contains("lora_dropout"), "{full}");
    for (line, wanted) in [
        (
            "grpo --model m --dataset d --output_dir o --tuner_type full --rlhf_type grpo",
            "2 prompts with 8 completions",
        ),
        (VERL, "data.train_batch_size 1024"),
        ("sft --model_name_or_path m --dataset_use d --output_dir o --data_flatten True", "model_max_length 512"),
        ("grpo --model_id m --data_path d --output_dir o --freeze_llm False --bf16 True", "max_completion_length 256"),
        ("serve --model-path m --mem-fraction-static 0.8 --tp-size 1 --max-running-requests 4", "port 30000"),
        ("serve m --server-port 9 --session-len 64 --cache-max-entry-count 0.5", "server_name 0.0.0.0"),
        ("serve m --max-num-seqs 2 --enforce-eager --gpu-memory-utilization 0.5", "--allow-remote-media false (images"),
    ] {
        let notes = notes_of(line);
        assert!(notes.contains(wanted), "{line}: {notes}");
    }
}

/// Only options that the user gave identify the program, and the processes of a launcher multiply the batch wherever
/// they are set.
#[test]
fn batches_follow_the_given_options_and_processes() {
    let trl = "grpo --model_name_or_path m --dataset_name d --output_dir o";
    let swift = "grpo --rlhf_type grpo --model m --dataset d --output_dir o";
    let batch = "--per_device_train_batch_size 8 --gradient_accumulation_steps 1 --num_generations 8";
    for (line, wanted) in [
        (format!("{trl} --reward_funcs accuracy format {batch}"), "--per-device-train-batch-size 8 "),
        (format!("{swift} --reward_funcs accuracy format {batch}"), "--per-device-train-batch-size 8 "),
        (
            format!("{trl} --bf16 --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --num_generations 8"),
            "--per-device-train-batch-size 8 --gradient-accumulation-steps 2",
        ),
        (
            format!(
                "{trl} --use_vllm true --num_processes 7 --per_device_train_batch_size 16 \
                 --gradient_accumulation_steps 16 --num_generations 7"
            ),
            "--gradient-accumulation-steps 256",
        ),
    ] {
        let words = words_of(&line);
        assert!(words.contains(wanted), "{line}: {words}");
    }
    let small = format!("{swift} --nproc_per_node 2 --per_device_train_batch_size 4 --num_generations 8");
    let notes = notes_of(&small);
    assert!(notes.contains("nproc_per_node 2") && notes.contains("at most 1 processes (--gpus 1)"), "{notes}");
    let odd = format!("{trl} --use_vllm true --per_device_train_batch_size 3 --num_generations 2");
    assert!(notes_of(&odd).contains("rounded up to whole groups"));
}

/// verl and EasyR1 count rollouts, and reel counts optimizer steps. EasyR1's KL term is in the reward by default.
#[test]
fn counts_of_rollouts_and_lists_of_files_are_translated() {
    let actor = "actor_rollout_ref.actor";
    let verl = format!(
        "{VERL} data.train_batch_size=8 {actor}.ppo_mini_batch_size=2 trainer.total_training_steps=3 \
         trainer.save_freq=2 {actor}.optim.lr_warmup_steps=10"
    );
    let message = expect_refused(outcome_of_line(&verl), &verl);
    let words = corrected_words(&message).join(" ");
    for wanted in ["--max-steps 12", "--save-steps 8", "--warmup-steps 40"] {
        assert!(words.contains(wanted) && message.contains(&format!("{wanted} (")), "{wanted}: {message}");
    }
    assert_corrected_command_is_accepted(&verl, &message, &[]);
    let same = verl.replace("train_batch_size=8", "train_batch_size=2");
    assert!(words_of(&same).contains("--max-steps 3"));
    all_refused(
        EASYR1,
        &[
            ("algorithm.kl_coef=1e-2", "kl_coef=1e-2: puts the KL term into the reward"),
            ("algorithm.disable_kl=false", "disable_kl=false: puts the KL term into the reward"),
            ("algorithm.disable_kl=false algorithm.kl_coef=1e-2", "puts the KL term into the reward"),
        ],
    );
    assert!(words_of(&format!("{EASYR1} algorithm.kl_coef=0.0")).contains("--beta 0"));
    for files in ["['a.jsonl','b.jsonl']", "[a.jsonl,b.jsonl]", "[\"a.jsonl\",\"b.jsonl\"]"] {
        let words = words_of(&VERL.replace("train_files=d", &format!("train_files={files}")));
        assert!(words.contains("--data a.jsonl,b.jsonl"), "{words}");
    }
    let kernels = format!("{VERL} +actor_rollout_ref.model.override_config.attn_implementation=sdpa");
    assert!(notes_of(&kernels).contains("attn_implementation (kernels"));
}

/// Options that freeze parts, name adapters, or count the checkpoints of an epoch keep their meaning or are refused.
#[test]
fn parts_adapters_and_checkpoints_keep_their_meaning() {
    let two_u_one = "sft --model_id m --data_path d --output_dir o --freeze_llm False";
    let lf = "sft --model_name_or_path m --dataset d.json --output_dir o --stage sft --finetuning_type full";
    for (line, wanted) in [
        (format!("{two_u_one} --freeze_vision_tower True"), "--freeze-vision true --freeze-merger false"),
        (format!("{two_u_one} --tune_merger False"), "--freeze-merger true"),
        (format!("{two_u_one} --freeze_projector True"), "--freeze-merger true"),
        (
            format!("{lf} --train_mm_proj_only True --freeze_multi_modal_projector True"),
            "--freeze-vision true --freeze-merger false --freeze-llm true",
        ),
        (format!("{lf} --num_train_epochs 1 --save_strategy epoch --save_steps 1"), "--save-steps 0"),
        ("sft --model m --data d --out o --bf16 --r 64 --lora_alpha 128".into(), "--lora-r 64"),
        ("sft src/train.py --model_name_or_path m --dataset_name d --output_dir o".into(), "sft --model m --data d"),
        ("grpo --model_name_or_path m --dataset_name x --jsonl_path d.jsonl --output_dir o".into(), "--data d.jsonl"),
        ("sft --model m --dataset d --output_dir o --use_vllm false --lr_scheduler_kwargs {}".into(), "--data d"),
        ("serve --model m --infer_backend vllm --adapters a=x b=y".into(), "--lora a=x --lora b=y"),
        ("serve --model_name_or_path m --adapter_name_or_path x --template qwen2_vl".into(), "--adapter x"),
        ("merge --model m --adapters x --merge_lora true --output_dir o".into(), "--adapter x --out o"),
        (
            "merge --model_name_or_path m --adapter_name_or_path x --export_dir o --export_size 5".into(),
            "--adapter x --out o",
        ),
        (
            "eval --model vllm --model_args model_version=tiny --tasks mmvu --output_path o --data .".into(),
            "--model tiny",
        ),
    ] {
        let words = words_of(&line);
        assert!(words.contains(wanted), "{line}: {words}");
    }
    all_refused(
        lf,
        &[
            ("--num_train_epochs 3 --save_strategy epoch", "save_strategy epoch: counts the checkpoints of an epoch"),
            ("--adapter_name_or_path x", "reel merge --model BASE"),
        ],
    );
    for (line, wanted, corrected) in [
        (
            "merge --model m --adapters x y --output_dir o",
            "names several adapters, and reel merges one",
            "--adapter x --out",
        ),
        ("serve --model m --infer_backend vllm --adapters x y", "write NAME=PATH for each", "--adapter x"),
    ] {
        let message = expect_refused(outcome_of_line(line), line);
        assert!(message.contains(wanted) && message.contains(corrected), "{line}: {message}");
    }
}

/// A number of frames beside a frame rate is a maximum in vLLM's reader, and is refused elsewhere. A mapping in a
/// server's file is one option. A file has no splits.
#[test]
fn frames_mappings_and_splits_are_read() {
    let words = |line: &[&str]| line.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let one = words(&["serve", "m", "--media-io-kwargs", "{\"video\": {\"num_frames\": 16, \"fps\": 2}}"]);
    let (got, _) = expect_translated(outcome_of_words(&one, &[]), "vLLM");
    assert!(got.contains("--fps 2") && got.contains("--max-frames 16") && !got.contains("--nframes"), "{got}");
    let two =
        [one[..3].to_vec(), words(&["{\"video\": {\"num_frames\": 16}}", "--mm-processor-kwargs", "{\"fps\": 2}"])];
    let message = expect_refused(outcome_of_words(&two.concat(), &[]), "vLLM");
    assert!(message.contains("--media-io-kwargs") && message.contains("sets a frame rate"), "{message}");
    assert_corrected_command_is_accepted("vLLM", &message, &[]);
    all_refused(
        "eval --model m --data . --benchmark mvbench --out o",
        &[("--nframe 32 --fps 1", "--nframe 32: sets a")],
    );
    let folder = tempfile::tempdir().unwrap();
    let (file, rows) = (folder.path().join("vllm.yaml"), folder.path().join("rows.jsonl"));
    fs::write(&file, "model: m\nlimit-mm-per-prompt:\n  image: 2\n  video: 1\n").unwrap();
    let line = format!("serve --config {}", file.display());
    assert!(words_of(&line).contains("--limit-mm-per-prompt {\"image\":2,\"video\":1}"), "{}", words_of(&line));
    fs::write(&rows, "{}\n").unwrap();
    let easyr1 = EASYR1.replace("train_files=d", &format!("train_files={}@train", rows.display()));
    assert!(words_of(&easyr1).contains(&format!("--data {} ", rows.display())), "{}", words_of(&easyr1));
    all_refused(&easyr1.replace("@train", "@test"), &[("trainer.nnodes=1", "names the split test")]);
}
