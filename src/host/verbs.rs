// SPDX-License-Identifier: MIT OR Apache-2.0
//! The action of each verb of the [protocol](super::protocol). `daemon` has checked the client's
//! permission before.

use super::{
    error::{HostError, explain},
    protocol::{Message, Refusal, RefusalCode, Reply, TunnelInfo, Verb},
    store::{Store, StoreError},
    tunnel::TunnelView,
    tunnels::Host,
};
use crate::provider::{AppMessage, SecretError, Sender, StartOptions, StartSource, StopReason};

/// What clients may do to configurations.
pub(super) enum Configurations {
    /// Change them, until the host ends.
    Unkept,
    /// Change them permanently.
    Kept(Store),
    /// Nothing: the process runs the one tunnel that it was started for.
    Fixed,
}

/// Carries out `verb` for a client.
pub(super) async fn perform(
    host: &Host,
    configurations: &Configurations,
    sender: Sender,
    verb: Verb,
) -> Result<Reply, Refusal> {
    match verb {
        Verb::List => Ok(Reply::Tunnels(host.list().into_iter().map(info).collect())),
        Verb::View { tunnel } => Ok(Reply::Tunnel(Box::new(info(host.view(&tunnel)?)))),
        Verb::Ask { tunnel, query } => Ok(Reply::Answer(host.ask(&tunnel, query).await?)),
        Verb::Start { tunnel, options } => {
            let source = StartSource::App;
            let attempt = host.start(&tunnel, StartOptions { options, source })?;
            Ok(Reply::Started { attempt })
        }
        Verb::Stop { tunnel } => {
            host.stop(&tunnel, StopReason::UserInitiated).await?;
            Ok(Reply::Done)
        }
        Verb::Restart { tunnel } => {
            let attempt = host.restart(&tunnel).await?;
            Ok(Reply::Started { attempt })
        }
        Verb::Send { tunnel, message } => {
            let mut message = AppMessage::from(message.0);
            message.sender = Some(sender);
            let answer = host.send_message(&tunnel, message).await?;
            Ok(Reply::Message(answer.map(|bytes| Message(bytes.to_vec()))))
        }
        // The connection subscribes to them.
        Verb::Subscribe => Ok(Reply::Done),
        Verb::Configure {
            tunnel,
            configuration,
            generation,
        } => {
            host.check_generation(&tunnel, generation)?;
            if let Some(store) = configurations.changeable()? {
                store.save(&tunnel, &configuration)?;
            }
            let generation = host.configure(&tunnel, configuration, generation)?;
            Ok(Reply::Configured { generation })
        }
        Verb::Remove { tunnel } => {
            if let Some(store) = configurations.changeable()? {
                store.remove(&tunnel)?;
            }
            host.remove(&tunnel)?;
            Ok(Reply::Done)
        }
        Verb::KeepSecret { name, secret } => {
            configurations.changeable()?;
            host.secrets().keep(&name, &secret)?;
            Ok(Reply::Done)
        }
        Verb::ForgetSecret { name } => {
            configurations.changeable()?;
            host.secrets().forget(&name)?;
            Ok(Reply::Done)
        }
    }
}

impl Configurations {
    /// The store for a change, if there is one.
    fn changeable(&self) -> Result<Option<&Store>, Refusal> {
        match self {
            Self::Unkept => Ok(None),
            Self::Kept(store) => Ok(Some(store)),
            Self::Fixed => Err(Refusal {
                code: RefusalCode::Configuration,
                message:
                    "`patchcord up` runs this tunnel from its file; change that, and start the \
                          tunnel again"
                        .to_owned(),
            }),
        }
    }
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
            HostError::NoQuery(_) => RefusalCode::NoQuery,
            HostError::NotNow { .. } => RefusalCode::NotNow,
            HostError::Refused(_) => RefusalCode::Refused,
            HostError::Stale { .. } => RefusalCode::Stale,
            HostError::Name(_)
            | HostError::NoProvider { .. }
            | HostError::Provider(_)
            | HostError::Configuration(_) => RefusalCode::Configuration,
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
