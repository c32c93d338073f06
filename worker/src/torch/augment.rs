//! One-pixel shifts, straight from `u8` images to `f32` batches: the enlarged data set is never stored.

use plurality_common::recipe::Augmentation;
use rand_chacha::rand_core::Rng;

/// How an image is moved; the vacated lines are zero, nothing wraps around.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shift {
    /// −1, 0 or 1 rows down.
    pub down: i8,
    /// −1, 0 or 1 columns to the right.
    pub right: i8,
}

impl Shift {
    /// As it is.
    pub const NONE: Self = Self { down: 0, right: 0 };
}

/// The five variants, in the order in which the lecture's program writes them: none, down, up, right, left.
pub const SHIFTS: [Shift; 5] = [
    Shift::NONE,
    Shift { down: 1, right: 0 },
    Shift { down: -1, right: 0 },
    Shift { down: 0, right: 1 },
    Shift { down: 0, right: -1 },
];

/// All nine positions, from the upper left to the lower right.
const NINE_SHIFTS: [Shift; 9] = [
    Shift { down: -1, right: -1 },
    Shift { down: -1, right: 0 },
    Shift { down: -1, right: 1 },
    Shift { down: 0, right: -1 },
    Shift::NONE,
    Shift { down: 0, right: 1 },
    Shift { down: 1, right: -1 },
    Shift { down: 1, right: 0 },
    Shift { down: 1, right: 1 },
];

/// Writes one image `[rows, columns]` u8, moved, as f32 in 0..1 (the pixel divided by 255).
pub fn write_shifted(image: &[u8], columns: usize, shift: Shift, out: &mut [f32]) {
    assert_eq!(image.len(), out.len(), "an image and its copy have the same size");
    let kept = image.len() - columns;
    let (from, to) = match shift.down {
        0 => (image, out),
        1.. => {
            out[..columns].fill(0.0);
            (&image[..kept], &mut out[columns..])
        }
        ..=-1 => {
            out[kept..].fill(0.0);
            (&image[columns..], &mut out[..kept])
        }
    };
    if shift.right == 0 {
        return scale(from, to);
    }
    for (from, to) in from.chunks_exact(columns).zip(to.chunks_exact_mut(columns)) {
        if shift.right > 0 {
            to[0] = 0.0;
            scale(&from[..columns - 1], &mut to[1..]);
        } else {
            scale(&from[1..], &mut to[..columns - 1]);
            to[columns - 1] = 0.0;
        }
    }
}

fn scale(from: &[u8], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f32::from(from) / 255.0;
    }
}

/// One entry of a batch: which image, moved how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Index into the training images.
    pub image: u32,
    /// How it is moved.
    pub shift: Shift,
}

/// Turns positions of the pass, below `images_per_epoch`, into images and shifts, drawing from `rng` where the recipe
/// draws: one number for each position, in their order.
pub fn write_samples(augmentation: Augmentation, positions: &[u32], rng: &mut impl Rng, samples: &mut Vec<Sample>) {
    samples.clear();
    samples.extend(positions.iter().map(|&position| match augmentation {
        Augmentation::None => Sample { image: position, shift: Shift::NONE },
        Augmentation::OnePixelShiftFixed => {
            let variants = SHIFTS.len() as u32;
            Sample { image: position / variants, shift: SHIFTS[(position % variants) as usize] }
        }
        Augmentation::OnePixelShiftDrawn => Sample { image: position, shift: drawn(&SHIFTS, rng) },
        Augmentation::OnePixelShiftNineDrawn => Sample { image: position, shift: drawn(&NINE_SHIFTS, rng) },
    }));
}

/// Draws one of a few; the bias of multiply-and-shift over 32 bits is below 3e-9.
fn drawn(shifts: &[Shift], rng: &mut impl Rng) -> Shift {
    shifts[((u64::from(rng.next_u32()) * shifts.len() as u64) >> 32) as usize]
}

#[cfg(test)]
mod tests {
    use plurality_common::seed::{Purpose, stream};

    use super::*;

    fn shifted(down: i8, right: i8) -> Vec<f32> {
        let mut out = vec![9.0; 6];
        write_shifted(&[51, 102, 153, 204, 255, 0], 3, Shift { down, right }, &mut out);
        out
    }

    #[test]
    fn each_shift_moves_by_one_and_fills_the_vacated_lines_with_zero() {
        let (a, b, c, d, e, f) = (51. / 255., 102. / 255., 153. / 255., 204. / 255., 1., 0.);
        assert_eq!(shifted(0, 0), [a, b, c, d, e, f]);
        assert_eq!(shifted(1, 0), [0., 0., 0., a, b, c]);
        assert_eq!(shifted(-1, 0), [d, e, f, 0., 0., 0.]);
        assert_eq!(shifted(0, 1), [0., a, b, 0., d, e]);
        assert_eq!(shifted(0, -1), [b, c, 0., e, f, 0.]);
        assert_eq!(shifted(1, 1), [0., 0., 0., 0., a, b]);
        assert_eq!(shifted(1, -1), [0., 0., 0., b, c, 0.]);
        assert_eq!(shifted(-1, 1), [0., d, e, 0., 0., 0.]);
        assert_eq!(shifted(-1, -1), [e, f, 0., 0., 0., 0.]);
    }

    fn samples(augmentation: Augmentation, run_seed: u64, positions: &[u32]) -> Vec<Sample> {
        let mut samples = vec![Sample { image: 9, shift: Shift::NONE }];
        let mut rng = stream(run_seed, Some(0), Purpose::Augmentation, 0);
        write_samples(augmentation, positions, &mut rng, &mut samples);
        samples
    }

    #[test]
    fn the_fixed_set_holds_each_image_five_times_in_the_lectures_order() {
        let all = samples(Augmentation::OnePixelShiftFixed, 1, &[0, 1, 2, 3, 4, 5, 9]);
        let shifts: Vec<_> = all.iter().map(|sample| (sample.shift.down, sample.shift.right)).collect();
        assert_eq!(shifts[..5], [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]);
        assert_eq!(all.iter().map(|sample| sample.image).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn without_augmentation_images_stay_where_they_are() {
        let all = samples(Augmentation::None, 1, &[4, 2]);
        assert_eq!(all, [4, 2].map(|image| Sample { image, shift: Shift::NONE }));
    }

    #[test]
    fn drawn_shifts_are_all_there_and_no_others() {
        for (augmentation, shifts) in
            [(Augmentation::OnePixelShiftDrawn, &SHIFTS[..]), (Augmentation::OnePixelShiftNineDrawn, &NINE_SHIFTS)]
        {
            let found = samples(augmentation, 1, &[7; 64]);
            assert_eq!(found, samples(augmentation, 1, &[7; 64]));
            assert_ne!(found, samples(augmentation, 2, &[7; 64]));
            assert!(found.iter().all(|sample| sample.image == 7 && shifts.contains(&sample.shift)));
            assert!(shifts.iter().all(|shift| found.iter().any(|sample| sample.shift == *shift)));
        }
    }

    /// Shifts computed by an independent implementation of ChaCha8.
    #[test]
    fn the_first_shifts_of_a_seed_are_the_golden_ones() {
        for (augmentation, expected) in [
            (Augmentation::OnePixelShiftDrawn, [(0, 0), (0, -1), (0, 1), (-1, 0), (0, 1), (0, 1), (0, 1), (0, -1)]),
            (
                Augmentation::OnePixelShiftNineDrawn,
                [(-1, -1), (1, 1), (0, 1), (0, 1), (1, -1), (1, -1), (1, -1), (1, 1)],
            ),
        ] {
            let found = samples(augmentation, 7, &[0; 8]);
            assert_eq!(
                found.iter().map(|sample| (sample.shift.down, sample.shift.right)).collect::<Vec<_>>(),
                expected
            );
        }
    }
}
