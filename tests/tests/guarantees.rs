//! docs/guarantees.md names what is there: files, tests and invariants; and every invariant is on the page.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const COLUMNS: [&str; 3] = ["lock", "queue", "transaction"];

/// What stands between backticks on the page.
fn names(page: &str) -> Vec<&str> {
    page.split('`').skip(1).step_by(2).collect()
}

/// Every function and file of Rust in the workspace.
fn sources() -> Result<(BTreeSet<String>, Vec<PathBuf>)> {
    let (mut functions, mut files, mut folders) = (BTreeSet::new(), Vec::new(), vec![PathBuf::from(ROOT)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                functions.extend(functions_of(&fs::read_to_string(&path)?));
                files.push(path);
            }
        }
    }
    Ok((functions, files))
}

fn functions_of(source: &str) -> impl Iterator<Item = String> {
    source.split("fn ").skip(1).map(|rest| {
        rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
    })
}

#[test]
fn every_test_and_invariant_that_the_page_names_is_there() -> Result<()> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/guarantees.md"))?;
    let (functions, files) = sources()?;
    let is_function = |name: &str| {
        name.contains('_')
            && name.chars().all(|letter| letter.is_ascii_lowercase() || "_0123456789".contains(letter))
    };
    let mut missing = Vec::new();
    for name in names(&page).into_iter().filter(|name| !name.contains(['*', '…', ' '])) {
        let there = match Path::new(name) {
            path if path.extension().is_some_and(|extension| extension == "rs") => {
                files.iter().any(|file| file.ends_with(path))
            }
            path if name.contains('/') => Path::new(ROOT).join(path).exists(),
            _ => !is_function(name) || functions.contains(name),
        };
        if !there {
            missing.push(name);
        }
    }
    ensure!(missing.is_empty(), "docs/guarantees.md names what is not there: {missing:?}");
    Ok(())
}

#[test]
fn every_invariant_is_on_the_page() -> Result<()> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/guarantees.md"))?;
    let named: BTreeSet<&str> = names(&page).into_iter().collect();
    for column in COLUMNS {
        let file = format!("protocol/src/{column}/invariant.rs");
        let source = fs::read_to_string(Path::new(ROOT).join(&file)).context(file)?;
        let invariants = source.split("\npub fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        let unnamed: Vec<_> =
            invariants.filter(|invariant| *invariant != "all" && !named.contains(invariant)).collect();
        ensure!(unnamed.is_empty(), "{column}: docs/guarantees.md does not name {unnamed:?}");
    }
    Ok(())
}
