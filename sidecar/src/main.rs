//! The sidecar's binary.

use std::process::ExitCode;

// A request allocates what glibc's per-thread cache is too small for: a sixth of all time went there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    concordat_sidecar::run::main(std::env::args_os(), |name| std::env::var(name).ok())
}
