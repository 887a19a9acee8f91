//! How answers are printed.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

/// For whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For programs, and for people who read much
    Yaml,
}

/// The flag of it.
#[derive(clap::Args)]
pub(crate) struct Format {
    /// How to print it
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Output,
}

impl Format {
    /// Prints a document, for people as `table` writes it.
    pub(crate) fn print(&self, document: &Value, table: impl FnOnce(&Value) -> String) -> Result<()> {
        match self.output {
            Output::Table => print!("{}", table(document)),
            Output::Json => println!("{}", serde_json::to_string_pretty(document)?),
            Output::Yaml => print!("{}", serde_saphyr::to_string(document)?),
        }
        Ok(())
    }
}
