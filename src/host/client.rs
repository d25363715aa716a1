// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client of a host's socket (`NETunnelProviderManager`, `NETunnelProviderSession`).
//!
//! ```no_run
//! # async fn example() -> Result<(), patchcord::host::client::ClientError> {
//! use patchcord::host::client::{Client, DEFAULT_SOCKET};
//!
//! let client = Client::connect(DEFAULT_SOCKET).await?;
//! let mut events = client.events().await?;
//! client.start("office", None).await?;
//! while let Some(event) = events.next().await {
//!     println!("{event:?}");
//! }
//! # Ok(())
//! # }
//! ```

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use zeroize::Zeroizing;

use super::{
    event::{Attempt, Event, Lagged},
    lines::wiped_line,
    protocol::{
        CLIENT, Heard, Hello, Message, PROTOCOLS, Refusal, Reply, Request, TunnelInfo, Verb,
        from_line, to_line,
    },
};
use crate::{
    control::message::{Answer, FdbRequest, Query, ReloadMode, Reloaded, Status},
    provider::{Secret, TunnelConfiguration},
};

/// The default socket of a host.
pub const DEFAULT_SOCKET: &str = "/run/patchcord/host.sock";

/// Events that may wait to be read; the host counts those beyond.
const EVENTS: usize = 64;
/// The time between attempts to connect while the listener's backlog is full.
const IN_LINE: Duration = Duration::from_millis(20);
/// The longest line of a host: room for the status of a tunnel with very many peers, and a bound in
/// case another program answers.
const MAX_LINE: u64 = 64 << 20;
/// For the host's hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// A connection to a host. Clones use the same one; requests may overlap.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    requests: mpsc::Sender<Zeroizing<Vec<u8>>>,
    next_id: AtomicU64,
    shared: Arc<Mutex<Shared>>,
    /// Tasks that write, separate from the requests: a cancelled request must not leave half a
    /// line.
    _tasks: JoinSet<()>,
}

/// What the reading task shares with the requests. `None` once the connection is gone.
#[derive(Default)]
struct Shared {
    gone: bool,
    /// The host's reason for ending the connection, if it gave one.
    refused: Option<Refusal>,
    replies: BTreeMap<u64, oneshot::Sender<Result<Reply, ClientError>>>,
    events: Option<mpsc::Sender<Result<Event, Lagged>>>,
}

/// Why a host did not carry out a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No process listens on the socket.
    #[error("no host listens on {}: {cause}; start it with `patchcord host run`", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's error.
        cause: io::Error,
    },
    /// This user may not connect to the socket.
    #[error("this user may not connect to {}: {cause}; run as root", path.display())]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
        /// The kernel's error.
        cause: io::Error,
    },
    /// The host speaks other versions of the protocol.
    #[error(
        "the listener is patchcord {version} with protocol {protocols:?}, this program has {PROTOCOLS:?}: it is of another version; start the tunnel again with this one"
    )]
    Version {
        /// The version of the host.
        version: String,
        /// The protocol versions of the host.
        protocols: Vec<u32>,
    },
    /// The listener does not begin as a host does; hosts of the first versions did not.
    #[error(
        "the listener on {} is another version of patchcord, or another program: {cause}; start the tunnel again with this version", path.display()
    )]
    NoHello {
        /// The socket.
        path: PathBuf,
        /// The error in the first line.
        cause: serde_json::Error,
    },
    /// The connection ended. The host may be restarting: connect again.
    #[error("the host ended the connection; connect again")]
    Disconnected,
    /// The answer is not one of a host.
    #[error("this version does not understand the answer: {0}")]
    BadAnswer(String),
    /// The host refused.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// Events of a host. Keeps the connection open.
pub struct ClientEvents {
    receiver: mpsc::Receiver<Result<Event, Lagged>>,
    _connection: Arc<Inner>,
}

impl ClientEvents {
    /// The next event; `None` when the host is gone. Cancel safe.
    ///
    /// # Errors
    /// [`Lagged`] once after events were lost.
    pub async fn next(&mut self) -> Option<Result<Event, Lagged>> {
        self.receiver.recv().await
    }
}

/// Connects, after the clients that wait in the backlog.
async fn call(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + HELLO_DEADLINE;
    loop {
        match UnixStream::connect(path).await {
            // The backlog is full, and a non-blocking socket does not wait.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                sleep(IN_LINE).await;
            }
            outcome => return outcome,
        }
    }
}

impl Client {
    /// Connects to the host that listens at `path`.
    ///
    /// # Errors
    /// No process listens, this user may not connect, or the host is of another version.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let stream = call(path).await.map_err(|cause| {
            let path = path.to_owned();
            match cause.kind() {
                io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path, cause },
                _ => ClientError::NotRunning { path, cause },
            }
        })?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        // A host that refuses the connection may have closed it; its reason can still be read.
        let _ = writer.write_all(&to_line(&Hello::of(CLIENT))).await;
        let line = timeout(HELLO_DEADLINE, read_line(&mut reader)).await;
        let line = line.ok().flatten().ok_or(ClientError::Disconnected)?;
        let hello: Hello = from_line(&line).map_err(|cause| ClientError::NoHello {
            path: path.to_owned(),
            cause,
        })?;
        if hello.common().is_none() {
            return Err(ClientError::Version {
                version: hello.version,
                protocols: hello.protocols,
            });
        }
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (requests, lines) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(reader, Hangup(shared.clone())));
        tasks.spawn(write(writer, lines));
        let inner = Inner {
            requests,
            next_id: AtomicU64::new(1),
            shared,
            _tasks: tasks,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// All tunnels.
    ///
    /// # Errors
    /// [`ClientError`], as for all requests.
    pub async fn list(&self) -> Result<Vec<TunnelInfo>, ClientError> {
        match self.request(Verb::List).await? {
            Reply::Tunnels(tunnels) => Ok(tunnels),
            other => Err(unexpected(&other)),
        }
    }

    /// One tunnel.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn view(&self, tunnel: &str) -> Result<TunnelInfo, ClientError> {
        let tunnel = tunnel.to_owned();
        match self.request(Verb::View { tunnel }).await? {
            Reply::Tunnel(tunnel) => Ok(*tunnel),
            other => Err(unexpected(&other)),
        }
    }

    /// The answer of a running tunnel to a query.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask(&self, tunnel: &str, query: Query) -> Result<Answer, ClientError> {
        let tunnel = tunnel.to_owned();
        match self.request(Verb::Ask { tunnel, query }).await? {
            Reply::Answer(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// The state of a running tunnel (`patchcord show`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn show(&self, tunnel: &str) -> Result<Status, ClientError> {
        match self.ask(tunnel, Query::Show).await? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected(&Reply::Answer(other))),
        }
    }

    /// Reads the FDB of a running tunnel, or changes it (`patchcord fdb`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn fdb(&self, tunnel: &str, request: FdbRequest) -> Result<Answer, ClientError> {
        self.ask(tunnel, Query::Fdb(request)).await
    }

    /// Compares the file of a running tunnel with the configuration in force, and applies the
    /// difference (`patchcord reload`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reload(&self, tunnel: &str, mode: ReloadMode) -> Result<Reloaded, ClientError> {
        match self.ask(tunnel, Query::Reload(mode)).await? {
            Answer::Reloaded(reloaded) => Ok(reloaded),
            other => Err(unexpected(&Reply::Answer(other))),
        }
    }

    /// Ends the session of a running tunnel and starts another, with its file as it is now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn restart(&self, tunnel: &str) -> Result<Attempt, ClientError> {
        let tunnel = tunnel.to_owned();
        match self.request(Verb::Restart { tunnel }).await? {
            Reply::Started { attempt } => Ok(attempt),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a session; its events carry the attempt (`startTunnelWithOptions`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start(
        &self,
        tunnel: &str,
        options: Option<BTreeMap<String, String>>,
    ) -> Result<Attempt, ClientError> {
        let tunnel = tunnel.to_owned();
        match self.request(Verb::Start { tunnel, options }).await? {
            Reply::Started { attempt } => Ok(attempt),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends the session, and waits until everything of it is removed (`stopTunnel`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop(&self, tunnel: &str) -> Result<(), ClientError> {
        let tunnel = tunnel.to_owned();
        self.carry_out(Verb::Stop { tunnel }).await
    }

    /// The provider's answer to a message, if it has one (`sendProviderMessage`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send_message(
        &self,
        tunnel: &str,
        message: &[u8],
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let (tunnel, message) = (tunnel.to_owned(), Message(message.to_vec()));
        match self.request(Verb::Send { tunnel, message }).await? {
            Reply::Message(answer) => Ok(answer.map(|message| message.0)),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds a tunnel or changes it; with `generation`, only if no other client has changed it
    /// since. Returns the new generation (`saveToPreferences`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn configure(
        &self,
        tunnel: &str,
        configuration: TunnelConfiguration,
        generation: Option<u64>,
    ) -> Result<u64, ClientError> {
        let tunnel = tunnel.to_owned();
        let verb = Verb::Configure {
            tunnel,
            configuration,
            generation,
        };
        match self.request(verb).await? {
            Reply::Configured { generation } => Ok(generation),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a tunnel (`removeFromPreferences`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, tunnel: &str) -> Result<(), ClientError> {
        let tunnel = tunnel.to_owned();
        self.carry_out(Verb::Remove { tunnel }).await
    }

    /// Stores a secret with the host, in place of an older one of this name. No client can read it,
    /// only the providers of tunnels whose configurations name it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn keep_secret(&self, name: &str, secret: Secret) -> Result<(), ClientError> {
        let name = name.to_owned();
        self.carry_out(Verb::KeepSecret { name, secret }).await
    }

    /// Deletes a stored secret; succeeds if there is none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn forget_secret(&self, name: &str) -> Result<(), ClientError> {
        let name = name.to_owned();
        self.carry_out(Verb::ForgetSecret { name }).await
    }

    /// The events from now on, in their order; an `Err` is the number of events that were lost
    /// because they were not read in time. One stream per connection: an earlier one ends.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self) -> Result<ClientEvents, ClientError> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.shared(|shared| shared.events = Some(sender));
        self.carry_out(Verb::Subscribe).await?;
        Ok(ClientEvents {
            receiver,
            _connection: self.inner.clone(),
        })
    }

    /// For verbs whose reply has no content.
    async fn carry_out(&self, verb: Verb) -> Result<(), ClientError> {
        match self.request(verb).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn request(&self, verb: Verb) -> Result<Reply, ClientError> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let is_gone = self.shared(|shared| {
            shared.replies.insert(id, sender);
            shared.gone
        });
        if is_gone {
            return Err(self.disconnected());
        }
        let line = wiped_line(&Request { id, verb });
        // The writing task lives as long as this.
        let _ = self.inner.requests.send(line).await;
        reply.await.map_err(|_| self.disconnected())?
    }

    fn disconnected(&self) -> ClientError {
        let refused = self.shared(|shared| shared.refused.clone());
        refused.map_or(ClientError::Disconnected, ClientError::Refused)
    }

    fn shared<T>(&self, action: impl FnOnce(&mut Shared) -> T) -> T {
        action(
            &mut self
                .inner
                .shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.replies.clear();
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::BadAnswer(format!("{reply:?}"))
}

/// The next line; `None` at the end, or if a line has no end.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = reader.take(MAX_LINE).read_until(b'\n', &mut line).await;
    (read.is_ok() && line.ends_with(b"\n")).then_some(line)
}

async fn write(mut writer: OwnedWriteHalf, mut lines: mpsc::Receiver<Zeroizing<Vec<u8>>>) {
    while let Some(line) = lines.recv().await {
        // A host may not read a refused request to its end; its answer can be read all the same.
        let _ = writer.write_all(&line).await;
    }
}

/// Distributes the host's lines until there are no more. Counts events that are not read in time, so
/// that answers do not wait behind them.
async fn read(mut reader: BufReader<OwnedReadHalf>, hangup: Hangup) {
    let shared = &*hangup.0;
    let mut lost = 0;
    let with = |action: &mut dyn FnMut(&mut Shared)| {
        action(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
    };
    while let Some(line) = read_line(&mut reader).await {
        let Ok(heard) = serde_json::from_slice::<Heard<'_>>(&line) else {
            return;
        };
        let (id, answer) = match heard {
            Heard {
                id: Some(id),
                error: Some(error),
                ..
            } => (id, Err(ClientError::Refused(error))),
            Heard {
                id: Some(id),
                ok: Some(ok),
                ..
            } => {
                let reply = serde_json::from_str(ok.get());
                let bad = |error: serde_json::Error| ClientError::BadAnswer(error.to_string());
                (id, reply.map_err(bad))
            }
            Heard {
                id: None,
                error: Some(error),
                ..
            } => {
                with(&mut |shared| shared.refused = Some(error.clone()));
                return;
            }
            Heard { event, lagged, .. } => {
                lost += lagged.unwrap_or_default();
                // The event may be one of a later version.
                let event = event.and_then(|event| serde_json::from_str(event.get()).ok());
                event
                    .into_iter()
                    .for_each(|event| deliver(shared, &mut lost, event));
                continue;
            }
        };
        let mut waiting = None;
        with(&mut |shared| waiting = shared.replies.remove(&id));
        if let Some(waiting) = waiting {
            // The request may have been cancelled.
            let _ = waiting.send(answer);
        }
    }
}

/// Dropped when no more is read from the host.
struct Hangup(Arc<Mutex<Shared>>);

impl Drop for Hangup {
    fn drop(&mut self) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.gone = true;
        shared.replies.clear();
        shared.events = None;
    }
}

fn deliver(shared: &Mutex<Shared>, lost: &mut u64, event: Event) {
    let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(events) = &shared.events else { return };
    if *lost > 0 && events.try_send(Err(Lagged(*lost))).is_ok() {
        *lost = 0;
    }
    if *lost > 0 || matches!(events.try_send(Ok(event)), Err(TrySendError::Full(_))) {
        *lost += 1;
    }
}
