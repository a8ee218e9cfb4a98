//! The cluster's own tools, where the machine has them.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// PyPI's package carries the schemas of every release up to the one that it is numbered after.
const SCHEMAS: &str = "kubernetes-validate==1.37.0";

/// The oldest release that the manifests are for, and the newest.
const RELEASES: [&str; 2] = ["1.29", "1.37"];

/// What `kubectl apply -k` would send; nothing where there is no `kubectl`.
pub(crate) fn render(tree: &str) -> Option<PathBuf> {
    let Ok(outcome) =
        Command::new("kubectl").args(["kustomize", tree]).current_dir(env!("CARGO_MANIFEST_DIR")).output()
    else {
        left_out("kubectl is not installed");
        return None;
    };
    assert!(outcome.status.success(), "{tree}: {}", String::from_utf8_lossy(&outcome.stderr));
    assert!(outcome.stderr.is_empty(), "{tree}: {}", String::from_utf8_lossy(&outcome.stderr));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.yaml", tree.replace('/', "-")));
    fs::write(&path, outcome.stdout).expect("the build folder can be written");
    Some(path)
}

/// Holds a rendered tree against the schemas, unknown fields refused.
pub(crate) fn validate(tree: &str, rendered: &Path) {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes-validate");
    let program = home.join("bin/kubernetes-validate");
    if !program.exists() {
        let run = |command: &mut Command| command.output().is_ok_and(|outcome| outcome.status.success());
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(&home))
            && run(Command::new(home.join("bin/pip")).args(["install", "--quiet", SCHEMAS]));
        if !made {
            return left_out("the schemas need python3 with venv and pip, and PyPI");
        }
    }
    for release in RELEASES {
        let outcome = Command::new(&program).args(["--strict", "-k", release]).arg(rendered).output();
        let outcome = outcome.expect("kubernetes-validate starts");
        assert!(
            outcome.status.success(),
            "{tree} on {release}: {}{}",
            String::from_utf8_lossy(&outcome.stdout),
            String::from_utf8_lossy(&outcome.stderr)
        );
    }
}

/// Written past the test runner, which shows the output of failing tests alone.
fn left_out(why: &str) {
    drop(writeln!(std::io::stderr(), "tests/deploy: left out: {why}"));
}
