//! The run as one picture: requests and failures a second, and below it the pods.

use std::{path::Path, time::Duration};

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::report::{Promise, Report, Sample};

const SIZE: (u32, u32) = (1280, 720);
const INK: RGBColor = RGBColor(31, 41, 55);
const FAINT: RGBColor = RGBColor(107, 114, 128);
const RULE: RGBColor = RGBColor(209, 213, 219);
const BAND: RGBColor = RGBColor(243, 244, 246);
const WARNED: RGBColor = RGBColor(254, 243, 199);
const ANSWERED: RGBColor = RGBColor(37, 99, 235);
const LOST: RGBColor = RGBColor(220, 38, 38);
const READY: RGBColor = RGBColor(5, 150, 105);
const STOPPING: RGBColor = RGBColor(217, 119, 6);

/// How many pods were ready, and how many on their way out, from a moment on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pods {
    pub(crate) at: Duration,
    pub(crate) ready: usize,
    pub(crate) stopping: usize,
}

/// What happened when: a line in the chart.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) at: Duration,
    pub(crate) what: &'static str,
}

/// Draws the report as SVG.
pub(crate) fn draw(path: &Path, report: &Report, pods: &[Pods], marks: &[Mark]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let end = report.steps.last().map_or(1.0, |step| step.to.as_secs_f64());

    let (answered, failed) = report.totals();
    let title = format!(
        "{} requests, {} lost while pods came and went",
        thousands(answered + failed),
        thousands(report.broken_promises())
    );
    let ink = if report.broken_promises() > 0 { LOST } else { INK };
    root.draw(&Text::new(title, (40, 22), ("sans-serif", 30).into_font().style(FontStyle::Bold).color(&ink)))?;
    let refused = thousands(failed - report.broken_promises());
    let subtitle =
        format!("HTTP/1.1 and HTTP/2, kept alive and one-off, WebSocket, SSE; {refused} refused without a database");
    root.draw(&Text::new(subtitle, (40, 62), ("sans-serif", 16).into_font().color(&FAINT)))?;

    let (top, bottom) = root.margin(88, 14, 26, 30).split_vertically(420);
    let answered = per_second(end, report.samples.iter().filter(|sample| sample.failure.is_none()));
    let lost = per_second(end, report.samples.iter().filter(|sample| sample.failure.is_some()));
    let highest = answered.iter().chain(&lost).copied().max().unwrap_or(1) as f64;

    // Room above the curve for the names of the steps.
    let ceiling = highest * 1.3;
    let mut chart =
        ChartBuilder::on(&top).x_label_area_size(8).y_label_area_size(56).build_cartesian_2d(0.0..end, 0.0..ceiling)?;
    for (index, step) in report.steps.iter().enumerate() {
        let (from, to) = (step.from.as_secs_f64(), step.to.as_secs_f64());
        let colour = match step.promise {
            Promise::MayRefuse | Promise::MayRefuseOrders => Some(WARNED),
            Promise::NoneLost => (index % 2 == 1).then_some(BAND),
        };
        if let Some(colour) = colour {
            chart.draw_series([Rectangle::new([(from, 0.0), (to, ceiling)], colour.filled())])?;
        }
        let style =
            ("sans-serif", 14).into_font().style(FontStyle::Bold).color(&INK).pos(Pos::new(HPos::Center, VPos::Top));
        for (line, words) in step.name.split('\n').enumerate() {
            let height = ceiling * (0.985 - 0.045 * line as f64);
            chart.draw_series([Text::new(words.to_owned(), ((from + to) / 2.0, height), style.clone())])?;
        }
    }
    let style = ("sans-serif", 14).into_font().color(&FAINT);
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(0).y_labels(6).light_line_style(TRANSPARENT).bold_line_style(RULE).axis_style(RULE);
    mesh.label_style(style.clone()).y_label_formatter(&|value| format!("{value:.0}")).draw()?;
    for mark in marks {
        let at = mark.at.as_secs_f64();
        chart.draw_series([PathElement::new([(at, 0.0), (at, ceiling * 0.84)], FAINT.mix(0.6))])?;
        let style = ("sans-serif", 12)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&FAINT)
            .pos(Pos::new(HPos::Right, VPos::Bottom));
        chart.draw_series([Text::new(mark.what, (at, ceiling * 0.84), style)])?;
    }
    let points = answered.iter().enumerate().map(|(second, &count)| (second as f64 + 0.5, count as f64));
    chart.draw_series(AreaSeries::new(points, 0.0, ANSWERED.mix(0.18)).border_style(ANSWERED.stroke_width(2)))?;
    let bars = lost.iter().enumerate().filter(|(_, count)| **count > 0);
    chart.draw_series(bars.map(|(second, &count)| {
        Rectangle::new([(second as f64, 0.0), (second as f64 + 1.0, count as f64)], LOST.filled())
    }))?;

    let most = pods.iter().map(|pods| pods.ready + pods.stopping).max().unwrap_or(1) as f64 + 0.5;
    let mut chart = ChartBuilder::on(&bottom)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..most)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .x_labels(12)
        .y_labels(most as usize + 1)
        .light_line_style(TRANSPARENT)
        .bold_line_style(RULE)
        .axis_style(RULE);
    mesh.label_style(style)
        .x_label_formatter(&|value| format!("{value:.0} s"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (index, state) in pods.iter().enumerate() {
        let from = state.at.as_secs_f64().min(end);
        let to = pods.get(index + 1).map_or(end, |next| next.at.as_secs_f64().min(end));
        let (ready, all) = (state.ready as f64, (state.ready + state.stopping) as f64);
        chart.draw_series([Rectangle::new([(from, 0.0), (to, ready)], READY.mix(0.75).filled())])?;
        chart.draw_series([Rectangle::new([(from, ready), (to, all)], STOPPING.mix(0.75).filled())])?;
    }

    legend(
        &root,
        778,
        62,
        &[(ANSWERED, "answered/s"), (LOST, "lost/s"), (READY, "pods ready"), (STOPPING, "pods stopping")],
    )?;
    root.present()?;
    Ok(())
}

fn legend(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    x: i32,
    y: i32,
    entries: &[(RGBColor, &str)],
) -> anyhow::Result<()> {
    let mut x = x;
    for (colour, name) in entries {
        root.draw(&Rectangle::new([(x, y + 3), (x + 12, y + 15)], colour.filled()))?;
        root.draw(&Text::new(*name, (x + 18, y), ("sans-serif", 14).into_font().color(&INK)))?;
        x += 40 + 7 * name.len() as i32;
    }
    Ok(())
}

fn per_second<'a>(end: f64, samples: impl Iterator<Item = &'a Sample>) -> Vec<usize> {
    let mut counts = vec![0; end as usize + 1];
    for sample in samples {
        if let Some(count) = counts.get_mut(sample.at.as_secs() as usize) {
            *count += 1;
        }
    }
    // The last second is not a whole one.
    counts.pop();
    counts
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}
