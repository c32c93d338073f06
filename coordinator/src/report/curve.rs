//! Accuracy by ensemble size as a picture: SVG, which stays sharp, follows the reader's colours and can be read as text.

use std::fmt::{self, Write};

use plurality_common::score::SizeScore;

use super::Report;

/// Size of the whole picture in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Where the plotted area begins and ends: room for the title, the legend and the names of the axes.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 696.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 336.0;
/// Distance of the first and last point from the sides of that area.
const INSET: f64 = 22.0;
/// Up to here each size has a dot; more would run into each other.
const DOTS_MAX: usize = 40;
/// Spaces between ticks that are aimed at.
const TICKS_Y: f64 = 5.0;
const TICKS_X: f64 = 8.0;
/// Smallest range of the vertical axis in per cent: ten images in ten thousand, so that one of them is no cliff.
const RANGE_MIN: f64 = 0.1;
/// What the accuracy of all members needs between itself and another line or the end of the area.
const VALUE_ROOM: f64 = 26.0;
/// Colours on light paper, then on dark.
const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #59636e }
.title { font-size: 17px; font-weight: 600; fill: #1f2328 }
.value { font-weight: 600; fill: #1f2328 }
.paper { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.axis { stroke: #818b98 }
.band { fill: #0969da; fill-opacity: 0.16 }
.vote { stroke: #0969da }
.dot { fill: #0969da }
.mean { stroke: #bc4c00; stroke-dasharray: 6 4 }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 }
.title, .value { fill: #f0f6fc }
.paper { fill: #0d1117 }
.grid { stroke: #2a313c }
.axis { stroke: #656c76 }
.band { fill: #4493f8; fill-opacity: 0.24 }
.vote { stroke: #4493f8 }
.dot { fill: #4493f8 }
.mean { stroke: #f0883e }
}";

/// Draws the accuracy of `report` by ensemble size: mean and range of the majority vote over subsets of the members, and
/// the mean of the mean softmax.
pub fn accuracy_by_size_svg(report: &Report) -> String {
    let mut text = String::new();
    draw(&mut text, &report.ensemble.by_size).expect("writing to a string cannot fail");
    text
}

/// Where values stand on the paper.
struct Axes {
    sizes: usize,
    /// Lower and upper end of the vertical axis in per cent.
    low: f64,
    high: f64,
    step: f64,
}

fn draw(out: &mut String, sizes: &[SizeScore]) -> fmt::Result {
    let axes = Axes::of(sizes);
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title description">"#
    )?;
    writeln!(out, r#"<title id="title">Accuracy by ensemble size</title>"#)?;
    writeln!(out, r#"<desc id="description">{}</desc>"#, description(sizes))?;
    writeln!(out, "<style>\n{STYLE}\n</style>")?;
    writeln!(out, r#"<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>"#)?;
    writeln!(out, r#"<text class="title" x="{LEFT}" y="30">Accuracy by ensemble size</text>"#)?;
    draw_legend(out)?;
    axes.draw(out)?;
    let votes = |value: fn(&SizeScore) -> f64| sizes.iter().map(value).collect::<Vec<_>>();
    let (lowest, highest) = (votes(|size| size.majority_vote_min), votes(|size| size.majority_vote_max));
    let (vote, mean) = (votes(|size| size.majority_vote), votes(|size| size.mean_softmax));
    let outline = axes.points(&highest).into_iter().chain(axes.points(&lowest).into_iter().rev());
    writeln!(out, r#"<polygon class="band" points="{}"/>"#, listed(outline))?;
    writeln!(out, r#"<polyline class="line mean" points="{}"/>"#, listed(axes.points(&mean)))?;
    writeln!(out, r#"<polyline class="line vote" points="{}"/>"#, listed(axes.points(&vote)))?;
    if sizes.len() <= DOTS_MAX {
        for (x, y) in axes.points(&vote) {
            writeln!(out, r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="4"/>"#)?;
        }
    }
    if let Some(all) = sizes.last() {
        let y = axes.y(all.majority_vote * 100.0);
        let is_above = all.mean_softmax <= all.majority_vote || BOTTOM - y < VALUE_ROOM;
        let y = if is_above && y - TOP >= VALUE_ROOM { y - 12.0 } else { y + 22.0 };
        let text = format!("{:.2} %", all.majority_vote * 100.0);
        let (x, anchor) = if sizes.len() == 1 { (axes.x(1), "middle") } else { (RIGHT, "end") };
        writeln!(out, r#"<text class="value" x="{x}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#)?;
    }
    writeln!(out, "</svg>")
}

/// Says what the picture shows to whoever does not see it.
fn description(sizes: &[SizeScore]) -> String {
    let percent = |share: f64| format!("{:.2}", share * 100.0);
    match sizes {
        [] => String::new(),
        [one] => format!("One member labels {} per cent of the test images right.", percent(one.majority_vote)),
        [one, .., all] => format!(
            "One member labels {} per cent of the test images right on average, from {} to {}; the majority vote of all {} \
             members labels {} per cent right.",
            percent(one.majority_vote),
            percent(one.majority_vote_min),
            percent(one.majority_vote_max),
            all.size,
            percent(all.majority_vote)
        ),
    }
}

fn draw_legend(out: &mut String) -> fmt::Result {
    let y = 54.0;
    let sample = |out: &mut String, class: &str, x: f64| {
        writeln!(out, r#"<line class="line {class}" x1="{x}" y1="{}" x2="{}" y2="{}"/>"#, y - 4.0, x + 26.0, y - 4.0)
    };
    sample(out, "vote", LEFT)?;
    writeln!(out, r#"<text x="{}" y="{y}">majority vote, mean over subsets</text>"#, LEFT + 34.0)?;
    let x = LEFT + 276.0;
    writeln!(out, r#"<rect class="band" x="{x}" y="{}" width="26" height="13"/>"#, y - 11.0)?;
    writeln!(out, r#"<text x="{}" y="{y}">its lowest to highest</text>"#, x + 34.0)?;
    let x = LEFT + 462.0;
    sample(out, "mean", x)?;
    writeln!(out, r#"<text x="{}" y="{y}">mean softmax</text>"#, x + 34.0)
}

impl Axes {
    fn of(sizes: &[SizeScore]) -> Self {
        let all = || {
            let values = |size: &SizeScore| {
                [size.majority_vote_min, size.majority_vote_max, size.majority_vote, size.mean_softmax]
            };
            sizes.iter().flat_map(values).map(|share| share * 100.0)
        };
        let (lowest, highest) = (all().fold(100.0, f64::min), all().fold(0.0, f64::max).max(0.0));
        let step = nice((highest - lowest).max(RANGE_MIN) / TICKS_Y);
        let (mut low, mut high) = ((lowest / step).floor() * step, (highest / step).ceil() * step);
        if high - low < step {
            (low, high) = (low - step, high + step);
        }
        Self { sizes: sizes.len(), low: low.max(0.0), high: high.min(100.0), step }
    }

    /// Returns the place of the ensembles of `size`.
    fn x(&self, size: usize) -> f64 {
        let (from, to) = (LEFT + INSET, RIGHT - INSET);
        match self.sizes {
            0 | 1 => (from + to) / 2.0,
            sizes => from + (to - from) * (size - 1) as f64 / (sizes - 1) as f64,
        }
    }

    fn y(&self, percent: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (percent - self.low) / (self.high - self.low)
    }

    fn points(&self, shares: &[f64]) -> Vec<(f64, f64)> {
        shares.iter().zip(1..).map(|(share, size)| (self.x(size), self.y(share * 100.0))).collect()
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        let decimals = (-self.step.log10() - 1e-9).ceil().max(0.0) as usize;
        let ticks = ((self.high - self.low) / self.step).round() as usize;
        for tick in 0..=ticks {
            let percent = (self.low + tick as f64 * self.step).min(self.high);
            let y = self.y(percent);
            writeln!(out, r#"<line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/>"#)?;
            let (x, y) = (LEFT - 8.0, y + 4.5);
            writeln!(out, r#"<text x="{x}" y="{y:.1}" text-anchor="end">{percent:.decimals$}</text>"#)?;
        }
        writeln!(out, r#"<line class="axis" x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>"#)?;
        for size in self.size_ticks() {
            let (x, from, to) = (self.x(size), BOTTOM, BOTTOM + 5.0);
            writeln!(out, r#"<line class="axis" x1="{x:.1}" y1="{from}" x2="{x:.1}" y2="{to}"/>"#)?;
            writeln!(out, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{size}</text>"#, BOTTOM + 21.0)?;
        }
        let (x, y) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        writeln!(out, r#"<text x="{x}" y="{}" text-anchor="middle">members that vote</text>"#, HEIGHT - 18.0)?;
        let turned = format!("rotate(-90 22 {y})");
        writeln!(
            out,
            r#"<text x="22" y="{y}" text-anchor="middle" transform="{turned}">test images labelled right, %</text>"#
        )
    }

    /// Returns the sizes that are named: the first, the last, and round ones between that have room.
    fn size_ticks(&self) -> Vec<usize> {
        let step = (nice(self.sizes as f64 / TICKS_X).round() as usize).max(1);
        let has_room = |size: &usize| 2 * (size - 1) >= step && 2 * (self.sizes - size) >= step;
        let between = (step..self.sizes).step_by(step).filter(has_room);
        let mut ticks: Vec<usize> = [1].into_iter().chain(between).chain([self.sizes]).collect();
        ticks.dedup();
        ticks
    }
}

/// Returns the smallest of 1, 2, 5 times a power of ten that is not below `number`, which is above 0.
fn nice(number: f64) -> f64 {
    let power = 10_f64.powf(number.log10().floor());
    let found = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= number * (1.0 - 1e-9));
    found.unwrap_or(10.0) * power
}

fn listed(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    points.into_iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(size: u32, [min, vote, max, mean]: [f64; 4]) -> SizeScore {
        SizeScore {
            size,
            subsets: 1,
            is_exhaustive: true,
            majority_vote: vote,
            majority_vote_min: min,
            majority_vote_max: max,
            mean_softmax: mean,
        }
    }

    fn drawn(sizes: &[SizeScore]) -> String {
        let mut text = String::new();
        draw(&mut text, sizes).unwrap();
        text
    }

    fn five() -> Vec<SizeScore> {
        vec![
            size(1, [0.9955, 0.99584, 0.9962, 0.99584]),
            size(2, [0.9956, 0.99598, 0.9963, 0.99601]),
            size(3, [0.9959, 0.99612, 0.9964, 0.99617]),
            size(4, [0.996, 0.99618, 0.9963, 0.99622]),
            size(5, [0.9962, 0.9962, 0.9962, 0.9963]),
        ]
    }

    #[test]
    fn the_picture_is_as_it_was_looked_at() {
        insta::assert_snapshot!(drawn(&five()));
    }

    /// Checks that every number of a picture is on the paper, and that its elements are closed.
    fn check(sizes: &[SizeScore], labels: &[&str]) {
        let text = drawn(sizes);
        for part in text.split([' ', '"', ',', '\n']).filter_map(|part| part.parse::<f64>().ok()) {
            assert!(part.is_finite() && (-90.0..=1000.0).contains(&part), "{part} in {text}");
        }
        for points in text.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=RIGHT).contains(&x) && (TOP..=BOTTOM).contains(&y), "{point} in {text}");
            }
        }
        for label in labels {
            assert!(text.contains(&format!(">{label}</text>")), "{label} in {text}");
        }
        assert!(text.ends_with("</svg>\n") && !text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn any_number_of_members_and_any_accuracy_has_a_picture() {
        check(&five(), &["1", "5", "99.54", "99.64", "99.62 %"]);
        check(&[size(1, [0.98; 4])], &["1", "98.00", "98.00 %"]);
        check(&[size(1, [1.0; 4]), size(2, [1.0; 4])], &["1", "2", "100.00"]);
        check(&[size(1, [0.0; 4]), size(2, [0.0; 4])], &["1", "2", "0.00"]);
        check(&[size(1, [0.0, 0.5, 1.0, 0.5])], &["0", "40", "100"]);
        let many: Vec<_> = (1..=1000).map(|n| size(n, [0.95, 0.99 - 0.01 / f64::from(n), 0.995, 0.99])).collect();
        check(&many, &["1", "200", "1000", "95", "100"]);
        assert!(!drawn(&many).contains("<circle"));
        assert!(drawn(&many).len() < 100_000, "a picture in a report is not to be larger than the report");
    }

    #[test]
    fn ticks_are_round_and_apart() {
        assert_eq!([nice(0.03), nice(1.0), nice(2.1), nice(600.0)], [0.05, 1.0, 5.0, 1000.0]);
        let ticks = |sizes| Axes { sizes, low: 0.0, high: 1.0, step: 1.0 }.size_ticks();
        assert_eq!(ticks(1), [1]);
        assert_eq!(ticks(2), [1, 2]);
        assert_eq!(ticks(7), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(ticks(21), [1, 5, 10, 15, 21]);
        assert_eq!(ticks(1000), [1, 200, 400, 600, 800, 1000]);
    }
}
