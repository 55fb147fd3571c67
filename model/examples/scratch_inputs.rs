//! scratch
#![allow(missing_docs, clippy::unwrap_used)]
use reel_model::input::*;
use std::path::{Path, PathBuf};
use reel_media::profile::{Profile, Overrides};
fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().map(String::as_str) == Some(reel_media::worker::ARGUMENT) { return reel_media::worker::main(); }
    let get = |k: &str| { let p = format!("--{k}="); args.iter().enumerate().find_map(|(i, a)| a.strip_prefix(&p).map(str::to_string).or_else(|| (a == &format!("--{k}")).then(|| args[i + 1].clone()))) };
    match run(&args, get) { Ok(()) => 0.into(), Err(e) => { eprintln!("error: {e}"); 1.into() } }
}
fn run(args: &[String], get: impl Fn(&str) -> Option<String>) -> Result<(), Box<dyn std::error::Error>> {
    match args[0].as_str() {
        "tokenize" => {
            let t0 = std::time::Instant::now();
            let t = tokenizer::Tokenizer::open(Path::new(&get("model").unwrap()))?;
            eprintln!("load {:?}", t0.elapsed());
            for line in std::fs::read_to_string(get("file").unwrap())?.lines() {
                let text: String = serde_json::from_str(line)?;
                println!("{}", serde_json::to_string(&t.encode(&text)?)?);
            }
        }
        "decode" => {
            let t = tokenizer::Tokenizer::open(Path::new(&get("model").unwrap()))?;
            let v: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(get("file").unwrap())?)?;
            let mut bad = 0;
            for r in v["rows"].as_array().unwrap() {
                let ids: Vec<u32> = r["ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
                for (skip, key) in [(false, "text"), (true, "text_skip_special")] {
                    let got = t.decode(&ids, skip);
                    if got != r[key].as_str().unwrap() { bad += 1; println!("{got:?} {}", r[key]); }
                }
            }
            println!("decode: {bad} bad of {}", v["rows"].as_array().unwrap().len());
        }
        "preprocess" => {
            let t0 = std::time::Instant::now();
            let b = Bundle::open(Path::new(&get("model").unwrap()))?;
            if get("time").is_some() { eprintln!("bundle {:?}", t0.elapsed()); }
            let c = Conversation::open(Path::new(&get("messages").unwrap()), get("media-root").map(PathBuf::from).as_deref())?;
            let profile = get("profile").map_or(Ok(Profile::Qwen), |p| Profile::parse(&p))?;
            let o = MediaOptions { profile, overrides: Overrides::default(), ..Default::default() };
            let t = encode(&b, &c, &o)?;
            t.check(&b.config, "x")?;
            t.write(Path::new(&get("out").unwrap()), &b.config)?;
        }
        "score" => {
            let b = Bundle::open(Path::new(&get("model").unwrap()))?;
            let t = Tokens::read(Path::new(&get("inputs").unwrap()), &b.config)?;
            println!("{} {}", t.len(), t.rope_delta);
        }
        "open" => {
            let p = get("model").unwrap(); let p = Path::new(&p);
            let c = reel_model::config::ModelConfig::open(p)?;
            let k = reel_model::checkpoint::Checkpoint::open(p)?;
            k.check(&c)?;
            println!("{} tensors {:?}", k.names().count(), c);
        }
        "init" => {
            use reel_model::init::*;
            let o = InitOptions { preset: Preset::parse(&get("preset").unwrap())?, layers: get("layers").map(|x| x.parse().unwrap()), vocab: None, dtype: None, seed: get("seed").map_or(0, |x| x.parse().unwrap()) };
            let t0 = std::time::Instant::now();
            println!("{:?}", init(&o, Path::new(&get("out").unwrap()))?);
            eprintln!("{:?}", t0.elapsed());
        }
        _ => return Err("unknown".into()),
    }
    Ok(())
}
