// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line's side of the control socket: blocking, one request per connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::{Reply, Request};
use super::{RUN_DIR, socket_path};

/// Why there is no reply. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens: no socket, or one that a dead tunnel left.
    #[error("not running (no socket {0})")]
    NotRunning(PathBuf),
    /// The socket belongs to another user.
    #[error("permission denied for {0}; run as root")]
    PermissionDenied(PathBuf),
    /// The tunnel ended the connection or took too long.
    #[error("{path}: no reply")]
    NoReply {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The reply is not one that this version knows.
    #[error("{path}: not a reply that this version understands")]
    BadReply {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Sends `request` to the running tunnel `name` and waits for the reply.
///
/// The reply to [`Request::Down`] comes when the tunnel is gone.
///
/// # Errors
/// The tunnel is not running, is not ours, or does not answer.
pub fn request(name: &str, request: Request) -> Result<Reply, ClientError> {
    request_at(&socket_path(Path::new(RUN_DIR), name), request)
}

/// Like [`request`], for the socket at `path`.
///
/// # Errors
/// The tunnel is not running, is not ours, or does not answer.
pub fn request_at(path: &Path, request: Request) -> Result<Reply, ClientError> {
    let no_reply = |source| ClientError::NoReply {
        path: path.into(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning(path.into())
        }
        io::ErrorKind::PermissionDenied => ClientError::PermissionDenied(path.into()),
        _ => no_reply(source),
    })?;
    stream
        .set_read_timeout(Some(patience(&request)))
        .map_err(no_reply)?;
    match stream.write_all(&request.to_line()) {
        // A server that refuses us may hang up before we have asked; its reply is there to read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.map_err(no_reply)?,
    }
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(MAX_REPLY_BYTES);
    reader.read_until(b'\n', &mut line).map_err(no_reply)?;
    if line.is_empty() {
        return Err(no_reply(io::ErrorKind::UnexpectedEof.into()));
    }
    Reply::from_line(&line).map_err(|source| ClientError::BadReply {
        path: path.into(),
        source,
    })
}

/// Taking a tunnel down may include telling its peers and removing links.
fn patience(request: &Request) -> Duration {
    match request {
        Request::Show | Request::Fdb(_) => Duration::from_secs(5),
        Request::Down => Duration::from_secs(30),
    }
}

/// Room for the status of an older tunnel, which holds its whole table of addresses; a bound, should
/// something else answer.
const MAX_REPLY_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn tells_apart_why_there_is_no_reply() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        assert!(matches!(
            request_at(&path, Request::Show),
            Err(ClientError::NotRunning(_))
        ));

        let listener = UnixListener::bind(&path).unwrap();
        for (answer, understood) in [(&b""[..], None), (b"hello\n", Some(false))] {
            let reply = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut request = [0; 64];
                    let _ = stream.read(&mut request).unwrap();
                    stream.write_all(answer).unwrap();
                });
                request_at(&path, Request::Show)
            });
            match understood {
                None => assert!(
                    matches!(reply, Err(ClientError::NoReply { .. })),
                    "{reply:?}"
                ),
                _ => assert!(
                    matches!(reply, Err(ClientError::BadReply { .. })),
                    "{reply:?}"
                ),
            }
        }

        // What a tunnel leaves behind that was killed.
        drop(listener);
        assert!(path.exists());
        assert!(matches!(
            request_at(&path, Request::Show),
            Err(ClientError::NotRunning(_))
        ));
    }
}
