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

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn images(count: usize, rows: usize, columns: usize) -> Images {
        let pixels = (0..count * rows * columns).map(|index| (index % 251) as u8).collect();
        Images { count, rows, columns, pixels }
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn words(words: &[u32], data: &[u8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).chain(data.iter().copied()).collect()
    }

    #[test]
    fn images_and_labels_survive_a_round_trip_plain_and_packed() {
        let images = images(3, 4, 5);
        let labels = Labels(vec![0, 9, 4]);
        for pack in [<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, packed] {
            assert_eq!(parse_images("i", &pack(&images.to_idx())).unwrap(), images);
            assert_eq!(parse_labels("l", &pack(&labels.to_idx()), 10).unwrap(), labels);
            assert_eq!(unpack("i", &pack(&images.to_idx())).unwrap(), images.to_idx());
        }
        assert_eq!(images.image(1), &images.pixels[20..40]);
    }

    #[test]
    fn malformed_files_are_refused_with_name_offset_and_reason() {
        let image_file = images(2, 2, 2).to_idx();
        let label_file = words(&[0x801, 3], &[0, 1, 10]);
        let longer = [image_file.as_slice(), &[0]].concat();
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("empty", vec![], "f: ends at byte 0, expected 8 bytes"),
            ("half a magic", vec![0, 0], "f: ends at byte 2, expected 8 bytes"),
            ("half a header", image_file[..10].to_vec(), "f: ends at byte 10, expected 16 bytes"),
            ("half the pixels", image_file[..20].to_vec(), "f: ends at byte 20, expected 24 bytes"),
            ("a byte more", longer.clone(), "f: has more bytes from byte 24 on, where its header promises the end"),
            (
                "another magic",
                words(&[0xcafe_babe, 1], &[0]),
                "f: begins with 0xcafebabe at byte 0, expected 0x00000803, an IDX file of images, or 0x00000801, of labels",
            ),
            ("no images", words(&[0x803, 0, 28, 28], &[]), "f: the number of images at byte 4 is 0"),
            ("no columns", words(&[0x803, 1, 28, 0], &[]), "f: the number of columns at byte 12 is 0"),
            (
                "2^96 pixels",
                words(&[0x803, u32::MAX, u32::MAX, u32::MAX], &[]),
                "f: the header at byte 4 promises 79228162458924105385300197391 bytes, expected at most 1073741824",
            ),
            (
                "labels",
                label_file.clone(),
                "f: begins with 0x00000801 at byte 0, expected 0x00000803, an IDX file of images",
            ),
            ("packed and short", packed(&image_file[..20]), "f: ends at byte 20, expected 24 bytes"),
            (
                "packed and long",
                packed(&longer),
                "f: has more bytes from byte 24 on, where its header promises the end",
            ),
            (
                "bytes after the packed ones",
                [packed(&image_file).as_slice(), b"tail"].concat(),
                "f: has more bytes from byte 24 on, where its header promises the end",
            ),
        ];
        for (case, bytes, expected) in cases {
            assert_eq!(parse_images("f", bytes).unwrap_err().to_string(), *expected, "{case}");
        }
        assert_eq!(
            parse_labels("f", &label_file, 10).unwrap_err().to_string(),
            "f: label 10 at byte 10, expected 0 to 9"
        );
        assert_eq!(
            parse_labels("f", &image_file, 10).unwrap_err().to_string(),
            "f: begins with 0x00000803 at byte 0, expected 0x00000801, an IDX file of labels"
        );
    }

    #[test]
    fn damaged_packing_is_refused_with_its_cause() {
        let mut bytes = packed(&images(2, 2, 2).to_idx());
        let crc = bytes.len() - 8;
        bytes[crc] ^= 1;
        let error = parse_images("f", &bytes).unwrap_err();
        assert_eq!(error.to_string(), "f: gzip data is damaged after 24 unpacked bytes");
        assert!(std::error::Error::source(&error).is_some());
        assert!(matches!(parse_images("f", &bytes[..crc - 2]), Err(IdxError::Gzip { .. })));
    }

    #[test]
    fn a_gzip_bomb_is_not_unpacked() {
        // 64 MiB of zeros behind a header that promises four pixels.
        let mut bomb = words(&[0x803, 1, 2, 2], &[]);
        bomb.resize(64 << 20, 0);
        let bomb = packed(&bomb);
        assert!(bomb.len() < 1 << 20);
        assert!(matches!(parse_images("f", &bomb), Err(IdxError::Trailing { offset: 20, .. })));

        let mut decoder = GzDecoder::new(bomb.as_slice());
        let mut plain = Vec::new();
        unpack_until("f", &mut decoder, &mut plain, 21).unwrap();
        assert_eq!(plain.len(), 21);
    }

    #[test]
    fn a_packed_header_that_promises_too_much_is_refused_before_its_data() {
        let file = packed(&words(&[0x803, 2000, 1024, 1024], &[0; 100]));
        assert!(matches!(parse_images("f", &file), Err(IdxError::TooLarge { bytes: 2_097_152_016, .. })));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let (three, two) = (images(3, 4, 4).to_idx(), images(2, 4, 4).to_idx());
        let (labels3, labels2) = (Labels(vec![1; 3]).to_idx(), Labels(vec![1; 2]).to_idx());
        let read = |files: [&[u8]; 4]| {
            let [a, b, c, d] = files;
            Dataset::from_files([("ti", a), ("tl", b), ("ei", c), ("el", d)], 10)
        };
        assert!(read([&three, &labels3, &two, &labels2]).is_ok());
        assert_eq!(
            read([&three, &labels2, &two, &labels2]).unwrap_err().to_string(),
            "tl: the header at byte 4 promises 2 labels, but ti has 3 images"
        );
        assert_eq!(
            read([&three, &labels3, &two, &labels3]).unwrap_err().to_string(),
            "el: the header at byte 4 promises 3 labels, but ei has 2 images"
        );
        let other = images(2, 4, 3).to_idx();
        assert_eq!(
            read([&three, &labels3, &other, &labels2]).unwrap_err().to_string(),
            "ei: images at byte 8 are 4×3, but those of ti are 4×4"
        );
    }

    #[test]
    fn a_directory_is_read_whichever_usual_names_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        write("train-images-idx3-ubyte", &images(3, 4, 4).to_idx());
        write("train-labels.idx1-ubyte", &Labels(vec![1; 3]).to_idx());
        write("t10k-images-idx3-ubyte.gz", &packed(&images(2, 4, 4).to_idx()));
        let missing = read_directory(folder.path(), 10).unwrap_err().to_string();
        assert!(missing.ends_with("no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"), "{missing}");
        write("t10k-labels.idx1-ubyte.gz", &packed(&Labels(vec![1; 2]).to_idx()));
        let dataset = read_directory(folder.path(), 10).unwrap();
        assert_eq!((dataset.train_images.count, dataset.test_labels), (3, Labels(vec![1; 2])));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("train-images-idx3-ubyte")).unwrap();
        let error = read_directory(folder.path(), 10).unwrap_err();
        assert!(matches!(&error, IdxError::Io { name, .. } if name.ends_with("train-images-idx3-ubyte")), "{error}");
    }

    #[test]
    fn the_mnist_files_of_the_project_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mnist");
        let dataset = read_directory(&folder, 10).unwrap();
        assert_eq!((dataset.train_images.count, dataset.test_images.count), (60_000, 10_000));
        assert_eq!(dataset.train_images.shape(), InputShape { rows: 28, columns: 28 });
        assert_eq!(dataset.test_labels.0[..5], [7, 2, 1, 0, 4]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0..4) {
            let start: &[u8] = match kind {
                0 => &[0, 0, 8, 3, 0, 0, 0],
                1 => &[0, 0, 8, 1, 0, 0, 0],
                2 => &GZIP_MAGIC,
                _ => &[],
            };
            bytes.splice(0..0, start.iter().copied());
            if let Ok(plain) = unpack("f", &bytes) {
                prop_assert!(plain.len() >= 9);
            }
            let _ = parse_images("f", &bytes);
            let _ = parse_labels("f", &bytes, 10);
        }
    }
}
