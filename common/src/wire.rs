//! Between messages of the wire contract and the words of this crate.
//!
//! The only place here that knows generated types. What arrives is checked field by field; what leaves needs no check.

use plurality_proto::v1;
use thiserror::Error;

use crate::{
    attempt::{DeterminismClass, FailureKind, Handle, Phase, Progress, SnapshotRef},
    blob::BlobRef,
    dataset::DatasetRef,
    id::{AttemptId, Token},
    limits::BLOB_BYTES_MAX,
};

/// Longest id or token, in bytes: several times a UUID.
pub const ID_BYTES_MAX: usize = 128;
/// Longest part of a determinism class, in bytes: several times the longest name of a processor.
pub const CLASS_BYTES_MAX: usize = 512;
/// Longest value shown in a message, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// A message has a field that is not allowed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("field {field} is {found}, expected {expected}")]
pub struct WireError {
    /// The field, with those around it: `checkpoint.sha256`.
    pub field: String,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl WireError {
    /// Says what is wrong with `field`.
    pub fn new(field: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { field: field.into(), expected: expected.into(), found: found.into() }
    }

    /// Returns the same error, found inside of `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

/// Converts a field that must be present.
///
/// # Errors
/// When it is absent or cannot be converted; the error names the field.
pub fn required<M, T: TryFrom<M, Error = WireError>>(field: &str, message: Option<M>) -> Result<T, WireError> {
    optional(field, message)?.ok_or_else(|| WireError::new(field, "a value", "absent"))
}

/// Converts a field that may be absent.
///
/// # Errors
/// When it is present and cannot be converted; the error names the field.
pub fn optional<M, T: TryFrom<M, Error = WireError>>(field: &str, message: Option<M>) -> Result<Option<T>, WireError> {
    message.map(T::try_from).transpose().map_err(|error| error.within(field))
}

/// Checks that text has 1 to `bytes_max` bytes.
///
/// # Errors
/// When it is empty or longer.
pub fn text(field: &str, text: String, bytes_max: usize) -> Result<String, WireError> {
    match text.len() {
        0 => Err(WireError::new(field, format!("1 to {bytes_max} bytes"), "empty")),
        bytes if bytes > bytes_max => {
            Err(WireError::new(field, format!("1 to {bytes_max} bytes"), format!("{bytes} bytes long")))
        }
        _ => Ok(text),
    }
}

impl TryFrom<v1::BlobRef> for BlobRef {
    type Error = WireError;

    fn try_from(message: v1::BlobRef) -> Result<Self, WireError> {
        let v1::BlobRef { sha256, size_bytes } = message;
        let Ok(digest) = sha256.parse() else {
            return Err(WireError::new("sha256", "64 lower-case hexadecimal digits", shown(&sha256)));
        };
        if size_bytes > BLOB_BYTES_MAX {
            return Err(WireError::new("size_bytes", format!("at most {BLOB_BYTES_MAX}"), size_bytes.to_string()));
        }
        Ok(Self { sha256: digest, size_bytes })
    }
}

impl From<BlobRef> for v1::BlobRef {
    fn from(blob: BlobRef) -> Self {
        Self { sha256: blob.sha256.to_string(), size_bytes: blob.size_bytes }
    }
}

impl TryFrom<v1::Dataset> for DatasetRef {
    type Error = WireError;

    fn try_from(message: v1::Dataset) -> Result<Self, WireError> {
        let v1::Dataset { train_images, train_labels, test_images } = message;
        Ok(Self {
            train_images: required("train_images", train_images)?,
            train_labels: required("train_labels", train_labels)?,
            test_images: required("test_images", test_images)?,
        })
    }
}

impl From<DatasetRef> for v1::Dataset {
    fn from(dataset: DatasetRef) -> Self {
        let DatasetRef { train_images, train_labels, test_images } = dataset;
        Self {
            train_images: Some(train_images.into()),
            train_labels: Some(train_labels.into()),
            test_images: Some(test_images.into()),
        }
    }
}

impl TryFrom<v1::DeterminismClass> for DeterminismClass {
    type Error = WireError;

    fn try_from(message: v1::DeterminismClass) -> Result<Self, WireError> {
        let v1::DeterminismClass { libtorch_version, device_model, instruction_set, threads, flags, trainer_version } =
            message;
        if threads == 0 {
            return Err(WireError::new("threads", "at least 1", "0"));
        }
        if flags.len() > CLASS_BYTES_MAX {
            let found = format!("{} bytes long", flags.len());
            return Err(WireError::new("flags", format!("at most {CLASS_BYTES_MAX} bytes"), found));
        }
        Ok(Self {
            libtorch_version: text("libtorch_version", libtorch_version, CLASS_BYTES_MAX)?,
            device_model: text("device_model", device_model, CLASS_BYTES_MAX)?,
            instruction_set: text("instruction_set", instruction_set, CLASS_BYTES_MAX)?,
            threads,
            flags,
            trainer_version: text("trainer_version", trainer_version, CLASS_BYTES_MAX)?,
        })
    }
}

impl From<DeterminismClass> for v1::DeterminismClass {
    fn from(class: DeterminismClass) -> Self {
        let DeterminismClass { libtorch_version, device_model, instruction_set, threads, flags, trainer_version } =
            class;
        Self { libtorch_version, device_model, instruction_set, threads, flags, trainer_version }
    }
}

impl TryFrom<v1::Snapshot> for SnapshotRef {
    type Error = WireError;

    fn try_from(message: v1::Snapshot) -> Result<Self, WireError> {
        let v1::Snapshot { step, blob } = message;
        if step == 0 {
            return Err(WireError::new("step", "at least 1", "0"));
        }
        Ok(Self { step, blob: required("blob", blob)? })
    }
}

impl From<SnapshotRef> for v1::Snapshot {
    fn from(SnapshotRef { step, blob }: SnapshotRef) -> Self {
        Self { step, blob: Some(blob.into()) }
    }
}

impl TryFrom<v1::FailureKind> for FailureKind {
    type Error = WireError;

    fn try_from(kind: v1::FailureKind) -> Result<Self, WireError> {
        Ok(match kind {
            v1::FailureKind::Unspecified => return Err(unspecified("kind", "a failure kind")),
            v1::FailureKind::Numeric => Self::Numeric,
            v1::FailureKind::OutOfMemory => Self::OutOfMemory,
            v1::FailureKind::Dataset => Self::Dataset,
            v1::FailureKind::Incompatible => Self::Incompatible,
            v1::FailureKind::Internal => Self::Internal,
            v1::FailureKind::Startup => Self::Startup,
            v1::FailureKind::DiskFull => Self::DiskFull,
            v1::FailureKind::Drained => Self::Drained,
            v1::FailureKind::Stalled => Self::Stalled,
            v1::FailureKind::Paused => Self::Paused,
        })
    }
}

impl TryFrom<i32> for FailureKind {
    type Error = WireError;

    fn try_from(number: i32) -> Result<Self, WireError> {
        match v1::FailureKind::try_from(number) {
            Ok(kind) => kind.try_into(),
            Err(_) => Err(WireError::new("kind", "a failure kind", number.to_string())),
        }
    }
}

impl From<FailureKind> for v1::FailureKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Numeric => Self::Numeric,
            FailureKind::OutOfMemory => Self::OutOfMemory,
            FailureKind::Dataset => Self::Dataset,
            FailureKind::Incompatible => Self::Incompatible,
            FailureKind::Internal => Self::Internal,
            FailureKind::Startup => Self::Startup,
            FailureKind::DiskFull => Self::DiskFull,
            FailureKind::Drained => Self::Drained,
            FailureKind::Stalled => Self::Stalled,
            FailureKind::Paused => Self::Paused,
        }
    }
}

impl TryFrom<i32> for Phase {
    type Error = WireError;

    fn try_from(number: i32) -> Result<Self, WireError> {
        match v1::AttemptPhase::try_from(number) {
            Ok(v1::AttemptPhase::Starting) => Ok(Self::Starting),
            Ok(v1::AttemptPhase::Training) => Ok(Self::Training),
            Ok(v1::AttemptPhase::Uploading) => Ok(Self::Uploading),
            Ok(v1::AttemptPhase::Unspecified) => Err(unspecified("phase", "an attempt phase")),
            Err(_) => Err(WireError::new("phase", "an attempt phase", number.to_string())),
        }
    }
}

impl From<Phase> for v1::AttemptPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Starting => Self::Starting,
            Phase::Training => Self::Training,
            Phase::Uploading => Self::Uploading,
        }
    }
}

impl TryFrom<v1::Progress> for Progress {
    type Error = WireError;

    fn try_from(message: v1::Progress) -> Result<Self, WireError> {
        let v1::Progress {
            phase,
            step,
            steps_total,
            epoch,
            epochs_total,
            loss,
            validation_accuracy,
            images_per_second,
            train_seconds,
        } = message;
        if let Some(loss) = loss.filter(|loss| !loss.is_finite()) {
            return Err(WireError::new("loss", "a finite number", loss.to_string()));
        }
        for (field, found) in [("images_per_second", images_per_second), ("train_seconds", train_seconds)] {
            if !(found.is_finite() && found >= 0.0) {
                return Err(WireError::new(field, "a number of at least 0", found.to_string()));
            }
        }
        Ok(Self {
            phase: phase.try_into()?,
            step,
            steps_total,
            epoch,
            epochs_total,
            loss,
            validation_accuracy: share("validation_accuracy", validation_accuracy)?,
            images_per_second,
            train_seconds,
        })
    }
}

impl From<Progress> for v1::Progress {
    /// A loss that is not finite is left out: the attempt is about to fail for it, and its heartbeat must not.
    fn from(progress: Progress) -> Self {
        let Progress {
            phase,
            step,
            steps_total,
            epoch,
            epochs_total,
            loss,
            validation_accuracy,
            images_per_second,
            train_seconds,
        } = progress;
        Self {
            phase: v1::AttemptPhase::from(phase).into(),
            step,
            steps_total,
            epoch,
            epochs_total,
            loss: loss.filter(|loss| loss.is_finite()),
            validation_accuracy: validation_accuracy.filter(|share| (0.0..=1.0).contains(share)),
            images_per_second: if images_per_second.is_finite() { images_per_second.max(0.0) } else { 0.0 },
            train_seconds,
        }
    }
}

impl TryFrom<v1::AttemptHandle> for Handle {
    type Error = WireError;

    fn try_from(message: v1::AttemptHandle) -> Result<Self, WireError> {
        let v1::AttemptHandle { attempt_id, token } = message;
        Ok(Self {
            attempt_id: AttemptId::new(text("attempt_id", attempt_id, ID_BYTES_MAX)?),
            token: Token::new(text("token", token, ID_BYTES_MAX)?),
        })
    }
}

impl From<Handle> for v1::AttemptHandle {
    fn from(handle: Handle) -> Self {
        Self { attempt_id: handle.attempt_id.as_str().to_owned(), token: handle.token.reveal().to_owned() }
    }
}

/// Checks that a share, if present, is in 0..=1.
///
/// # Errors
/// When it is outside or NaN.
pub fn share(field: &str, share: Option<f64>) -> Result<Option<f64>, WireError> {
    match share {
        Some(found) if !(0.0..=1.0).contains(&found) => Err(WireError::new(field, "0 to 1", found.to_string())),
        _ => Ok(share),
    }
}

fn unspecified(field: &str, expected: &str) -> WireError {
    WireError::new(field, expected, "unspecified")
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN_CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> BlobRef {
        BlobRef::of(b"blob")
    }

    fn class() -> DeterminismClass {
        DeterminismClass {
            libtorch_version: "2.11.0".into(),
            device_model: "a processor".into(),
            instruction_set: "AVX2".into(),
            threads: 1,
            flags: String::new(),
            trainer_version: "0.1.0".into(),
        }
    }

    fn progress() -> Progress {
        Progress {
            phase: Phase::Training,
            step: 5,
            steps_total: 10,
            epoch: 1,
            epochs_total: 2,
            loss: Some(0.5),
            validation_accuracy: Some(1.0),
            images_per_second: 1000.0,
            train_seconds: 2.5,
        }
    }

    fn dataset() -> DatasetRef {
        DatasetRef { train_images: blob(), train_labels: BlobRef::of(b"labels"), test_images: BlobRef::of(b"test") }
    }

    fn handle() -> Handle {
        Handle { attempt_id: AttemptId::new("attempt"), token: Token::new("secret") }
    }

    #[test]
    fn everything_survives_the_wire() {
        assert_eq!(BlobRef::try_from(v1::BlobRef::from(blob())), Ok(blob()));
        assert_eq!(DatasetRef::try_from(v1::Dataset::from(dataset())), Ok(dataset()));
        assert_eq!(DeterminismClass::try_from(v1::DeterminismClass::from(class())), Ok(class()));
        assert_eq!(Progress::try_from(v1::Progress::from(progress())), Ok(progress()));
        assert_eq!(Handle::try_from(v1::AttemptHandle::from(handle())), Ok(handle()));
        let snapshot = SnapshotRef { step: 500, blob: blob() };
        assert_eq!(SnapshotRef::try_from(v1::Snapshot::from(snapshot)), Ok(snapshot));
        for phase in [Phase::Starting, Phase::Training, Phase::Uploading] {
            assert_eq!(Phase::try_from(i32::from(v1::AttemptPhase::from(phase))), Ok(phase));
        }
        let mut kinds = 0;
        for number in 1.. {
            let Ok(kind) = v1::FailureKind::try_from(number) else { break };
            let ours = FailureKind::try_from(kind).unwrap();
            assert_eq!(FailureKind::try_from(number), Ok(ours));
            assert_eq!(v1::FailureKind::from(ours), kind);
            kinds += 1;
        }
        assert_eq!(kinds, 10);
    }

    #[test]
    fn malformed_fields_are_refused_by_name() {
        fn check<T: TryFrom<M, Error = WireError> + std::fmt::Debug, M>(message: M, expected: &str) {
            assert_eq!(T::try_from(message).unwrap_err().to_string(), expected);
        }
        let good = v1::BlobRef::from(blob());
        let digits = "expected 64 lower-case hexadecimal digits";
        check::<BlobRef, _>(
            v1::BlobRef { sha256: String::new(), ..good.clone() },
            &format!("field sha256 is \"\", {digits}"),
        );
        let upper = good.sha256.to_uppercase();
        check::<BlobRef, _>(
            v1::BlobRef { sha256: upper.clone(), ..good.clone() },
            &format!("field sha256 is {upper:?}, {digits}"),
        );
        check::<BlobRef, _>(
            v1::BlobRef { size_bytes: u64::MAX, ..good.clone() },
            "field size_bytes is 18446744073709551615, expected at most 1073741824",
        );
        let good = v1::Dataset::from(dataset());
        check::<DatasetRef, _>(
            v1::Dataset { train_labels: None, ..good.clone() },
            "field train_labels is absent, expected a value",
        );
        let bad = Some(v1::BlobRef { sha256: "x".into(), size_bytes: 1 });
        check::<DatasetRef, _>(
            v1::Dataset { test_images: bad, ..good },
            &format!("field test_images.sha256 is \"x\", {digits}"),
        );
        let good = v1::DeterminismClass::from(class());
        check::<DeterminismClass, _>(
            v1::DeterminismClass { threads: 0, ..good.clone() },
            "field threads is 0, expected at least 1",
        );
        check::<DeterminismClass, _>(
            v1::DeterminismClass { device_model: String::new(), ..good.clone() },
            "field device_model is empty, expected 1 to 512 bytes",
        );
        check::<DeterminismClass, _>(
            v1::DeterminismClass { flags: "x".repeat(513), ..good },
            "field flags is 513 bytes long, expected at most 512 bytes",
        );
        let good = v1::Snapshot { step: 1, blob: Some(blob().into()) };
        check::<SnapshotRef, _>(v1::Snapshot { step: 0, ..good.clone() }, "field step is 0, expected at least 1");
        check::<SnapshotRef, _>(v1::Snapshot { blob: None, ..good }, "field blob is absent, expected a value");
        check::<FailureKind, _>(v1::FailureKind::Unspecified, "field kind is unspecified, expected a failure kind");
        check::<FailureKind, _>(99, "field kind is 99, expected a failure kind");
        check::<Phase, _>(0, "field phase is unspecified, expected an attempt phase");
        check::<Phase, _>(-1, "field phase is -1, expected an attempt phase");
        let good = v1::Progress::from(progress());
        check::<Progress, _>(
            v1::Progress { phase: 0, ..good },
            "field phase is unspecified, expected an attempt phase",
        );
        check::<Progress, _>(
            v1::Progress { loss: Some(f64::NAN), ..good },
            "field loss is NaN, expected a finite number",
        );
        check::<Progress, _>(
            v1::Progress { validation_accuracy: Some(1.5), ..good },
            "field validation_accuracy is 1.5, expected 0 to 1",
        );
        check::<Progress, _>(
            v1::Progress { images_per_second: -1.0, ..good },
            "field images_per_second is -1, expected a number of at least 0",
        );
        check::<Progress, _>(
            v1::Progress { train_seconds: f64::INFINITY, ..good },
            "field train_seconds is inf, expected a number of at least 0",
        );
        let good = v1::AttemptHandle::from(handle());
        check::<Handle, _>(
            v1::AttemptHandle { attempt_id: String::new(), ..good.clone() },
            "field attempt_id is empty, expected 1 to 128 bytes",
        );
        check::<Handle, _>(
            v1::AttemptHandle { token: "x".repeat(129), ..good },
            "field token is 129 bytes long, expected 1 to 128 bytes",
        );
    }

    #[test]
    fn a_heartbeat_survives_a_loss_that_is_not_finite() {
        let diverged = Progress {
            loss: Some(f64::INFINITY),
            validation_accuracy: Some(f64::NAN),
            images_per_second: f64::NAN,
            ..progress()
        };
        let arrived = Progress::try_from(v1::Progress::from(diverged)).unwrap();
        assert_eq!((arrived.loss, arrived.validation_accuracy, arrived.images_per_second), (None, None, 0.0));
    }

    #[test]
    fn an_error_names_the_fields_around_it() {
        let found = required::<_, Handle>("handle", Some(v1::AttemptHandle::default())).unwrap_err();
        assert_eq!(found.field, "handle.attempt_id");
        assert_eq!(optional::<v1::Progress, Progress>("progress", None), Ok(None));
    }
}
