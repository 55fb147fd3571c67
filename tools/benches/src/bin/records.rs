//! Writes `docs/records.md` from the records in `tools/benches/results`. Run it in the repository: `./x records`. With
//! the path of an `all.json` of `tools/benches/gpu/run.sh`, it adds this file to the records first.

use std::path::Path;
use std::process::ExitCode;

use reel_benches::records::{RECORDS_PAGE_PATH, add_run, records_page};

fn main() -> ExitCode {
    let root = Path::new(".");
    let added = std::env::args_os().nth(1).map(|all| add_run(root, Path::new(&all))).transpose();
    let written = added.and_then(|record| {
        std::fs::write(RECORDS_PAGE_PATH, records_page(root)?)
            .map_err(|e| format!("{RECORDS_PAGE_PATH}: cannot be written: {e}; run ./x records in the repository"))?;
        Ok(record)
    });
    match written {
        Ok(record) => {
            if let Some(record) = record {
                println!(
                    "{}: added; describe it in the README.md beside it, and run ./x records again",
                    record.display()
                );
            }
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::FAILURE
        }
    }
}
