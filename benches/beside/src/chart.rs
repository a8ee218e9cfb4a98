//! Every bounded row as a bar: its share of the bound.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::report::Report;

const WIDTH: i32 = 1280;
const TOP: i32 = 110;
const LINE: i32 = 40;

/// Where the bars begin, where they reach their bound, and where they are cut off.
const BEGIN: i32 = 560;
const BOUND: i32 = 760;
const END: i32 = 1040;

const INK: RGBColor = RGBColor(31, 41, 55);
const FAINT: RGBColor = RGBColor(107, 114, 128);
const RULE: RGBColor = RGBColor(209, 213, 219);
const KEPT: RGBColor = RGBColor(5, 150, 105);
const MISSED: RGBColor = RGBColor(220, 38, 38);

/// Draws the report as SVG.
pub(crate) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let rows: Vec<_> = report.bounded().collect();
    let bottom = TOP + LINE * rows.len() as i32;
    let root = SVGBackend::new(path, (WIDTH as u32, (bottom + 30) as u32)).into_drawing_area();
    root.fill(&WHITE)?;

    let kept = rows.iter().filter(|(row, bound)| row.share(*bound) <= 1.0).count();
    let title = format!("{kept} of {} bounds kept", rows.len());
    root.draw(&Text::new(title, (40, 22), ("sans-serif", 30).into_font().style(FontStyle::Bold).color(&INK)))?;
    let subtitle = "Each figure as a share of its bound: a shorter bar is better, and a bar up to the line keeps it";
    root.draw(&Text::new(subtitle, (40, 62), ("sans-serif", 16).into_font().color(&FAINT)))?;

    let font = ("sans-serif", 16).into_font();
    let left = font.color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
    for (index, (row, bound)) in rows.iter().enumerate() {
        let middle = TOP + LINE * index as i32 + LINE / 2;
        let share = row.share(*bound);
        let colour = if share <= 1.0 { KEPT } else { MISSED };
        let end = (BEGIN + (share * f64::from(BOUND - BEGIN)) as i32).min(END);
        root.draw(&Text::new(row.name.clone(), (BEGIN - 14, middle), left.clone()))?;
        root.draw(&Rectangle::new([(BEGIN, middle - 11), (end, middle + 11)], colour.mix(0.75).filled()))?;
        let figure = format!("{}  of  {}", row.format(row.median()), row.limit(*bound));
        let style = font.color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(figure, (end.max(BOUND) + 12, middle), style))?;
    }
    root.draw(&PathElement::new([(BEGIN, TOP), (BEGIN, bottom)], RULE))?;
    root.draw(&PathElement::new([(BOUND, TOP), (BOUND, bottom)], INK.stroke_width(2)))?;
    let style = font.color(&INK).pos(Pos::new(HPos::Center, VPos::Bottom));
    root.draw(&Text::new("bound", (BOUND, TOP - 4), style))?;
    root.present()?;
    Ok(())
}
