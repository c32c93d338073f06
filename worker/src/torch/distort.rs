//! Distortions of training images: zoom, skew, rotation, shift and elastic fields in one resampling, in plain Rust.
//!
//! Each pixel of the result looks up where it comes from and interpolates there between four pixels. An image is resampled
//! once, however many distortions there are, and so is blurred once.

use plurality_common::{
    recipe::Distortion,
    seed::{SeedStream, uniform},
};

use super::elastic::Field;

/// Zeros before the first row and column of a source: what comes from up to one pixel outside fades into them.
const MARGIN: usize = 1;
/// Zeros before and after. One more after: the last two of the four pixels are read even where they count nothing.
const MARGINS: usize = 2 * MARGIN + 1;

/// Distorts images of one shape; keeps its buffers from image to image.
pub struct Distorter {
    strengths: Distortion,
    rows: usize,
    columns: usize,
    /// `[rows + MARGINS, columns + MARGINS]`: the image, within zeros that are never written.
    source: Vec<f32>,
    /// Where in `source` the pixels of one row of the result come from.
    places: Vec<Place>,
    field: Option<Field>,
}

impl Distorter {
    /// Prepares for images `[rows, columns]`; none if all strengths are zero: images then stay as they are, to the last bit.
    pub fn new(strengths: Distortion, rows: usize, columns: usize) -> Option<Self> {
        let Distortion { shift_px, rotation_degrees, zoom, skew, elastic_alpha, elastic_sigma: _ } = strengths;
        let is_any = [shift_px, rotation_degrees, zoom, skew, elastic_alpha].iter().any(|strength| *strength > 0.0);
        is_any.then(|| Self {
            strengths,
            rows,
            columns,
            source: vec![0.0; (rows + MARGINS) * (columns + MARGINS)],
            places: vec![Place::default(); columns],
            field: (elastic_alpha > 0.0).then(|| Field::new(&strengths, rows, columns)),
        })
    }

    /// Distorts one image `[rows, columns]` f32 in 0..1 in place, by strengths drawn from `rng`.
    ///
    /// Five numbers are drawn whatever the strengths, then the field if there is one: without the shift, say, a seed's
    /// rotations stay the same.
    pub fn distort(&mut self, image: &mut [f32], rng: &mut SeedStream) {
        let movement = Movement::draw(&self.strengths, rng);
        if let Some(field) = &mut self.field {
            field.draw(rng);
        }
        self.resample(image, &movement);
    }

    /// Draws as [`Distorter::distort`] does, for whoever distorts elsewhere: appends the numbers of [`Inverse::places`], and the
    /// noise of the field, `[columns, 2, rows]`, if there is one.
    pub fn draw(&mut self, rng: &mut SeedStream, movements: &mut Vec<f32>, noise: &mut Vec<i16>) {
        let inverse = Movement::draw(&self.strengths, rng).inverse(self.rows, self.columns);
        movements.extend(inverse.places(self.rows, self.columns));
        if let Some(field) = &mut self.field {
            noise.extend(field.noise(rng));
        }
    }

    /// Returns the elastic field, if there is one.
    pub fn field(&self) -> Option<&Field> {
        self.field.as_ref()
    }

    /// Applies a movement and the present field.
    fn resample(&mut self, image: &mut [f32], movement: &Movement) {
        let stride = self.columns + MARGINS;
        let inside = self.source.chunks_exact_mut(stride).skip(MARGIN);
        for (line, source) in image.chunks_exact(self.columns).zip(inside) {
            source[MARGIN..][..self.columns].copy_from_slice(line);
        }
        let inverse = movement.inverse(self.rows, self.columns);
        // From here on there are only zeros; the farthest places from which four pixels can be read.
        let (row_end, column_end) = ((self.rows + MARGIN) as f32, (self.columns + MARGIN) as f32);
        for (row, line) in image.chunks_exact_mut(self.columns).enumerate() {
            inverse.find(row, &mut self.places);
            if let Some(field) = &self.field {
                let (down, right) = field.row(row);
                for ((place, down), right) in self.places.iter_mut().zip(down).zip(right) {
                    place.row += down;
                    place.column += right;
                }
            }
            for (value, place) in line.iter_mut().zip(&self.places) {
                let (row, column) = (clamped(place.row, row_end), clamped(place.column, column_end));
                // Through 32 bits, which SSE2 converts in one instruction.
                let (top, left) = (row as i32, column as i32);
                let (down, right) = (row - top as f32, column - left as f32);
                let first = top as usize * stride + left as usize;
                let (upper, lower) = (&self.source[first..][..2], &self.source[first + stride..][..2]);
                *value = mix(mix(upper[0], upper[1], right), mix(lower[0], lower[1], right), down);
            }
        }
    }
}

/// A place in a source, between pixels and perhaps outside.
#[derive(Clone, Copy, Default)]
struct Place {
    row: f32,
    column: f32,
}

/// Returns the nearest number from 0 to `end`: one instruction for each end, unlike `f32::clamp`, which keeps NaN.
fn clamped(value: f32, end: f32) -> f32 {
    let value = if value > 0.0 { value } else { 0.0 };
    if value < end { value } else { end }
}

/// Returns what is between two numbers, `share` (0 to below 1) of the way. In 0..1 when both are, rounding included.
fn mix(from: f32, to: f32, share: f32) -> f32 {
    from + (to - from) * share
}

/// What happens to one image, in this order: zoom, skew and rotation about the centre, then shift.
#[derive(Clone, Copy)]
struct Movement {
    /// Above 0; enlarges above 1.
    factor: f64,
    /// Columns to the right for each row down.
    skew: f64,
    /// Clockwise.
    degrees: f64,
    down_px: f64,
    right_px: f64,
}

impl Movement {
    /// Draws in a fixed order, which is part of what a seed means.
    fn draw(strengths: &Distortion, rng: &mut SeedStream) -> Self {
        let mut up_to = |strength: f64| (2.0 * uniform(rng) - 1.0) * strength;
        let (down_px, right_px) = (up_to(strengths.shift_px), up_to(strengths.shift_px));
        let (degrees, factor, skew) =
            (up_to(strengths.rotation_degrees), 1.0 + up_to(strengths.zoom), up_to(strengths.skew));
        Self { factor, skew, degrees, down_px, right_px }
    }

    /// Returns where pixels come from. Sine and cosine are the platform's; rounding to `f32` hides all but the rarest
    /// differences in their last bit.
    fn inverse(&self, rows: usize, columns: usize) -> Inverse {
        let (sin, cos) = self.degrees.to_radians().sin_cos();
        let centre = |size: usize| (size as f64 - 1.0) / 2.0;
        Inverse {
            row_by_row: (cos / self.factor) as f32,
            row_by_column: (-sin / self.factor) as f32,
            column_by_row: ((sin - self.skew * cos) / self.factor) as f32,
            column_by_column: ((cos + self.skew * sin) / self.factor) as f32,
            from_row: (centre(rows) + self.down_px) as f32,
            from_column: (centre(columns) + self.right_px) as f32,
            to_row: (centre(rows) + MARGIN as f64) as f32,
            to_column: (centre(columns) + MARGIN as f64) as f32,
        }
    }
}

/// Maps a pixel of the result to its place: the difference to `from`, multiplied, is the difference to `to`.
struct Inverse {
    row_by_row: f32,
    row_by_column: f32,
    column_by_row: f32,
    column_by_column: f32,
    from_row: f32,
    from_column: f32,
    to_row: f32,
    to_column: f32,
}

impl Inverse {
    /// Returns where pixels come from as LibTorch counts, from −1 at the left or upper edge of the image to 1 at the other:
    /// column and row of pixel (0, 0), then what each further row adds to both, then what each further column adds.
    fn places(&self, rows: usize, columns: usize) -> [f32; 6] {
        let of = |to: f32, by_row: f32, by_column: f32, edge: usize| {
            let [to, by_row, by_column] = [to, by_row, by_column].map(f64::from);
            let origin =
                to - MARGIN as f64 - by_row * f64::from(self.from_row) - by_column * f64::from(self.from_column);
            // Pixel centres are half a pixel from the edges.
            [2.0 * (origin + 0.5) / edge as f64 - 1.0, 2.0 * by_row / edge as f64, 2.0 * by_column / edge as f64]
        };
        let column = of(self.to_column, self.column_by_row, self.column_by_column, columns);
        let row = of(self.to_row, self.row_by_row, self.row_by_column, rows);
        [column[0], row[0], column[1], row[1], column[2], row[2]].map(|value| value as f32)
    }

    /// Finds the places of one row's pixels.
    fn find(&self, row: usize, places: &mut [Place]) {
        let down = row as f32 - self.from_row;
        let (row, column) = (self.to_row + down * self.row_by_row, self.to_column + down * self.column_by_row);
        for (index, place) in (0_i32..).zip(places) {
            let right = index as f32 - self.from_column;
            place.row = right * self.row_by_column + row;
            place.column = right * self.column_by_column + column;
        }
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::seed::{Purpose, stream};
    use rand_chacha::rand_core::Rng;

    use super::*;
    use crate::augment::{Shift, write_shifted};

    const STILL: Movement = Movement { factor: 1.0, skew: 0.0, degrees: 0.0, down_px: 0.0, right_px: 0.0 };
    const STRONG: Distortion = Distortion {
        shift_px: 8.0,
        rotation_degrees: 90.0,
        zoom: 0.99,
        skew: 1.0,
        elastic_alpha: 1000.0,
        elastic_sigma: 2.0,
    };

    /// A distorter of which only the movement given to `resample` counts.
    fn mover(rows: usize, columns: usize) -> Distorter {
        Distorter::new(Distortion { shift_px: 1.0, ..Distortion::default() }, rows, columns).unwrap()
    }

    fn moved<const N: usize>(image: [f32; N], columns: usize, movement: Movement) -> [f32; N] {
        let mut moved = image;
        mover(N / columns, columns).resample(&mut moved, &movement);
        moved
    }

    fn noise(count: usize) -> Vec<u8> {
        let mut pixels = vec![0; count];
        stream(1, None, Purpose::Subsets, 0).fill_bytes(&mut pixels);
        pixels
    }

    fn random_stream() -> SeedStream {
        stream(7, Some(0), Purpose::Augmentation, 0)
    }

    #[test]
    fn without_strength_nothing_is_distorted() {
        assert!(Distorter::new(Distortion::default(), 3, 3).is_none());
        assert!(Distorter::new(Distortion { elastic_sigma: 4.0, ..Distortion::default() }, 3, 3).is_none());
    }

    #[test]
    fn a_strength_of_zero_is_the_identity_to_the_last_bit() {
        let Movement { factor, skew, degrees, down_px, right_px } =
            Movement::draw(&Distortion::default(), &mut random_stream());
        assert_eq!((factor, skew, degrees, down_px, right_px), (1.0, 0.0, 0.0, 0.0, 0.0));
        for (rows, columns) in [(28, 28), (5, 8), (1, 1)] {
            let image: Vec<f32> = noise(rows * columns).iter().map(|pixel| f32::from(*pixel) / 255.0).collect();
            let mut still = image.clone();
            mover(rows, columns).resample(&mut still, &STILL);
            assert_eq!(still, image);
        }
    }

    #[test]
    fn each_strength_alone_changes_the_image_and_keeps_its_range() {
        let none = Distortion::default();
        for strengths in [
            Distortion { shift_px: 2.0, ..none },
            Distortion { rotation_degrees: 15.0, ..none },
            Distortion { zoom: 0.15, ..none },
            Distortion { skew: 0.2, ..none },
            Distortion { elastic_alpha: 34.0, elastic_sigma: 4.0, ..none },
            STRONG,
        ] {
            let image: Vec<f32> = noise(28 * 28).iter().map(|pixel| f32::from(*pixel) / 255.0).collect();
            let mut distorter = Distorter::new(strengths, 28, 28).unwrap();
            let mut rng = random_stream();
            for _ in 0..50 {
                let mut distorted = image.clone();
                distorter.distort(&mut distorted, &mut rng);
                assert_ne!(distorted, image, "{strengths:?}");
                assert!(distorted.iter().all(|value| (0.0..=1.0).contains(value)), "{strengths:?}");
            }
        }
    }

    #[test]
    fn between_two_numbers_from_zero_to_one_there_are_no_others() {
        let last = 1.0_f32.next_down();
        let mut numbers = vec![0.0, f32::MIN_POSITIVE, 0.5, last, 1.0];
        let mut rng = random_stream();
        numbers.extend((0..60).map(|_| uniform(&mut rng) as f32));
        for from in &numbers {
            for to in &numbers {
                for share in numbers.iter().filter(|share| **share < 1.0) {
                    let found = mix(*from, *to, *share);
                    assert!((0.0..=1.0).contains(&found), "{share} from {from} to {to} is {found}");
                }
            }
        }
    }

    #[test]
    fn a_quarter_turn_goes_clockwise_about_the_centre() {
        #[rustfmt::skip]
        let image = [
            0.1, 0.2, 0.3,
            0.4, 0.5, 0.6,
            0.7, 0.8, 0.9,
        ];
        #[rustfmt::skip]
        let turned = [
            0.7, 0.4, 0.1,
            0.8, 0.5, 0.2,
            0.9, 0.6, 0.3,
        ];
        assert_close(&moved(image, 3, Movement { degrees: 90.0, ..STILL }), &turned);
        assert_close(&moved(turned, 3, Movement { degrees: -90.0, ..STILL }), &image);
    }

    #[test]
    fn a_shift_by_a_whole_pixel_is_that_of_the_one_pixel_shifts() {
        let pixels = noise(5 * 7);
        for (down, right) in (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right))) {
            let (mut image, mut expected) = (vec![0.0; 35], vec![0.0; 35]);
            write_shifted(&pixels, 7, Shift::NONE, &mut image);
            write_shifted(&pixels, 7, Shift { down, right }, &mut expected);
            let movement = Movement { down_px: f64::from(down), right_px: f64::from(right), ..STILL };
            mover(5, 7).resample(&mut image, &movement);
            assert_eq!(image, expected, "{down} down, {right} to the right");
        }
    }

    #[test]
    fn a_shift_by_half_a_pixel_is_the_mean_of_two_neighbours() {
        let half = Movement { right_px: 0.5, ..STILL };
        assert_close(&moved([0.4, 0.8, 0.0, 1.0], 4, half), &[0.2, 0.6, 0.4, 0.5]);
    }

    #[test]
    fn zoom_enlarges_or_shrinks_about_the_centre() {
        let image = [0.0, 1.0, 0.5, 0.0];
        assert_close(&moved(image, 4, Movement { factor: 2.0, ..STILL }), &[0.75, 0.875, 0.625, 0.375]);
        assert_close(&moved(image, 4, Movement { factor: 0.5, ..STILL }), &[0.0, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn skew_moves_rows_by_their_distance_from_the_centre() {
        #[rustfmt::skip]
        let bar = [
            0.0, 1.0, 0.0,
            0.0, 1.0, 0.0,
            0.0, 1.0, 0.0,
        ];
        #[rustfmt::skip]
        let slanted = [
            1.0, 0.0, 0.0,
            0.0, 1.0, 0.0,
            0.0, 0.0, 1.0,
        ];
        assert_close(&moved(bar, 3, Movement { skew: 1.0, ..STILL }), &slanted);
    }

    #[test]
    fn zoom_comes_before_skew_before_rotation_before_shift() {
        #[rustfmt::skip]
        let image = [
            0.0, 0.0, 0.0, 0.0, 0.0,
            0.0, 0.0, 1.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.0, 0.0,
        ];
        // One row above the centre; twice as far after the zoom; two columns to the left by the skew; turned to two rows
        // above and two columns to the right; then one more down and one less to the right.
        let movement = Movement { factor: 2.0, skew: 1.0, degrees: 90.0, down_px: 1.0, right_px: -1.0 };
        let found = moved(image, 5, movement);
        let brightest = (0..25).max_by(|a, b| found[*a].total_cmp(&found[*b])).unwrap();
        assert_eq!((brightest / 5, brightest % 5), (1, 3));
        assert!((found[brightest] - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn a_constant_field_moves_like_a_shift_the_other_way() {
        let pixels = noise(6 * 4);
        let strengths = Distortion { elastic_alpha: 1.0, elastic_sigma: 1.0, ..Distortion::default() };
        for (down, right) in [(1_i8, 0_i8), (0, 1), (-1, 1)] {
            let mut distorter = Distorter::new(strengths, 6, 4).unwrap();
            distorter.field.as_mut().unwrap().set_constant(f32::from(down), f32::from(right));
            let (mut image, mut expected) = (vec![0.0; 24], vec![0.0; 24]);
            write_shifted(&pixels, 4, Shift::NONE, &mut image);
            write_shifted(&pixels, 4, Shift { down: -down, right: -right }, &mut expected);
            distorter.resample(&mut image, &STILL);
            assert_eq!(image, expected);
        }
    }

    #[test]
    fn leaving_out_one_distortion_does_not_change_what_is_drawn_for_the_others() {
        let all = Movement::draw(&STRONG, &mut random_stream());
        let without = Movement::draw(&Distortion { shift_px: 0.0, zoom: 0.0, ..STRONG }, &mut random_stream());
        assert_eq!((all.degrees, all.skew), (without.degrees, without.skew));
        assert_ne!(all.degrees, 0.0);
    }

    #[test]
    fn drawn_movements_reach_towards_both_ends_and_not_beyond() {
        let mut rng = random_stream();
        let drawn: Vec<Movement> = (0..1000).map(|_| Movement::draw(&STRONG, &mut rng)).collect();
        let check = |name: &str, strength: f64, value: fn(&Movement) -> f64| {
            let values = || drawn.iter().map(value);
            assert!(values().all(|value| value.abs() <= strength), "{name}");
            assert!(values().any(|value| value > 0.98 * strength), "{name}");
            assert!(values().any(|value| value < -0.98 * strength), "{name}");
        };
        check("down", 8.0, |movement| movement.down_px);
        check("right", 8.0, |movement| movement.right_px);
        check("rotation", 90.0, |movement| movement.degrees);
        check("zoom", 0.99, |movement| movement.factor - 1.0);
        check("skew", 1.0, |movement| movement.skew);
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6), "{found:?}");
    }
}
