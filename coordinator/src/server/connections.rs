//! Connections as they come in, up to a number.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, stream};
use plurality_common::limits::CONNECTIONS_MAX;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Open files that are kept for all but connections: event store, uploads and downloads at once, programs that are started.
/// Leaves 800 connections of the 1,024 files that many systems allow.
pub const DESCRIPTORS_RESERVED: u64 = 224;

/// Returns how many connections to take where the system allows `descriptors` open files: no file is refused because too many
/// connections were not. Where the reserve is more than a half, a half.
pub fn limit(descriptors: u64) -> usize {
    let free = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(descriptors / 2);
    usize::try_from(free).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// A connection that counts, until it is dropped.
pub struct Connection {
    stream: TcpStream,
    _counted: OwnedSemaphorePermit,
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
                    let connected = stream.set_nodelay(true).map(|()| Connection { stream, _counted: place });
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
        Pin::new(&mut self.stream).poll_read(context, buffer)
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
    use tokio::io::AsyncReadExt as _;

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
}
