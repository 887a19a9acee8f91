//! The house stays as it was drawn: which floor may lean on which, and what no file may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;

/// The floors, each with those it may lean on; whoever is not here may not exist.
const FLOORS: [(&str, &[&str]); 9] = [
    ("concordat-protocol", &[]),
    ("concordat-store", &["concordat-protocol"]),
    ("concordat-crds", &[]),
    ("concordat-sidecar", &["concordat-protocol", "concordat-store"]),
    ("concordat-operator", &["concordat-crds", "concordat-protocol", "concordat-store"]),
    (
        "concordat",
        &[
            "concordat-crds",
            "concordat-operator",
            "concordat-protocol",
            "concordat-sidecar",
            "concordat-store",
        ],
    ),
    // Users of the product: they speak HTTP like any other.
    ("concordat-bank", &[]),
    ("concordat-locks", &[]),
    (
        "concordat-tests",
        &[
            "concordat-crds",
            "concordat-operator",
            "concordat-protocol",
            "concordat-sidecar",
            "concordat-store",
        ],
    ),
];

/// Crates that only some floors may name.
const RESERVED: [(&str, &[&str]); 3] = [
    ("etcd-client", &["concordat-store", "concordat-tests"]),
    ("kube", &["concordat-crds", "concordat-operator", "concordat", "concordat-tests"]),
    ("k8s-openapi", &["concordat-crds", "concordat-operator", "concordat", "concordat-tests"]),
];

/// All that the pure floor may depend on, tests aside.
const PURE: [&str; 2] = ["serde", "thiserror"];
/// What would make it impure.
const IMPURE: [&str; 9] = [
    "std::time",
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "std::io",
    "std::env",
    "SystemTime",
    "Instant::now",
];

/// No file is longer.
const LINES: usize = 600;
/// Names that say nothing.
const NAMELESS: [&str; 6] = ["utils", "util", "common", "helpers", "misc", "mod"];

/// A package of the workspace: its dependencies by name, and whether the shipped code has them.
type Packages = BTreeMap<String, BTreeMap<String, bool>>;

fn packages() -> Result<Packages> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let package = |package: cargo_metadata::Package| {
        let mut dependencies = BTreeMap::new();
        for dependency in package.dependencies {
            *dependencies.entry(dependency.name).or_default() |=
                dependency.kind != cargo_metadata::DependencyKind::Development;
        }
        (package.name.to_string(), dependencies)
    };
    Ok(metadata.packages.into_iter().map(package).collect())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn wrong_dependencies(packages: &Packages) -> Vec<String> {
    let floors = BTreeMap::from(FLOORS);
    let mut wrong = Vec::new();
    for (package, dependencies) in packages {
        let Some(below) = floors.get(&**package) else {
            wrong.push(format!("{package} is no floor of the house"));
            continue;
        };
        for (dependency, shipped) in dependencies {
            let reserved = RESERVED.iter().find(|(name, _)| name == dependency);
            if packages.contains_key(dependency) && !below.contains(&&**dependency) {
                wrong.push(format!("{package} leans on {dependency}"));
            } else if reserved.is_some_and(|(_, floors)| !floors.contains(&&**package)) {
                wrong.push(format!("{package} names {dependency}"));
            } else if package == "concordat-protocol" && *shipped && !PURE.contains(&&**dependency) {
                wrong.push(format!("the pure floor depends on {dependency}"));
            }
        }
    }
    wrong
}

#[test]
fn every_floor_leans_on_those_below_it_alone() -> Result<()> {
    let packages = packages()?;
    assert_eq!(wrong_dependencies(&packages), Vec::<String>::new());
    assert_eq!(packages.len(), FLOORS.len(), "a floor is missing");
    Ok(())
}

#[test]
fn a_wrong_dependency_is_found() -> Result<()> {
    for (package, dependency, shipped) in [
        ("concordat-sidecar", "etcd-client", true),
        ("concordat-sidecar", "kube", false),
        ("concordat-sidecar", "concordat-crds", true),
        ("concordat-store", "concordat-sidecar", false),
        ("concordat-protocol", "tokio", true),
        ("concordat-bank", "concordat-store", true),
        ("concordat-everything", "serde", true),
    ] {
        let mut packages = packages()?;
        packages.entry(package.into()).or_default().insert(dependency.into(), shipped);
        assert_eq!(wrong_dependencies(&packages).len(), 1, "{package} {dependency}");
    }
    let mut packages = packages()?;
    packages.entry("concordat-protocol".into()).or_default().insert("stateright".into(), false);
    assert_eq!(wrong_dependencies(&packages), Vec::<String>::new());
    Ok(())
}

/// Every Rust file of the workspace, by its path under the root.
fn files() -> Result<Vec<PathBuf>> {
    let root = root();
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = FLOORS
        .iter()
        .map(|(name, _)| match *name {
            "concordat" => root.join("cli"),
            "concordat-bank" => root.join("examples/bank"),
            "concordat-locks" => root.join("examples/locks"),
            name => root.join(name.trim_start_matches("concordat-")),
        })
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(&root)?.to_owned());
            }
        }
    }
    Ok(files)
}

fn wrong_file(path: &Path, text: &str) -> Option<String> {
    let stem = path.file_stem()?.to_str()?;
    let lines = text.lines().count();
    if lines > LINES {
        return Some(format!("{} has {lines} lines", path.display()));
    }
    if NAMELESS.contains(&stem) {
        return Some(format!("{} has a name that says nothing", path.display()));
    }
    let impure = IMPURE.into_iter().find(|impure| text.contains(impure))?;
    path.starts_with("protocol/src").then(|| format!("{} knows {impure}", path.display()))
}

#[test]
fn every_file_is_short_named_and_in_its_place() -> Result<()> {
    let files = files()?;
    assert!(files.len() > 50, "{files:?}");
    let mut wrong = Vec::new();
    for path in files {
        wrong.extend(wrong_file(&path, &fs::read_to_string(root().join(&path))?));
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_wrong_file_is_found() {
    let long = "//\n".repeat(LINES + 1);
    for (path, text, wrong) in [
        ("store/src/keys.rs", &*long, true),
        ("store/src/keys.rs", &long[3..], false),
        ("store/src/utils.rs", "", true),
        ("store/src/keys/mod.rs", "", true),
        ("protocol/src/lock.rs", "use std::time::Instant;", true),
        ("store/src/clock.rs", "use std::time::Instant;", false),
    ] {
        assert_eq!(wrong_file(Path::new(path), text).is_some(), wrong, "{path}");
    }
}

/// Every package takes the lints of the workspace, and that forbids `unsafe`.
#[test]
fn no_package_goes_without_the_lints() -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec()?;
    let without: BTreeSet<String> = metadata
        .packages
        .iter()
        .filter(|package| {
            fs::read_to_string(&package.manifest_path)
                .map_or(true, |manifest| !manifest.contains("[lints]\nworkspace = true"))
        })
        .map(|package| package.name.to_string())
        .collect();
    assert_eq!(without, BTreeSet::new());
    let workspace = fs::read_to_string(root().join("Cargo.toml"))?;
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    Ok(())
}

/// The fuzz targets of a file that `make fuzz` leaves out.
fn left_out(path: &Path, text: &str, command: &str) -> Vec<String> {
    let (packages, selected) = command.split_once(" -- ").unwrap_or_default();
    let of_the_package = path.iter().next().is_some_and(|folder| {
        packages.split_whitespace().any(|word| word.strip_prefix("concordat-") == folder.to_str())
    });
    let mut checks: Vec<&str> = text.split("bolero::check!").collect();
    checks.pop();
    checks
        .into_iter()
        .filter_map(|before| before.rsplit("fn ").next()?.split('(').next())
        .filter(|name| {
            !of_the_package
                || !selected
                    .split(" --")
                    .next()
                    .unwrap_or_default()
                    .split_whitespace()
                    .any(|word| name.contains(word))
        })
        .map(|name| format!("{} {name}", path.display()))
        .collect()
}

#[test]
fn make_fuzz_runs_every_fuzz_target() -> Result<()> {
    let makefile = fs::read_to_string(root().join("Makefile"))?;
    let command = makefile.split("\nfuzz: ").nth(1).and_then(|rest| rest.split("\n\n").next());
    let command = command.context("make fuzz is not there")?;
    let mut wrong = Vec::new();
    for path in files()?.into_iter().filter(|path| !path.ends_with(file!())) {
        wrong.extend(left_out(&path, &fs::read_to_string(root().join(&path))?, command));
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_fuzz_target_that_is_left_out_is_found() {
    let target = |name: &str| format!("fn {name}() {{ bolero::check!().for_each(drop) }}");
    for (path, name, wrong) in [
        ("store/tests/codec.rs", "fuzz_decode", 0),
        ("store/tests/codec.rs", "no_text_panics", 0),
        ("store/tests/codec.rs", "any_text", 1),
        ("cli/src/get.rs", "fuzz_get", 1),
    ] {
        let command = "cargo test -p concordat-store -- fuzz panics --test-threads 2";
        assert_eq!(left_out(Path::new(path), &target(name), command).len(), wrong, "{path} {name}");
    }
}
