//! The way to a coordinator that may come back elsewhere: its address stands in a file, which is read each time.
//!
//! A coordinator that starts a worker beside itself writes the file, and so does the one that takes its place, which may
//! listen on another port.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::server::{Dial, Dialling, Stream};
use crate::{config::ServerAddress, host::blocking};

/// Longest file read; a real one has one line of some twenty bytes.
const FILE_BYTES_MAX: u64 = 256;

/// Opens connections to the address that a file says.
#[derive(Clone, Debug)]
pub struct AddressFile {
    /// The file: one line, `HOST:PORT`.
    pub path: PathBuf,
    /// Cancelled when there is no file: its folder was removed, and no coordinator will come back to it.
    pub is_gone: CancellationToken,
}

impl AddressFile {
    async fn connect(self) -> io::Result<Box<dyn Stream>> {
        let Self { path, is_gone } = self;
        let address = match blocking(move || read(&path)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                is_gone.cancel();
                return Err(error);
            }
            read => read?,
        };
        let stream = TcpStream::connect(address.to_string()).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl Dial for AddressFile {
    fn dial(&self) -> Dialling {
        Box::pin(self.clone().connect())
    }
}

/// Reads an address from the file at `path`.
fn read(path: &Path) -> io::Result<ServerAddress> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    text.trim().parse().map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn each_connection_goes_to_the_address_that_the_file_says_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = AddressFile { path: folder.path().join("address"), is_gone: CancellationToken::new() };
        for _life in 0..2 {
            let coordinator = TcpListener::bind("127.0.0.1:0").await.unwrap();
            fs::write(&file.path, format!("{}\n", coordinator.local_addr().unwrap())).unwrap();
            let (dialled, accepted) = tokio::join!(file.dial(), coordinator.accept());
            dialled.map(drop).unwrap();
            accepted.unwrap();
        }
        fs::write(&file.path, "nowhere").unwrap();
        assert_eq!(file.dial().await.err().unwrap().kind(), io::ErrorKind::InvalidData);
        assert!(!file.is_gone.is_cancelled());
    }

    #[tokio::test]
    async fn a_file_that_was_removed_says_that_nobody_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = AddressFile { path: folder.path().join("address"), is_gone: CancellationToken::new() };
        assert!(file.dial().await.is_err());
        assert!(file.is_gone.is_cancelled());
    }
}
