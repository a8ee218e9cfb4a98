//! What was found: rows with a bound, and figures beside them.

use std::{fmt::Write as _, fs, process::Command};

use time::OffsetDateTime;

/// How far a figure may go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Times,
    Micros,
    Millis,
    KiB,
    MiB,
    Percent,
    PerSecond,
}

/// One figure, measured several times.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) bound: Option<Bound>,
    unit: Unit,
    /// Ascending.
    samples: Vec<f64>,
}

/// Every row, in the order of measuring.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn bound(&mut self, name: &str, bound: Bound, unit: Unit, samples: Vec<f64>) {
        self.add(name.to_owned(), Some(bound), unit, samples);
    }

    /// A figure without a bound.
    pub(crate) fn context(&mut self, name: impl Into<String>, unit: Unit, samples: Vec<f64>) {
        self.add(name.into(), None, unit, samples);
    }

    fn add(&mut self, name: String, bound: Option<Bound>, unit: Unit, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        if !samples.is_empty() {
            self.rows.push(Row { name, bound, unit, samples });
        }
    }

    pub(crate) fn bounded(&self) -> impl Iterator<Item = (&Row, Bound)> {
        self.rows.iter().filter_map(|row| row.bound.map(|bound| (row, bound)))
    }

    /// For a terminal.
    pub(crate) fn plain(&self) -> String {
        let mut text = String::from("\n");
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            let (mark, bound) = row.bound.map_or((" ", String::new()), |bound| (row.mark(), row.limit(bound)));
            let _ = writeln!(
                text,
                "{mark} {:width$}  {:>11}  {:>10}  {}",
                row.name,
                row.format(row.median()),
                bound,
                row.spread()
            );
        }
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench`, the whole of which takes about five minutes. The bounds are \
             what this service is to reach with its log, metrics and limits on, as in production. `stock` is \
             `axum::serve` with tower-http's layers, a JSON log, metrics, an sqlx pool and a tonic channel \
             (`benches/beside/`).\n\n{}\n\n![Each figure as a share of its bound](benchmarks.svg)\n\n",
            machine()
        );
        text.push_str("| | to reach | median | spread | |\n|---|---:|---:|---:|---|\n");
        for (row, bound) in self.bounded() {
            let (limit, median, spread) = (row.limit(bound), row.format(row.median()), row.spread());
            let _ = writeln!(text, "| {} | {limit} | {median} | {spread} | {} |", row.name, row.mark());
        }
        text.push_str("\n✔ is kept, ✘ missed. What the ratios were made of, and what has no bound:\n\n");
        text.push_str("| | median | spread |\n|---|---:|---:|\n");
        for row in self.rows.iter().filter(|row| row.bound.is_none()) {
            let _ = writeln!(text, "| {} | {} | {} |", row.name, row.format(row.median()), row.spread());
        }
        text.push_str(
            "\nMedians of at least three rounds in which the servers take turns; the spread is from the lowest round to \
             the highest. CPU time is from `/proc/PID/stat`, memory is `VmRSS`. wrk runs on one thread with 64 \
             connections, and with one for the round trip. `make bench ROWS=\"cached idle\"` measures some rows and \
             writes nothing.\n",
        );
        text
    }
}

impl Row {
    pub(crate) fn median(&self) -> f64 {
        let (low, high) = (self.samples[(self.samples.len() - 1) / 2], self.samples[self.samples.len() / 2]);
        f64::midpoint(low, high)
    }

    /// What is used up of the bound: up to 1 it is kept.
    pub(crate) fn share(&self, bound: Bound) -> f64 {
        match bound {
            Bound::AtMost(most) => self.median() / most,
            Bound::AtLeast(least) => least / self.median(),
        }
    }

    pub(crate) fn format(&self, figure: f64) -> String {
        self.unit.format(figure)
    }

    pub(crate) fn limit(&self, bound: Bound) -> String {
        match bound {
            Bound::AtMost(most) => format!("≤ {}", self.format(most)),
            Bound::AtLeast(least) => format!("≥ {}", self.format(least)),
        }
    }

    fn spread(&self) -> String {
        let (lowest, highest) = (self.samples[0], self.samples[self.samples.len() - 1]);
        format!("{} – {}", self.format(lowest), self.format(highest))
    }

    fn mark(&self) -> &'static str {
        match self.bound {
            Some(bound) if self.share(bound) > 1.0 => "✘",
            _ => "✔",
        }
    }
}

impl Unit {
    fn format(self, figure: f64) -> String {
        match self {
            Self::Times => format!("{figure:.2} ×"),
            Self::Micros => format!("{figure:.1} µs"),
            Self::Millis => format!("{figure:.1} ms"),
            Self::KiB => format!("{figure:.1} KiB"),
            Self::MiB => format!("{figure:.1} MiB"),
            Self::Percent => format!("{figure:.2} %"),
            Self::PerSecond => format!("{figure:.0}"),
        }
    }
}

/// The machine, the day, and the versions.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let revision = said("git", &["describe", "--always", "--dirty", "--tags"]);
    format!(
        "{} of revision {revision}: {cores} cores of {}, Linux {}, {}, {}.",
        OffsetDateTime::now_utc().date(),
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        said("rustc", &["--version"]),
        said("postgres", &["--version"]),
    )
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
