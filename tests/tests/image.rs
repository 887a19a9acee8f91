//! Images: what `tests/kubernetes/image` makes depends on the files alone, and the Containerfile is one it understands.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The digest of a stage's image, and the image's configuration.
fn image(containerfile: &Path, stage: &str, files: &[(&str, &str)]) -> Result<(String, Value)> {
    let folder = TempDir::new()?;
    for (name, content) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().context("no folder")?)?;
        fs::write(file, content)?;
    }
    let archive = folder.path().join("made/image.tar");
    let output = Command::new(root().join("tests/kubernetes/image"))
        .args([containerfile, Path::new(stage), folder.path(), &archive])
        .args(["example.com/one:1", "example.com/other:2"])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let digest = String::from_utf8(output.stdout)?.trim().to_owned();
    let read = |name: &str| -> Result<Value> {
        let output = Command::new("tar").arg("-xOf").arg(&archive).arg(format!("./{name}")).output()?;
        serde_json::from_slice(&output.stdout).context(name.to_owned())
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        read(&format!("blobs/sha256/{}", digest.context("no digest")?))
    };
    let index = read("index.json")?;
    let entries = index["manifests"].as_array().context("no manifests")?;
    let names: Vec<_> =
        entries.iter().map(|entry| &entry["annotations"]["io.containerd.image.name"]).collect();
    assert_eq!(names, ["example.com/one:1", "example.com/other:2"]);
    assert!(entries.iter().all(|entry| entry["digest"] == digest), "{index}");
    Ok((digest, blob(&blob(&entries[0])?["config"])?))
}

#[test]
fn the_same_files_make_the_same_image() -> Result<()> {
    let containerfile = root().join("Containerfile");
    let (first, _) = image(&containerfile, "operator", &[("concordat-operator", "one")])?;
    let (again, _) = image(&containerfile, "operator", &[("concordat-operator", "one"), ("not-copied", "")])?;
    let (other, _) = image(&containerfile, "operator", &[("concordat-operator", "other")])?;
    assert_eq!(first, again);
    assert_ne!(first, other);
    Ok(())
}

#[test]
fn an_image_has_a_user_without_rights_and_its_program() -> Result<()> {
    for name in ["operator", "sidecar"] {
        let program = format!("concordat-{name}");
        let (_, configuration) = image(&root().join("Containerfile"), name, &[(&program, "")])?;
        let expected = json!({ "User": "65532:65532", "Entrypoint": [format!("/{program}")] });
        assert_eq!(configuration["config"], expected);
        assert_eq!(configuration["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(1));
    }
    Ok(())
}

#[test]
fn what_takes_a_daemon_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let containerfile = folder.path().join("Containerfile");
    for (text, refusal) in [
        ("FROM scratch AS a\nRUN true\n", "a has RUN, which this cannot do"),
        ("FROM scratch AS a\nCOPY here /there\n", "cannot copy here /there"),
        ("FROM debian AS a\nUSER 1\n", "has no stage a from scratch"),
        ("FROM scratch AS b\nUSER 1\n", "has no stage a from scratch"),
    ] {
        fs::write(&containerfile, text)?;
        let error = image(&containerfile, "a", &[]).map(drop).err().context(text)?;
        assert!(error.to_string().contains(refusal), "{error}");
    }
    Ok(())
}
