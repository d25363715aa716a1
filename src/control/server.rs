// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tunnel's side of the control socket.
//!
//! Owns the socket file, checks who calls, and turns lines into [`Request`]s; answering them is the
//! control thread's business. Trusts no caller: requests are short, come within a deadline and one
//! per connection, connections are few, and garbage ends only the connection that it came on.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::MAX_REQUEST_BYTES;
use super::message::{Reply, Request};
use crate::retry::Retry;

/// Where requests go, each with the way back for its one reply.
pub type RequestSender = mpsc::Sender<(Request, oneshot::Sender<Reply>)>;

/// A bound control socket. Dropping it removes the file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    owner_uid: u32,
}

impl Server {
    /// Binds the socket at `path` with mode 0600, and makes its directory if there is none.
    ///
    /// A socket that is there already is taken for stale and replaced: the caller holds the
    /// tunnel's lock. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the kernel said; `AlreadyExists` if something other than a socket is in the way.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(run_dir) = path.parent().filter(|dir| !dir.exists()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(run_dir)?;
            // Again, because the umask may have taken bits away.
            fs::set_permissions(run_dir, Permissions::from_mode(0o755))?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        // Until this line others might connect; they would fail the check of credentials.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        // The kernel made the file for us, so its owner is our effective user.
        let owner_uid = fs::symlink_metadata(path)?.uid();
        Ok(Self {
            listener,
            path: path.into(),
            owner_uid,
        })
    }

    /// Accepts connections and hands on their requests until the receiver of `requests` is dropped.
    ///
    /// Returns when every request that was handed on has its reply. So a tunnel going down answers
    /// [`Request::Down`] last, drops the receiver, and waits for this function to end.
    pub async fn serve(self, requests: RequestSender) {
        let mut connections = JoinSet::new();
        let mut retry = Retry::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _)) => {
                            retry.is_over();
                            connections.spawn(converse(stream, self.owner_uid, requests.clone()));
                        }
                        Err(error) => {
                            // Out of descriptors, most likely: trying at once would spin.
                            if retry.may_log(Instant::now().into()) {
                                warn!(%error, "control socket: no connection can be accepted; trying again");
                            }
                            sleep(retry.next_pause()).await;
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
                () = requests.closed() => break,
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "control socket: not removed");
        }
    }
}

/// After a connection that could not be accepted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Further callers wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16;

/// For a request to arrive, and for a reply to leave.
const DEADLINE: Duration = Duration::from_secs(2);

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{} is in the way and is not a socket; remove it",
                path.display()
            ),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// One connection: one request, one reply.
async fn converse(mut stream: UnixStream, owner_uid: u32, requests: RequestSender) {
    let Some(reply) = answer(&mut stream, owner_uid, &requests).await else {
        return;
    };
    match timeout(DEADLINE, stream.write_all(&reply.to_line())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "control socket: the caller is gone"),
        Err(_) => debug!("control socket: the caller does not read"),
    }
}

/// None when the caller is gone or too slow to be told anything.
async fn answer(
    stream: &mut UnixStream,
    owner_uid: u32,
    requests: &RequestSender,
) -> Option<Reply> {
    let caller_uid = stream.peer_cred().ok()?.uid();
    if !is_allowed(caller_uid, owner_uid) {
        warn!(uid = caller_uid, "control socket: refused");
        return Some(refused(
            "only root and the owner of the tunnel may do that; run as root",
        ));
    }
    let line = tokio::select! {
        line = timeout(DEADLINE, read_line(stream)) => line.ok()?.ok()?,
        // An idle caller must not hold up a tunnel that goes down.
        () = requests.closed() => return Some(refused(GOING_DOWN)),
    };
    let request = match Request::from_line(&line) {
        Ok(request) => request,
        Err(error) => return Some(refused(&error.to_string())),
    };
    let (reply_to, reply) = oneshot::channel();
    if requests.send((request, reply_to)).await.is_err() {
        return Some(refused(GOING_DOWN));
    }
    Some(reply.await.unwrap_or_else(|_| refused(GOING_DOWN)))
}

const GOING_DOWN: &str = "the tunnel is going down";

fn is_allowed(caller_uid: u32, owner_uid: u32) -> bool {
    caller_uid == 0 || caller_uid == owner_uid
}

/// Reads to the newline, to the end, or one byte more than a request may have.
async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = MAX_REQUEST_BYTES as u64 + 1;
    BufReader::new(stream.take(limit))
        .read_until(b'\n', &mut line)
        .await?;
    Ok(line)
}

fn refused(message: &str) -> Reply {
    Reply::Refused {
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Caller;
    use std::thread::JoinHandle;

    use super::*;
    use crate::control::client;

    #[test]
    fn only_root_and_the_owner_may_call() {
        for (caller, owner, allowed) in [
            (0, 0, true),
            (0, 990, true),
            (990, 990, true),
            (990, 0, false),
            (1000, 990, false),
        ] {
            assert_eq!(is_allowed(caller, owner), allowed, "{caller} calls {owner}");
        }
    }

    #[test]
    fn answers_and_stops() {
        let tunnel = Tunnel::start();
        let reply = client::request_at(&tunnel.path, Request::Show).unwrap();
        assert_eq!(reply, refused("shown"));
        let mode = fs::metadata(&tunnel.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            client::request_at(&tunnel.path, Request::Down).unwrap(),
            Reply::Stopped
        );
        tunnel.thread.join().unwrap();
        assert!(!tunnel.path.exists(), "the socket is still there");
    }

    #[test]
    fn garbage_ends_only_its_own_connection() {
        let tunnel = Tunnel::start();
        let bystander = Caller::connect(&tunnel.path).unwrap();
        for garbage in [
            &b"\n"[..],
            b"show\n",
            b"{\"verb\":\"explode\"}\n",
            b"{\"verb\":\"show\",\"more\":1}\n",
            b"\xff\xfe\n",
            &[b'['; MAX_REQUEST_BYTES * 2],
        ] {
            let mut caller = Caller::connect(&tunnel.path).unwrap();
            caller.write_all(garbage).unwrap();
            let mut reply = String::new();
            // What was not read may end the connection with an error, after the reply.
            let _ = caller.read_to_string(&mut reply);
            assert!(
                reply.starts_with("{\"reply\":\"refused\""),
                "{garbage:?}: {reply:?}"
            );
        }
        let mut bystander = bystander;
        bystander.write_all(b"{\"verb\":\"show\"}\n").unwrap();
        let mut reply = String::new();
        bystander.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("shown"), "{reply:?}");
        tunnel.stop();
    }

    #[test]
    fn silent_callers_are_cut_off_and_do_not_keep_others_out() {
        let tunnel = Tunnel::start();
        let silent: Vec<_> = (0..MAX_CONNECTIONS + 4)
            .map(|_| Caller::connect(&tunnel.path).unwrap())
            .collect();
        let reply = client::request_at(&tunnel.path, Request::Show).unwrap();
        assert_eq!(reply, refused("shown"));
        // Neither do they hold up the end.
        let idle = Caller::connect(&tunnel.path).unwrap();
        let begin = std::time::Instant::now();
        tunnel.stop();
        assert!(begin.elapsed() < DEADLINE / 2, "waited for idle callers");
        drop((silent, idle));
    }

    #[test]
    fn replaces_a_stale_socket_but_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let _guard = runtime.enter();
        let stale = dir.path().join("run/a.sock");
        fs::create_dir(dir.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(Server::bind(&stale).is_ok());
        let file = dir.path().join("b.sock");
        fs::write(&file, "precious").unwrap();
        assert_eq!(
            Server::bind(&file).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    /// A control thread that answers `show` with a refusal of the text "shown".
    struct Tunnel {
        path: PathBuf,
        thread: JoinHandle<()>,
        _dir: tempfile::TempDir,
    }

    impl Tunnel {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run/a.sock");
            let (bound, is_bound) = std::sync::mpsc::channel();
            let server_path = path.clone();
            let thread = std::thread::spawn(move || {
                runtime().block_on(async {
                    let server = Server::bind(&server_path).unwrap();
                    bound.send(()).unwrap();
                    let (sender, mut requests) = mpsc::channel(1);
                    let serving = tokio::spawn(server.serve(sender));
                    while let Some((request, reply_to)) = requests.recv().await {
                        if request == Request::Down {
                            drop(requests);
                            reply_to.send(Reply::Stopped).unwrap();
                            break;
                        }
                        reply_to.send(refused("shown")).unwrap();
                    }
                    serving.await.unwrap();
                });
            });
            is_bound.recv().unwrap();
            Self {
                path,
                thread,
                _dir: dir,
            }
        }

        fn stop(self) {
            assert_eq!(
                client::request_at(&self.path, Request::Down).unwrap(),
                Reply::Stopped
            );
            self.thread.join().unwrap();
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }
}
