//! `reel man`: writes the manual pages.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Command};
use clap_mangen::Man;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// Write a manual page for each command: reel.1, reel-sft.1, reel-sim-run.1, …
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel man --out man1")]
pub struct ManArgs {
    /// Folder to write into; it is created, and pages of an earlier call are replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    /// Writes the pages of all commands of `parser`.
    pub fn run(&self, common: &CommonOptions, mut parser: Command) -> Result<()> {
        fs::create_dir_all(&self.out).map_err(|e| output::cannot_write(&self.out, e))?;
        parser.build();
        let pages = self.write(&parser, "reel")?;
        if common.json {
            return output::print_json(&json!({"out": self.out, "pages": pages}));
        }
        output::print_line(format!("{}: {pages} pages; read one with `man -l FILE`", self.out.display()))
    }

    /// Writes the pages of a command and of its subcommands; returns the number of pages.
    fn write(&self, command: &Command, name: &str) -> Result<usize> {
        let file = self.out.join(format!("{name}.1"));
        let page = Man::new(command.clone().name(name.to_string()).display_name(name.to_string()));
        let mut text = Vec::new();
        page.render(&mut text).map_err(|e| output::cannot_write(&file, e))?;
        output::write_file(&file, &text)?;
        let inner = command.get_subcommands().filter(|c| c.get_name() != "help" || name == "reel");
        inner.map(|c| self.write(c, &format!("{name}-{}", c.get_name()))).try_fold(1, |sum, n| Ok(sum + n?))
    }
}
