//! Reads what `/metrics` says.

use std::collections::BTreeMap;

/// A sample in Prometheus's text format.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// The metric's name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its value.
    pub(crate) value: f64,
}

impl Sample {
    /// Whether this is `name` with at least these labels.
    pub(crate) fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let has = |(label, value): &(&str, &str)| self.labels.get(*label).is_some_and(|given| given == value);
        self.name == name && labels.iter().all(has)
    }
}

/// Every sample of a page; panics at a line that is none.
pub(crate) fn parse(page: &str) -> Vec<Sample> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    // No label of ours has `",` in its value.
    let pairs = labels.split_terminator("\",").map(|pair| {
        let (label, value) = pair.split_once("=\"")?;
        Some((label.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Some(Sample { name: name.to_owned(), labels: pairs.collect::<Option<_>>()?, value: value.parse().ok()? })
}
