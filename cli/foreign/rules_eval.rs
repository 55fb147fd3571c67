//! Rules that translate the options of evaluation programs (lmms-eval, VLMEvalKit, the scripts of Video-R1) to
//! `reel eval`, and those of vLLM's load test to `reel bench serve`.

use super::rules::listed_values;
use super::translation::CommandTranslation;
use super::words::GivenOption;

/// The benchmarks of `reel eval`. The second text of a pair is the prefix by which names in other programs are
/// recognized, after they are reduced to lower-case letters and digits.
const BENCHMARKS: [(&str, &str); 7] = [
    ("vsibench", "vsibench"),
    ("videommmu", "videommmu"),
    ("mmvu", "mmvu"),
    ("mvbench", "mvbench"),
    ("tempcompass", "tempcompass"),
    ("videomme", "videomme"),
    ("videoholmes", "videoholmes"),
];

/// Applies a rule for evaluation options; returns `false` if `rule` is not one of them.
pub fn apply_eval_rule(rule: &str, value: &str, given: &GivenOption, t: &mut CommandTranslation) -> bool {
    match rule {
        // The option `--file_name` of the evaluation scripts of VideoRFT and Video-R1, which evaluate six benchmarks
        // from the folder `src/r1-v/Evaluation`.
        "eval_file_name" => {
            t.set_option("out", vec![format!("eval_results/{value}")], given);
            t.set_option("benchmark", vec!["all".into()], given);
            t.keep("eval_data", "src/r1-v/Evaluation".into(), given);
            t.count_option_of_programs(&["video-r1"]);
        }
        "model_args" => model_args(value, t),
        "tasks" => benchmarks(&listed_values(given).join(","), given, t),
        "vlmevalkit_data" => vlmevalkit_data(given, t),
        "vlmevalkit_model" => {
            let names = listed_values(given);
            if names.len() > 1 {
                t.is_foreign = true;
                let help = format!("run them one after another; the command below has {}", names[0]);
                t.refuse_option(&given.text_for_messages(), "names several models", &help);
            }
            t.set_option("model", given.values.first().cloned().into_iter().collect(), given);
        }
        "reuse" => t.set_option("resume", Vec::new(), given),
        "bench_host" => t.keep("host", value.to_string(), given),
        "bench_port" => t.keep("port", value.to_string(), given),
        "bench_backend" => {
            let api = match value {
                "openai-chat" | "sglang-oai-chat" | "vllm-chat" => "chat",
                "openai" | "vllm" | "sglang" | "sglang-oai" | "lmdeploy" | "openai-completions" => "completions",
                _ => {
                    let help = "use --endpoint chat or completions";
                    return refuse(t, given, "is not an API that reel measures", help);
                }
            };
            t.keep("endpoint", api.to_string(), given);
        }
        "bench_result" => {
            let key = match given.name.as_str() {
                "result_dir" => "result_dir",
                "result_filename" => "result_filename",
                _ => "save_result",
            };
            t.keep(key, value.to_string(), given);
        }
        "extra_body" => {
            let before = t.remove_option("extra_body").and_then(|setting| setting.values.first().cloned());
            let start = before.map_or("{".to_string(), |text| text.trim_end_matches('}').to_string() + ", ");
            t.set_option("extra_body", vec![format!("{start}\"{}\": {value}}}", given.name)], given);
        }
        _ => return false,
    }
    true
}

fn refuse(t: &mut CommandTranslation, given: &GivenOption, what: &str, help: &str) -> bool {
    t.refuse_option(&given.text_for_messages(), what, help);
    true
}

/// Translates `--model_args` of lmms-eval: `NAME=VALUE,…`.
fn model_args(value: &str, t: &mut CommandTranslation) {
    t.mark("model_args");
    // If `fps` is given as well, lmms-eval's number of frames is a maximum.
    let has_rate = value.split(',').any(|pair| pair.starts_with("fps=") && !pair.ends_with('='));
    let frames = if has_rate { "max_frames" } else { "nframes" };
    for pair in value.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let part =
            GivenOption { name: name.into(), written: format!("--model_args {name}"), values: vec![value.into()] };
        match name {
            "pretrained" | "model" | "model_path" => t.keep("pretrained", value.into(), &part),
            "base_url" | "azure_openai_api_base" => t.set_option("endpoint", vec![value.into()], &part),
            "model_version" | "model_name" => t.set_option("endpoint_model", vec![value.into()], &part),
            "max_num_frames" | "max_frame_num" | "max_frames_num" => t.set_option(frames, vec![value.into()], &part),
            "nframes" | "num_frames" => t.set_option("nframes", vec![value.into()], &part),
            "fps" => t.set_option("fps", vec![value.into()], &part),
            "max_pixels" => t.set_option("max_pixels", vec![value.into()], &part),
            "min_pixels" => t.set_option("min_pixels", vec![value.into()], &part),
            "timeout" => t.set_option("timeout", vec![value.into()], &part),
            "num_cpus" | "num_concurrent" | "concurrency" => t.set_option("concurrency", vec![value.into()], &part),
            "max_retries" => t.set_option("max_attempts", vec![value.into()], &part),
            "api_key" if value == "EMPTY" => {}
            "api_key" => {
                t.refuse_option(
                    "--model_args api_key",
                    "gives a key on the command line",
                    "set OPENAI_API_KEY to this key",
                );
            }
            "tensor_parallel_size"
            | "gpu_memory_utilization"
            | "device_map"
            | "device"
            | "attn_implementation"
            | "use_flash_attention_2"
            | "max_model_len"
            | "trust_remote_code"
            | "dtype"
            | "is_qwen3_vl"
            | "use_cache"
            | "interleave_visuals"
            | "batch_size"
            | "data_parallel_size" => {
                t.harmless.push((part.written, "launch, memory and kernels"));
            }
            "reasoning_prompt" | "system_prompt" => {
                let what = "changes the prompt, which the benchmark's protocol fixes";
                t.refuse_option(&format!("--model_args {pair}"), what, "leave it out");
            }
            _ => t.refuse_option(&format!("--model_args {pair}"), "is not known", "leave it out"),
        }
    }
}

/// Sets `--benchmark` to the benchmarks that another program calls `names`. Refuses names of benchmarks that reel
/// does not have.
fn benchmarks(names: &str, given: &GivenOption, t: &mut CommandTranslation) {
    let mut found: Vec<&str> = Vec::new();
    for name in names.split(',').filter(|name| !name.is_empty()) {
        let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        match BENCHMARKS.iter().find(|(_, start)| letters.starts_with(start)) {
            Some((own, _)) => found.push(own),
            None => {
                let all = BENCHMARKS.map(|(own, _)| own).join(", ");
                let help = format!("use one of {all}, or all (the first six, as in the command below)");
                t.refuse_option(&format!("{} {name}", given.written), "is not a benchmark of reel", &help);
            }
        }
    }
    found.dedup();
    let benchmark = if found.is_empty() { "all".to_string() } else { found.join(",") };
    t.set_option("benchmark", vec![benchmark], given);
}

/// Translates `--data` of VLMEvalKit, which names benchmarks with a number of frames or a rate (`Video-MME_8frame`,
/// `MMBench-Video_1fps`). In reel, `--data` names a folder.
fn vlmevalkit_data(given: &GivenOption, t: &mut CommandTranslation) {
    let text = listed_values(given).join(",");
    let is_folder =
        given.values.iter().all(|path| path.contains('/') || path == "." || std::path::Path::new(path).exists());
    if is_folder || t.parts.contains_key("benchmark_given") {
        return t.set_option("data", given.values.clone(), given);
    }
    t.is_foreign = true;
    t.count_option_of_programs(&["vlmevalkit"]);
    // Returns the number of frames or the frame rate in a benchmark's name.
    let frames_of = |name: &str| {
        let number =
            |part: &str, end: &str| part.strip_suffix(end).filter(|n| n.parse::<f64>().is_ok()).map(str::to_string);
        name.split('_').find_map(|part| {
            let frames = number(part, "frame").or(number(part, "frames")).map(|n| ("nframes", n));
            frames.or(number(part, "fps").map(|n| ("fps", n)))
        })
    };
    let names: Vec<&str> = text.split(',').filter(|name| !name.is_empty()).collect();
    let first = names.first().and_then(|name| frames_of(name));
    let same: Vec<&str> = names.iter().copied().filter(|name| frames_of(name) == first).collect();
    for name in names.iter().filter(|name| frames_of(name) != first) {
        let what = format!("has other frames of a video than {}", names[0]);
        t.refuse_option(&format!("{} {name}", given.written), &what, "run it by itself");
    }
    if let Some((option, number)) = first.filter(|(option, _)| !t.is_set(option)) {
        t.set_option(option, vec![number], given);
    }
    benchmarks(&same.join(","), given, t);
    t.mark("vlmevalkit");
}
