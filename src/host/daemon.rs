// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host's socket: who may call, and what is answered.
//!
//! Trusts nobody before the kernel has said who it is. Each connection is a task of its own with
//! bounded memory: garbage or too long a line ends that connection only, and who does not read its
//! events loses them and is told how many.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, UCred},
    },
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::{
    Events, Host, HostError, TunnelView, explain,
    lines::Lines,
    places::{Place, Places},
    protocol::{
        Access, ClientHello, Generation, HostHello, HostLine, Message, PROTOCOLS, Refusal,
        RefusalCode, Request, Started, TunnelInfo, Verb, request_from_line, to_line,
    },
    store::{Store, StoreError},
};
use crate::{
    provider::{AppMessage, SecretError, Sender, StartOptions, StartSource, StopReason},
    retry::Retry,
};

/// After a connection that could not be accepted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Requests of one client that are being answered; it is not read from meanwhile.
const MAX_REQUESTS: usize = 16;
/// For the client's hello to arrive.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// For the requests of a client that is gone.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// For a line to leave; who reads nothing for that long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// Who may do what. Root may do everything, and so may the user that the host runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who may look.
    pub observe: Who,
    /// Who may start, stop and talk to tunnels.
    pub control: Who,
    /// Who may add, change and remove them.
    pub configure: Who,
}

/// Some users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Numbers of users.
    pub users: BTreeSet<u32>,
    /// Numbers of groups; what counts is the group that a client runs as.
    pub groups: BTreeSet<u32>,
}

impl Who {
    fn is_nobody(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

impl Policy {
    /// The mode that the host's socket should have: for everybody only if it is for somebody beside
    /// root and the host's own user.
    pub fn socket_mode(&self) -> u32 {
        let whos = [&self.observe, &self.control, &self.configure];
        match whos.into_iter().all(Who::is_nobody) {
            true => 0o600,
            false => 0o666,
        }
    }

    /// Whether the client may do anything at all.
    fn knows(&self, client: &UCred) -> bool {
        let all = [Access::Observe, Access::Control, Access::Configure];
        all.into_iter().any(|access| self.allows(client, access))
    }

    fn allows(&self, client: &UCred, access: Access) -> bool {
        let who = match access {
            Access::Observe => &self.observe,
            Access::Control => &self.control,
            Access::Configure => &self.configure,
        };
        let (user, group) = (client.uid(), client.gid());
        let is_ours = user == 0 || user == crate::machine::effective_user();
        is_ours || who.users.contains(&user) || who.groups.contains(&group)
    }
}

/// Answers clients on `listener` until the future is dropped. What they configure is kept in
/// `store`, if there is one.
pub async fn serve(host: Host, listener: UnixListener, policy: Policy, store: Option<Store>) {
    let (policy, store) = (Arc::new(policy), store.map(Arc::new));
    let mut clients = JoinSet::new();
    let places = Places::default();
    let mut retry = Retry::new(FIRST_PAUSE, LAST_PAUSE);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    retry.is_over();
                    if let Some((client, place)) = admit(&stream, &places) {
                        let (policy, store) = (policy.clone(), store.clone());
                        let client = (client, place);
                        clients.spawn(attend(host.clone(), stream, client, policy, store));
                    }
                }
                Err(error) => {
                    // Out of descriptors, most likely: trying at once would spin.
                    if retry.may_log(Instant::now().into()) {
                        warn!(%error, "the host's socket: no connection can be accepted; trying again");
                    }
                    sleep(retry.next_pause()).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

/// Who has connected, if there is a place for that user. Who has too many connections is hung up on.
fn admit(stream: &UnixStream, places: &Places) -> Option<(UCred, Place)> {
    let client = stream
        .peer_cred()
        .inspect_err(|error| debug!(%error, "a client without credentials"))
        .ok()?;
    let place = places.take(client.uid(), Instant::now().into());
    if place.is_none() {
        debug!(pid = client.pid(), uid = client.uid(), "a client too many");
    }
    Some((client, place?))
}

async fn attend(
    host: Host,
    stream: UnixStream,
    (client, place): (UCred, Place),
    policy: Arc<Policy>,
    store: Option<Arc<Store>>,
) {
    let conversation = Conversation::new(host, stream, (client, place), policy, store);
    if let Err(error) = conversation.run().await {
        debug!(%error, pid = client.pid(), uid = client.uid(), "a client is gone");
    }
}

struct Conversation {
    host: Host,
    client: UCred,
    place: Place,
    policy: Arc<Policy>,
    store: Option<Arc<Store>>,
    /// There may be secrets in them.
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: Option<Events>,
}

/// What happens next on a connection.
enum Step {
    Line(Option<Zeroizing<Vec<u8>>>),
    Answer(HostLine),
    Tell(HostLine),
}

impl Conversation {
    fn new(
        host: Host,
        stream: UnixStream,
        (client, place): (UCred, Place),
        policy: Arc<Policy>,
        store: Option<Arc<Store>>,
    ) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            host,
            client,
            place,
            policy,
            store,
            lines: Lines::new(reader),
            writer,
            events: None,
        }
    }

    async fn run(mut self) -> io::Result<()> {
        self.write(&HostHello {
            hello: "patchcord-host".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: PROTOCOLS.to_vec(),
        })
        .await?;
        if !self.policy.knows(&self.client) {
            let error = not_authorised();
            return self.write(&HostLine::Refused { id: None, error }).await;
        }
        let line = timeout(HELLO_DEADLINE, self.lines.next()).await??;
        if let Err(error) = check_hello(&line.unwrap_or_default()) {
            return self.write(&HostLine::Refused { id: None, error }).await;
        }
        self.converse().await
    }

    /// Ends when the client is gone and its requests are carried out.
    async fn converse(&mut self) -> io::Result<()> {
        let mut requests = JoinSet::new();
        let outcome = self.carry_out(&mut requests).await;
        let carried_out = async { while requests.join_next().await.is_some() {} };
        // What is not done by then waits for a provider that does not answer.
        if timeout(REQUEST_DEADLINE, carried_out).await.is_err() {
            debug!("requests of a client that is gone are given up");
        }
        outcome
    }

    async fn carry_out(&mut self, requests: &mut JoinSet<HostLine>) -> io::Result<()> {
        loop {
            let step = tokio::select! {
                Some(answer) = requests.join_next() => match answer {
                    Ok(answer) => Step::Answer(answer),
                    // Whoever waits for it hears that the host is gone, and may ask again.
                    Err(_) => return Err(io::Error::other("a request panicked")),
                },
                line = next_line(&self.place, &mut self.lines), if requests.len() < MAX_REQUESTS => {
                    self.place.note_request(Instant::now().into());
                    Step::Line(line?)
                }
                Some(line) = next_event(&mut self.events) => Step::Tell(line),
            };
            match step {
                Step::Line(None) => return Ok(()),
                Step::Line(Some(line)) => match request_from_line(&line) {
                    Ok(request) if !self.policy.allows(&self.client, request.verb.access()) => {
                        let (id, error) = (Some(request.id), not_authorised());
                        self.write(&HostLine::Refused { id, error }).await?;
                    }
                    Ok(request) => {
                        if request.verb == Verb::Subscribe {
                            self.events = Some(self.host.events());
                        }
                        let (host, store) = (self.host.clone(), self.store.clone());
                        let sender = sender(&self.client);
                        requests.spawn(async move {
                            answer(&host, store.as_deref(), sender, request).await
                        });
                    }
                    Err((id, error)) => {
                        self.write(&HostLine::Refused { id, error }).await?;
                        if id.is_none() {
                            return Ok(());
                        }
                    }
                },
                Step::Answer(line) | Step::Tell(line) => self.write(&line).await?,
            }
        }
    }

    async fn write(&mut self, message: &impl Serialize) -> io::Result<()> {
        timeout(WRITE_DEADLINE, self.writer.write_all(&to_line(message))).await?
    }
}

/// The next line, once the user of this place may ask again; what it sends until then waits in the socket.
async fn next_line(
    place: &Place,
    lines: &mut Lines<OwnedReadHalf>,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    while let Some(then) = place.next_request(Instant::now().into()) {
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
        None => std::future::pending().await,
    }
}

fn sender(client: &UCred) -> Sender {
    Sender {
        user: client.uid(),
        group: client.gid(),
        process: client.pid(),
    }
}

fn check_hello(line: &[u8]) -> Result<(), Refusal> {
    let refusal = |code, message: String| Err(Refusal { code, message });
    match super::protocol::from_line::<ClientHello>(line) {
        Ok(hello) if PROTOCOLS.contains(&hello.protocol) => Ok(()),
        Ok(hello) => refusal(
            RefusalCode::UnknownProtocol,
            format!(
                "this host speaks protocol {PROTOCOLS:?} and not {}; install the same version of both",
                hello.protocol
            ),
        ),
        Err(error) => refusal(RefusalCode::Malformed, format!("not a hello: {error}")),
    }
}

fn not_authorised() -> Refusal {
    let message =
        "this user may not do that; be root, or have the host's policy changed".to_owned();
    let code = RefusalCode::NotAuthorised;
    Refusal { code, message }
}

async fn answer(
    host: &Host,
    store: Option<&Store>,
    sender: Sender,
    Request { id, verb }: Request,
) -> HostLine {
    match perform(host, store, sender, verb).await {
        Ok(ok) => HostLine::Done { id, ok },
        Err(error) => HostLine::Refused {
            id: Some(id),
            error,
        },
    }
}

async fn perform(
    host: &Host,
    store: Option<&Store>,
    sender: Sender,
    verb: Verb,
) -> Result<serde_json::Value, Refusal> {
    Ok(match verb {
        Verb::List => json(&host.list().into_iter().map(info).collect::<Vec<_>>()),
        Verb::View { tunnel } => json(&info(host.view(&tunnel)?)),
        Verb::Start { tunnel, options } => {
            let source = StartSource::App;
            let attempt = host.start(&tunnel, StartOptions { options, source })?;
            json(&Started { attempt })
        }
        Verb::Stop { tunnel } => json(&host.stop(&tunnel, StopReason::UserInitiated).await?),
        Verb::Send { tunnel, message } => {
            let mut message = AppMessage::from(message.0);
            message.sender = Some(sender);
            let answer = host.send_message(&tunnel, message).await?;
            json(&answer.map(|bytes| Message(bytes.to_vec())))
        }
        Verb::Subscribe => serde_json::Value::Null,
        Verb::Configure {
            tunnel,
            configuration,
            generation,
        } => {
            host.check_generation(&tunnel, generation)?;
            if let Some(store) = store {
                store.save(&tunnel, &configuration)?;
            }
            let generation = host.configure(&tunnel, configuration, generation)?;
            json(&Generation { generation })
        }
        Verb::Remove { tunnel } => {
            if let Some(store) = store {
                store.remove(&tunnel)?;
            }
            json(&host.remove(&tunnel)?)
        }
        Verb::KeepSecret { name, secret } => json(&host.secrets().keep(&name, &secret)?),
        Verb::ForgetSecret { name } => json(&host.secrets().forget(&name)?),
    })
}

fn json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("answers hold nothing that JSON lacks")
}

fn info(view: TunnelView) -> TunnelInfo {
    TunnelInfo {
        tunnel: view.tunnel,
        configuration: (*view.configuration).clone(),
        generation: view.generation,
        status: view.status,
        last_disconnect_error: view.last_disconnect_error,
    }
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        let code = match error {
            HostError::NoTunnel(_) => RefusalCode::NoTunnel,
            HostError::Disabled(_) => RefusalCode::Disabled,
            HostError::Running { .. } | HostError::Locked(_) => RefusalCode::Running,
            HostError::NotRunning(_) => RefusalCode::NotRunning,
            HostError::Busy(_) => RefusalCode::Busy,
            HostError::Stale { .. } => RefusalCode::Stale,
            HostError::Name(_) | HostError::NoProvider { .. } | HostError::Provider(_) => {
                RefusalCode::Configuration
            }
        };
        let message = explain(&error);
        Self { code, message }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self {
            code: RefusalCode::Configuration,
            message: explain(&error),
        }
    }
}

impl From<SecretError> for Refusal {
    fn from(error: SecretError) -> Self {
        Self {
            code: RefusalCode::Secret,
            message: explain(&error),
        }
    }
}
