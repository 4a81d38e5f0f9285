//! The plots, as SVG, by the plotters library.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{PageError, figure};
use crate::report::Document;
use crate::report::metric::Metric;

const WIDTH: u32 = 920;
/// Height of one arm's line.
const LINE: u32 = 44;
/// For names at the left, and figures at the right.
const NAMES: u32 = 120;
const FIGURES: u32 = 90;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x44, 0x77, 0xaa),
    RGBColor(0xee, 0x66, 0x77),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xcc, 0xbb, 0x44),
    RGBColor(0x66, 0xcc, 0xee),
    RGBColor(0xaa, 0x33, 0x77),
    RGBColor(0xbb, 0xbb, 0xbb),
    RGBColor(0x00, 0x44, 0x88),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(error: impl std::fmt::Display) -> PageError {
    PageError(error.to_string())
}

/// Draws an SVG of that height.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), PageError>) -> Result<String, PageError> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(text)
}

fn label(area: &Area<'_>, text: &str, at: (i32, i32), side: HPos) -> Result<(), PageError> {
    let style = (FONT, 14).into_font().color(&BLACK.mix(0.8)).pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

/// The middle of an arm's line.
fn middle(line: usize) -> i32 {
    (line as u32 * LINE + LINE / 2) as i32
}

/// A logarithmic scale from at most `low` to at least `high`, which are positive.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.map(Self::drawn) {
            (low, high) = (low.min(value), high.max(value));
        }
        // Some room on both sides, and something to divide by.
        if low.is_finite() { Scale { low: low / 1.3, high: high * 1.3 } } else { Scale { low: 0.1, high: 10.0 } }
    }

    /// What has no logarithm is drawn at the least that is ever measured.
    fn drawn(value: f64) -> f64 {
        if value.is_finite() { value.max(0.001) } else { 0.001 }
    }

    fn x(&self, value: f64) -> i32 {
        let part = (Self::drawn(value) / self.low).ln() / (self.high / self.low).ln();
        NAMES as i32 + (part * f64::from(WIDTH - NAMES - FIGURES)) as i32
    }

    /// 1, 2 and 5 of each power of ten, as far as they are on it; of many, the powers alone.
    fn ticks(&self) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let steps: &[f64] = if last - first > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let all = (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|tick| (self.low..=self.high).contains(tick)).collect()
    }
}

fn axis(area: &Area<'_>, scale: &Scale, row: &Metric, lines: usize) -> Result<(), PageError> {
    let bottom = (lines as u32 * LINE) as i32;
    for tick in scale.ticks() {
        let x = scale.x(tick);
        area.draw(&PathElement::new(vec![(x, 4), (x, bottom)], BLACK.mix(0.1))).map_err(failed)?;
        label(area, &figure(tick, row.unit), (x, bottom + 12), HPos::Center)?;
    }
    Ok(())
}

/// All samples of a row, an arm a line; the median with its interval.
pub(super) fn samples(document: &Document, row: &Metric) -> Result<String, PageError> {
    let arms = with_samples(document, row);
    let scale = Scale::of(arms.iter().flat_map(|(_, samples)| samples.iter().copied()));
    svg(arms.len() as u32 * LINE + 26, |area| {
        axis(area, &scale, row, arms.len())?;
        for (line, (arm, samples)) in arms.iter().enumerate() {
            let (y, colour) = (middle(line), COLOURS[line % COLOURS.len()]);
            label(area, arm, (NAMES as i32 - 12, y), HPos::Right)?;
            for (number, sample) in samples.iter().enumerate() {
                // Beside each other, so that equal ones can be seen.
                let shift = (number as i32 * 7) % 21 - 10;
                area.draw(&Circle::new((scale.x(*sample), y + shift), 3, colour.mix(0.45).filled())).map_err(failed)?;
            }
            let Some(estimate) = document.estimate(arm, row.key) else { continue };
            let x = scale.x(estimate.p50.value);
            if let Some(interval) = estimate.p50.interval {
                let corners = [(scale.x(interval.low), y - 3), (scale.x(interval.high), y + 3)];
                area.draw(&Rectangle::new(corners, BLACK.mix(0.35).filled())).map_err(failed)?;
            }
            area.draw(&PathElement::new(vec![(x, y - 14), (x, y + 14)], BLACK.stroke_width(2))).map_err(failed)?;
            label(area, &figure(estimate.p50.value, row.unit), ((WIDTH - FIGURES) as i32 + 8, y), HPos::Left)?;
        }
        Ok(())
    })
}

fn with_samples<'a>(document: &'a Document, row: &Metric) -> Vec<(&'a str, &'a [f64])> {
    let all = document.measured().into_iter().map(|arm| (arm, document.samples(arm, row.key)));
    all.filter(|(_, samples)| !samples.is_empty()).collect()
}

/// Medians of a row as bars, on a linear scale.
pub(super) fn amounts(document: &Document, row: &Metric) -> Result<String, PageError> {
    let arms = with_samples(document, row);
    let medians: Vec<_> =
        arms.iter().filter_map(|(arm, _)| Some((*arm, document.estimate(arm, row.key)?.p50.value))).collect();
    let most = medians.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    svg(medians.len() as u32 * LINE, |area| {
        for (line, (arm, value)) in medians.iter().enumerate() {
            let y = middle(line);
            label(area, arm, (NAMES as i32 - 12, y), HPos::Right)?;
            let length = (value.max(0.0) / most * f64::from(WIDTH - NAMES - FIGURES)) as i32;
            let corners = [(NAMES as i32, y - 12), (NAMES as i32 + length.max(1), y + 12)];
            area.draw(&Rectangle::new(corners, COLOURS[line % COLOURS.len()].filled())).map_err(failed)?;
            label(area, &figure(*value, row.unit), (NAMES as i32 + length + 8, y), HPos::Left)?;
        }
        Ok(())
    })
}

/// The samples of a row in the order in which they were taken, from left to right, an arm a colour; on a logarithmic scale.
pub(super) fn curve(document: &Document, row: &Metric) -> Result<String, PageError> {
    const HEIGHT: i32 = 360;
    /// For half of the uppermost mark's text.
    const TOP: i32 = 8;
    let arms = with_samples(document, row);
    let scale = Scale::of(arms.iter().flat_map(|(_, samples)| samples.iter().copied()));
    let most = arms.iter().map(|(_, samples)| samples.len()).max().unwrap_or(1).max(2);
    let (left, right) = (NAMES as i32, (WIDTH - FIGURES) as i32);
    let x = |number: usize| left + (number as f64 / (most - 1) as f64 * f64::from(right - left)) as i32;
    // The scale is one for lines from left to right: here it stands upright.
    let y = |value: f64| TOP + HEIGHT - (scale.x(value) - left) * HEIGHT / (right - left);
    svg((TOP + HEIGHT + 46) as u32, |area| {
        for tick in scale.ticks() {
            area.draw(&PathElement::new(vec![(left, y(tick)), (right, y(tick))], BLACK.mix(0.1))).map_err(failed)?;
            label(area, &figure(tick, row.unit), (left - 12, y(tick)), HPos::Right)?;
        }
        for number in [0, most / 2, most - 1] {
            label(area, &format!("{}", number + 1), (x(number), TOP + HEIGHT + 12), HPos::Center)?;
        }
        for (line, (arm, samples)) in arms.iter().enumerate() {
            let colour = COLOURS[line % COLOURS.len()];
            let points: Vec<_> = samples.iter().enumerate().map(|(number, value)| (x(number), y(*value))).collect();
            area.draw(&PathElement::new(points.clone(), colour.stroke_width(2))).map_err(failed)?;
            for point in points {
                area.draw(&Circle::new(point, 3, colour.filled())).map_err(failed)?;
            }
            let at = left + line as i32 * (right - left) / arms.len() as i32;
            area.draw(&Circle::new((at, TOP + HEIGHT + 34), 5, colour.filled())).map_err(failed)?;
            label(area, arm, (at + 10, TOP + HEIGHT + 34), HPos::Left)?;
        }
        Ok(())
    })
}

/// The phases of an arm, one after the other, each on a line; none if they are not known.
pub(super) fn waterfall(document: &Document, arm: &str) -> Result<Option<String>, PageError> {
    const HEIGHT: u32 = 24;
    let of_arm = document.phases.iter().filter(|phase| phase.arm == arm);
    let phases: Vec<_> =
        of_arm.filter_map(|phase| Some((phase.phase.as_str(), crate::stats::median(&phase.samples)?))).collect();
    let total: f64 = phases.iter().map(|(_, ms)| ms).sum();
    if phases.is_empty() || total <= 0.0 {
        return Ok(None);
    }
    let drawn = svg(phases.len() as u32 * HEIGHT, |area| {
        let mut at = 0.0;
        for (line, (name, ms)) in phases.iter().enumerate() {
            let y = (line as u32 * HEIGHT + HEIGHT / 2) as i32;
            let x = |ms: f64| NAMES as i32 + (ms / total * f64::from(WIDTH - NAMES - FIGURES)) as i32;
            label(area, name, (NAMES as i32 - 12, y), HPos::Right)?;
            let corners = [(x(at), y - 8), (x(at + ms).max(x(at) + 1), y + 8)];
            area.draw(&Rectangle::new(corners, COLOURS[line % COLOURS.len()].filled())).map_err(failed)?;
            at += ms;
            label(area, &figure(*ms, crate::report::metric::Unit::Ms), (x(at) + 8, y), HPos::Left)?;
        }
        Ok(())
    })?;
    Ok(Some(drawn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::metric::metric;
    use crate::report::tests::document;

    #[test]
    fn a_curve_has_a_point_for_each_and_one_for_the_name() {
        let all = document(&[("runc", "fleet-start", vec![40.0; 7]), ("crun", "fleet-start", vec![20.0])]);
        let drawn = curve(&all, metric("fleet-start").unwrap()).unwrap();
        assert_eq!(drawn.matches("<circle").count(), 7 + 1 + 2);
        assert!(!drawn.contains("NaN"), "{drawn}");
    }

    #[test]
    fn a_scale_holds_all_and_has_marks() {
        let scale = Scale::of([1.0, 1000.0, 0.0, f64::NAN].into_iter());
        let inside = NAMES as i32..=(WIDTH - FIGURES) as i32;
        assert!([1.0, 1000.0, 0.0].iter().all(|value| inside.contains(&scale.x(*value))));
        assert_eq!(scale.ticks().len(), 7);
        assert_eq!(Scale::of([40.0, 90.0].into_iter()).ticks(), [50.0, 100.0]);
        assert!(!Scale::of(std::iter::empty()).ticks().is_empty());
    }
}
