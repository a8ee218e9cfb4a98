//! Compiles the contracts below `proto/` (protox reads them, so no `protoc` is needed) and tells the code which commit it was built from.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const PROTO: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    watch("build.rs");
    // `sqlx::migrate!` sees a changed file, but not a new one.
    watch("migrations");
    watch(PROTO);
    compile(&contracts(Path::new(PROTO))?)?;

    println!("cargo:rerun-if-env-changed=GIT_COMMIT");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit());
    Ok(())
}

/// Reruns this script when `path` changes. A path that is absent is left out: cargo would take it for changed on every build.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo:rerun-if-changed={path}");
    }
}

/// Every `.proto` below `folder`, in an order that is the same everywhere; none where there is no such folder.
fn contracts(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(contracts(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Client and server code both: the service is the client, `examples/catalog` the server.
fn compile(contracts: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    if !contracts.is_empty() {
        tonic_prost_build::configure().compile_fds(protox::compile(contracts, [PROTO])?)?;
    }
    Ok(())
}

/// The commit, for people who look at a running instance. `GIT_COMMIT` comes first: a container build has no `.git`.
///
/// Only a release build asks git. A debug build would have to be done again after every commit, or show a commit that is not its own.
fn commit() -> String {
    let given = env::var("GIT_COMMIT").ok().filter(|commit| !commit.is_empty());
    given.or_else(head).unwrap_or_else(|| "unknown".to_owned())
}

/// What git says, or nothing: no git, no repository and a repository of somebody else's are all the same to a build.
fn head() -> Option<String> {
    if env::var("PROFILE").is_ok_and(|profile| profile == "debug") || !Path::new(".git").exists() {
        return None;
    }
    watch(".git/HEAD");
    watch(".git/logs/HEAD");
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(git.stdout).ok()?;
    git.status.success().then(|| commit.trim().to_owned())
}
