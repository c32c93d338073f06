//! The dataset of this coordinator: embedded MNIST or a folder of four IDX files.
//!
//! Workers get training images, training labels and test images as blobs. The test labels are stored apart and stay here.
//! A run names the blobs it is trained and judged on, so that it is judged on the same ones after a restart with another
//! dataset.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use plurality_common::{
    blob::BlobRef,
    dataset::DatasetRef,
    digest::Digest,
    idx::{self, IdxError, Images, Labels},
    recipe::{
        Recipe,
        shape::{FitError, InputShape, Plan},
    },
};
use plurality_failpoints::{self as failpoints, Point};
use thiserror::Error;

use crate::artifacts::{ArtifactError, ArtifactStore};

/// The official files, so that a coordinator needs neither download nor folder.
const EMBEDDED: [(&str, &[u8]); 4] = [
    ("train-images-idx3-ubyte.gz", include_bytes!("../../data/mnist/train-images-idx3-ubyte.gz")),
    ("train-labels-idx1-ubyte.gz", include_bytes!("../../data/mnist/train-labels-idx1-ubyte.gz")),
    ("t10k-images-idx3-ubyte.gz", include_bytes!("../../data/mnist/t10k-images-idx3-ubyte.gz")),
    ("t10k-labels-idx1-ubyte.gz", include_bytes!("../../data/mnist/t10k-labels-idx1-ubyte.gz")),
];
/// Classes that one byte can name: which of them a recipe tells apart is known only once it is submitted.
const CLASSES_MAX: usize = 256;
/// Test sets kept in memory: more than one only while runs of different datasets overlap.
const TEST_SETS_MAX: usize = 2;

/// Where the four files come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Source {
    /// MNIST, carried in this program.
    #[default]
    Embedded,
    /// A folder of four IDX files under their usual names, plain or gzip.
    Directory(PathBuf),
}

/// A dataset whose blobs are stored.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What workers fetch.
    pub reference: DatasetRef,
    /// The right answers for the test images, a private blob.
    pub test_labels: BlobRef,
    /// Images in the training file.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// The size of one image.
    pub input: InputShape,
    /// Classes named by the labels: one more than the highest.
    pub classes: usize,
}

/// What members are judged on.
#[derive(Debug)]
pub struct TestSet {
    /// The images.
    pub images: Images,
    /// The right answers.
    pub labels: Labels,
}

/// Test sets read back from their blobs; the last ones used are kept.
pub struct TestSets {
    artifacts: ArtifactStore,
    /// Oldest first. A lock and not a task: it guards a cache of [`TEST_SETS_MAX`] entries and is held for a look.
    kept: Mutex<VecDeque<(TestSetKey, Arc<TestSet>)>>,
}

/// Digests of images and labels.
type TestSetKey = (Digest, Digest);

/// A dataset could not be made ready, or does not suit a recipe.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// A file is malformed, missing or does not belong to the others.
    #[error("failed to read the dataset")]
    Idx(#[from] IdxError),
    /// The blobs could not be stored.
    #[error("failed to store the dataset")]
    Artifacts(#[from] ArtifactError),
    /// The recipe wants more training images than there are, or its layers don't fit the images.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// The recipe tells too few classes apart.
    #[error("the recipe's last layer has {found} outputs, but the dataset's labels name {classes} classes")]
    TooFewClasses {
        /// Outputs of the recipe.
        found: usize,
        /// Classes of the dataset.
        classes: usize,
    },
    /// The runtime is stopping.
    #[error("stopped before the dataset was read")]
    Stopped,
}

impl Dataset {
    /// Reads the files of `source` and stores their unpacked bytes as blobs. Blobs that are there already are read, and
    /// replaced if they are damaged.
    ///
    /// # Errors
    /// When a file is malformed or the store fails.
    pub async fn prepare(source: Source, artifacts: &ArtifactStore) -> Result<Self, DatasetError> {
        let files = match tokio::task::spawn_blocking(move || read(&source)).await {
            Ok(files) => files?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(DatasetError::Stopped),
        };
        let train_images = files.train_images.count;
        let labels = files.train_labels.0.iter().chain(&files.test_labels.0);
        let classes = labels.max().map_or(0, |&highest| usize::from(highest) + 1);
        let put =
            async |bytes: Vec<u8>| artifacts.put(bytes).await.inspect(|_stored| failpoints::pass(Point::DatasetStored));
        let reference = DatasetRef {
            train_images: put(files.train_images.to_idx()).await?,
            train_labels: put(files.train_labels.to_idx()).await?,
            test_images: put(files.test_images.to_idx()).await?,
        };
        let test_labels = artifacts.put_private(files.test_labels.to_idx()).await?;
        let (test_images, input) = (files.test_images.count, files.test_images.shape());
        Ok(Self { reference, test_labels, train_images, test_images, input, classes })
    }

    /// Checks that `recipe` can be trained and judged on this dataset, and returns its plan.
    ///
    /// # Errors
    /// When it wants more images or tells fewer classes apart than there are, or its layers don't fit.
    pub fn plan(&self, recipe: &Recipe) -> Result<Plan, DatasetError> {
        let plan = recipe.check_fits(self.train_images, self.input)?;
        if plan.classes() < self.classes {
            return Err(DatasetError::TooFewClasses { found: plan.classes(), classes: self.classes });
        }
        Ok(plan)
    }
}

impl TestSets {
    /// Reads from `artifacts`.
    pub fn new(artifacts: ArtifactStore) -> Self {
        Self { artifacts, kept: Mutex::default() }
    }

    /// Returns the test set of a run from its blob of images and its private blob of labels.
    ///
    /// # Errors
    /// When a blob cannot be read or is malformed.
    pub async fn get(&self, images: BlobRef, labels: BlobRef) -> Result<Arc<TestSet>, DatasetError> {
        let key = (images.sha256, labels.sha256);
        if let Some(kept) = self.kept(key) {
            return Ok(kept);
        }
        let images = self.artifacts.get(images.sha256).await?;
        let labels = self.artifacts.get_private(labels.sha256).await?;
        let set = Arc::new(TestSet {
            images: idx::parse_images("test images", &images)?,
            labels: idx::parse_labels("test labels", &labels, CLASSES_MAX)?,
        });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TEST_SETS_MAX {
            kept.pop_front();
        }
        kept.push_back((key, Arc::clone(&set)));
        Ok(set)
    }

    fn kept(&self, key: TestSetKey) -> Option<Arc<TestSet>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(of, _)| *of == key).map(|(_, set)| Arc::clone(set))
    }
}

fn read(source: &Source) -> Result<idx::Dataset, IdxError> {
    match source {
        Source::Embedded => idx::Dataset::from_files(EMBEDDED, CLASSES_MAX),
        Source::Directory(directory) => idx::read_directory(directory, CLASSES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::{Layer, builtin};

    use super::*;
    use crate::artifacts::room::Room;

    async fn embedded() -> (tempfile::TempDir, ArtifactStore, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
        let dataset = Dataset::prepare(Source::Embedded, &store).await.unwrap();
        (folder, store, dataset)
    }

    #[tokio::test]
    async fn embedded_mnist_has_the_digests_its_readme_names() {
        let (_folder, store, dataset) = embedded().await;
        let readme = include_str!("../../data/mnist/README.md");
        let test_labels = dataset.test_labels.sha256;
        let DatasetRef { train_images, train_labels, test_images } = dataset.reference;
        for (digest, name) in [
            (train_images.sha256, "train-images-idx3-ubyte"),
            (train_labels.sha256, "train-labels-idx1-ubyte"),
            (test_images.sha256, "t10k-images-idx3-ubyte"),
            (test_labels, "t10k-labels-idx1-ubyte"),
        ] {
            let digest_text = digest.to_string();
            let is_named = readme.lines().any(|line| line.contains(name) && line.contains(&digest_text));
            assert!(is_named, "{name} has digest {digest}");
        }
        assert!(store.find_missing(&[train_images, train_labels, test_images]).await.unwrap().is_empty());
        assert!(store.find(test_labels).await.unwrap().is_none(), "test labels are not for anyone to fetch");
        assert_eq!((dataset.train_images, dataset.test_images, dataset.classes), (60_000, 10_000, 10));
    }

    #[tokio::test]
    async fn a_recipe_that_does_not_suit_the_dataset_is_refused() {
        let (_folder, _store, dataset) = embedded().await;
        let recipe = builtin::by_name("smoke").unwrap();
        assert_eq!(dataset.plan(&recipe).unwrap().classes(), 10);

        let mut greedy = recipe.clone();
        greedy.data.validation = 60_000;
        assert!(matches!(dataset.plan(&greedy), Err(DatasetError::Fit(_))));

        let mut blind = recipe;
        *blind.network.layers.last_mut().unwrap() = Layer::Linear { outputs: 9 };
        assert!(matches!(dataset.plan(&blind), Err(DatasetError::TooFewClasses { found: 9, classes: 10 })));
    }

    #[tokio::test]
    async fn a_test_set_is_read_back_from_its_blobs() {
        let (_folder, store, dataset) = embedded().await;
        let sets = TestSets::new(store);
        let set = sets.get(dataset.reference.test_images, dataset.test_labels).await.unwrap();
        assert_eq!((set.images.count, set.images.shape()), (10_000, dataset.input));
        assert_eq!(set.labels.0[..5], [7, 2, 1, 0, 4]);
        let again = sets.get(dataset.reference.test_images, dataset.test_labels).await.unwrap();
        assert!(Arc::ptr_eq(&set, &again));
        let swapped = sets.get(dataset.reference.train_labels, dataset.test_labels).await.unwrap_err();
        assert!(matches!(swapped, DatasetError::Idx(IdxError::Magic { .. })), "{swapped:?}");
    }

    #[tokio::test]
    async fn a_damaged_blob_of_the_dataset_is_replaced_at_the_next_start() {
        let (folder, store, dataset) = embedded().await;
        let digest = dataset.reference.test_images.sha256;
        let digits = digest.to_string();
        let path = folder.path().join("blobs/sha256").join(&digits[..2]).join(&digits);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        Dataset::prepare(Source::Embedded, &store).await.unwrap();
        assert!(store.get(digest).await.is_ok());
    }

    #[tokio::test]
    async fn an_empty_folder_is_refused_by_the_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path().join("state"), Room::boundless()).unwrap();
        let source = Source::Directory(folder.path().to_owned());
        let error = Dataset::prepare(source, &store).await.unwrap_err();
        assert!(matches!(error, DatasetError::Idx(IdxError::Missing { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_store_that_fails_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path(), Room::boundless()).unwrap();
        std::fs::write(folder.path().join("blobs/sha256"), b"in the way").unwrap();
        let error = Dataset::prepare(Source::Embedded, &store).await.unwrap_err();
        assert!(matches!(error, DatasetError::Artifacts(_)), "{error:?}");
    }
}
