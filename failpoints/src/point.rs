//! All places at which a process can be made to die.

/// Makes [`Point`] with its names and lists from one table.
macro_rules! points {
    ($($(#[doc = $about:literal])+ $program:ident { $($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+ })+) => {
        /// A place between two steps of something that has to outlive the process.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Point {
            $($($(#[doc = $doc])+ $point,)+)+
        }

        impl Point {
            $($(#[doc = $about])+ pub const $program: &[Self] = &[$(Self::$point),+];)+

            /// Every place of every program.
            pub const ALL: &[Self] = &[$($(Self::$point),+),+];

            /// Returns what a strike calls it.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Self::$point => $name,)+)+
                }
            }
        }
    };
}

points! {
    /// The places of `coordinator`.
    COORDINATOR {
        /// A new event log has its tables, and the transaction that makes them is not committed.
        LogMade = "log-made",
        /// The record of the state folder's format is on disk beside its name.
        FormatWritten = "format-written",
        /// The record of the state folder's format has its name, and the folder is not synced.
        FormatNamed = "format-named",
        /// A file of the dataset that workers are given is stored; others follow.
        DatasetStored = "dataset-stored",
        /// Events are decided, and none is stored. Detail: the kind of one of them.
        EventsDecided = "events-decided",
        /// A log of an older format has its new name, in a transaction that is not committed.
        LogRenamed = "log-renamed",
        /// Events are written, in a transaction that is not committed. Detail: the kind of one of them.
        EventsWritten = "events-written",
        /// Events are stored, and nobody is answered. Detail: the kind of one of them.
        EventsStored = "events-stored",
        /// A chunk of an upload is staged, and more are to come.
        UploadStaged = "upload-staged",
        /// All bytes of an upload are staged, and none is checked.
        UploadWhole = "upload-whole",
        /// All bytes of an upload are copied and checked, and they do not have their name.
        UploadChecked = "upload-checked",
        /// An uploaded blob has its name, and is still staged too.
        UploadNamed = "upload-named",
        /// An uploaded blob is stored, and its sender is not answered.
        UploadStored = "upload-stored",
        /// A result is about to be judged.
        ResultPending = "result-pending",
        /// A result is judged, and the coordinator's own predictions are not stored.
        ResultJudged = "result-judged",
        /// The coordinator's own predictions are stored, and the verdict is not an event.
        PredictionsStored = "predictions-stored",
        /// A blob is given up by an event that is stored, and is about to be removed.
        BlobGivenUp = "blob-given-up",
        /// A blob that was given up is removed.
        BlobRemoved = "blob-removed",
        /// A damaged blob is removed, and nobody is told that it is missing.
        DamagedRemoved = "damaged-removed",
        /// What an earlier process left behind, or nothing names, is removed; more of it may follow. Detail: what it is,
        /// `upload`, `unfinished`, `unnamed` or `needless`.
        LeftoverRemoved = "leftover-removed",
        /// A file that is written whole is on disk beside its name: one of a run's results, the mark that they are not
        /// written, or the coordinator's address for its local worker. Detail: the name of the file or of its folder.
        FileWritten = "file-written",
        /// A file that is written whole has its name, and the folder is not synced. Detail: as for the one before.
        FileNamed = "file-named",
        /// A file of earlier results, or the mark that a run's results are not written, is removed, and the folder is not
        /// synced. Detail: as for the one before.
        FileRemoved = "file-removed",
        /// The local worker of a coordinator that was killed is found, and not taken back.
        LocalWorkerFound = "local-worker-found",
        /// The log of the local worker before has its old name.
        LocalWorkerLogMoved = "local-worker-log-moved",
        /// The file that says who the local worker is is empty and locked, and there is no local worker.
        LocalWorkerAwaited = "local-worker-awaited",
        /// The local worker is started, and nobody watches over it.
        LocalWorkerStarted = "local-worker-started",
    }
    /// The places of `worker`.
    WORKER {
        /// The worker begins; a coordinator that started it does not know it by what it wrote down.
        WorkerBegun = "worker-begun",
        /// The worker has written down for its coordinator who it is, if one started it, and nothing else.
        WorkerNamed = "worker-named",
        /// What a dead worker left in the cache is removed; more of it may follow.
        ScratchSwept = "scratch-swept",
        /// The worker's own folder in the cache is made, and not locked.
        ScratchMade = "scratch-made",
        /// An attempt is taken up, and nothing is done for it.
        AttemptTaken = "attempt-taken",
        /// A chunk of a blob is fetched, and more are to come.
        DownloadBegun = "download-begun",
        /// A blob is in the cache, checked, and does not have its name.
        DownloadChecked = "download-checked",
        /// A blob in the cache has its name, and the folder is not synced.
        DownloadNamed = "download-named",
        /// The snapshots that an attempt may go on from are fetched.
        SnapshotsFetched = "snapshots-fetched",
        /// The trainer is started.
        TrainerStarted = "trainer-started",
        /// The trainer has said that it wrote a snapshot.
        SnapshotNoticed = "snapshot-noticed",
        /// A chunk of a file is on its way, and more are to come. Detail: `snapshot` or `result`.
        UploadBegun = "upload-begun",
        /// A snapshot is sent, and not named to the coordinator.
        SnapshotSent = "snapshot-sent",
        /// The coordinator has answered that it keeps a snapshot.
        SnapshotKept = "snapshot-kept",
        /// The trainer has ended, and nothing of its result is sent.
        ResultFound = "result-found",
        /// A result is sent, and not named to the coordinator.
        ResultSent = "result-sent",
        /// The coordinator has answered that it takes a result.
        ResultAccepted = "result-accepted",
        /// The worker was asked to leave, and what it trains goes on.
        LeaveBegun = "leave-begun",
        /// An attempt is given back, and the worker has not left.
        AttemptGivenBack = "attempt-given-back",
    }
    /// The places of `worker-trainer`.
    TRAINER {
        /// A file is being written beside its name. Detail: how the name begins.
        OutputBegun = "output-begun",
        /// A file is on disk beside its name. Detail: how the name begins.
        OutputWritten = "output-written",
        /// A file has its name, and the folder is not synced. Detail: how the name begins.
        OutputNamed = "output-named",
        /// A snapshot is on disk, and the worker is not told.
        SnapshotWritten = "snapshot-written",
        /// The result is on disk, and the worker is not told.
        TrainingEnded = "training-ended",
    }
}
