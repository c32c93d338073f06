//! One-pixel shifts, straight from `u8` images to `f32` batches: the enlarged data set is never stored.

use plurality_common::{
    recipe::Augmentation,
    seed::{Purpose, stream},
};
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

/// Turns positions of the pass into images and shifts, drawing from the member's stream where the recipe draws.
///
/// `positions` are below `images_per_epoch`; what is drawn depends on seed and `step` alone.
pub fn samples(augmentation: Augmentation, run_seed: u64, member: u32, step: u64, positions: &[u32]) -> Vec<Sample> {
    match augmentation {
        Augmentation::None => positions.iter().map(|&image| Sample { image, shift: Shift::NONE }).collect(),
        Augmentation::OnePixelShiftFixed => {
            let variants = SHIFTS.len() as u32;
            positions
                .iter()
                .map(|&position| Sample { image: position / variants, shift: SHIFTS[(position % variants) as usize] })
                .collect()
        }
        Augmentation::OnePixelShiftDrawn => {
            let mut rng = stream(run_seed, Some(member), Purpose::Augmentation, step);
            positions.iter().map(|&image| Sample { image, shift: drawn(&SHIFTS, &mut rng) }).collect()
        }
        Augmentation::OnePixelShiftNineDrawn => {
            let mut rng = stream(run_seed, Some(member), Purpose::Augmentation, step);
            positions.iter().map(|&image| Sample { image, shift: drawn(&NINE_SHIFTS, &mut rng) }).collect()
        }
    }
}

/// Draws one of a few; the bias of multiply-and-shift over 32 bits is below 3e-9.
fn drawn(shifts: &[Shift], rng: &mut impl Rng) -> Shift {
    shifts[((u64::from(rng.next_u32()) * shifts.len() as u64) >> 32) as usize]
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn the_fixed_set_holds_each_image_five_times_in_the_lectures_order() {
        let all = samples(Augmentation::OnePixelShiftFixed, 1, 0, 0, &[0, 1, 2, 3, 4, 5, 9]);
        let shifts: Vec<_> = all.iter().map(|sample| (sample.shift.down, sample.shift.right)).collect();
        assert_eq!(shifts[..5], [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]);
        assert_eq!(all.iter().map(|sample| sample.image).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1]);
    }

    /// Draws that depend on seed, member and step alone, among `shifts` and no others.
    fn check(augmentation: Augmentation, shifts: &[Shift]) {
        let draw = |seed, member, step| samples(augmentation, seed, member, step, &[7; 64]);
        let found = draw(1, 2, 3);
        assert_eq!(found, draw(1, 2, 3));
        assert_ne!(found, draw(2, 2, 3));
        assert_ne!(found, draw(1, 3, 3));
        assert_ne!(found, draw(1, 2, 4));
        assert!(found.iter().all(|sample| sample.image == 7 && shifts.contains(&sample.shift)));
        assert!(shifts.iter().all(|shift| found.iter().any(|sample| sample.shift == *shift)));
    }

    #[test]
    fn drawn_shifts_are_all_there_and_depend_on_seed_member_and_step_alone() {
        check(Augmentation::OnePixelShiftDrawn, &SHIFTS);
        check(Augmentation::OnePixelShiftNineDrawn, &NINE_SHIFTS);
    }
}
