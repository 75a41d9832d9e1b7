//! The `xctl` program: arguments to a command to an exit code.

#![deny(clippy::print_stderr)]

#[cfg(panic = "abort")]
#[path = "kernel/unwind.rs"]
mod unwind;

use std::process::ExitCode;

use xctl::cli::{self, Command};
use xctl::commands;
use xctl::console::{self, say};
use xctl::error::{Exit, is_closed_pipe};
use xctl::kernel::memory::{self, Allocator};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator { exhausted: console::out_of_memory };

fn main() -> ExitCode {
    let result = memory::limit().and_then(|()| cli::parse()).and_then(|command| match command {
        Command::Trace(options) => commands::trace::run(&options),
        Command::Sockets(options) => commands::sockets::run(&options),
        Command::Inspect(cli::InspectOptions { object, btf, json }) => {
            commands::inspect::run(&commands::inspect::Args { object, btf, json }, &mut commands::stdout())
        }
        Command::Doctor(options) => commands::doctor::run(&options, &mut commands::stdout()),
        Command::Report { files, svg: false } => commands::report::run(&files, &mut commands::stdout()),
        Command::Report { files, svg: true } => commands::report::picture(&files, &mut commands::stdout()),
        Command::Btf(options) => commands::btf::run(&options, &mut commands::stdout()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::from(Exit::code_of(&error))
        }
    }
}
