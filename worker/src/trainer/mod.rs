//! The child process that trains one member, and what is said over its pipes.
//!
//! The child gets one JSON line on standard input, which then stays open: when this process dies, however suddenly, the
//! child sees its input close and ends. What it reports are JSON lines on standard output; its log is standard error.

mod check;
mod lines;

use std::{
    collections::VecDeque,
    env, fmt, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use plurality_common::{
    attempt::FailureKind,
    trainer::{TRAINER_FORMAT, TrainerEvent, TrainerSpec, TrainerWish, is_plain_file_name},
};
use thiserror::Error;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use self::lines::{Line, Lines};

/// File name of the trainer, beside the worker's own.
const TRAINER_NAME: &str = "worker-trainer";
/// Longest line that a trainer may report: a real one has some 300 bytes.
const EVENT_BYTES_MAX: usize = 64 * 1024;
/// Longest line kept of a trainer's log.
const LOG_LINE_BYTES_MAX: usize = 500;
/// Lines of a trainer's log that go into the message when it dies.
const TAIL_LINES: usize = 12;
/// How long a child may take to read its spec: it reads before anything else.
const SPEC_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a child may take to read a wish; the pipe holds thousands of them.
const WISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a child may take to end after its last event or its last output, before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the rest of the log is read after the child has ended: a grandchild may hold the pipe open for ever.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);
/// What a shell and some loaders exit with when a program or its libraries are not found.
const NOT_FOUND_EXIT: i32 = 127;

/// How the trainer is started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
}

/// A trainer could not be started or did not bring its attempt to an end.
#[derive(Debug, Error)]
pub enum TrainerError {
    /// There is no such program.
    #[error(
        "the trainer {} was not found: build it with `make build`, or set PLURALITY_TRAINER", path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The program is there but the system does not start it.
    #[error("failed to start the trainer")]
    Spawn(#[source] io::Error),
    /// The dynamic loader found no LibTorch.
    #[error(
        "LibTorch was not found: run `make setup`, or set LIBTORCH and LD_LIBRARY_PATH to a copy of LibTorch 2.11.0"
    )]
    NoLibTorch,
    /// The dynamic loader found LibTorch's CUDA library, but not all that it needs.
    #[error(
        "LibTorch's CUDA library cannot be loaded: install the full PyTorch 2.11.0 wheel with all that pip installs along \
         with it, and set LIBTORCH to its folder{tail}"
    )]
    NoCuda {
        /// The end of its log.
        tail: Tail,
    },
    /// The child ended, and its last event was not the last of an attempt.
    #[error("the trainer ended {when}: {exit}{tail}")]
    Ended {
        /// Before its first event or without a result.
        when: When,
        /// How it ended.
        exit: Exit,
        /// The end of its log.
        tail: Tail,
    },
    /// A line on standard output is not what the protocol allows here.
    #[error("the trainer broke its protocol: expected {expected}, found {found:?}")]
    Protocol {
        /// What may come here.
        expected: &'static str,
        /// The beginning of what came.
        found: String,
    },
    /// A pipe to the child failed.
    #[error("failed to speak with the trainer")]
    Pipe(#[source] io::Error),
    /// The child did not read its spec or answer a check in time.
    #[error("the trainer did not answer within {} s{tail}", waited.as_secs())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
        /// The end of its log.
        tail: Tail,
    },
}

/// How far a child was when it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It never said anything.
    BeforeFirstEvent,
    /// It had begun.
    WithoutResult,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeFirstEvent => "before its first event",
            Self::WithoutResult => "without a result",
        })
    }
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// By itself, or by a signal that somebody else sent.
    Status(ExitStatus),
    /// It closed its output but went on, and was killed.
    Killed,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Killed => f.write_str("it closed its output but went on and was killed"),
        }
    }
}

/// The last lines of a child's log.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: String) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    fn names_cuda(&self) -> bool {
        self.0.iter().any(|line| line.contains("libtorch_cuda.so"))
    }

    fn names_missing_library(&self) -> bool {
        self.0
            .iter()
            .any(|line| line.contains("error while loading shared libraries") || line.contains("undefined symbol"))
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str("; the end of its log: ")?;
        for (index, line) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " | " };
            write!(f, "{separator}{line}")?;
        }
        Ok(())
    }
}

impl TrainerError {
    /// Returns the kind of failure that an attempt ends with.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Missing { .. } | Self::Spawn(_) | Self::NoLibTorch | Self::NoCuda { .. } => FailureKind::Startup,
            // A child that is killed while it loads, or that a busy machine keeps from running, would start another
            // time: `Startup` would keep this worker from the member for good.
            Self::Ended { when: When::BeforeFirstEvent, exit: Exit::Status(status), .. } if status.code().is_some() => {
                FailureKind::Startup
            }
            Self::Ended { .. } | Self::Silent { .. } | Self::Protocol { .. } | Self::Pipe(_) => FailureKind::Internal,
        }
    }
}

impl Program {
    /// Takes the program at `path`, or the one beside this executable.
    ///
    /// # Errors
    ///
    /// When `path` is absent and this executable cannot be located.
    pub fn locate(path: Option<&Path>) -> io::Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => env::current_exe()?.with_file_name(TRAINER_NAME),
        };
        Ok(Self { path })
    }

    fn command(&self, threads: u32) -> Command {
        let mut command = Command::new(&self.path);
        // A group of its own: Ctrl-C in a terminal reaches the worker alone, which then gives the attempt back.
        command.process_group(0).kill_on_drop(true).env("OMP_NUM_THREADS", threads.to_string());
        command
    }

    fn start_error(&self, error: io::Error) -> TrainerError {
        match error.kind() {
            io::ErrorKind::NotFound => TrainerError::Missing { path: self.path.clone() },
            _ => TrainerError::Spawn(error),
        }
    }
}

/// Starts trainings: in child processes, or, where no network is to be trained, in their stead.
#[tonic::async_trait]
pub trait StartTraining: fmt::Debug + Send + Sync {
    /// Starts the training of `spec`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    async fn start(&self, spec: &TrainerSpec) -> Result<Box<dyn Training>, TrainerError>;
}

/// A training under way. Dropping it ends it.
#[tonic::async_trait]
pub trait Training: Send {
    /// Returns the next event; `Started` comes once, and only refused snapshots come before it. A snapshot's file lies in
    /// the folder of the spec. Nothing is lost when the returned future is dropped. After an error the training is of no
    /// more use.
    ///
    /// # Errors
    ///
    /// When it ends without a last event, or says something that the protocol does not allow.
    async fn next(&mut self) -> Result<TrainerEvent, TrainerError>;

    /// Asks for a snapshot after the step under way. Whether it comes is seen by [`Training::next`].
    async fn wish_for_snapshot(&mut self);

    /// Waits until it has ended by itself, or ends it.
    async fn finish(self: Box<Self>);

    /// Ends it and waits until it is gone.
    async fn kill(self: Box<Self>);
}

#[tonic::async_trait]
impl StartTraining for Program {
    async fn start(&self, spec: &TrainerSpec) -> Result<Box<dyn Training>, TrainerError> {
        Ok(Box::new(Trainer::start(self, spec).await?))
    }
}

#[tonic::async_trait]
impl Training for Trainer {
    async fn next(&mut self) -> Result<TrainerEvent, TrainerError> {
        Self::next(self).await
    }

    async fn wish_for_snapshot(&mut self) {
        Self::wish_for_snapshot(self).await;
    }

    async fn finish(self: Box<Self>) {
        Self::finish(*self).await;
    }

    async fn kill(self: Box<Self>) {
        Self::kill(*self).await;
    }
}

/// A running trainer. Dropping it kills it.
#[derive(Debug)]
pub struct Trainer {
    child: Child,
    /// Held open for as long as the trainer is to live.
    stdin: ChildStdin,
    stdout: Lines<ChildStdout>,
    log: Log,
    /// Whether it has said anything that the protocol allows.
    has_begun: bool,
    /// Whether it has said `started`.
    has_started: bool,
}

impl Trainer {
    /// Starts `program` and hands it `spec`.
    ///
    /// # Errors
    ///
    /// When the program is missing, does not start, or does not read its spec.
    pub async fn start(program: &Program, spec: &TrainerSpec) -> Result<Self, TrainerError> {
        let mut command = program.command(spec.threads);
        // In the spec as well; but CUDA is loaded before that is read.
        command.arg("--device").arg(&spec.device);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| program.start_error(error))?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let stdout = Lines::new(child.stdout.take().expect("standard output is piped"), EVENT_BYTES_MAX);
        let log = Log::new(child.stderr.take().expect("standard error is piped"));
        let mut line = serde_json::to_vec(spec).expect("a spec holds only text, numbers and enums, which JSON can say");
        line.push(b'\n');
        match timeout(SPEC_TIMEOUT, stdin.write_all(&line)).await {
            Ok(Ok(())) => {}
            // It is gone already: why is in its exit status and its log, which the first `next` reads.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Ok(Err(error)) => return Err(TrainerError::Pipe(error)),
            Err(_) => return Err(TrainerError::Silent { waited: SPEC_TIMEOUT, tail: log.tail }),
        }
        Ok(Self { child, stdin, stdout, log, has_begun: false, has_started: false })
    }

    /// Returns the next event; `Started` comes once, and only refused snapshots come before it. A snapshot's file lies in
    /// the folder of the spec. Nothing is lost when the returned future is dropped. After an error the trainer is of no more
    /// use.
    ///
    /// # Errors
    ///
    /// When the child ends without a last event, or says something that the protocol does not allow.
    pub async fn next(&mut self) -> Result<TrainerEvent, TrainerError> {
        loop {
            tokio::select! {
                line = self.stdout.next() => match line.map_err(TrainerError::Pipe)? {
                    Some(line) if line.is_terminated => return self.understand(line),
                    // A line without an end was torn by the child's death.
                    Some(_) | None => return Err(self.explain_end().await),
                },
                () = self.log.follow(), if !self.log.is_over => {}
            }
        }
    }

    /// Asks for a snapshot after the step under way. Whether it comes is seen by [`Trainer::next`].
    pub async fn wish_for_snapshot(&mut self) {
        let mut line = serde_json::to_vec(&TrainerWish::Snapshot).expect("a wish is a word, which JSON can say");
        line.push(b'\n');
        // A child that reads no more has ended or stands still, and says so in other ways.
        if !matches!(timeout(WISH_TIMEOUT, self.stdin.write_all(&line)).await, Ok(Ok(()))) {
            tracing::debug!("the trainer does not read its wishes");
        }
    }

    /// Waits until the child has ended by itself, or kills it.
    pub async fn finish(mut self) {
        if timeout(EXIT_TIMEOUT, self.drain_until_exit()).await.is_err() {
            tracing::warn!("the trainer did not end after its last event and is killed");
            self.kill().await;
        }
    }

    /// Kills the child and waits until it is gone.
    pub async fn kill(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!("failed to kill a trainer: {error}");
        }
    }

    fn understand(&mut self, line: Line) -> Result<TrainerEvent, TrainerError> {
        let breach = |expected, line: Line| {
            Err(TrainerError::Protocol { expected, found: line.text.chars().take(200).collect() })
        };
        if line.is_too_long {
            return breach("a line of at most 64 KiB", line);
        }
        let Ok(event) = serde_json::from_str::<TrainerEvent>(&line.text) else {
            return breach("an event as a JSON object", line);
        };
        self.has_begun = true;
        match (&event, self.has_started) {
            (TrainerEvent::Started { format, .. }, false) if format != TRAINER_FORMAT => {
                breach("plurality-trainer/3, as this worker speaks it", line)
            }
            (TrainerEvent::Snapshot { file, .. }, true) if !is_plain_file_name(file) => {
                breach("the name of a file without folders", line)
            }
            (TrainerEvent::Started { .. }, false) => {
                self.has_started = true;
                Ok(event)
            }
            (TrainerEvent::Failed { .. } | TrainerEvent::SnapshotRefused { .. }, _) => Ok(event),
            (TrainerEvent::Progress { .. } | TrainerEvent::Snapshot { .. } | TrainerEvent::Finished { .. }, true) => {
                Ok(event)
            }
            (TrainerEvent::Started { .. }, true) => breach("`started` only once", line),
            (TrainerEvent::Progress { .. } | TrainerEvent::Snapshot { .. } | TrainerEvent::Finished { .. }, false) => {
                breach("`started` first", line)
            }
        }
    }

    /// The output is over: learns how the child ended and says it in words.
    async fn explain_end(&mut self) -> TrainerError {
        let exit = match timeout(EXIT_TIMEOUT, self.drain_until_exit()).await {
            Ok(Ok(status)) => Exit::Status(status),
            Ok(Err(error)) => return TrainerError::Pipe(error),
            Err(_) => {
                if let Err(error) = self.child.kill().await {
                    return TrainerError::Pipe(error);
                }
                Exit::Killed
            }
        };
        let tail = self.log.take_rest().await;
        let when = if self.has_begun { When::WithoutResult } else { When::BeforeFirstEvent };
        explain(when, exit, tail)
    }

    async fn drain_until_exit(&mut self) -> io::Result<ExitStatus> {
        loop {
            tokio::select! {
                status = self.child.wait() => return status,
                () = self.log.follow(), if !self.log.is_over => {}
            }
        }
    }
}

fn explain(when: When, exit: Exit, tail: Tail) -> TrainerError {
    let is_not_found = matches!(exit, Exit::Status(status) if status.code() == Some(NOT_FOUND_EXIT));
    if when == When::BeforeFirstEvent && (is_not_found || tail.names_missing_library()) {
        // It says what it loads before it starts again.
        return if tail.names_cuda() { TrainerError::NoCuda { tail } } else { TrainerError::NoLibTorch };
    }
    TrainerError::Ended { when, exit, tail }
}

/// A child's standard error: passed on line by line, the end of it kept.
#[derive(Debug)]
struct Log {
    lines: Lines<ChildStderr>,
    tail: Tail,
    /// Whether the pipe has ended.
    is_over: bool,
}

impl Log {
    fn new(pipe: ChildStderr) -> Self {
        Self { lines: Lines::new(pipe, LOG_LINE_BYTES_MAX), tail: Tail::default(), is_over: false }
    }

    /// Reads one line.
    async fn follow(&mut self) {
        match self.lines.next().await {
            Ok(Some(line)) => {
                tracing::debug!(target: "plurality_worker::trainer", "{}", line.text);
                self.tail.push(line.text);
            }
            Ok(None) => self.is_over = true,
            Err(error) => {
                tracing::debug!("failed to read a trainer's log: {error}");
                self.is_over = true;
            }
        }
    }

    /// Reads what the child left behind and returns the end of it.
    async fn take_rest(&mut self) -> Tail {
        let rest = async {
            while !self.is_over {
                self.follow().await;
            }
        };
        if timeout(TAIL_TIMEOUT, rest).await.is_err() {
            self.is_over = true;
        }
        std::mem::take(&mut self.tail)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_library_that_only_cuda_needs_is_told_from_a_missing_libtorch() {
        let explained = |lines: &[&str]| {
            let tail = Tail(lines.iter().map(|line| (*line).to_owned()).collect());
            explain(When::BeforeFirstEvent, Exit::Status(ExitStatus::from_raw(NOT_FOUND_EXIT << 8)), tail)
        };
        let missing = "worker-trainer: error while loading shared libraries: libcublas.so.13: cannot open";
        let error = explained(&["CUDA: starting again with /wheel/lib/libtorch_cuda.so", missing]);
        assert_eq!(error.kind(), FailureKind::Startup);
        let text = error.to_string();
        assert!(matches!(error, TrainerError::NoCuda { .. }) && text.contains("libcublas.so.13"), "{text}");
        assert!(matches!(explained(&[missing]), TrainerError::NoLibTorch));
    }

    #[test]
    fn only_what_would_come_again_keeps_a_worker_from_a_member() {
        let ended = |when, exit| TrainerError::Ended { when, exit, tail: Tail::default() };
        let refused = Exit::Status(ExitStatus::from_raw(5 << 8));
        let killed = Exit::Status(ExitStatus::from_raw(9));
        let waited = SPEC_TIMEOUT;
        for (error, kind) in [
            (TrainerError::NoLibTorch, FailureKind::Startup),
            (ended(When::BeforeFirstEvent, refused), FailureKind::Startup),
            (ended(When::BeforeFirstEvent, killed), FailureKind::Internal),
            (ended(When::BeforeFirstEvent, Exit::Killed), FailureKind::Internal),
            (ended(When::WithoutResult, refused), FailureKind::Internal),
            (TrainerError::Silent { waited, tail: Tail::default() }, FailureKind::Internal),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
