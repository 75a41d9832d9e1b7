//! Writes the man pages, of this date, and the shell completions, all made from the definition of the command line:
//! `docs FOLDER DATE`.

use std::fs::File;
use std::path::PathBuf;
use std::{env, io, iter};

use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, date] = arguments.as_slice() else {
        return Err(io::Error::other("usage: docs FOLDER DATE"));
    };
    let folder = PathBuf::from(folder);
    // `xctl help` says what `--help` does, and needs no page.
    let mut xctl = xctl::cli::clap().disable_help_subcommand(true);
    xctl.build();
    for command in iter::once(&xctl).chain(xctl.get_subcommands()) {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let source = concat!("xctl ", env!("CARGO_PKG_VERSION"));
        let page = Man::new(command.clone()).title(name).date(date).source(source).manual("xctl");
        page.render(&mut File::create(folder.join(format!("{name}.1")))?)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut xctl::cli::clap(), "xctl", &folder)?;
    }
    Ok(())
}
