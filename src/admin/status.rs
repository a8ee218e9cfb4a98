//! The status page: one look at the process for a person. Self-contained, it asks itself again every two seconds.

use std::fmt::Write;
use std::time::Duration;

use crate::lifecycle::{Kind, Lifecycle, Outcome, Phase};

const STYLE: &str = include_str!("status.css");

/// The page as it is now.
pub(super) fn page(lifecycle: &Lifecycle) -> String {
    let (name, version, commit) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), env!("BUILD_COMMIT"));
    let phase = lifecycle.phase();
    let (class, verdict) = match lifecycle.unready_reason() {
        None => ("ok", "ready for traffic".to_owned()),
        Some(reason) if phase == Phase::Ready => ("bad", format!("not ready: {}", escape(&reason))),
        Some(_) if phase == Phase::Starting => ("wait", "waiting for what it depends on".to_owned()),
        Some(_) => ("wait", "leaving; finishing what is under way".to_owned()),
    };
    let (phases, checks, in_flight, steps) = (phases(phase), checks(lifecycle), in_flight(lifecycle), steps(lifecycle));
    let vitals = lifecycle.liveness().vitals();
    let memory = bytesize::ByteSize::b(vitals.resident_memory);
    let tasks = vitals.tasks;
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2"><meta name="viewport" content="width=device-width">
<title>{name}: {phase}</title><style>{STYLE}</style></head><body>
<header><h1>{name}</h1><p>{version} · {commit}</p><p class="verdict {class}">{verdict}</p></header>
<ol class="phases">{phases}</ol>
<section><h2>Checks</h2><table><tr><th>check<th>status<th>policy<th>last error<th class="n">age</tr>{checks}</table></section>
<section><h2>In flight</h2><table><tr>{in_flight}</tr></table></section>
<section><h2>The stop</h2><table><tr><th>step<th class="n">budget<th>outcome<th class="n">took</tr>{steps}</table></section>
<footer>{tasks} tasks · {memory} resident · <a href="/metrics">metrics</a> · <a href="/readyz">readyz</a> · <a href="/livez">livez</a></footer>
</body></html>
"#,
        phase = phase.name(),
    )
}

fn phases(now: Phase) -> String {
    let item = |phase: Phase| {
        let class = match phase.cmp(&now) {
            std::cmp::Ordering::Less => "past",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "ahead",
        };
        format!("<li class=\"{class}\">{}</li>", phase.name())
    };
    Phase::ALL.map(item).concat()
}

fn checks(lifecycle: &Lifecycle) -> String {
    let mut rows = String::new();
    for (name, check) in lifecycle.readiness().report() {
        let class = if check.passes() { "ok" } else { "bad" };
        let policy = check.policy.name();
        let error = escape(check.error.as_deref().unwrap_or("–"));
        let age = check.age.map_or_else(|| "–".to_owned(), |age| format!("{age:.1} s"));
        let status = check.status;
        let _ = write!(
            rows,
            "<tr><td>{name}<td class=\"{class}\">{status}<td>{policy}<td>{error}<td class=\"n\">{age}</tr>"
        );
    }
    rows
}

fn in_flight(lifecycle: &Lifecycle) -> String {
    let cell = |kind: Kind| format!("<th>{}<td class=\"n\">{}", kind.name(), lifecycle.in_flight().count(kind));
    Kind::ALL.map(cell).concat()
}

fn steps(lifecycle: &Lifecycle) -> String {
    let mut rows = String::new();
    for step in lifecycle.steps() {
        let (class, outcome, took) = match (step.ended, step.began) {
            (Some((outcome, took)), _) => {
                (if outcome == Outcome::Done { "ok" } else { "bad" }, outcome.name(), seconds(took))
            }
            (None, Some(began)) => ("wait", "running", seconds(began.elapsed())),
            (None, None) => ("ahead", "–", "–".to_owned()),
        };
        let (name, budget) = (step.step, seconds(step.budget));
        let _ = write!(
            rows,
            "<tr><td>{name}<td class=\"n\">{budget}<td class=\"{class}\">{outcome}<td class=\"n\">{took}</tr>"
        );
    }
    rows
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
