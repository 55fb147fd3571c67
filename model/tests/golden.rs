//! Reads the golden model folders: their weights fit their configs, and SigLIP's tokenizer refuses damaged files.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reel_input::config::ModelConfig;
use reel_model::checkpoint::Checkpoint;
use reel_model::siglip::SiglipTokenizer;
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(path)
}

fn read(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(file)).unwrap()).unwrap()
}

#[test]
fn weights_fit_their_config() {
    let folders: Vec<_> =
        std::fs::read_dir(golden("model")).unwrap().map(|e| e.unwrap().path().join("model")).collect();
    assert!(folders.len() >= 6, "golden cases are missing");
    for folder in folders {
        Checkpoint::open(&folder).unwrap().check(&ModelConfig::open(&folder).unwrap()).unwrap();
    }
}

/// The tokenizer library reads the replacement table of SigLIP's tokenizer without bounds checks, so this program
/// refuses a damaged table.
#[test]
fn damaged_replacement_tables_are_refused() {
    let whole: Value = read("siglip/model/tokenizer.json");
    let steps = whole["normalizer"]["normalizers"].as_array().unwrap();
    let step = steps.iter().position(|step| step["type"] == "Precompiled").unwrap();
    let parse = |table: &str| {
        let mut changed = whole.clone();
        changed["normalizer"]["normalizers"][step]["precompiled_charsmap"] = table.into();
        SiglipTokenizer::parse("t", changed.to_string().as_bytes(), 40_000, 64).map(drop).map_err(|e| e.to_string())
    };
    let text = steps[step]["precompiled_charsmap"].as_str().unwrap();
    assert_eq!(parse(text), Ok(()));
    let table = STANDARD.decode(text).unwrap();
    let changed = |at: usize, bytes: &[u8]| {
        let mut table = table.clone();
        table[at..at + bytes.len()].copy_from_slice(bytes);
        STANDARD.encode(table)
    };
    // A file with a value that this program cannot read is refused before the tokenizer library's own parser sees it.
    let unreadable = whole.to_string().replace(text, "~").replacen('{', "{\"decoder\": 1e400, ", 1);
    let error = SiglipTokenizer::parse("t", unreadable.as_bytes(), 40_000, 64).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("t: content: cannot be read ("), "{error}");
    for damaged in [
        String::new(),
        "~".to_string(),
        text[1..].to_string(),
        STANDARD.encode(&table[..1000]),
        // Three kinds of damage: the trie ends beyond the table; a node has children beyond the trie; replacements
        // are not UTF-8.
        changed(0, &[0xff; 4]),
        changed(4, &[0, 0, 0, 0x7f]),
        changed(table.len() - 9, &[0xff]),
    ] {
        let shown: String = damaged.chars().take(20).collect();
        let error = parse(&damaged).unwrap_err();
        assert!(error.starts_with("t: normalizer: has a precompiled_charsmap that is damaged; "), "{shown}: {error}");
    }
}

/// The tokenizer library frees a vocabulary by recursion, one level for each byte of a token, so a token of a megabyte
/// would overflow the stack and end the process.
#[test]
fn long_tokens_are_refused() {
    let whole: Value = read("siglip/model/tokenizer.json");
    for (length, fits) in [(300, true), (1 << 20, false)] {
        let mut changed = whole.clone();
        changed["model"]["vocab"][9][0] = "x".repeat(length).into();
        let parsed = SiglipTokenizer::parse("t", changed.to_string().as_bytes(), 40_000, 64).map_err(|e| e.to_string());
        match parsed {
            Ok(_) => assert!(fits, "{length}"),
            Err(e) => assert!(!fits && e.starts_with("t: model: has a token of 1048576 bytes"), "{e}"),
        }
    }
}
