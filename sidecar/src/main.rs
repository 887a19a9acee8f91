//! The sidecar's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    concordat_sidecar::run::main(std::env::args_os(), |name| std::env::var(name).ok())
}
