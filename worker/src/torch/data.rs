//! The dataset as the trainer holds it: `u8` images in memory, batches made when they are needed.

use std::{fs, path::Path};

use plurality_common::{
    idx::{Images, Labels, parse_images, parse_labels},
    recipe::{Augmentation, Recipe},
    seed::{Purpose, stream},
    trainer::TrainerSpec,
};

use super::{
    augment::{Sample, Shift, write_samples, write_shifted},
    distort::Distorter,
    error::TrainError,
};

/// Training images with labels, and the images that are predicted at the end.
pub struct Dataset {
    /// To train and validate on.
    pub train_images: Images,
    /// One for each of `train_images`.
    pub train_labels: Labels,
    /// Without labels: nothing here can look at them.
    pub test_images: Images,
}

impl Dataset {
    /// Reads the files of a specification and checks that the recipe's images are there.
    pub fn read(spec: &TrainerSpec) -> Result<Self, TrainError> {
        let train_images = read_images(&spec.train_images)?;
        let (name, bytes) = read(&spec.train_labels)?;
        let train_labels = parse_labels(&name, &bytes, spec.recipe.classes())?;
        let test_images = read_images(&spec.test_images)?;
        let images = train_images.count as u64;
        check_size("training labels", train_labels.0.len() as u64, images, |found, needed| found == needed)?;
        let needed = u64::from(spec.recipe.data.train) + u64::from(spec.recipe.data.validation);
        check_size("training images", images, needed, |found, needed| found >= needed)?;
        Ok(Self { train_images, train_labels, test_images })
    }

    /// Returns the validation images `[n, 1, rows, columns]` u8-exact in f32 0..1 and their labels: the last of the
    /// training file.
    pub fn validation(&self, recipe: &Recipe) -> (Vec<f32>, &[u8]) {
        let first = self.train_images.count - recipe.data.validation as usize;
        (scaled(&self.train_images, first..self.train_images.count), &self.train_labels.0[first..])
    }
}

/// Returns images of a range as f32 in 0..1, `[n, 1, rows, columns]` row-major.
pub fn scaled(images: &Images, range: std::ops::Range<usize>) -> Vec<f32> {
    let size = images.rows * images.columns;
    let mut pixels = vec![0.0; range.len() * size];
    for (index, out) in range.zip(pixels.chunks_exact_mut(size)) {
        write_shifted(images.image(index), images.columns, Shift::NONE, out);
    }
    pixels
}

/// What was drawn for some images, for whoever makes them elsewhere.
#[derive(Default)]
pub struct Draws {
    /// Which images, moved how.
    pub samples: Vec<Sample>,
    /// Six numbers for each image, as [`Distorter::draw`] gives them; empty where the recipe distorts nothing.
    pub movements: Vec<f32>,
    /// Noise of an elastic field for each image, `[columns, 2, rows]`; empty where the recipe has none.
    pub noise: Vec<i16>,
}

/// Makes a member's training batches; keeps its buffers from step to step.
pub struct Batches {
    augmentation: Augmentation,
    run_seed: u64,
    member: u32,
    /// None where the recipe distorts nothing.
    distorter: Option<Distorter>,
    samples: Vec<Sample>,
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Batches {
    /// Prepares for the training images of a dataset.
    pub fn new(recipe: &Recipe, run_seed: u64, member: u32, dataset: &Dataset) -> Self {
        let Images { rows, columns, .. } = dataset.train_images;
        Self {
            augmentation: recipe.data.augmentation,
            run_seed,
            member,
            distorter: recipe.data.distortion.and_then(|strengths| Distorter::new(strengths, rows, columns)),
            samples: Vec::new(),
            pixels: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Writes the images at `positions` of the pass, shifted and then distorted, and returns them `[n, 1, rows, columns]`
    /// f32 in 0..1, and their labels `[n]`.
    ///
    /// What is drawn depends on seed, member and step alone: from one stream first all shifts, then image by image how each
    /// is distorted.
    pub fn fill(&mut self, dataset: &Dataset, step: u64, positions: &[u32]) -> (&[f32], &[u8]) {
        let mut rng = stream(self.run_seed, Some(self.member), Purpose::Augmentation, step);
        write_samples(self.augmentation, positions, &mut rng, &mut self.samples);
        let Images { rows, columns, .. } = dataset.train_images;
        self.pixels.resize(positions.len() * rows * columns, 0.0);
        self.labels.clear();
        for (sample, out) in self.samples.iter().zip(self.pixels.chunks_exact_mut(rows * columns)) {
            let image = sample.image as usize;
            write_shifted(dataset.train_images.image(image), columns, sample.shift, out);
            if let Some(distorter) = &mut self.distorter {
                distorter.distort(out, &mut rng);
            }
            self.labels.push(dataset.train_labels.0[image]);
        }
        (&self.pixels, &self.labels)
    }

    /// Draws what [`Batches::fill`] would, and appends it to `draws` in place of making images.
    pub fn draw(&mut self, step: u64, positions: &[u32], draws: &mut Draws) {
        let mut rng = stream(self.run_seed, Some(self.member), Purpose::Augmentation, step);
        write_samples(self.augmentation, positions, &mut rng, &mut self.samples);
        if let Some(distorter) = &mut self.distorter {
            for _ in &self.samples {
                distorter.draw(&mut rng, &mut draws.movements, &mut draws.noise);
            }
        }
        draws.samples.extend_from_slice(&self.samples);
    }

    /// Returns what distorts, if anything does.
    pub fn distorter(&self) -> Option<&Distorter> {
        self.distorter.as_ref()
    }
}

fn read_images(path: &Path) -> Result<Images, TrainError> {
    let (name, bytes) = read(path)?;
    Ok(parse_images(&name, &bytes)?)
}

/// Reads a file; errors name it without its folder, which is nobody's business beyond this machine.
fn read(path: &Path) -> Result<(String, Vec<u8>), TrainError> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let bytes = fs::read(path).map_err(|source| TrainError::DatasetFile { name: name.into(), source })?;
    Ok((name.to_string_lossy().into_owned(), bytes))
}

fn check_size(
    what: &'static str,
    found: u64,
    needed: u64,
    is_enough: impl Fn(u64, u64) -> bool,
) -> Result<(), TrainError> {
    if is_enough(found, needed) { Ok(()) } else { Err(TrainError::DatasetSize { what, found, needed }) }
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::Distortion;

    use super::*;
    use crate::testing::{self, DISTORTION};

    fn batches(augmentation: Augmentation, distortion: Option<Distortion>, run_seed: u64, member: u32) -> Batches {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        (recipe.data.augmentation, recipe.data.distortion) = (augmentation, distortion);
        Batches::new(&recipe, run_seed, member, &testing::dataset())
    }

    fn filled(mut batches: Batches, step: u64) -> Vec<f32> {
        batches.fill(&testing::dataset(), step, &[3, 0, 3]).0.to_vec()
    }

    #[test]
    fn a_batch_has_the_shape_and_labels_of_its_positions() {
        let mut batches = batches(Augmentation::OnePixelShiftFixed, Some(DISTORTION), 1, 0);
        let dataset = testing::dataset();
        let (pixels, labels) = batches.fill(&dataset, 0, &[0, 5, 24, 119]);
        assert_eq!((pixels.len(), labels), (4 * 144, &[0, 1, 1, 2][..]));
        assert!(pixels.iter().all(|value| (0.0..=1.0).contains(value)));
    }

    #[test]
    fn what_a_batch_is_depends_on_seed_member_and_step_alone() {
        for (augmentation, distortion) in [
            (Augmentation::OnePixelShiftDrawn, None),
            (Augmentation::OnePixelShiftNineDrawn, None),
            (Augmentation::None, Some(DISTORTION)),
            (Augmentation::OnePixelShiftDrawn, Some(DISTORTION)),
        ] {
            // Enough images that two seeds can't agree on all shifts by chance.
            let positions: Vec<u32> = (0..24).collect();
            let draw = |run_seed, member, steps: &[u64]| {
                let mut batches = batches(augmentation, distortion, run_seed, member);
                let mut last = Vec::new();
                for step in steps {
                    last = batches.fill(&testing::dataset(), *step, &positions).0.to_vec();
                }
                last
            };
            let first = draw(1, 2, &[3]);
            assert_eq!(first, draw(1, 2, &[3]));
            assert_eq!(first, draw(1, 2, &[0, 7, 3]), "a resumed training draws as one that was not interrupted");
            assert_ne!(first, draw(2, 2, &[3]));
            assert_ne!(first, draw(1, 3, &[3]));
            assert_ne!(first, draw(1, 2, &[4]));
        }
    }

    #[test]
    fn a_distortion_of_no_strength_leaves_a_batch_as_it_is_to_the_last_bit() {
        let (augmentation, none) = (Augmentation::OnePixelShiftDrawn, Distortion::default());
        let expected = filled(batches(augmentation, None, 1, 0), 5);
        assert_eq!(filled(batches(augmentation, Some(none), 1, 0), 5), expected);
    }

    #[test]
    fn images_are_shifted_before_they_are_distorted() {
        let found = filled(batches(Augmentation::OnePixelShiftDrawn, Some(DISTORTION), 1, 0), 5);
        let mut expected = filled(batches(Augmentation::OnePixelShiftDrawn, None, 1, 0), 5);
        let mut rng = stream(1, Some(0), Purpose::Augmentation, 5);
        write_samples(Augmentation::OnePixelShiftDrawn, &[3, 0, 3], &mut rng, &mut Vec::new());
        let mut distorter = Distorter::new(DISTORTION, 12, 12).unwrap();
        for image in expected.chunks_exact_mut(144) {
            distorter.distort(image, &mut rng);
        }
        assert_eq!(found, expected);
    }

    /// Pixels computed by an independent implementation; sine, cosine and exponential may differ in their last bit.
    #[test]
    fn the_first_distorted_images_of_a_seed_are_the_golden_ones() {
        let pixels = filled(batches(Augmentation::OnePixelShiftDrawn, Some(DISTORTION), 7, 0), 0);
        let found: Vec<f32> = pixels.chunks_exact(144).flat_map(|image| [image[40], image[78], image[101]]).collect();
        let expected: [f32; 9] =
            [0.7465689, 0.1293518, 0.1143093, 0.1270719, 0.1009297, 0.0, 0.6944625, 0.1938357, 0.209331];
        let is_close = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
        assert!(is_close, "{found:?}");
    }
}
