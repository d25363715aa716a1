// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trait of a tunnel: the callbacks of a provider, and their arguments.

use std::{collections::BTreeMap, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{context::ProviderContext, error::ProviderError, status::StopReason};
use crate::control::message::{Answered, Query, QueryError};

/// A boxed future, so that one host can run different kinds of providers.
pub type BoxFut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An Ethernet tunnel. One value is one session; the host makes a fresh one for each.
pub trait EthernetTunnelProvider: Send + Sync + 'static {
    /// Brings the tunnel up. `Ok` means that frames can flow.
    ///
    /// Must call [`ProviderContext::set_network_settings`] with success before: an Ethernet tunnel
    /// has no interface until then. A stop may come meanwhile; watch
    /// [`ProviderContext::cancelled`], or expect to be dropped at an await.
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>>;

    /// Ends the tunnel. Called exactly once for each session that was started, whatever ended it;
    /// the host removes the interface afterwards, even if this does not return in time.
    fn stop<'a>(&'a self, context: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()>;

    /// Answers a message from outside; `None` is no answer.
    fn handle_app_message<'a>(
        &'a self,
        context: &'a ProviderContext,
        message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        let _ = (context, message);
        Box::pin(async { None })
    }

    /// Answers the queries of `patchcord show` and `patchcord fdb`, if this kind of provider can.
    fn handle_query<'a>(
        &'a self,
        context: &'a ProviderContext,
        query: Query,
    ) -> BoxFut<'a, Answered> {
        let _ = (context, query);
        Box::pin(async { Err(QueryError::Unknown) })
    }

    /// The machine is about to sleep.
    fn sleep<'a>(&'a self, context: &'a ProviderContext) -> BoxFut<'a, ()> {
        let _ = context;
        Box::pin(async {})
    }

    /// The machine woke up.
    fn wake(&self, context: &ProviderContext) {
        let _ = context;
    }

    /// Whether the threads and tasks of the tunnel make progress. Called often, on the thread that
    /// runs the host, so it must not block. While a provider returns false, the service manager
    /// gets no watchdog notification, and restarts the host in the end (`WatchdogSec=`); a provider
    /// that cannot recover cancels its tunnel before that.
    fn is_well(&self) -> bool {
        true
    }
}

/// How and by whom a session was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct StartOptions {
    /// Options of the application; `None` unless an application started it.
    pub options: Option<BTreeMap<String, String>>,
    /// The origin of the start.
    pub source: StartSource,
}

/// A message from outside (`handleAppMessage`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppMessage {
    /// Its content.
    pub body: Bytes,
    /// Its sender, as reported by the kernel; `None` if that was this process.
    pub sender: Option<Sender>,
}

/// Another process (`SO_PEERCRED`, unix(7)), as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its user.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// Its process ID, if it is in the PID namespace of this process.
    pub process: Option<i32>,
}

impl<T: Into<Bytes>> From<T> for AppMessage {
    fn from(body: T) -> Self {
        Self {
            body: body.into(),
            sender: None,
        }
    }
}

/// The origin of a session's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StartSource {
    /// A program or a user.
    #[default]
    App,
    /// A rule.
    OnDemand,
    /// The service manager.
    System,
    /// The start of the machine.
    Boot,
}
