//! `concordat check` and `concordat version` of an etcd that flags name.

use anyhow::Result;
use concordat_tests::{etcd::Etcd, process::free_port};
use serde_json::json as document;

use crate::world::{concordat, json, rows};

#[tokio::test]
async fn an_etcd_that_is_well_is_said_to_be() -> Result<()> {
    let etcd = Etcd::start().await?;
    let url = etcd.endpoint(0);
    let told = concordat(&url, &["check"])?;
    let found = rows(&told, &["STATUS", "CHECK", "FOUND"]);
    assert_eq!(found.len(), 2, "{told}");
    assert_eq!((found[0][0], found[0][1]), ("ok", "etcd"), "{told}");
    assert_eq!((found[1][0], found[1][1]), ("ok", "etcd space"), "{told}");
    let version = json(&url, &["version"])?;
    assert!(version["etcd"].as_str().is_some_and(|etcd| etcd.starts_with("3.")), "{version}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_etcd_is_said_with_what_to_do() -> Result<()> {
    let etcd = Etcd::start().await?;
    etcd.raise_no_space(0).await?;
    let told = concordat(&etcd.endpoint(0), &["check"]).expect_err("an alarm is raised").to_string();
    for said in
        ["failed   etcd ", "NOSPACE", "etcdctl alarm disarm", "failed   etcd space", "--quota-backend-bytes"]
    {
        assert!(told.contains(said), "{said:?} is missing in:\n{told}");
    }
    assert!(told.contains("2 checks failed"), "{told}");

    let nowhere = format!("http://127.0.0.1:{}", free_port()?);
    let told = concordat(&nowhere, &["check"]).expect_err("nothing listens there").to_string();
    assert!(told.contains(&nowhere) && told.contains("one check failed"), "{told}");
    let version = json(&nowhere, &["version"])?;
    assert_eq!(version["client"], document!(env!("CARGO_PKG_VERSION")));
    assert!(version["notReached"].as_str().is_some_and(|why| why.contains(&nowhere)), "{version}");
    Ok(())
}
