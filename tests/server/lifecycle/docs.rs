//! `docs/lifecycle.md` has a table of what is promised, each with the test that keeps it.

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tests of a folder: file and function, as `cargo test` names them.
fn tests(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).expect("it is there").flatten().map(|file| file.path());
    let mut tests = BTreeSet::new();
    for file in files {
        let module = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("it is text");
        let bodies =
            text.split("\n#[tokio::test").chain(text.split("\n#[test")).filter(|body| body.starts_with([']', '(']));
        for body in bodies {
            let name = body.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            tests.insert(format!("{module}::{}", name.expect("a test is a function")));
        }
    }
    tests
}

#[test]
fn every_promise_names_its_test_and_every_test_is_of_a_promise() {
    let table = read("docs/lifecycle.md");
    let rows = table.lines().filter(|line| line.starts_with("| ") && line.contains("::"));
    let cells = rows.filter_map(|row| row.rsplit('|').nth(1));
    let names = cells.flat_map(|cell| cell.split('`').filter(|name| name.contains("::")));
    let named: Vec<_> = names.map(str::to_owned).collect();
    let listed: BTreeSet<_> = named.iter().cloned().collect();
    assert_eq!(listed.len(), named.len(), "a test is named twice");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let (orders, listed): (BTreeSet<_>, BTreeSet<_>) =
        listed.into_iter().partition(|name| name.starts_with("orders::"));
    // the example may be gone
    if root.join("orders").exists() {
        let orders: BTreeSet<_> = orders.iter().map(|name| name["orders::".len()..].to_owned()).collect();
        let tests = tests(&root.join("orders"));
        assert_eq!(orders.difference(&tests).collect::<Vec<_>>(), Vec::<&String>::new(), "there is no such test");
    }
    let tests = tests(&root.join("server/lifecycle"));
    assert_eq!(listed.difference(&tests).collect::<Vec<_>>(), Vec::<&String>::new(), "there is no such test");
    assert_eq!(tests.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "no promise names it");
}
