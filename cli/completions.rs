//! `reel completions`: prints a shell's completion script.

use anyhow::Result;
use clap::Args;
use clap_complete::Shell;

use crate::output;

/// Print a script that completes commands and options in a shell.
///
/// bash: reel completions bash > ~/.local/share/bash-completion/completions/reel
///
/// zsh: reel completions zsh > _reel, in a folder of $fpath
///
/// fish: reel completions fish > ~/.config/fish/completions/reel.fish
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  reel completions bash")]
pub struct CompletionsArgs {
    /// Shell to complete in
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the completion script for the command line that `parser` describes.
    pub fn run(&self, mut parser: clap::Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut parser, "reel", &mut script);
        output::print_text(&String::from_utf8_lossy(&script))
    }
}
