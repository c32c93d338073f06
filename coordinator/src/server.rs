//! A whole coordinator: its parts put together on one port, and taken apart in order.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use plurality_common::limits::{
    CALLS_PER_CONNECTION_MAX, CONNECTIONS_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, WATCHERS_MAX,
};
use plurality_proto::v1::{
    blob_service_server::{BlobService, BlobServiceServer},
    run_service_server::RunServiceServer,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, Router};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::{
    connections::DESCRIPTORS_RESERVED,
    disk::DiskWatch,
    judge::{Check, Judge},
    sweep::Sweeper,
};
use crate::{
    artifacts::{ArtifactError, ArtifactStore, room::Room},
    board::VoteBoard,
    config::ServerSettings,
    core::Timing,
    dataset::{Dataset, DatasetError, Source, TestSets},
    descriptors,
    driver::{self, Driver, Environment, StartError},
    service::{blob::Blobs, gate::Gate, run::Runs, worker::Workers},
    store::{EventStore, SqliteStore, StoreError},
    verify::Checker,
};

mod connections;
mod disk;
pub mod judge;
mod sweep;

/// The blobs, within the state folder.
pub const ARTIFACTS_NAME: &str = "artifacts";
/// How long calls may take to end when the coordinator stops. Streams and long polls end by themselves at once; a silent
/// HTTP/2 peer would hold the server for the whole keepalive.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a coordinator cannot start or go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another program listens there.
    #[error(
        "address {address} is in use, perhaps by another coordinator; name another with --listen, where port 0 takes a \
         free one"
    )]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system does not let it listen there.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The state folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the state folder holds cannot be used.
    #[error("cannot continue from the state folder")]
    Start(#[from] StartError),
    /// The blobs cannot be used.
    #[error("cannot use the blobs in the state folder")]
    Artifacts(#[from] ArtifactError),
    /// The dataset cannot be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The system gives no thread.
    #[error("cannot start the verification")]
    Verification(#[from] rayon::ThreadPoolBuildError),
    /// The network layer failed.
    #[error("cannot serve")]
    Transport(#[from] tonic::transport::Error),
    /// A part ended by itself.
    #[error("{part} ended by itself, which is a bug of this program")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

impl ServerError {
    /// Says whether the user named something that cannot be used, and not the world was at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Dataset(DatasetError::Idx(_)))
    }
}

/// What a coordinator is made of.
pub struct Parts<S, C, I> {
    /// Its events.
    pub store: S,
    /// Its blobs.
    pub artifacts: ArtifactStore,
    /// The dataset of new runs; its blobs are stored.
    pub dataset: Dataset,
    /// Time and randomness.
    pub environment: Environment,
    /// What results are checked by.
    pub check: C,
    /// Where connections come from.
    pub incoming: I,
    /// Where it listens, for people.
    pub address: SocketAddr,
    /// Whether it describes its services to who asks.
    pub has_reflection: bool,
}

/// A running coordinator. Dropped without [`Server::stop`], its tasks go on until the runtime ends.
pub struct Server {
    address: SocketAddr,
    driver: driver::Handle,
    dataset: Arc<Dataset>,
    health: HealthReporter,
    stopping: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    watching: JoinHandle<()>,
    /// `None` once its end was seen.
    driving: Option<JoinHandle<Result<(), StoreError>>>,
    /// `None` once its end was seen.
    judging: Option<JoinHandle<()>>,
    /// `None` once its end was seen.
    sweeping: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the state folder, continues what is in it, and serves.
    ///
    /// # Errors
    /// When the folder is in use or damaged, the dataset is malformed, or the address cannot be listened on.
    pub async fn start(settings: &ServerSettings) -> Result<Self, ServerError> {
        let connections_max = connections_max();
        let store = SqliteStore::open(&settings.state).await?;
        let listener = listen(settings.listen).await?;
        let address =
            listener.local_addr().map_err(|source| ServerError::Listen { address: settings.listen, source })?;
        let room = Room::on_disk_of(&settings.state, settings.disk_reserve.0);
        let artifacts = ArtifactStore::open(settings.state.join(ARTIFACTS_NAME), room)?;
        let source = settings.data.clone().map_or(Source::Embedded, Source::Directory);
        let parts = Parts {
            dataset: Dataset::prepare(source, &artifacts).await?,
            artifacts,
            store,
            environment: Environment::system(Timing {
                orphan_window: settings.orphan_timeout.0,
                quarantine: settings.quarantine.0,
                ..Timing::default()
            }),
            check: Arc::new(Checker::new()?),
            incoming: connections::accept(listener, connections_max),
            address,
            has_reflection: settings.has_reflection,
        };
        let server = Self::assemble(parts, |workers, blobs| (workers, blobs)).await?;
        tracing::info!(%address, state = %settings.state.display(), "coordinator listens");
        Ok(server)
    }

    /// Puts a coordinator together and serves. What workers call, and blobs, are served as `served` makes of them.
    ///
    /// # Errors
    /// When the stored events cannot be read or contradict themselves.
    pub async fn assemble<S, C, I, N, W, B, F>(parts: Parts<S, C, I>, served: F) -> Result<Self, ServerError>
    where
        S: EventStore,
        C: Check,
        I: Stream<Item = io::Result<N>> + Send + 'static,
        N: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        W: WorkerService,
        B: BlobService,
        F: FnOnce(Workers, Blobs) -> (W, B),
    {
        let Parts { store, artifacts, dataset, environment, check, incoming, address, has_reflection } = parts;
        let dataset = Arc::new(dataset);
        let test_sets = Arc::new(TestSets::new(artifacts.clone()));
        let timing = environment.timing;
        let (driver, driving) = Driver::spawn(store, environment).await?;
        let stopping = CancellationToken::new();
        let judge =
            Judge { driver: driver.clone(), artifacts: artifacts.clone(), test_sets: Arc::clone(&test_sets), check };
        let judging = tokio::spawn(judge.run(stopping.clone()));
        let sweeper = Sweeper { driver: driver.clone(), artifacts: artifacts.clone(), dataset: Arc::clone(&dataset) };
        let sweeping = tokio::spawn(sweeper.run(stopping.clone()));
        let board = Arc::new(VoteBoard::new(artifacts.clone(), test_sets));
        let watchers = Gate::new("watchers", WATCHERS_MAX);
        let outside = driver.for_callers();
        let runs = Runs {
            driver: outside.clone(),
            dataset: Arc::clone(&dataset),
            board,
            artifacts: artifacts.clone(),
            watchers,
            stopping: stopping.clone(),
        };
        let workers = Workers::new(outside, artifacts.clone(), timing, stopping.clone());
        let (workers, blobs) = served(workers, Blobs::new(artifacts.clone(), stopping.clone()));
        let health = HealthReporter::new();
        let router = router(workers, blobs, runs, &health, has_reflection).await;
        let watching = tokio::spawn(DiskWatch { artifacts, health: health.clone() }.run(stopping.clone()));
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned()));
        let (driving, judging, sweeping) = (Some(driving), Some(judging), Some(sweeping));
        Ok(Self { address, driver, dataset, health, stopping, serving, watching, driving, judging, sweeping })
    }

    /// Returns where it listens, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns an address at which this machine reaches it.
    pub fn local_address(&self) -> SocketAddr {
        reachable(self.address)
    }

    /// Returns a handle of its driver.
    pub fn driver(&self) -> driver::Handle {
        self.driver.clone()
    }

    /// Returns the dataset of new runs.
    pub fn dataset(&self) -> Arc<Dataset> {
        Arc::clone(&self.dataset)
    }

    /// Waits until a part of it fails; for ever if none does. The process is to end then: the state in memory must not
    /// run ahead of the disk.
    pub async fn failed(&mut self) -> ServerError {
        let (Some(driving), Some(judging), Some(sweeping)) = (&mut self.driving, &mut self.judging, &mut self.sweeping)
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            driven = driving => {
                self.driving = None;
                match driven {
                    Ok(Err(error)) => error.into(),
                    Ok(Ok(())) => ServerError::Ended { part: "driver" },
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            }
            judged = judging => {
                self.judging = None;
                match judged {
                    Ok(()) => ServerError::Ended { part: "verification" },
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            }
            swept = sweeping => {
                self.sweeping = None;
                match swept {
                    Ok(()) => ServerError::Ended { part: "removal of blobs" },
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            }
            served = &mut self.serving => match served {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) => ServerError::Ended { part: "server" },
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
        }
    }

    /// Stops in order: no new calls, streams and long polls end, calls end or are cut, then the store is closed.
    ///
    /// # Errors
    /// When the store cannot be closed.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.stopping.cancel();
        if !self.serving.is_finished() && tokio::time::timeout(STOP_DEADLINE, &mut self.serving).await.is_err() {
            tracing::warn!("some connections did not end within {STOP_DEADLINE:?}; they are cut");
            self.serving.abort();
        }
        if let Some(judging) = self.judging {
            // Its end is what matters; a panic of it was printed when it happened.
            let _ = judging.await;
        }
        if let Some(sweeping) = self.sweeping {
            // As above.
            let _ = sweeping.await;
        }
        // As above.
        let _ = self.watching.await;
        self.driver.stop().await;
        match self.driving {
            Some(driving) => match driving.await {
                Ok(closed) => Ok(closed?),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
            None => Ok(()),
        }
    }
}

/// Returns how many connections to take, after having the system allow as many files as it will.
fn connections_max() -> usize {
    let descriptors = descriptors::raise(CONNECTIONS_MAX as u64 + DESCRIPTORS_RESERVED);
    let limit = connections::limit(descriptors);
    if limit < CONNECTIONS_MAX {
        tracing::info!(
            "at most {limit} connections are taken, and a worker has two: the system allows {descriptors} open files \
             (ulimit -Hn)"
        );
    }
    limit
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServerError::AddressInUse { address },
        _ => ServerError::Listen { address, source },
    })
}

async fn router<W: WorkerService, B: BlobService>(
    workers: W,
    blobs: B,
    runs: Runs,
    health: &HealthReporter,
    has_reflection: bool,
) -> Router {
    health.set_serving::<WorkerServiceServer<W>>().await;
    health.set_serving::<BlobServiceServer<B>>().await;
    health.set_serving::<RunServiceServer<Runs>>().await;
    let health = tonic_health::server::HealthService::from_health_reporter(health.clone());
    let reflection = has_reflection.then(|| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(plurality_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors were made by the compiler of this very program")
    });
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX as usize)
        .add_service(WorkerServiceServer::new(workers).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(BlobServiceServer::new(blobs).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(RunServiceServer::new(runs).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_optional_service(reflection)
}

/// Returns `address` with "any address" replaced by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use plurality_common::{limits::ORPHAN_TIMEOUT, span::Span};

    use super::*;
    use crate::{byte_size::ByteSize, config::LocalWorkers, core::QUARANTINE};

    async fn server() -> (tempfile::TempDir, Server) {
        let folder = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            local_workers: LocalWorkers::None,
            data: None,
            state: folder.path().to_owned(),
            disk_reserve: ByteSize(0),
            orphan_timeout: Span(ORPHAN_TIMEOUT),
            quarantine: Span(QUARANTINE),
            has_reflection: false,
        };
        let server = Server::start(&settings).await.unwrap();
        (folder, server)
    }

    #[tokio::test]
    async fn a_panic_in_verification_ends_the_process() {
        let (_folder, mut server) = server().await;
        server.judging = Some(tokio::spawn(async { panic!("on purpose") }));
        let waiting = tokio::spawn(async move { server.failed().await });
        assert!(waiting.await.is_err_and(|error| error.is_panic()));
    }

    #[tokio::test]
    async fn a_verification_that_ends_by_itself_is_named() {
        let (_folder, mut server) = server().await;
        server.judging = Some(tokio::spawn(async {}));
        let error = server.failed().await;
        assert!(matches!(error, ServerError::Ended { part: "verification" }), "{error}");
        server.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_driver_that_ends_is_named_and_not_the_verification_that_ends_with_it() {
        let (_folder, mut server) = server().await;
        server.driver.stop().await;
        let error = server.failed().await;
        assert!(matches!(error, ServerError::Ended { part: "driver" }), "{error}");
    }
}
