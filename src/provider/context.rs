// SPDX-License-Identifier: MIT OR Apache-2.0
//! The provider's side of the host: settings, frames, states, failure.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tracing::debug;

use super::{
    Applied, EthernetTunnelSettings, FrameReader, FrameWriter, ProviderError, SessionStatus,
    SettingsError, StopReason,
};
use crate::io::{
    device::{Device, DeviceInfo, DeviceRequest},
    tap::{Offloads, TapQueue},
};

/// The interface of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its identity in the network namespace.
    pub index: u32,
    /// Its name, for people.
    pub name: String,
}

/// A provider's handle to its host. Clones are handles to the same session.
#[derive(Clone)]
pub struct ProviderContext {
    inner: Arc<Inner>,
}

struct Inner {
    tunnel: String,
    run_dir: PathBuf,
    /// Held while settings are applied, so that calls take effect one after the other.
    device: tokio::sync::Mutex<Option<Device>>,
    info: Mutex<Option<DeviceInfo>>,
    /// The first queue, for readers and writers.
    queue: watch::Sender<Option<Arc<TapQueue>>>,
    /// All queues, the first included, until they are taken.
    queues: Mutex<Vec<Arc<TapQueue>>>,
    reader_taken: Mutex<bool>,
    status: watch::Sender<SessionStatus>,
    stopping: watch::Sender<Option<StopReason>>,
    failure: Mutex<Option<ProviderError>>,
    carrier: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProviderContext {
    pub(super) fn new(tunnel: String, run_dir: PathBuf) -> Self {
        let inner = Inner {
            tunnel,
            run_dir,
            device: tokio::sync::Mutex::new(None),
            info: Mutex::default(),
            queue: watch::Sender::new(None),
            queues: Mutex::default(),
            reader_taken: Mutex::default(),
            status: watch::Sender::new(SessionStatus::Connecting),
            stopping: watch::Sender::new(None),
            failure: Mutex::default(),
            carrier: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The name of the tunnel.
    pub fn tunnel(&self) -> &str {
        &self.inner.tunnel
    }

    /// Creates the interface, or replaces the one of an earlier call; `None` removes it.
    ///
    /// # Errors
    /// [`SettingsError`]; the interface is as before for invalid settings, and gone for failed ones.
    pub async fn set_network_settings(
        &self,
        settings: Option<EthernetTunnelSettings>,
    ) -> Result<Option<Applied>, SettingsError> {
        if let Some(settings) = &settings {
            settings.validate()?;
        }
        let mut device = self.inner.device.lock().await;
        if self.inner.stopping.borrow().is_some() {
            return Err(SettingsError::Canceled);
        }
        self.remove_device(&mut device).await;
        let Some(settings) = settings else {
            return Ok(None);
        };
        let request = device_request(settings);
        let (created, queues) =
            Device::create(request, &self.inner.run_dir, &self.inner.tunnel).await?;
        let info = created.info().clone();
        let interface = Interface {
            index: info.index,
            name: info.name.clone(),
        };
        *device = Some(created);
        *lock(&self.inner.info) = Some(info);
        let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
        self.inner.queue.send_replace(queues.first().cloned());
        *lock(&self.inner.queues) = queues;
        Ok(Some(Applied { interface }))
    }

    /// The interface; `None` before the first settings.
    pub fn interface(&self) -> Option<Interface> {
        let info = lock(&self.inner.info);
        info.as_ref().map(|info| Interface {
            index: info.index,
            name: info.name.clone(),
        })
    }

    /// Everything that is known of the interface.
    pub fn device_info(&self) -> Option<DeviceInfo> {
        lock(&self.inner.info).clone()
    }

    /// Frames from the interface; once per session, and instead of [`Self::take_queue`].
    pub fn take_reader(&self) -> Option<FrameReader> {
        let mut taken = lock(&self.inner.reader_taken);
        (!std::mem::replace(&mut *taken, true))
            .then(|| FrameReader::new(self.inner.queue.subscribe()))
    }

    /// Frames to the interface.
    pub fn writer(&self) -> FrameWriter {
        FrameWriter::new(self.inner.queue.subscribe())
    }

    /// The TAP's queue itself, for a provider with an engine of its own; once per session, after the
    /// first settings, and instead of [`Self::take_reader`].
    pub fn take_queue(&self) -> Option<Arc<TapQueue>> {
        let mut taken = lock(&self.inner.reader_taken);
        let queue = self.inner.queue.borrow().clone()?;
        (!std::mem::replace(&mut *taken, true)).then_some(queue)
    }

    /// All queues of the TAP: as many as [`EthernetTunnelSettings::queues`] says, or one where the
    /// back-end or an adopted device has no more. Each frame comes out of one of them, those of a
    /// flow always out of the same one. Otherwise as [`Self::take_queue`], and instead of it: who
    /// asks for several queues reads all of them.
    pub fn take_queues(&self) -> Option<Vec<Arc<TapQueue>>> {
        let mut taken = lock(&self.inner.reader_taken);
        if *taken || self.inner.queue.borrow().is_none() {
            return None;
        }
        *taken = true;
        Some(std::mem::take(&mut *lock(&self.inner.queues)))
    }

    /// Asks the kernel to leave checksums and segmentation to whoever holds the queue, and returns
    /// what it grants. For holders of [`Self::take_queue`] only: a
    /// [`FrameReader`] hands out finished frames.
    ///
    /// # Errors
    /// When there is no interface, or it was deleted.
    pub async fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        match &*self.inner.device.lock().await {
            Some(device) => device.tap().set_offloads(wanted),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Says that the provider is trying to get the tunnel back, or has it. False, without effect,
    /// unless the session is connected.
    pub fn set_reasserting(&self, reasserting: bool) -> bool {
        let wanted = if reasserting {
            SessionStatus::Reasserting
        } else {
            SessionStatus::Connected
        };
        self.inner.status.send_if_modified(|status| {
            let counts = matches!(
                status,
                SessionStatus::Connected | SessionStatus::Reasserting
            );
            counts && std::mem::replace(status, wanted) != wanted
        });
        *self.inner.status.borrow() == wanted
    }

    /// Plugs the interface's cable in or out, as its users see it.
    pub async fn set_carrier(&self, on: bool) {
        if let Some(device) = &*self.inner.device.lock().await {
            device.set_carrier(on);
            *lock(&self.inner.carrier) = on;
        }
    }

    /// Whether the cable is in.
    pub fn carrier(&self) -> bool {
        *lock(&self.inner.carrier)
    }

    /// The provider cannot go on. The first call counts; the host then stops the session.
    pub fn cancel_tunnel(&self, error: Option<ProviderError>) {
        let first = self.begin_stop(StopReason::ProviderFailed);
        if first {
            *lock(&self.inner.failure) = error;
        }
    }

    /// Waits until the session is to end, and says why.
    pub async fn cancelled(&self) -> StopReason {
        let mut stopping = self.inner.stopping.subscribe();
        match stopping.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(StopReason::None),
            Err(_) => StopReason::InternalError,
        }
    }

    /// The state of the session.
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.inner.status.subscribe()
    }

    // For the host.

    /// Notes why the session ends. False if it was ending already.
    pub(super) fn begin_stop(&self, reason: StopReason) -> bool {
        self.inner.stopping.send_if_modified(|stopping| {
            let first = stopping.is_none();
            if first {
                *stopping = Some(reason);
            }
            first
        })
    }

    pub(super) fn set_status(&self, status: SessionStatus) {
        if self.inner.status.send_replace(status) != status {
            debug!(
                tunnel = self.inner.tunnel,
                status = status.name(),
                "session status"
            );
        }
    }

    pub(super) fn take_failure(&self) -> Option<ProviderError> {
        lock(&self.inner.failure).take()
    }

    /// Removes what the settings made, whatever the provider did or did not do.
    pub(super) async fn tear_down(&self) {
        let mut device = self.inner.device.lock().await;
        self.remove_device(&mut device).await;
    }

    async fn remove_device(&self, device: &mut Option<Device>) {
        let Some(device) = device.take() else { return };
        self.inner.queue.send_replace(None);
        lock(&self.inner.queues).clear();
        *lock(&self.inner.info) = None;
        *lock(&self.inner.carrier) = false;
        device.remove().await;
    }
}

fn device_request(settings: EthernetTunnelSettings) -> DeviceRequest {
    let mac = settings.ethernet_address.0;
    DeviceRequest {
        name: settings.interface_name,
        backend: settings.backend,
        queues: settings.queues,
        mac: (!settings.keep_existing_address).then_some(mac),
        default_mac: mac,
        mtu: settings.mtu,
        bridge: settings.bridge,
        addresses: settings.addresses,
    }
}
