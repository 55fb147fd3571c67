//! Writes `docs/records.md` from the records in `benches/results`. Run it in the repository: `./x records`.

use std::path::Path;
use std::process::ExitCode;

use reel_benches::records::{RECORDS_PAGE_PATH, records_page};

fn main() -> ExitCode {
    let written = records_page(Path::new(".")).and_then(|page| {
        std::fs::write(RECORDS_PAGE_PATH, page)
            .map_err(|e| format!("{RECORDS_PAGE_PATH}: cannot be written: {e}; run ./x records in the repository"))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("error: {what}");
            ExitCode::FAILURE
        }
    }
}
