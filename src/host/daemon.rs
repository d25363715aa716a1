// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host's socket: its connections, and the requests of each.
//!
//! The kernel reports the user of a client, and the policy what that user may do. Each connection is a
//! task of its own with bounded memory: garbage or too long a line ends that connection only, and a
//! client that does not read its events loses them and is told how many.

use std::{future::pending, io, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde::Serialize;
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, UCred},
    },
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};
use zeroize::Zeroizing;

pub use super::policy::{Policy, Who};
use super::{
    event::Events,
    limits::{Limits, Permit},
    lines::Lines,
    protocol::{
        HOST, Hello, HostLine, PROTOCOLS, Refusal, RefusalCode, Request, Verb, from_line,
        request_from_line, to_line,
    },
    store::Store,
    tunnels::Host,
    verbs::{Configurations, perform},
};
use crate::{provider::Sender, retry::Retry};

/// The first pause after a connection could not be accepted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Pending requests of one client; no more is read from it meanwhile.
const MAX_REQUESTS: usize = 16;
/// The time for the client's hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// The time for the requests of a client that is gone.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The time to write a line; a client that reads nothing for that long is disconnected.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// The state that the connections of a daemon share.
struct Server {
    host: Host,
    policy: Policy,
    configurations: Configurations,
}

/// Answers clients on `listener` until the future is dropped. Saves their configurations in `store`, if
/// there is one.
pub async fn serve(host: Host, listener: UnixListener, policy: Policy, store: Option<Store>) {
    serve_until(host, listener, policy, store, pending()).await;
}

/// The same until `over` completes and each client has the answers to its earlier requests.
pub async fn serve_until(
    host: Host,
    listener: UnixListener,
    policy: Policy,
    store: Option<Store>,
    over: impl Future<Output = ()>,
) {
    let server = Server {
        host,
        policy,
        configurations: store.map_or(Configurations::Unkept, Configurations::Kept),
    };
    server.serve(listener, over).await;
}

/// Answers clients of a host that runs one tunnel, for root and the host's own user, until `over`
/// completes, as [`serve_until`] does. None of them may change its configuration.
pub(crate) async fn serve_one(host: Host, listener: UnixListener, over: impl Future<Output = ()>) {
    let server = Server {
        host,
        policy: Policy::default(),
        configurations: Configurations::Fixed,
    };
    server.serve(listener, over).await;
}

impl Server {
    async fn serve(self, listener: UnixListener, over: impl Future<Output = ()>) {
        let (server, mut over) = (Arc::new(self), pin!(over));
        let (closing, is_closing) = watch::channel(false);
        let mut clients = JoinSet::new();
        let limits = Limits::default();
        let mut retry = Retry::new(FIRST_PAUSE, LAST_PAUSE);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        retry.is_over();
                        if let Some(client) = admit(&stream, &limits) {
                            clients.spawn(attend(server.clone(), stream, client, is_closing.clone()));
                        }
                    }
                    Err(error) => {
                        // Most likely out of descriptors: an immediate retry would spin.
                        if retry.may_log(Instant::now().into()) {
                            warn!(%error, "cannot accept a client on the control socket; trying again");
                        }
                        sleep(retry.next_pause()).await;
                    }
                },
                Some(_) = clients.join_next() => {}
                () = &mut over => break,
            }
        }
        closing.send_replace(true);
        while clients.join_next().await.is_some() {}
    }
}

/// The credentials of the client, if its user may have another connection; otherwise the connection is
/// closed.
fn admit(stream: &UnixStream, limits: &Limits) -> Option<(UCred, Permit)> {
    let client = stream
        .peer_cred()
        .inspect_err(|error| debug!(%error, "refusing a client without credentials"))
        .ok()?;
    let permit = limits.take(client.uid(), Instant::now().into());
    if permit.is_none() {
        debug!(
            pid = client.pid(),
            uid = client.uid(),
            "refusing a client: its user has too many connections, or connects too often"
        );
    }
    Some((client, permit?))
}

async fn attend(
    server: Arc<Server>,
    stream: UnixStream,
    (client, permit): (UCred, Permit),
    closing: watch::Receiver<bool>,
) {
    let (reader, writer) = stream.into_split();
    let conversation = Conversation {
        server,
        client,
        permit,
        lines: Lines::new(reader),
        writer,
        events: None,
        closing,
    };
    if let Err(error) = conversation.run().await {
        debug!(%error, pid = client.pid(), uid = client.uid(), "a client disconnected");
    }
}

struct Conversation {
    server: Arc<Server>,
    client: UCred,
    permit: Permit,
    /// They may contain secrets.
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: Option<Events>,
    /// Whether nothing more is read, as the host ends.
    closing: watch::Receiver<bool>,
}

/// The next event of a connection.
enum Step {
    Line(Option<Zeroizing<Vec<u8>>>),
    Write(HostLine),
    Close,
}

impl Conversation {
    async fn run(mut self) -> io::Result<()> {
        self.write(&Hello::of(HOST)).await?;
        if !self.server.policy.knows(&self.client) {
            let error = not_authorised();
            return self.write(&HostLine::Refused { id: None, error }).await;
        }
        let line = tokio::select! {
            line = timeout(HELLO_DEADLINE, self.lines.next()) => line??,
            () = is_closing(&mut self.closing) => return Ok(()),
        };
        if let Err(error) = check_hello(&line.unwrap_or_default()) {
            return self.write(&HostLine::Refused { id: None, error }).await;
        }
        self.converse().await
    }

    /// Ends when the client sends no more and its requests are carried out.
    async fn converse(&mut self) -> io::Result<()> {
        let mut requests = JoinSet::new();
        let outcome = self.carry_out(&mut requests).await;
        // A client that sends no more may still read, and the requests of one that is gone are
        // carried out.
        let the_rest = async {
            while let Some(answer) = requests.join_next().await {
                if let (Ok(answer), Ok(())) = (answer, &outcome) {
                    let _ = self.write(&answer).await;
                }
            }
        };
        // A request that is not done by then waits for a provider that does not answer.
        if timeout(REQUEST_DEADLINE, the_rest).await.is_err() {
            debug!("cancelling requests of a disconnected client");
        }
        outcome
    }

    async fn carry_out(&mut self, requests: &mut JoinSet<HostLine>) -> io::Result<()> {
        let mut closes = false;
        while !(closes && requests.is_empty()) {
            let step = tokio::select! {
                Some(answer) = requests.join_next() => match answer {
                    Ok(answer) => Step::Write(answer),
                    // The client sees the connection end, and may repeat the request.
                    Err(_) => return Err(io::Error::other("a request panicked")),
                },
                line = next_line(&self.permit, &mut self.lines), if !closes && requests.len() < MAX_REQUESTS => {
                    self.permit.note_request(Instant::now().into());
                    Step::Line(line?)
                }
                Some(line) = next_event(&mut self.events) => Step::Write(line),
                () = is_closing(&mut self.closing), if !closes => Step::Close,
            };
            match step {
                Step::Line(None) => return Ok(()),
                Step::Line(Some(line)) => match request_from_line(&line) {
                    Ok(request) => self.begin(request, requests).await?,
                    Err((id, error)) => {
                        self.write(&HostLine::Refused { id, error }).await?;
                        if id.is_none() {
                            return Ok(());
                        }
                    }
                },
                Step::Write(line) => self.write(&line).await?,
                Step::Close => closes = true,
            }
        }
        // They include the ends of the sessions.
        while let Some(Some(line)) = next_event(&mut self.events).now_or_never() {
            self.write(&line).await?;
        }
        Ok(())
    }

    async fn begin(
        &mut self,
        Request { id, verb }: Request,
        requests: &mut JoinSet<HostLine>,
    ) -> io::Result<()> {
        if !self.server.policy.allows(&self.client, verb.access()) {
            let (id, error) = (Some(id), not_authorised());
            return self.write(&HostLine::Refused { id, error }).await;
        }
        if verb == Verb::Subscribe {
            self.events = Some(self.server.host.events());
        }
        let (server, sender) = (self.server.clone(), sender(&self.client));
        requests.spawn(async move {
            match perform(&server.host, &server.configurations, sender, verb).await {
                Ok(ok) => HostLine::Done { id, ok },
                Err(error) => HostLine::Refused {
                    id: Some(id),
                    error,
                },
            }
        });
        Ok(())
    }

    async fn write(&mut self, message: &impl Serialize) -> io::Result<()> {
        timeout(WRITE_DEADLINE, self.writer.write_all(&to_line(message))).await?
    }
}

/// The next line, once the rate limit of this user allows one; until then, requests wait in the socket.
async fn next_line(
    permit: &Permit,
    lines: &mut Lines<OwnedReadHalf>,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    while let Some(then) = permit.next_request(Instant::now().into()) {
        sleep_until(then.into()).await;
    }
    lines.next().await
}

async fn next_event(events: &mut Option<Events>) -> Option<HostLine> {
    match events {
        Some(events) => Some(match events.next().await? {
            Ok(event) => HostLine::Event { event },
            Err(lagged) => HostLine::Lagged { lagged: lagged.0 },
        }),
        None => pending().await,
    }
}

fn sender(client: &UCred) -> Sender {
    Sender {
        user: client.uid(),
        group: client.gid(),
        process: client.pid(),
    }
}

/// Returns when nothing more is to be read.
async fn is_closing(closing: &mut watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        // The daemon ends, and this task with it.
        pending().await
    }
}

fn check_hello(line: &[u8]) -> Result<(), Refusal> {
    let refusal = |code, message: String| Err(Refusal { code, message });
    match from_line::<Hello>(line) {
        Ok(hello) if hello.common().is_some() => Ok(()),
        Ok(hello) => refusal(
            RefusalCode::UnknownProtocol,
            format!(
                "this host speaks protocol {PROTOCOLS:?} and the client {:?}; install the same version \
                 of both",
                hello.protocols
            ),
        ),
        Err(error) => refusal(
            RefusalCode::Malformed,
            format!(
                "not a hello, with which every client begins ({error}); a client of an older version \
                 has another one: install the same version of both"
            ),
        ),
    }
}

fn not_authorised() -> Refusal {
    let message =
        "this user may not do that; run as root, or as the owner of the process that runs the tunnel"
            .to_owned();
    let code = RefusalCode::NotAuthorised;
    Refusal { code, message }
}
