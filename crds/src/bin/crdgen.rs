//! Writes `crds/*.yaml` from the Rust types, and their copies in the Helm chart.

use std::{fs, path::Path};

use anyhow::Context;
use concordat_crds::manifest;

fn main() -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [here.to_owned(), here.join("../helm/concordat/files/crds")] {
        for (file, definition) in manifest::definitions() {
            let path = folder.join(file);
            fs::write(&path, manifest::yaml(&definition)?)
                .with_context(|| format!("writing {}", path.display()))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
