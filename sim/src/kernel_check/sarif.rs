//! Findings as SARIF 2.1.0 (OASIS, Static Analysis Results Interchange Format), which code hosts show beside the lines
//! of a change.

use std::path::{Component, Path};

use serde_json::{Value, json};

use crate::finding::FindingKind;

/// Returns a SARIF document with the findings of reports that [`KernelReport::json`](super::KernelReport::json) made.
/// Files below `root`, the folder of the repository, are named relative to it. A finding that may follow from another
/// one is a note, any other an error.
pub fn sarif(reports: &[Value], root: &Path) -> Value {
    let results: Vec<Value> = reports.iter().flat_map(|report| results(report, root)).collect();
    let rules: Vec<Value> = FindingKind::ALL.iter().map(|kind| rule(*kind)).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "reel-sim", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "originalUriBaseIds": {"SRCROOT": {"uri": format!("file://{}/", uri_path(root))}},
            "results": results,
        }],
    })
}

fn rule(kind: FindingKind) -> Value {
    json!({"id": kind.name(), "shortDescription": {"text": kind.name()}, "help": {"text": kind.help()}})
}

fn results(report: &Value, root: &Path) -> Vec<Value> {
    let source = report["source"].as_str().unwrap_or_default();
    let one = |f: &Value| {
        let place = |at: &Value| {
            let file = at["file"].as_str().unwrap_or(source);
            let line = at["line"].as_u64().unwrap_or(0).max(1);
            json!({"physicalLocation": {"artifactLocation": artifact(file, root), "region": {"startLine": line}}})
        };
        let mut result = json!({
            "ruleId": f["kind"],
            "level": if f["may_follow"] == true { "note" } else { "error" },
            "message": {"text": format!("{}: {}; {}", text(&report["kernel"]), text(&f["message"]), text(&f["help"]))},
            "locations": [place(&f["at"])],
        });
        if f["other"].is_object() {
            let mut other = place(&f["other"]);
            other["message"] = json!({"text": "the other access"});
            result["relatedLocations"] = json!([other]);
        }
        result
    };
    report["findings"].as_array().into_iter().flatten().map(one).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns the location of a file: relative to `root` if it is below it, else as an absolute path.
fn artifact(file: &str, root: &Path) -> Value {
    let path = Path::new(file);
    let relative = match path.is_absolute() {
        true => path.strip_prefix(root).ok(),
        false => Some(path),
    };
    match relative {
        Some(path) => {
            let path: std::path::PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
            json!({"uri": uri_path(&path), "uriBaseId": "SRCROOT"})
        }
        None => json!({"uri": format!("file://{}", uri_path(path))}),
    }
}

/// Escapes the bytes of a path that a URI does not allow (RFC 3986, section 3.3).
fn uri_path(path: &Path) -> String {
    let mut out = String::new();
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' | b'+' | b'@' => {
                out.push(char::from(byte))
            }
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_files_of_the_repository_relative_to_it() {
        let at = |file: Value| json!({"file": file, "line": 7, "ptx_line": 9});
        let finding = |file: Value, other: Value, follows: bool| json!({"kind": "race", "message": "m", "help": "h", "at": at(file), "other": other, "may_follow": follows});
        let report = json!({"source": "./a b/k.ptx", "kernel": "k", "findings": [
            finding(json!("/r/k/x.py"), at(json!("/else/y.py")), false), finding(json!(null), json!(null), true),
        ]});
        let document = sarif(&[report], Path::new("/r"));
        let results = document["runs"][0]["results"].as_array().unwrap();
        let uri = |of: &Value| of["physicalLocation"]["artifactLocation"]["uri"].as_str().unwrap().to_string();
        assert_eq!(uri(&results[0]["locations"][0]), "k/x.py");
        assert_eq!(uri(&results[0]["relatedLocations"][0]), "file:///else/y.py");
        assert_eq!(uri(&results[1]["locations"][0]), "a%20b/k.ptx");
        assert_eq!([&results[0]["level"], &results[1]["level"]], ["error", "note"]);
        assert_eq!(results[0]["message"]["text"], "k: m; h");
        let rules = document["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
        assert!(rules.iter().any(|rule| rule["id"] == "race"));
    }
}
