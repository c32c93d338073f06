//! One-pixel shifts, straight from `u8` images to `f32` batches: the enlarged data set is never stored.

use plurality_common::{
    recipe::Augmentation,
    seed::{Purpose, stream},
};
use rand_chacha::rand_core::Rng;

/// How an image is moved; the vacated line is zero, nothing wraps around.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shift {
    /// As it is.
    None,
    /// One row down.
    Down,
    /// One row up.
    Up,
    /// One column to the right.
    Right,
    /// One column to the left.
    Left,
}

/// The five variants, in the order in which the lecture's program writes them.
pub const SHIFTS: [Shift; 5] = [Shift::None, Shift::Down, Shift::Up, Shift::Right, Shift::Left];

/// Writes one image `[rows, columns]` u8, moved, as f32 in 0..1 (the pixel divided by 255).
pub fn write_shifted(image: &[u8], columns: usize, shift: Shift, out: &mut [f32]) {
    assert_eq!(image.len(), out.len(), "an image and its copy have the same size");
    match shift {
        Shift::None => scale(image, out),
        Shift::Down => {
            out[..columns].fill(0.0);
            scale(&image[..image.len() - columns], &mut out[columns..]);
        }
        Shift::Up => {
            let kept = image.len() - columns;
            scale(&image[columns..], &mut out[..kept]);
            out[kept..].fill(0.0);
        }
        Shift::Right => {
            for (from, to) in image.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                to[0] = 0.0;
                scale(&from[..columns - 1], &mut to[1..]);
            }
        }
        Shift::Left => {
            for (from, to) in image.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
                scale(&from[1..], &mut to[..columns - 1]);
                to[columns - 1] = 0.0;
            }
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
        Augmentation::None => positions.iter().map(|&image| Sample { image, shift: Shift::None }).collect(),
        Augmentation::OnePixelShiftFixed => {
            let variants = SHIFTS.len() as u32;
            positions
                .iter()
                .map(|&position| Sample { image: position / variants, shift: SHIFTS[(position % variants) as usize] })
                .collect()
        }
        Augmentation::OnePixelShiftDrawn => {
            let mut rng = stream(run_seed, Some(member), Purpose::Augmentation, step);
            positions.iter().map(|&image| Sample { image, shift: drawn(&mut rng) }).collect()
        }
    }
}

/// Draws one of the five; the bias of multiply-and-shift over 32 bits is below 2e-9.
fn drawn(rng: &mut impl Rng) -> Shift {
    SHIFTS[((u64::from(rng.next_u32()) * SHIFTS.len() as u64) >> 32) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted(shift: Shift) -> Vec<f32> {
        let mut out = vec![9.0; 6];
        write_shifted(&[51, 102, 153, 204, 255, 0], 3, shift, &mut out);
        out
    }

    #[test]
    fn each_shift_moves_by_one_and_fills_the_vacated_line_with_zero() {
        let (a, b, c, d, e, f) = (51. / 255., 102. / 255., 153. / 255., 204. / 255., 1., 0.);
        assert_eq!(shifted(Shift::None), [a, b, c, d, e, f]);
        assert_eq!(shifted(Shift::Down), [0., 0., 0., a, b, c]);
        assert_eq!(shifted(Shift::Up), [d, e, f, 0., 0., 0.]);
        assert_eq!(shifted(Shift::Right), [0., a, b, 0., d, e]);
        assert_eq!(shifted(Shift::Left), [b, c, 0., e, f, 0.]);
    }

    #[test]
    fn the_fixed_set_holds_each_image_five_times_in_the_lectures_order() {
        let all = samples(Augmentation::OnePixelShiftFixed, 1, 0, 0, &[0, 1, 2, 3, 4, 5, 9]);
        let shifts: Vec<_> = all.iter().map(|sample| sample.shift).collect();
        assert_eq!(shifts[..5], [Shift::None, Shift::Down, Shift::Up, Shift::Right, Shift::Left]);
        assert_eq!(all.iter().map(|sample| sample.image).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn drawn_shifts_depend_on_seed_member_and_step_alone() {
        let draw = |seed, member, step| samples(Augmentation::OnePixelShiftDrawn, seed, member, step, &[7; 64]);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(2, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 3, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 2, 4));
        assert!(SHIFTS.iter().all(|shift| draw(1, 2, 3).iter().any(|sample| sample.shift == *shift)));
    }
}
