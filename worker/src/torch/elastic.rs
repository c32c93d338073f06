//! The displacement field of an elastic distortion (Simard, Steinkraus and Platt 2003): random, then smoothed.

use plurality_common::{recipe::Distortion, seed::SeedStream};
use rand_chacha::rand_core::Rng;

/// The Gaussian ends at this many standard deviations; 0.3 % of it are beyond.
const KERNEL_DEVIATIONS: f64 = 3.0;
/// Half of what 16 bits count to. They are enough for a displacement: each is an average over many draws.
const HALF_RANGE: f32 = 32_768.0;

/// How far each pixel is moved, as [`Distortion::elastic_alpha`] defines it; keeps its buffers from image to image.
///
/// All operations are `f32` additions and multiplications in a fixed order; only the kernel's weights come from the
/// platform's exponential, computed in `f64`.
pub struct Field {
    alpha: f32,
    /// Weights of the distances 0, 1, 2, …; the whole kernel, both sides, sums to 1.
    kernel: Vec<f32>,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
    /// As drawn: a line for each column, how far its rows move down, then how far to the right.
    drawn: Vec<f32>,
    /// Smoothed across those lines, that is along the image's rows.
    half: Vec<f32>,
    /// The same turned and times α: a line for each row, how far its columns move down, then how far to the right.
    turned: Vec<f32>,
    /// Smoothed across those lines too.
    smooth: Vec<f32>,
}

impl Field {
    /// Prepares a field for images `[rows, columns]`: nothing moves before the first draw.
    pub fn new(strengths: &Distortion, rows: usize, columns: usize) -> Self {
        let values = 2 * rows * columns;
        Self {
            alpha: strengths.elastic_alpha as f32,
            kernel: gaussian(strengths.elastic_sigma),
            rows,
            columns,
            bytes: vec![0; 2 * values],
            drawn: vec![0.0; values],
            half: vec![0.0; values],
            turned: vec![0.0; values],
            smooth: vec![0.0; values],
        }
    }

    /// Draws a new field, two bytes a value.
    pub fn draw(&mut self, rng: &mut SeedStream) {
        rng.fill_bytes(&mut self.bytes);
        for (value, pair) in self.drawn.iter_mut().zip(self.bytes.chunks_exact(2)) {
            // Half a step more makes the mean 0.
            *value = (f32::from(i16::from_le_bytes([pair[0], pair[1]])) + 0.5) / HALF_RANGE;
        }
        self.smooth();
    }

    /// Draws the noise of a field as [`Field::draw`] does, line by line for each column: how far its rows move down, then to the
    /// right, all in units of their own.
    pub fn noise(&mut self, rng: &mut SeedStream) -> impl Iterator<Item = i16> {
        rng.fill_bytes(&mut self.bytes);
        self.bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]]))
    }

    /// Returns how many pixels a unit of smoothed noise moves.
    pub fn noise_scale(&self) -> f64 {
        f64::from(self.alpha) / f64::from(HALF_RANGE)
    }

    /// Returns the matrix `[edge, edge]` whose product with a line of noise is that line, smoothed.
    pub fn matrix(&self, edge: usize) -> Vec<f32> {
        let weight = |cell: usize| self.kernel.get((cell / edge).abs_diff(cell % edge)).copied().unwrap_or(0.0);
        (0..edge * edge).map(weight).collect()
    }

    /// Returns how far the pixels of one row are moved down and to the right, `[columns]` each.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.smooth[row * 2 * self.columns..][..2 * self.columns].split_at(self.columns)
    }

    /// Moves every pixel by the same until the next draw.
    #[cfg(test)]
    pub fn set_constant(&mut self, down: f32, right: f32) {
        for line in self.smooth.chunks_exact_mut(2 * self.columns) {
            line[..self.columns].fill(down);
            line[self.columns..].fill(right);
        }
    }

    /// Smooths across lines, turns, and smooths across lines again: so both passes add whole lines, many values at a time.
    fn smooth(&mut self) {
        smooth_across(&self.kernel, &self.drawn, 2 * self.rows, &mut self.half);
        for (column, line) in self.half.chunks_exact(2 * self.rows).enumerate() {
            let (down, right) = line.split_at(self.rows);
            for ((turned, down), right) in self.turned.chunks_exact_mut(2 * self.columns).zip(down).zip(right) {
                turned[column] = down * self.alpha;
                turned[self.columns + column] = right * self.alpha;
            }
        }
        smooth_across(&self.kernel, &self.turned, 2 * self.columns, &mut self.smooth);
    }
}

/// Returns the right half of a Gaussian, the centre first.
fn gaussian(deviation: f64) -> Vec<f32> {
    let radius = (KERNEL_DEVIATIONS * deviation).ceil() as u32;
    let weight = |distance: u32| (-0.5 * (f64::from(distance) / deviation).powi(2)).exp();
    let sum = weight(0) + 2.0 * (1..=radius).map(weight).sum::<f64>();
    (0..=radius).map(|distance| (weight(distance) / sum) as f32).collect()
}

/// Writes, for each line of `width` values, the weighted sum of the lines around it; lines outside are zero.
fn smooth_across(kernel: &[f32], from: &[f32], width: usize, to: &mut [f32]) {
    to.fill(0.0);
    for (index, line) in to.chunks_exact_mut(width).enumerate() {
        let first = (index + 1).saturating_sub(kernel.len());
        let around = from.chunks_exact(width).enumerate().skip(first).take(index + kernel.len() - first);
        for (other, values) in around {
            let weight = kernel[index.abs_diff(other)];
            for (sum, value) in line.iter_mut().zip(values) {
                *sum += weight * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::seed::{Purpose, stream};

    use super::*;

    fn field(elastic_alpha: f64, elastic_sigma: f64, rows: usize, columns: usize) -> Field {
        Field::new(&Distortion { elastic_alpha, elastic_sigma, ..Distortion::default() }, rows, columns)
    }

    fn assert_near(found: f32, expected: f64, what: &str) {
        assert!((f64::from(found) - expected).abs() < 1e-6, "{what}: {found} is not {expected}");
    }

    #[test]
    fn the_kernel_sums_to_one_falls_like_a_gaussian_and_ends_at_three_deviations() {
        for deviation in [0.01, 0.5, 1.0, 4.0, 5.5, 16.0] {
            let kernel = gaussian(deviation);
            assert_eq!(kernel.len(), 1 + (3.0 * deviation).ceil() as usize);
            let sum = kernel[0] + 2.0 * kernel[1..].iter().sum::<f32>();
            assert_near(sum, 1.0, "sum");
            assert_near(kernel[1] / kernel[0], (-0.5 / (deviation * deviation)).exp(), "first step");
        }
    }

    #[test]
    fn one_value_spreads_along_both_axes_by_the_kernel_and_fades_into_zeros_outside() {
        let (rows, columns) = (5, 7);
        let mut field = field(10.0, 1.0, rows, columns);
        // Row 1 of column 2 moves down, row 4 of column 6 to the right.
        field.drawn[2 * 2 * rows + 1] = 0.5;
        field.drawn[6 * 2 * rows + rows + 4] = -1.0;
        field.smooth();
        let weight = |distance: usize| f64::from(field.kernel.get(distance).copied().unwrap_or(0.0));
        for row in 0..rows {
            let (down, right) = field.row(row);
            assert_eq!((down.len(), right.len()), (columns, columns));
            for column in 0..columns {
                let expected = 5.0 * weight(row.abs_diff(1)) * weight(column.abs_diff(2));
                assert_near(down[column], expected, "down");
                let expected = -10.0 * weight(row.abs_diff(4)) * weight(column.abs_diff(6));
                assert_near(right[column], expected, "right");
            }
        }
    }

    #[test]
    fn a_constant_field_stays_as_it_is_where_the_kernel_does_not_reach_the_border() {
        let mut field = field(2.0, 1.5, 13, 11);
        field.drawn.fill(0.25);
        field.smooth();
        let (down, right) = field.row(6);
        assert_near(down[5], 0.5, "centre");
        assert_near(right[5], 0.5, "centre");
        assert!(field.row(0).0[0] < 0.25, "a corner sees a quarter of the kernel and the centre's row and column");
    }

    #[test]
    fn drawn_values_are_uniform_between_minus_one_and_one() {
        let mut field = field(1.0, 1.0, 100, 100);
        field.draw(&mut stream(1, None, Purpose::Augmentation, 0));
        let count = field.drawn.len() as f64;
        let mean = field.drawn.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let square = field.drawn.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / count;
        assert!(field.drawn.iter().all(|value| value.abs() < 1.0));
        // Four standard errors of each.
        assert!(mean.abs() < 4.0 * (1.0 / 3.0 / count).sqrt(), "mean {mean}");
        assert!((square - 1.0 / 3.0).abs() < 4.0 * (4.0 / 45.0 / count).sqrt(), "variance {square}");
    }

    /// The number that the recipe's key gives. Variance of a uniform draw, 1/3, times the sum of squares of the kernel,
    /// 1/(4πσ²).
    #[test]
    fn the_papers_strengths_move_a_pixel_by_one_point_four_pixels() {
        const EDGE: usize = 300;
        let expected = 34.0 / (3.0_f64.sqrt() * 2.0 * 4.0 * std::f64::consts::PI.sqrt());
        assert_eq!(format!("{expected:.1}"), "1.4");
        let mut field = field(34.0, 4.0, EDGE, EDGE);
        field.draw(&mut stream(1, None, Purpose::Augmentation, 0));
        let inside = 12..EDGE - 12;
        let squares = inside.clone().flat_map(|row| {
            let (down, right) = field.row(row);
            down[inside.clone()].iter().chain(&right[inside.clone()]).map(|value| f64::from(*value).powi(2))
        });
        let squares: Vec<f64> = squares.collect();
        let deviation = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.1, "{deviation} is not about {expected}");
    }
}
