// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells a provider of the machine's sleep, and ends its session for it if it is configured so.

use std::{future::pending, sync::Arc};

use tokio::time::timeout_at;
use tracing::{debug, warn};

use super::{EthernetTunnelProvider, ProviderContext, ProviderError, SessionStatus, StopReason};
use crate::io::{
    bus::Bus,
    power::{Power, PowerEvent, SleepGuard},
};

/// Runs beside a session until it is dropped. A machine without logind does not say when it sleeps.
pub(super) async fn follow(
    bus: Bus,
    provider: Arc<dyn EthernetTunnelProvider>,
    context: ProviderContext,
) {
    let why = format!("tunnel {} gets ready", context.tunnel());
    let mut power = match Power::watch(&bus, &why).await {
        Ok(power) => power,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            return debug!(%error, source, "the machine's sleep will not be noticed");
        }
    };
    while let Some(event) = power.next().await {
        match event {
            PowerEvent::Sleep(guard) if disconnects_on_sleep(&context) => {
                context.begin_stop(StopReason::Sleep);
                // Until all is removed, which ends this.
                let _guard = guard;
                return pending().await;
            }
            PowerEvent::Sleep(guard) if is_connected(&context) => {
                sleep(&guard, &provider, &context).await;
            }
            PowerEvent::Wake if is_connected(&context) => wake(&provider, &context).await,
            PowerEvent::Sleep(_) | PowerEvent::Wake => {}
        }
    }
    debug!("the machine's sleep is not noticed any more");
}

/// The provider's callbacks are for sessions that run.
fn is_connected(context: &ProviderContext) -> bool {
    matches!(
        *context.status().borrow(),
        SessionStatus::Connected | SessionStatus::Reasserting
    )
}

fn disconnects_on_sleep(context: &ProviderContext) -> bool {
    context.configuration().borrow().disconnect_on_sleep
}

async fn sleep(
    guard: &SleepGuard,
    provider: &Arc<dyn EthernetTunnelProvider>,
    context: &ProviderContext,
) {
    let (provider, its_context) = (provider.clone(), context.clone());
    let mut sleep = tokio::spawn(async move { provider.sleep(&its_context).await });
    match timeout_at(guard.deadline(), &mut sleep).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => panicked(context, "sleep"),
        Err(_) => {
            warn!("the provider did not get ready for sleep in time");
            sleep.abort();
        }
    }
}

async fn wake(provider: &Arc<dyn EthernetTunnelProvider>, context: &ProviderContext) {
    let (provider, its_context) = (provider.clone(), context.clone());
    // A task of its own, because it may panic.
    let wake = tokio::spawn(async move { provider.wake(&its_context) });
    if wake.await.is_err() {
        panicked(context, "wake");
    }
}

fn panicked(context: &ProviderContext, callback: &str) {
    let message = format!("the provider panicked in {callback}");
    context.cancel_tunnel(Some(ProviderError::new(message)));
}
