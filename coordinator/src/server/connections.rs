//! Connections as they come in, up to a number, from clients that say something.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, stream};
use plurality_common::limits::{CONNECTIONS_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Open files that are kept for all but connections: event store, uploads and downloads at once, programs that are started.
/// Leaves 800 connections of the 1,024 files that many systems allow.
pub const DESCRIPTORS_RESERVED: u64 = 224;

/// What every HTTP/2 client says first ("PRI * HTTP/2.0", RFC 9113, section 3.4), in bytes. Keepalives begin after it.
const PREFACE_BYTES: usize = 24;
/// How long a client may take for it: no longer than one that falls silent later is waited for.
const PREFACE_TIMEOUT: Duration = KEEPALIVE_INTERVAL.saturating_add(KEEPALIVE_TIMEOUT);

/// Returns how many connections to take where the system allows `descriptors` open files: no file is refused because too many
/// connections were not. Where the reserve is more than a half, a half.
pub fn limit(descriptors: u64) -> usize {
    let free = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(descriptors / 2);
    usize::try_from(free).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// A connection that counts, until it is dropped. Reading fails if its client has not said its first words in time: one that
/// opens connections and is silent would have all places otherwise.
pub struct Connection {
    stream: TcpStream,
    /// What the client has still to say in time; `None` once it has.
    preface: Option<Preface>,
    _counted: OwnedSemaphorePermit,
}

/// The first words of a client, as far as they are still to come.
struct Preface {
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Preface {
    fn awaited() -> Self {
        Self { bytes_left: PREFACE_BYTES, deadline: Box::pin(sleep(PREFACE_TIMEOUT)) }
    }
}

/// Accepts connections from `listener`, at most `limit` at a time. One beyond is closed at once, which its client takes for a
/// coordinator that is away, and tries again with back-off.
pub fn accept(listener: TcpListener, limit: usize) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(limit));
    stream::unfold((listener, places, false), move |(listener, places, mut is_full)| async move {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => return Some((Err(error), (listener, places, is_full))),
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let preface = Some(Preface::awaited());
                    let connected = stream.set_nodelay(true).map(|()| Connection { stream, preface, _counted: place });
                    return Some((connected, (listener, places, false)));
                }
                Err(_) if is_full => {}
                Err(_) => {
                    is_full = true;
                    tracing::warn!(%address, "closing a connection: there are {limit}, and no further one is taken");
                }
            }
        }
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, preface, .. } = &mut *self;
        let filled = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        let Some(Preface { bytes_left, deadline }) = preface else { return read };
        *bytes_left = bytes_left.saturating_sub(buffer.filled().len() - filled);
        if *bytes_left == 0 {
            *preface = None;
        } else if read.is_pending() {
            ready!(deadline.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    #[test]
    fn connections_leave_files_to_the_rest() {
        for (descriptors, connections) in [(100, 50), (1024, 800), (4096, 3872), (u64::MAX, CONNECTIONS_MAX)] {
            assert_eq!(limit(descriptors), connections, "of {descriptors}");
        }
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_is_closed_and_there_is_a_place_when_one_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Box::pin(accept(listener, 2));
        let mut clients = Vec::new();
        let mut served = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(incoming.next().await.unwrap().unwrap());
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        let mut bytes = [0];
        tokio::select! {
            read = third.read(&mut bytes) => assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
            _ = incoming.next() => panic!("a third connection was taken"),
        }
        drop(served.pop());
        clients.push(TcpStream::connect(address).await.unwrap());
        assert!(incoming.next().await.unwrap().is_ok());
    }

    /// A client and the coordinator's end of its connection.
    async fn connected() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Box::pin(accept(listener, 1));
        let (client, served) = tokio::join!(TcpStream::connect(address), incoming.next());
        (client.unwrap(), served.unwrap().unwrap())
    }

    // Time is stopped only once there is a connection: it would leap ahead while the system makes one.

    #[tokio::test]
    async fn a_client_that_does_not_say_its_first_words_in_time_is_not_waited_for() {
        for said in [0, PREFACE_BYTES - 1] {
            let (mut client, mut served) = connected().await;
            client.write_all(&vec![0; said]).await.unwrap();
            let mut bytes = [0; PREFACE_BYTES];
            served.read_exact(&mut bytes[..said]).await.unwrap();
            tokio::time::pause();
            let before = Instant::now();
            let error = served.read(&mut bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let seconds = 1..=PREFACE_TIMEOUT.as_secs();
            assert!(seconds.contains(&before.elapsed().as_secs()), "{seconds:?}");
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn a_client_that_has_said_its_first_words_may_be_silent_for_as_long_as_it_likes() {
        let (mut client, mut served) = connected().await;
        client.write_all(&[0; PREFACE_BYTES]).await.unwrap();
        let mut bytes = [0; PREFACE_BYTES];
        served.read_exact(&mut bytes).await.unwrap();
        tokio::time::pause();
        let read = tokio::time::timeout(10 * PREFACE_TIMEOUT, served.read(&mut bytes)).await;
        assert!(read.is_err(), "{read:?}");
    }
}
