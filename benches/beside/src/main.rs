//! `make bench`: what a request, a connection and an idle process cost, beside stock parts doing the same. Prints a table
//! and, if every row was measured, writes `docs/benchmarks.md` and `docs/benchmarks.svg`.
//!
//! `beside [ROW…]`: every row of [`rows::ROWS`], or those named. A bound that is missed has a mark and fails nothing.
//! `beside scaling [REPLICAS…]` measures replicas that share a database instead, for `docs/scaling.md`.
//! `scripts/bench` starts it, with a database, a gRPC peer and the programs to measure.

mod chart;
mod clients;
mod load;
mod process;
mod report;
mod rows;
mod scaling;

use std::{env, path::Path};

use anyhow::bail;

use report::Report;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let asked: Vec<String> = env::args().skip(1).collect();
    if let Some(("scaling", replicas)) = asked.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return scaling::run(replicas).await;
    }
    if let Some(unknown) = asked.iter().find(|name| !rows::ROWS.contains(&name.as_str())) {
        bail!("there is no row {unknown}; rows: {}", rows::ROWS.join(" "));
    }
    let mut report = Report::default();
    for row in rows::ROWS {
        if asked.is_empty() || asked.iter().any(|name| name == row) {
            eprintln!("bench: {row}");
            rows::measure(row, &mut report).await?;
        }
    }
    print!("{}", report.plain());
    if asked.is_empty() {
        std::fs::write("docs/benchmarks.md", report.markdown())?;
        chart::draw(Path::new("docs/benchmarks.svg"), &report)?;
    }
    Ok(())
}
