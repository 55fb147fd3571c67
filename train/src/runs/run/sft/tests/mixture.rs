//! Tests runs on several data files and on a Parquet file.

use reel_input::rows::{Table, convert};

use super::resumed::case;
use super::*;

/// Writes the golden case's rows as a Parquet file into `dir`; returns its path.
fn parquet(dir: &Path) -> PathBuf {
    let path = dir.join("rows.parquet");
    convert(&Table::open(&golden("sft_all_tokens/data.jsonl")).unwrap(), &path, false).unwrap();
    path
}

#[test]
fn parquet_gives_the_bits_of_the_same_rows_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let [json, other] = ["json", "parquet"].map(|name| dir.path().join(name));
    case(&json).run().unwrap();
    let (data, root) = (parquet(dir.path()), golden("sft_all_tokens"));
    case(&other).with(|o| (o.data, o.media_root) = (data, Some(root))).run().unwrap();
    assert_eq!(metrics_without_times(&json), metrics_without_times(&other));
}

#[test]
fn resumed_mixture_equals_the_uninterrupted_one_and_refuses_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    let rows = golden("sft_all_tokens/data.jsonl").display().to_string();
    let mixed = |weight: f64| format!("{rows}:{weight},{}:1", dir.path().join("rows.parquet").display());
    parquet(dir.path());
    let run = |out: &Path, steps: i64, weight: f64, resume: Option<String>| {
        let case = case(out).with(|o| {
            (o.data, o.media_root) = (mixed(weight).into(), Some(golden("sft_all_tokens")));
            (o.max_steps, o.resume_from_checkpoint) = (Some(steps), resume);
        });
        case.run()
    };
    run(&whole, 4, 2.0, None).unwrap();
    run(&broken, 3, 2.0, None).unwrap();
    let e = run(&broken, 4, 3.0, Some("last".into())).unwrap_err().to_string();
    assert!(e.starts_with("--data: differs from the data of the run that wrote "), "{e}");
    assert!(e.contains(&format!("(the weight of {rows} is 3, but was 2)")), "{e}");
    assert_eq!(run(&broken, 4, 2.0, Some("last".into())).unwrap().resumed_after, 3);
    assert_eq!(metrics_without_times(&whole), metrics_without_times(&broken));
    let recorded = output::read_run_json(&whole).unwrap();
    let files = recorded["data_files"].as_array().unwrap();
    assert_eq!((files[0]["path"].as_str(), files[0]["weight"].as_f64()), (Some(&*rows), Some(2.0)));
    assert_eq!((files.len(), files[1]["fingerprint"].as_str().map(str::len)), (2, Some(16)));
}
