//! Writes `crds/*.yaml` from the Rust types.

use std::{fs, path::Path};

use anyhow::Context;
use concordat_crds::manifest;

fn main() -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, definition) in manifest::definitions() {
        let path = folder.join(file);
        fs::write(&path, manifest::yaml(&definition)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
