//! The `xctl` program: arguments to a command to an exit code.

#![deny(clippy::print_stderr)]

use std::process::ExitCode;

use xctl::cli::{self, Command};
use xctl::commands;
use xctl::fault::Exit;
use xctl::kernel::heap::Heap;
use xctl::say::say;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    let result = cli::parse().and_then(|command| match command {
        Command::Trace(options) => commands::trace::run(&options),
        Command::Sockets(options) => commands::sockets::run(&options),
        Command::Inspect(options) => commands::inspect::run(&options, &mut commands::stdout()),
        Command::Doctor(options) => commands::doctor::run(&options, &mut commands::stdout()),
        Command::Btf(options) => commands::btf::run(&options, &mut commands::stdout()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if commands::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::from(Exit::code_of(&error))
        }
    }
}
