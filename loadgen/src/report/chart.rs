//! Charts as SVG text: drawn here, not by a script, so that the page that holds
//! them needs nothing else to be read.

use std::error::Error;

use hdrhistogram::Histogram;
use plotters::coord::ranged1d::{AsRangedCoord, KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::hgrm::percentiles;
use super::number;
use crate::stats::Point;

const SIZE: (u32, u32) = (900, 320);
const MEDIAN: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const P99: RGBColor = RGBColor(0xc7, 0x6a, 0x11);
const MAX: RGBColor = RGBColor(0xb0, 0x2a, 0x37);
const GRID: RGBColor = RGBColor(0xd8, 0xdc, 0xe0);
const TEXT: RGBColor = RGBColor(0x33, 0x3a, 0x40);
const SHADE: RGBColor = RGBColor(0xef, 0xf1, 0xf3);

/// Why a chart could not be drawn.
pub type ChartError = Box<dyn Error + Send + Sync>;

/// Distance to 100 % on a logarithmic axis: each step has one nine more.
struct Nines(f64);

impl Ranged for Nines {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (value / self.0 * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..=self.0 as u32).map(f64::from).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(value: &f64) -> String {
        match *value as usize {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            nines => format!("99.{} %", "9".repeat(nines - 2)),
        }
    }
}

/// A logarithmic axis with labels at 1, 2 and 5 of each decade, or at whole
/// decades where those would not leave room.
struct Decades {
    low: f64,
    high: f64,
}

impl Decades {
    /// An axis for values from `low` to `high`, with a little room, and at least
    /// a decade long.
    fn new(low: f64, high: f64) -> Decades {
        let low = if low.is_normal() && low > 0.0 && low < f64::MAX { low * 0.8 } else { 1.0 };
        Decades { low, high: (high * 1.25).max(low * 12.0) }
    }
}

impl Ranged for Decades {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        limit.0 + (part * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let steps: &[f64] = if (self.high / self.low).log10() > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        decades
            .flat_map(|d| steps.iter().map(move |step| step * 10f64.powi(d)))
            .filter(|v| (self.low..self.high).contains(v))
            .collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Decades {
    fn format(value: &f64) -> String {
        number(*value)
    }
}

/// Latency in µs at each percentile, of a histogram of nanoseconds.
pub fn latency_by_percentile(histogram: &Histogram<u64>) -> Result<String, ChartError> {
    // The last message decides where the axis ends.
    let nines = (histogram.len().max(10) as f64).log10();
    let curve: Vec<(f64, f64)> = percentiles(histogram)
        .into_iter()
        .map(|(quantile, ns)| (-(1.0 - quantile).log10(), ns as f64 / 1000.0))
        .map(|(x, us)| (x.min(nines), us))
        .collect();
    let low = histogram.min() as f64 / 1000.0;
    let bounds = Decades::new(low, histogram.max() as f64 / 1000.0);
    draw("latency (µs)", "percentile", Nines(nines), bounds, &[("latency", MEDIAN, curve)], &[])
}

/// Latency second by second.
pub fn latency_over_time(points: &[Point]) -> Result<String, ChartError> {
    let answered = || points.iter().filter(|p| p.max > 0.0);
    let low = answered().map(|p| p.p50).fold(f64::MAX, f64::min);
    let high = answered().map(|p| p.max).fold(0.0, f64::max);
    let series = |of: fn(&Point) -> f64| answered().map(|p| (p.at, of(p))).collect::<Vec<_>>();
    let lines = [
        ("max", MAX, series(|p| p.max)),
        ("p99", P99, series(|p| p.p99)),
        ("p50", MEDIAN, series(|p| p.p50)),
    ];
    let bounds = Decades::new(low, high);
    draw("latency (µs)", "seconds", time_axis(points), bounds, &lines, &unmeasured(points))
}

/// Messages per second, second by second.
pub fn throughput_over_time(points: &[Point]) -> Result<String, ChartError> {
    let high = points.iter().map(|p| p.per_second).fold(1.0, f64::max) * 1.1;
    let line: Vec<_> = points.iter().map(|p| (p.at, p.per_second)).collect();
    let lines = [("messages/s", MEDIAN, line)];
    draw("messages/s", "seconds", time_axis(points), 0.0..high, &lines, &unmeasured(points))
}

fn time_axis(points: &[Point]) -> std::ops::Range<f64> {
    0.0..points.last().map_or(1.0, |p| p.at + 0.5)
}

/// Stretches of time that do not count, for shading.
fn unmeasured(points: &[Point]) -> Vec<(f64, f64)> {
    points.iter().filter(|p| !p.measured).map(|p| (p.at - 0.5, p.at + 0.5)).collect()
}

type Line<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

fn draw<X, Y>(
    y_name: &str,
    x_name: &str,
    x: X,
    y: Y,
    lines: &[Line<'_>],
    shaded: &[(f64, f64)],
) -> Result<String, ChartError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .margin_right(30)
            .x_label_area_size(44)
            .y_label_area_size(78)
            .build_cartesian_2d(x, y)
            .map_err(text)?;
        let (low, high) = (chart.y_range().start, chart.y_range().end);
        let (left, right) = (chart.x_range().start, chart.x_range().end);
        chart
            .draw_series(shaded.iter().map(|&(from, to)| {
                Rectangle::new([(from.max(left), low), (to.min(right), high)], SHADE.filled())
            }))
            .map_err(text)?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(TEXT)
            .label_style(("sans-serif", 13, &TEXT))
            .x_desc(x_name)
            .y_desc(y_name)
            .y_label_formatter(&|v| number(*v))
            .x_labels(10)
            .draw()
            .map_err(text)?;
        for (name, color, points) in lines {
            let color = *color;
            let drawn = chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))
                .map_err(text)?;
            if lines.len() > 1 {
                drawn
                    .label(*name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            }
        }
        if lines.len() > 1 {
            chart
                .configure_series_labels()
                .label_font(("sans-serif", 13, &TEXT))
                .background_style(WHITE.mix(0.85))
                .position(SeriesLabelPosition::UpperRight)
                .draw()
                .map_err(text)?;
        }
        root.present().map_err(text)?;
    }
    Ok(svg)
}

/// The drawing library's errors borrow from the area; only their words are kept.
fn text(error: impl std::fmt::Display) -> ChartError {
    error.to_string().into()
}
