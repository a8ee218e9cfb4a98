//! `docs/http.md` names a test for each requirement of HTTP.

use std::{fs, path::Path};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_test_that_docs_http_md_names_is_there() {
    let page = read("docs/http.md");
    let names: Vec<_> = page.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let (file, test) = name.split_once("::").expect("it has both");
        let text = read(&format!("tests/{file}.rs"));
        let test = format!("fn {test}(");
        let found = text.split("#[tokio::test").chain(text.split("#[test]")).skip(1).any(|body| body.contains(&test));
        assert!(found, "there is no {name}");
    }
}
