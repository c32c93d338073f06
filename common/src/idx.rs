//! IDX, the file format of MNIST and its relatives, plain or packed with gzip.
//!
//! A file is a big-endian header and bytes: images begin with 0x0000_0803, count, rows, columns; labels with 0x0000_0801,
//! count. Files come from strangers: every length is checked before anything is allocated for it, and an error names the
//! file, the byte and the reason. This is the one module here that opens files.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use flate2::bufread::GzDecoder;
use thiserror::Error;

use crate::{limits::BLOB_BYTES_MAX, recipe::shape::InputShape};

/// First bytes of an image file: unsigned bytes, three dimensions.
const IMAGES_MAGIC: u32 = 0x0803;
/// First bytes of a label file: unsigned bytes, one dimension.
const LABELS_MAGIC: u32 = 0x0801;
/// First bytes of a gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Bytes of the longest header.
const HEADER_BYTES_MAX: usize = 16;
/// Usual names of the four files without their ends, in the order of [`Dataset::from_files`].
const STEMS: [(&str, &str); 4] =
    [("train-images", "idx3"), ("train-labels", "idx1"), ("t10k-images", "idx3"), ("t10k-labels", "idx1")];

/// Grey images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Images {
    /// Images, at least 1.
    pub count: usize,
    /// Rows of each, at least 1.
    pub rows: usize,
    /// Columns of each, at least 1.
    pub columns: usize,
    /// `[count, rows, columns]`, 0 black to 255 white.
    pub pixels: Vec<u8>,
}

impl Images {
    /// Returns the size of one image.
    pub fn shape(&self) -> InputShape {
        InputShape { rows: self.rows, columns: self.columns }
    }

    /// Returns the pixels of one image, `[rows, columns]`.
    ///
    /// # Panics
    /// When there is no such image.
    pub fn image(&self, index: usize) -> &[u8] {
        let size = self.rows * self.columns;
        &self.pixels[index * size..][..size]
    }

    /// Returns the images as a plain IDX file.
    pub fn to_idx(&self) -> Vec<u8> {
        to_idx(IMAGES_MAGIC, &[self.count, self.rows, self.columns], &self.pixels)
    }
}

/// The right answer for each image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Labels(pub Vec<u8>);

impl Labels {
    /// Returns the labels as a plain IDX file.
    pub fn to_idx(&self) -> Vec<u8> {
        to_idx(LABELS_MAGIC, &[self.0.len()], &self.0)
    }
}

/// The four files of a dataset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dataset {
    /// To train and validate on.
    pub train_images: Images,
    /// One for each training image.
    pub train_labels: Labels,
    /// To judge on.
    pub test_images: Images,
    /// One for each test image.
    pub test_labels: Labels,
}

impl Dataset {
    /// Reads training images, training labels, test images and test labels, each given with its name for messages.
    ///
    /// # Errors
    /// When a file is malformed, a label is not below `classes`, or the files don't belong together.
    pub fn from_files(files: [(&str, &[u8]); 4], classes: usize) -> Result<Self, IdxError> {
        let [train_images, train_labels, test_images, test_labels] = files;
        let dataset = Self {
            train_images: parse_images(train_images.0, train_images.1)?,
            train_labels: parse_labels(train_labels.0, train_labels.1, classes)?,
            test_images: parse_images(test_images.0, test_images.1)?,
            test_labels: parse_labels(test_labels.0, test_labels.1, classes)?,
        };
        check_counts(train_images.0, &dataset.train_images, train_labels.0, &dataset.train_labels)?;
        check_counts(test_images.0, &dataset.test_images, test_labels.0, &dataset.test_labels)?;
        let (train, test) = (dataset.train_images.shape(), dataset.test_images.shape());
        if train != test {
            return Err(IdxError::Sizes {
                name: test_images.0.to_owned(),
                found: size_text(test),
                other: train_images.0.to_owned(),
                expected: size_text(train),
            });
        }
        Ok(dataset)
    }
}

/// A file is not what it should be.
#[derive(Debug, Error)]
pub enum IdxError {
    /// The file ends early.
    #[error("{name}: ends at byte {offset}, expected {expected} bytes")]
    Truncated {
        /// The file.
        name: String,
        /// Length found.
        offset: u64,
        /// Length that the header promises, or that a header has.
        expected: u64,
    },
    /// The file goes on after its data.
    #[error("{name}: has more bytes from byte {offset} on, where its header promises the end")]
    Trailing {
        /// The file.
        name: String,
        /// First byte too many.
        offset: u64,
    },
    /// The file is of another kind.
    #[error("{name}: begins with 0x{found:08x} at byte 0, expected 0x{expected:08x}, an IDX file of {kind}")]
    Magic {
        /// The file.
        name: String,
        /// First four bytes.
        found: u32,
        /// First four bytes of the kind.
        expected: u32,
        /// What was looked for.
        kind: &'static str,
    },
    /// A dimension is zero.
    #[error("{name}: the number of {dimension} at byte {offset} is 0")]
    Empty {
        /// The file.
        name: String,
        /// Where the number stands.
        offset: u64,
        /// Of what.
        dimension: &'static str,
    },
    /// The header promises too much.
    #[error("{name}: the header at byte 4 promises {bytes} bytes, expected at most {BLOB_BYTES_MAX}")]
    TooLarge {
        /// The file.
        name: String,
        /// Bytes promised, header included.
        bytes: u128,
    },
    /// A label names no class.
    #[error("{name}: label {found} at byte {offset}, expected 0 to {max}")]
    Label {
        /// The file.
        name: String,
        /// Where the label stands in the unpacked file.
        offset: u64,
        /// The label.
        found: u8,
        /// Highest class.
        max: usize,
    },
    /// Images and labels are not of one set.
    #[error("{labels_name}: the header at byte 4 promises {labels} labels, but {images_name} has {images} images")]
    Counts {
        /// The file of labels.
        labels_name: String,
        /// Labels found.
        labels: usize,
        /// The file of images.
        images_name: String,
        /// Images found.
        images: usize,
    },
    /// Training and test images differ in size.
    #[error("{name}: images at byte 8 are {found}, but those of {other} are {expected}")]
    Sizes {
        /// The file.
        name: String,
        /// Rows × columns.
        found: String,
        /// The file compared with.
        other: String,
        /// Rows × columns.
        expected: String,
    },
    /// The gzip packing is damaged.
    #[error("{name}: gzip data is damaged after {offset} unpacked bytes")]
    Gzip {
        /// The file.
        name: String,
        /// Bytes unpacked before.
        offset: u64,
        /// What the unpacker says.
        source: io::Error,
    },
    /// A directory has no such file.
    #[error("{directory}: no file {expected}", directory = directory.display())]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
        /// Names that would do.
        expected: String,
    },
    /// A file cannot be read.
    #[error("{name}: cannot be read")]
    Io {
        /// The file.
        name: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Unpacks gzip, if it is packed, and checks header and length.
///
/// # Errors
/// When the file is neither images nor labels, damaged, or its length is not what its header promises.
pub fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<u8>, IdxError> {
    Ok(open(name, bytes)?.1.into_owned())
}

/// Reads an image file.
///
/// # Errors
/// As [`unpack`], and when it is a label file.
pub fn parse_images(name: &str, bytes: &[u8]) -> Result<Images, IdxError> {
    let (header, mut bytes) = open(name, bytes)?;
    let [count, rows, columns] = header.dimensions[..] else {
        return Err(wrong_magic(name, LABELS_MAGIC, IMAGES_MAGIC, "images"));
    };
    let pixels = bytes.to_mut().split_off(header.bytes);
    Ok(Images { count, rows, columns, pixels })
}

/// Reads a label file.
///
/// # Errors
/// As [`unpack`], and when it is an image file or a label is not below `classes`.
pub fn parse_labels(name: &str, bytes: &[u8], classes: usize) -> Result<Labels, IdxError> {
    let (header, mut bytes) = open(name, bytes)?;
    let [_] = header.dimensions[..] else {
        return Err(wrong_magic(name, IMAGES_MAGIC, LABELS_MAGIC, "labels"));
    };
    let labels = bytes.to_mut().split_off(header.bytes);
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        None => Ok(Labels(labels)),
        Some(index) => Err(IdxError::Label {
            name: name.to_owned(),
            offset: (header.bytes + index) as u64,
            found: labels[index],
            max: classes.saturating_sub(1),
        }),
    }
}

/// Reads the four files of `directory` under their usual names: `train-images-idx3-ubyte`, with `.` for the second `-`,
/// with `.gz`, and so on for `train-labels`, `t10k-images` and `t10k-labels`.
///
/// # Errors
/// When a file is missing or unreadable, and as [`Dataset::from_files`].
pub fn read_directory(directory: &Path, classes: usize) -> Result<Dataset, IdxError> {
    let mut files = Vec::with_capacity(STEMS.len());
    for (stem, rank) in STEMS {
        files.push(read_file(directory, stem, rank)?);
    }
    let [a, b, c, d] = files.as_slice() else { unreachable!("one file was read for each of four stems") };
    Dataset::from_files([a, b, c, d].map(|(name, bytes)| (name.as_str(), bytes.as_slice())), classes)
}

fn read_file(directory: &Path, stem: &str, rank: &str) -> Result<(String, Vec<u8>), IdxError> {
    for separator in ['-', '.'] {
        for end in ["", ".gz"] {
            let path = directory.join(format!("{stem}{separator}{rank}-ubyte{end}"));
            let name = path.display().to_string();
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(IdxError::Io { name, source }),
            };
            let mut bytes = Vec::new();
            file.take(BLOB_BYTES_MAX + 1)
                .read_to_end(&mut bytes)
                .map_err(|source| IdxError::Io { name: name.clone(), source })?;
            if bytes.len() as u64 > BLOB_BYTES_MAX {
                return Err(IdxError::TooLarge { name, bytes: bytes.len() as u128 });
            }
            return Ok((name, bytes));
        }
    }
    Err(IdxError::Missing {
        directory: directory.to_owned(),
        expected: format!("{stem}-{rank}-ubyte or {stem}-{rank}-ubyte.gz"),
    })
}

/// What the first bytes of a file say.
struct Header {
    /// `[count, rows, columns]` of images, `[count]` of labels.
    dimensions: Vec<usize>,
    /// Length of the header.
    bytes: usize,
    /// Length of the whole file.
    total_bytes: u64,
}

/// Returns the header and the plain bytes, whose length is as the header promises.
fn open<'a>(name: &str, bytes: &'a [u8]) -> Result<(Header, Cow<'a, [u8]>), IdxError> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        let header = read_header(name, bytes)?;
        check_length(name, &header, bytes.len() as u64)?;
        return Ok((header, Cow::Borrowed(bytes)));
    }
    let mut packed = GzDecoder::new(bytes);
    let mut plain = Vec::with_capacity(HEADER_BYTES_MAX);
    unpack_until(name, &mut packed, &mut plain, HEADER_BYTES_MAX as u64)?;
    let header = read_header(name, &plain)?;
    // One byte more than promised is enough to know that it is too long, however much would follow.
    unpack_until(name, &mut packed, &mut plain, header.total_bytes + 1)?;
    check_length(name, &header, plain.len() as u64)?;
    if !packed.into_inner().is_empty() {
        return Err(IdxError::Trailing { name: name.to_owned(), offset: header.total_bytes });
    }
    Ok((header, Cow::Owned(plain)))
}

/// Unpacks until `plain` holds `limit_bytes` or the packed data ends.
fn unpack_until(
    name: &str,
    packed: &mut GzDecoder<&[u8]>,
    plain: &mut Vec<u8>,
    limit_bytes: u64,
) -> Result<(), IdxError> {
    let missing = limit_bytes.saturating_sub(plain.len() as u64);
    match packed.take(missing).read_to_end(plain) {
        Ok(_) => Ok(()),
        Err(source) => Err(IdxError::Gzip { name: name.to_owned(), offset: plain.len() as u64, source }),
    }
}

fn read_header(name: &str, bytes: &[u8]) -> Result<Header, IdxError> {
    let truncated = |expected: u64| IdxError::Truncated { name: name.to_owned(), offset: bytes.len() as u64, expected };
    let word = |index: usize| bytes.get(index * 4..index * 4 + 4)?.try_into().map(u32::from_be_bytes).ok();
    let dimension_names: &[&'static str] = match word(0).ok_or_else(|| truncated(8))? {
        IMAGES_MAGIC => &["images", "rows", "columns"],
        LABELS_MAGIC => &["labels"],
        found => return Err(wrong_magic(name, found, IMAGES_MAGIC, "images, or 0x00000801, of labels")),
    };
    let header_bytes = 4 + 4 * dimension_names.len();
    let mut dimensions = Vec::with_capacity(dimension_names.len());
    let mut total_bytes: u128 = 1;
    for (index, dimension) in dimension_names.iter().enumerate() {
        let found = word(index + 1).ok_or_else(|| truncated(header_bytes as u64))?;
        if found == 0 {
            return Err(IdxError::Empty { name: name.to_owned(), offset: 4 + 4 * index as u64, dimension });
        }
        dimensions.push(found as usize);
        total_bytes *= u128::from(found);
    }
    total_bytes += header_bytes as u128;
    match u64::try_from(total_bytes) {
        Ok(total_bytes) if total_bytes <= BLOB_BYTES_MAX => Ok(Header { dimensions, bytes: header_bytes, total_bytes }),
        _ => Err(IdxError::TooLarge { name: name.to_owned(), bytes: total_bytes }),
    }
}

fn check_length(name: &str, header: &Header, found: u64) -> Result<(), IdxError> {
    let (name, expected) = (name.to_owned(), header.total_bytes);
    if found < expected {
        Err(IdxError::Truncated { name, offset: found, expected })
    } else if found > expected {
        Err(IdxError::Trailing { name, offset: expected })
    } else {
        Ok(())
    }
}

fn check_counts(images_name: &str, images: &Images, labels_name: &str, labels: &Labels) -> Result<(), IdxError> {
    if images.count == labels.0.len() {
        return Ok(());
    }
    Err(IdxError::Counts {
        labels_name: labels_name.to_owned(),
        labels: labels.0.len(),
        images_name: images_name.to_owned(),
        images: images.count,
    })
}

fn wrong_magic(name: &str, found: u32, expected: u32, kind: &'static str) -> IdxError {
    IdxError::Magic { name: name.to_owned(), found, expected, kind }
}

fn size_text(shape: InputShape) -> String {
    format!("{}×{}", shape.rows, shape.columns)
}

fn to_idx(magic: u32, dimensions: &[usize], data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX + data.len());
    bytes.extend(magic.to_be_bytes());
    for &dimension in dimensions {
        let dimension = u32::try_from(dimension).expect("dimensions came from 32-bit words");
        bytes.extend(dimension.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}
