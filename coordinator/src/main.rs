//! The coordinator program: see [`plurality_coordinator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    plurality_coordinator::cli::main()
}
