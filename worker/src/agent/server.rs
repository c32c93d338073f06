//! The way to the coordinator: connections, and what is known of the session.

use std::{error::Error, fmt, io, pin::Pin, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use plurality_common::{
    id::WorkerId,
    limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{address_file::AddressFile, watched};
use crate::config::ServerAddress;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Both directions of one connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is being opened.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Opens connections to a coordinator that has no address of its own for good, or that no network leads to.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Opens one connection.
    fn dial(&self) -> Dialling;
}

/// The way to one coordinator.
#[derive(Clone, Debug)]
pub struct Server {
    endpoint: Endpoint,
    /// What opens connections; absent: the operating system, by TCP.
    dial: Option<Arc<dyn Dial>>,
}

impl Server {
    /// Prepares the way to `address`; nothing is opened yet.
    ///
    /// # Errors
    ///
    /// When the address cannot be part of a URL.
    pub fn new(address: &ServerAddress) -> Result<Self, tonic::transport::Error> {
        Self::to(Endpoint::from_shared(address.url())?)
    }

    fn to(endpoint: Endpoint) -> Result<Self, tonic::transport::Error> {
        let endpoint = endpoint
            .user_agent(concat!("plurality-worker/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self { endpoint, dial: None })
    }

    /// Has connections opened by `dial` instead of the operating system.
    #[must_use]
    pub fn dialled_by(self, dial: Arc<dyn Dial>) -> Self {
        Self { dial: Some(dial), ..self }
    }

    /// Prepares the way to whatever address `file` says at the time.
    ///
    /// # Errors
    ///
    /// Never in practice: the name that stands for the address is a good one.
    pub fn following(file: AddressFile) -> Result<Self, tonic::transport::Error> {
        Ok(Self::to(Endpoint::from_static("http://coordinator"))?.dialled_by(Arc::new(file)))
    }

    /// Returns a connection that opens itself when it is used, and again after it broke. Its work is done by the runtime
    /// that calls this.
    pub fn channel(&self) -> Channel {
        let Some(dial) = self.dial.clone() else { return self.endpoint.connect_lazy() };
        let connector = service_fn(move |_address| {
            let dialling = dial.dial();
            async move { dialling.await.map(TokioIo::new) }
        });
        self.endpoint.connect_with_connector_lazy(connector)
    }
}

/// What is known of the session with the coordinator; written by the session alone.
#[derive(Clone, Debug)]
pub struct Link {
    /// Whether the coordinator answers.
    pub state: LinkState,
    /// How long the worker trains on without its coordinator.
    pub orphan_timeout: Duration,
}

/// Whether the coordinator answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// It does, and calls this worker so.
    Up(WorkerId),
    /// It does not.
    Down {
        /// Since when.
        since: Instant,
    },
}

impl Link {
    /// Returns the moment at which attempts are given up, if the coordinator is away.
    pub fn orphaned_at(&self) -> Option<Instant> {
        self.away_for(self.orphan_timeout)
    }

    /// Returns the moment at which the coordinator will have been away for so long, if it is away.
    pub fn away_for(&self, time: Duration) -> Option<Instant> {
        match self.state {
            LinkState::Up(_) => None,
            LinkState::Down { since } => Some(since + time),
        }
    }

    /// Says whether the coordinator answers.
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up(_))
    }
}

/// Waits until there is a session and returns the worker's id in it. Never returns when the session has ended for good:
/// whoever waits is then stopped by its owner.
pub async fn worker_id(link: &mut watched::Receiver<Link>) -> WorkerId {
    loop {
        if let LinkState::Up(worker_id) = &link.borrow_and_update().state {
            return worker_id.clone();
        }
        if link.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns what went wrong in words: the innermost cause of a broken connection, else the server's message.
pub fn describe(status: &Status) -> String {
    let mut cause: &dyn Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if cause.is::<Status>() {
        match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        }
    } else {
        cause.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_the_innermost_cause_or_the_servers_message() {
        assert_eq!(describe(&Status::unavailable("try later")), "try later");
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        assert_eq!(describe(&Status::from_error(Box::new(refused))), "connection refused");
    }

    #[test]
    fn the_orphan_window_begins_when_the_link_goes_down() {
        let since = Instant::now();
        let mut link = Link { state: LinkState::Down { since }, orphan_timeout: Duration::from_secs(60) };
        assert_eq!(link.orphaned_at(), Some(since + Duration::from_secs(60)));
        link.state = LinkState::Up(WorkerId::new("w"));
        assert_eq!(link.orphaned_at(), None);
    }
}
