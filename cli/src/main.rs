//! `concordat`: the command is being written (by the founding session) in dev.rs and get.rs beside this file; it waits for the operator's pipeline.

fn main() {}
