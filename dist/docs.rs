//! Writes the man pages and the shell completions, made from the definition of the command line: `docs FOLDER`.

use std::path::PathBuf;
use std::{env, io};

use clap_complete::Shell;

fn main() -> io::Result<()> {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("usage: docs FOLDER"));
    };
    // `xctl help` says what `--help` does, and needs no page.
    clap_mangen::generate_to(xctl::cli::clap().disable_help_subcommand(true), &folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut xctl::cli::clap(), "xctl", &folder)?;
    }
    Ok(())
}
