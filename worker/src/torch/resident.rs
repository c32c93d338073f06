//! Batches made on the device that computes, from a dataset that stays there.
//!
//! A step must not wait for the host, nor the host for a step: a GPU takes most networks here faster than a copy. So images
//! and labels are put on the device once. What is drawn for each image is drawn by the host, as ever, for many steps at once,
//! and copied in one go; dropout masks are drawn on the device. Nothing here reads from it.

use plurality_common::idx::Images;
use tch::{Device, Kind, Tensor};

use super::{
    augment::Sample,
    data::{Batches, Draws},
    dropout::Masks,
    source::{Host, Layers, Source, TensorBatch, Upcoming, edges},
    warp::Warp,
};

/// Images whose draws are copied at a time: many steps, and for MNIST 26 MB of pixels, and as many of noise where there are
/// elastic fields.
const IMAGES_AT_A_TIME: usize = 8192;
/// Most steps whose dropout masks are drawn at a time.
const MASKED_STEPS: u64 = 64;
/// Most values of a layer's masks drawn at a time, 64 MiB, unless one step has more.
const MASK_VALUES: usize = 16 << 20;
/// Zeros around each image, on every side: as far as a one-pixel shift reaches.
const BORDER: usize = 1;

/// Makes batches on one device.
pub struct Resident {
    device: Device,
    rows: usize,
    columns: usize,
    /// All training images within their borders, `[images · (rows + 2) · (columns + 2)]` u8.
    pixels: Tensor,
    /// `[images]` i64.
    labels: Tensor,
    /// `[rows · columns]` i64: how far each pixel of an image is behind its first in `pixels`.
    places: Tensor,
    /// `[]` f32: what a pixel is divided by. A number would be: CUDA multiplies by the inverse of one, which rounds otherwise.
    white: Tensor,
    /// None where the recipe distorts nothing.
    warp: Option<Warp>,
    batches: Batches,
    masks: Masks,
    layers: Layers,
    chunk: Option<Chunk>,
    /// Drawn last.
    drawn_masks: Option<DrawnMasks>,
}

/// The dropout masks of some steps.
struct DrawnMasks {
    first_step: u64,
    /// One `[steps, batch, …]` f32 for each dropout layer.
    of_layers: Vec<Tensor>,
}

/// What was drawn for the images of some steps, on the device.
struct Chunk {
    first_step: u64,
    batch: usize,
    /// Positions of the pass that it was drawn for; none of the tensors has them.
    positions: Vec<u32>,
    /// `[n]` i64.
    labels: Tensor,
    /// `[n, 1, rows, columns]` f32 in 0..1: the images, shifted.
    pixels: Tensor,
    /// `[n, 3, 2]` f32; empty without a distortion.
    movements: Tensor,
    /// `[n, columns, 2, rows]` i16; empty without an elastic field.
    noise: Tensor,
}

impl Chunk {
    /// Returns where the images of a step begin, if it was drawn for this step with these positions.
    fn find(&self, upcoming: Upcoming<'_>) -> Option<usize> {
        let steps = usize::try_from(upcoming.step.checked_sub(self.first_step)?).ok()?;
        let first = steps.checked_mul(self.batch)?;
        let wanted = upcoming.first();
        (self.positions.get(first..first + wanted.len())? == wanted).then_some(first)
    }
}

impl Resident {
    /// Puts the training images of `host` on the device.
    pub fn new(host: Host<'_>, device: Device) -> Self {
        let Host { dataset, batches, masks, layers, .. } = host;
        let Images { rows, columns, .. } = dataset.train_images;
        let labels = Tensor::from_slice(&dataset.train_labels.0).to_kind(Kind::Int64);
        let stride = columns + 2 * BORDER;
        let places: Vec<i64> =
            (0..rows * columns).map(|pixel| (pixel / columns * stride + pixel % columns) as i64).collect();
        Self {
            device,
            rows,
            columns,
            pixels: Tensor::from_slice(&bordered(&dataset.train_images)).to_device(device),
            labels: labels.to_device(device),
            places: Tensor::from_slice(&places).to_device(device),
            white: Tensor::full([], 255.0, (Kind::Float, device)),
            warp: batches.distorter().map(|distorter| Warp::new(distorter, rows, columns, device)),
            batches,
            masks,
            layers,
            chunk: None,
            drawn_masks: None,
        }
    }

    /// Returns the chunk of the next step, drawn anew if it must be, and where in it the images of the step begin.
    fn chunk(&mut self, upcoming: Upcoming<'_>) -> (&Chunk, usize) {
        let first = self.chunk.as_ref().and_then(|chunk| chunk.find(upcoming));
        let (chunk, first) = match (self.chunk.take(), first) {
            (Some(chunk), Some(first)) => (chunk, first),
            _ => (self.draw(upcoming), 0),
        };
        (self.chunk.insert(chunk), first)
    }

    fn draw(&mut self, upcoming: Upcoming<'_>) -> Chunk {
        let batch = upcoming.batch;
        let steps = (IMAGES_AT_A_TIME / batch).max(1);
        let positions = &upcoming.positions[..upcoming.positions.len().min(steps * batch)];
        let mut draws = Draws::default();
        for (step, positions) in (upcoming.step..).zip(positions.chunks(batch)) {
            self.batches.draw(step, positions, &mut draws);
        }
        let images: Vec<i64> = draws.samples.iter().map(|sample| i64::from(sample.image)).collect();
        let firsts: Vec<i64> = draws.samples.iter().map(|sample| self.first_pixel(*sample)).collect();
        let [rows, columns] = [self.rows, self.columns].map(|edge| edge as i64);
        let [images, firsts] = [images, firsts].map(|numbers| copied(&Tensor::from_slice(&numbers), self.device));
        let pixels = self.pixels.take(&(firsts.unsqueeze(1) + &self.places));
        Chunk {
            first_step: upcoming.step,
            batch,
            positions: positions.to_vec(),
            labels: self.labels.take(&images),
            pixels: (pixels.to_kind(Kind::Float) / &self.white).view([-1, 1, rows, columns]),
            movements: copied(&Tensor::from_slice(&draws.movements).view([-1, 3, 2]), self.device),
            noise: copied(&Tensor::from_slice(&draws.noise).view([-1, columns, 2, rows]), self.device),
        }
    }

    /// Returns where the first pixel of a shifted image is: what moves down comes from above.
    fn first_pixel(&self, Sample { image, shift }: Sample) -> i64 {
        let [border, rows, columns] = [BORDER, self.rows, self.columns].map(|edge| edge as i64);
        let stride = columns + 2 * border;
        let (row, column) = (border - i64::from(shift.down), border - i64::from(shift.right));
        i64::from(image) * (rows + 2 * border) * stride + row * stride + column
    }

    /// Returns the masks of one step of so many images.
    fn masks(&mut self, step: u64, batch: usize, images: usize) -> Vec<Tensor> {
        let largest = self.layers.iter().map(|(_, shape)| edges(batch, *shape).iter().product::<i64>()).max();
        let Some(largest) = largest else { return Vec::new() };
        // Follows from the recipe alone: the masks of a step must not depend on where a training began.
        let steps = (MASK_VALUES as u64 / largest.cast_unsigned().max(1)).clamp(1, MASKED_STEPS);
        let first_step = step - step % steps;
        let drawn = match self.drawn_masks.take() {
            Some(drawn) if drawn.first_step == first_step => drawn,
            _ => self.draw_masks(first_step, steps, batch),
        };
        let of_step = |masks: &Tensor| masks.get((step - first_step).cast_signed()).narrow(0, 0, images as i64);
        let masks = drawn.of_layers.iter().map(of_step).collect();
        self.drawn_masks = Some(drawn);
        masks
    }

    /// Draws the masks of some steps, each layer's from a seed of its own for LibTorch's generator.
    fn draw_masks(&self, first_step: u64, steps: u64, batch: usize) -> DrawnMasks {
        let draw = |(layer, (rate, shape)): (usize, &(f64, _))| {
            // Sets a number for the device to use, and does not wait for it.
            tch::manual_seed(self.masks.seed(layer as u32, first_step));
            let edges = [&[steps.cast_signed()][..], &edges(batch, *shape)].concat();
            let mut mask = Tensor::empty(edges.as_slice(), (Kind::Float, self.device));
            let _ = mask.bernoulli_float_(1.0 - rate);
            mask.g_mul_scalar_(f64::from(self.masks.kept(*rate)))
        };
        DrawnMasks { first_step, of_layers: self.layers.iter().enumerate().map(draw).collect() }
    }
}

impl Source for Resident {
    fn next(&mut self, upcoming: Upcoming<'_>) -> TensorBatch {
        let count = upcoming.first().len();
        let (chunk, first) = self.chunk(upcoming);
        let of_step = |tensor: &Tensor| match tensor.size()[0] {
            0 => tensor.shallow_clone(),
            _ => tensor.narrow(0, first as i64, count as i64),
        };
        let [labels, pixels, movements, noise] =
            [&chunk.labels, &chunk.pixels, &chunk.movements, &chunk.noise].map(of_step);
        TensorBatch {
            images: match &self.warp {
                Some(warp) => warp.distort(&pixels, &movements, &noise),
                None => pixels,
            },
            labels,
            masks: self.masks(upcoming.step, upcoming.batch, count),
        }
    }
}

/// Returns images with zeros around each.
fn bordered(images: &Images) -> Vec<u8> {
    let Images { count, rows, columns, .. } = *images;
    let stride = columns + 2 * BORDER;
    let mut pixels = vec![0; count * (rows + 2 * BORDER) * stride];
    for (index, bordered) in pixels.chunks_exact_mut((rows + 2 * BORDER) * stride).enumerate() {
        let lines = bordered.chunks_exact_mut(stride).skip(BORDER);
        for (line, from) in lines.zip(images.image(index).chunks_exact(columns)) {
            line[BORDER..][..columns].copy_from_slice(from);
        }
    }
    pixels
}

/// Copies to a device; waits until what is there already is done and the values have been read, but not for the copy.
fn copied(tensor: &Tensor, device: Device) -> Tensor {
    tensor.to_device_(device, tensor.kind(), true, false)
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::{Augmentation, Distortion, DropoutMasks, DropoutScaling, Recipe, shape};

    use super::*;
    use crate::{
        order,
        parameters::values,
        testing::{self, DISTORTION},
    };

    /// Largest difference of a distorted pixel, 0 to 1, between host and device: places of some ten pixels are computed in
    /// another order in f32, which has seven digits.
    const DISTORTED_TOLERANCE: f32 = 2e-5;

    fn recipe(augmentation: Augmentation, distortion: Option<Distortion>) -> Recipe {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        (recipe.data.augmentation, recipe.data.distortion) = (augmentation, distortion);
        recipe
    }

    fn host<'a>(recipe: &Recipe, dataset: &'a crate::data::Dataset) -> Host<'a> {
        let plan = shape::plan(recipe, dataset.train_images.shape()).unwrap();
        Host::new(recipe, &plan, 5, 1, dataset)
    }

    /// Takes the steps of two passes, begun anew at each of some, and compares images and labels with the host's.
    fn check_batches(recipe: &Recipe, tolerance: f32) {
        let dataset = testing::dataset();
        let mut expected = host(recipe, &dataset);
        let mut resident = Resident::new(host(recipe, &dataset), Device::Cpu);
        for epoch in 0..2 {
            let order = order::of_pass(recipe, 5, 1, epoch);
            let batch = recipe.training.batch as usize;
            for (index, first) in (0..order.len()).step_by(batch).enumerate() {
                if index % 3 == 2 {
                    resident = Resident::new(host(recipe, &dataset), Device::Cpu);
                }
                let step = u64::from(epoch) * recipe.steps_per_epoch() + index as u64;
                let upcoming = Upcoming { step, positions: &order[first..], batch };
                let (found, expected) = (resident.next(upcoming), expected.next(upcoming));
                let labels: Vec<i64> = Vec::try_from(found.labels).unwrap();
                assert_eq!(labels, expected.labels.iter().map(|label| i64::from(*label)).collect::<Vec<_>>());
                assert_eq!(found.images.size(), [labels.len() as i64, 1, 12, 12]);
                let pixels = values(&found.images);
                let differences = pixels.iter().zip(expected.pixels).map(|(found, expected)| (found - expected).abs());
                let difference = differences.fold(0.0, f32::max);
                assert!(difference <= tolerance, "step {step} of {:?}: {difference}", recipe.data);
            }
        }
    }

    #[test]
    fn batches_are_the_hosts_to_the_last_bit_where_nothing_is_distorted() {
        for augmentation in [
            Augmentation::None,
            Augmentation::OnePixelShiftFixed,
            Augmentation::OnePixelShiftDrawn,
            Augmentation::OnePixelShiftNineDrawn,
        ] {
            check_batches(&recipe(augmentation, None), 0.0);
            check_batches(&recipe(augmentation, Some(Distortion::default())), 0.0);
        }
    }

    #[test]
    fn distorted_batches_are_the_hosts_but_for_rounding() {
        let none = Distortion::default();
        for distortion in [
            Distortion { elastic_alpha: 0.0, ..DISTORTION },
            Distortion { shift_px: 30.0, ..none },
            Distortion { elastic_alpha: 34.0, elastic_sigma: 4.0, ..none },
            Distortion { elastic_alpha: 5.0, elastic_sigma: 0.5, ..none },
            DISTORTION,
        ] {
            for augmentation in [Augmentation::None, Augmentation::OnePixelShiftNineDrawn] {
                check_batches(&recipe(augmentation, Some(distortion)), DISTORTED_TOLERANCE);
            }
        }
    }

    #[test]
    fn more_images_than_are_copied_at_a_time_are_the_hosts_too() {
        let mut recipe = recipe(Augmentation::OnePixelShiftDrawn, None);
        recipe.training.batch = 10;
        let dataset = testing::dataset();
        let (mut expected, mut resident) =
            (host(&recipe, &dataset), Resident::new(host(&recipe, &dataset), Device::Cpu));
        let positions: Vec<u32> = (0..IMAGES_AT_A_TIME as u32 + 25).map(|position| position % 24).collect();
        for (step, first) in (0..).zip((0..positions.len()).step_by(10)) {
            let upcoming = Upcoming { step, positions: &positions[first..], batch: 10 };
            assert_eq!(values(&resident.next(upcoming).images), expected.next(upcoming).pixels, "step {step}");
        }
    }

    fn masks(change: impl Fn(&mut Recipe), step: u64) -> Vec<Vec<f32>> {
        let mut recipe = recipe(Augmentation::None, None);
        // Rates of a half and a quarter, of 64 and 8 values an image.
        recipe.training.batch = 500;
        change(&mut recipe);
        let dataset = testing::dataset();
        let positions: Vec<u32> = (0..500).map(|position| position % 24).collect();
        let mut resident = Resident::new(host(&recipe, &dataset), Device::Cpu);
        let masks = resident.next(Upcoming { step, positions: &positions, batch: 500 }).masks;
        assert_eq!(masks.iter().map(Tensor::size).collect::<Vec<_>>(), [vec![500, 4, 4, 4], vec![500, 8]]);
        masks.iter().map(values).collect()
    }

    #[test]
    fn masks_drop_the_asked_share_and_keep_the_rest_at_the_recipes_scale() {
        for scaling in [DropoutScaling::Training, DropoutScaling::Evaluation] {
            let masks = masks(|recipe| recipe.network.dropout_scaling = scaling, 3);
            for (mask, rate) in masks.iter().zip([0.5_f64, 0.25]) {
                let kept = if scaling == DropoutScaling::Training { (1.0 / (1.0 - rate)) as f32 } else { 1.0 };
                assert!(mask.iter().all(|value| *value == 0.0 || *value == kept), "rate {rate}");
                let dropped = mask.iter().filter(|value| **value == 0.0).count() as f64 / mask.len() as f64;
                // Four standard errors.
                let tolerance = 4.0 * (rate * (1.0 - rate) / mask.len() as f64).sqrt();
                assert!((dropped - rate).abs() < tolerance, "rate {rate}: dropped {dropped}");
            }
        }
    }

    #[test]
    fn masks_depend_on_the_step_and_are_the_same_when_it_is_repeated() {
        let first = masks(|_| {}, 3);
        assert_eq!(first, masks(|_| {}, 3));
        for (first, other) in first.iter().zip(&masks(|_| {}, 4)) {
            assert_ne!(first, other);
        }
        // Two layers of one shape, whose masks differ unless all have one seed.
        let of_alike_layers = |seeds| {
            let layers = "{ kind = \"linear\", outputs = 8 },\n{ kind = \"dropout\", rate = 0.5 },\n\
                          { kind = \"linear\", outputs = 8 },\n{ kind = \"dropout\", rate = 0.5 },\n\
                          { kind = \"linear\", outputs = 3 },";
            let mut recipe = testing::recipe(layers);
            recipe.training.dropout_masks = seeds;
            let dataset = testing::dataset();
            let mut resident = Resident::new(host(&recipe, &dataset), Device::Cpu);
            let masks = resident.next(Upcoming { step: 0, positions: &[0, 1, 2, 3, 4, 5, 6], batch: 7 }).masks;
            [values(&masks[0]), values(&masks[1])]
        };
        let [first, second] = of_alike_layers(DropoutMasks::OwnSeed);
        assert_ne!(first, second);
        let [first, second] = of_alike_layers(DropoutMasks::OneSeed);
        assert_eq!(first, second);
    }

    #[test]
    fn a_training_that_goes_on_anywhere_draws_the_masks_of_one_that_never_stopped() {
        let recipe = recipe(Augmentation::None, None);
        let dataset = testing::dataset();
        let fresh = || Resident::new(host(&recipe, &dataset), Device::Cpu);
        let mut undisturbed = fresh();
        // The last batch of a pass is smaller.
        for (step, count) in (0..2 * MASKED_STEPS + 5).zip([7, 7, 7, 3].into_iter().cycle()) {
            let positions: Vec<u32> = (0..count).collect();
            let upcoming = Upcoming { step, positions: &positions, batch: 7 };
            let [masks, again] = [undisturbed.next(upcoming), fresh().next(upcoming)].map(|batch| batch.masks);
            assert_eq!(masks[0].size()[0], i64::from(count));
            for (mask, again) in masks.iter().zip(&again) {
                assert_eq!(values(mask), values(again), "step {step}");
            }
        }
    }
}
