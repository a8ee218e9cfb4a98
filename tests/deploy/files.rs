//! The files that have to agree, read as data.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde::Deserialize as _;
use serde_json::Value;

/// A file of the repository, its path relative to the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The documents of a YAML file, its merge keys resolved as kustomize does.
fn documents(path: &str) -> Vec<Value> {
    let text = read(path);
    let documents = serde_norway::Deserializer::from_str(&text).map(|document| {
        let mut value = serde_norway::Value::deserialize(document).unwrap_or_else(|why| panic!("{path}: {why}"));
        value.apply_merge().unwrap_or_else(|why| panic!("{path}: {why}"));
        serde_json::to_value(value).unwrap_or_else(|why| panic!("{path}: {why}"))
    });
    documents.collect()
}

/// The one object of `kind` in a file of `k8s/base`.
pub(crate) fn manifest(file: &str, kind: &str) -> Value {
    let mut documents = documents(&format!("k8s/base/{file}")).into_iter();
    documents.find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {file}"))
}

pub(crate) fn deployment() -> Value {
    manifest("deployment.yaml", "Deployment")
}

/// The pod that the Deployment makes.
pub(crate) fn pod() -> Value {
    deployment()["spec"]["template"]["spec"].clone()
}

pub(crate) fn kustomization(folder: &str) -> Value {
    documents(&format!("k8s/{folder}/kustomization.yaml")).remove(0)
}

/// The settings that a tree puts into the pods' environment.
pub(crate) fn settings(folder: &str) -> BTreeMap<String, String> {
    let kustomization = kustomization(folder);
    let maps = kustomization["configMapGenerator"].as_array().expect("configMapGenerator").clone();
    let literals = maps.iter().flat_map(|map| map["literals"].as_array().cloned().unwrap_or_default());
    let pairs = literals.map(|literal| {
        literal.as_str().and_then(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned()))
    });
    pairs.map(|pair| pair.expect("KEY=value")).collect()
}

/// A default of the service, as text: `http.address`.
pub(crate) fn setting(key: &str) -> String {
    let defaults: toml::Table = read("config/default.toml").parse().expect("config/default.toml");
    let (section, name) = key.split_once('.').expect("section.name");
    match &defaults[section][name] {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A default that is a duration.
pub(crate) fn seconds(key: &str) -> Duration {
    humantime::parse_duration(&setting(key)).unwrap_or_else(|why| panic!("{key}: {why}"))
}

/// What follows an instruction of the Dockerfile, where it stands last: in the image of the service. `ARG` is the first of them.
pub(crate) fn dockerfile(instruction: &str) -> String {
    let text = read("Dockerfile");
    let mut found = text.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    let line = if instruction == "ARG" { found.next() } else { found.next_back() };
    line.unwrap_or_else(|| panic!("no {instruction} in the Dockerfile")).to_owned()
}
