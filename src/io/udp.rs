// SPDX-License-Identifier: MIT OR Apache-2.0
//! The UDP socket: trains of datagrams out (GSO), merged datagrams in (GRO).
//!
//! A *train* is one piece of memory with datagrams of equal size back to back, of which the last
//! may be shorter. DF is always set and the path MTU that the kernel has learnt is ignored: finding
//! it is the tunnel's own work, and a forged ICMP message changes nothing. The socket is never
//! connected, so that no ICMP error ends up in it.
//!
//! Where GSO fails, datagrams leave one by one: the failed train at once, later ones to the same
//! address for as long as `pauses` says.
//!
//! The pipeline's threads call this; a full socket holds them for 2 ms at most.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

#[cfg(test)]
pub(crate) use self::batch::Received;
pub(crate) use self::batch::RecvBatch;
pub(crate) use self::gate::GuestList;
use self::pauses::{Pauses, Place};
use self::senders::Patience;
pub(crate) use self::senders::Senders;
use super::sys::mmsg::Notes;
use super::sys::{self, SocketOption};
use crate::wire::local::Local;

mod batch;
mod gate;
mod lanes;
mod pauses;
mod senders;

/// The most datagrams in one GSO send; newer kernels take 128.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// The most bytes in one GSO send: with its headers it must fit the length field of an IP packet.
pub(crate) const MAX_TRAIN: usize = 65_000;

/// How long one train waits for room in the socket before the rest of it is dropped.
const PATIENCE: Duration = Duration::from_millis(2);

/// In so many pieces: the kernel may say that there is room, and then have none.
const WAITS: u32 = 3;

/// What the socket asks for in each direction; enough for 8 ms at 8 Gbit/s.
const BUFFER_BYTES: usize = 8 << 20;

/// Why a socket cannot be opened. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BindError {
    /// Another socket has the port.
    #[error(
        "UDP port {} is in use at {}: stop the program that uses it (`ss -lunp` shows it) or \
         choose another tunnel.listen", .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    /// No interface has the address.
    #[error(
        "address {} is not on this machine: choose one that `ip address` shows, or `[::]:{}` for \
         all of them, as tunnel.listen", .0.ip(), .0.port()
    )]
    NotLocal(SocketAddr),
    /// Ports below 1024 belong to root.
    #[error(
        "UDP port {} needs CAP_NET_BIND_SERVICE: run as root or choose a tunnel.listen above 1023",
        .0.port()
    )]
    Forbidden(SocketAddr),
    /// Anything else.
    #[error("cannot {action} a UDP socket at {listen}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Where.
        listen: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a kernel can do for UDP; probed when a socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Cuts a train into datagrams (UDP_SEGMENT).
    pub gso: bool,
    /// Merges received datagrams into trains (UDP_GRO).
    pub gro: bool,
}

/// What became of the datagrams of a train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SendReport {
    /// Taken by the kernel.
    pub sent: usize,
    /// Dropped here, because the kernel had no room for them.
    pub dropped: usize,
    /// They could not leave from where they were to, and left from where the kernel says.
    pub from_elsewhere: bool,
}

/// A train of which only the beginning was sent, if anything.
#[derive(Debug, thiserror::Error)]
#[error("a train ended after {sent} datagrams")]
pub(crate) struct SendFailure {
    /// Datagrams of it that the kernel took before.
    pub sent: usize,
    /// Why the rest was not sent.
    #[source]
    pub error: SendError,
}

/// Why the rest of a train was not sent. None of these harms the socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    /// The datagrams are larger than the MTU of the interface that they would leave by.
    #[error("datagrams of {datagram_bytes} bytes are too big for the interface to {to}")]
    TooBig {
        /// The destination.
        to: SocketAddr,
        /// The size of the datagrams, without UDP and IP headers.
        datagram_bytes: usize,
    },
    /// There is no way to the destination now, or a packet filter forbids it.
    #[error("{to} cannot be reached")]
    Unreachable {
        /// The destination.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot send to {to}")]
    Io {
        /// The destination.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An unconnected, non-blocking UDP socket. All methods take `&self`; threads may share it.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    socket: Socket,
    is_ipv6: bool,
    capabilities: Capabilities,
    /// The time to live of what leaves by it, if it is not that of the kernel.
    hops: Option<u8>,
    /// Where GSO does not work now. Shared by clones: what one has found out is true for all.
    pauses: Arc<Pauses>,
}

impl UdpSocket {
    /// Opens a socket at `listen`. `[::]` receives IPv4 as well, and means `0.0.0.0` on a machine
    /// without IPv6.
    ///
    /// # Errors
    /// When the port is taken, the address is not ours, or the kernel refuses.
    pub(crate) fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        match Self::bind_one(listen, false) {
            Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
                let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
                Self::bind_one(listen, false)
            }
            result => result,
        }
    }

    /// Opens a socket at `listen` as it is; `shares_port` with others that do.
    fn bind_one(listen: SocketAddr, shares_port: bool) -> Result<Self, BindError> {
        let io = |action| {
            move |source| BindError::Io {
                action,
                listen,
                source,
            }
        };
        let socket = Socket::new(
            Domain::for_address(listen),
            Type::DGRAM,
            Some(Protocol::UDP),
        )
        .map_err(io("open"))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false).map_err(io("open to IPv4"))?;
        }
        socket.set_nonblocking(true).map_err(io("configure"))?;
        if shares_port {
            socket.set_reuse_port(true).map_err(io("share"))?;
        }
        set_probing(&socket, listen.is_ipv6()).map_err(io("set DF on"))?;
        ask_for_local_addresses(&socket, listen.is_ipv6());
        grow_buffers(&socket);
        let bound = match socket.bind(&listen.into()) {
            Err(error) if has_code(&error, sys::EADDRNOTAVAIL) => bind_ahead(&socket, listen),
            bound => bound,
        };
        bound.map_err(|source| match source.raw_os_error() {
            Some(sys::EADDRINUSE) => BindError::InUse(listen),
            Some(sys::EADDRNOTAVAIL) => BindError::NotLocal(listen),
            _ if source.kind() == io::ErrorKind::PermissionDenied => BindError::Forbidden(listen),
            _ => BindError::Io {
                action: "bind",
                listen,
                source,
            },
        })?;
        // Segment size 0 means "no segmentation unless a message asks for it": a probe without
        // effect.
        let gso = sys::set_option(socket.as_fd(), SocketOption::UdpSegment, 0).is_ok();
        let gro = sys::set_option(socket.as_fd(), SocketOption::UdpGro, 1).is_ok();
        Ok(Self {
            socket,
            is_ipv6: listen.is_ipv6(),
            capabilities: Capabilities { gso, gro },
            hops: None,
            pauses: Arc::new(Pauses::new(now())),
        })
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    /// Never on a socket that is open.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?;
        address
            .as_socket()
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Another handle to the same socket and the same port.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            is_ipv6: self.is_ipv6,
            capabilities: self.capabilities,
            hops: self.hops,
            pauses: Arc::clone(&self.pauses),
        })
    }

    /// What the kernel does for this socket.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Does without what `allowed` does not have, although the kernel says that it can do it.
    ///
    /// # Errors
    /// Never on a socket that is open.
    pub(crate) fn restrict(&mut self, allowed: Capabilities) -> io::Result<()> {
        self.capabilities.gso &= allowed.gso;
        if self.capabilities.gro && !allowed.gro {
            sys::set_option(self.socket.as_fd(), SocketOption::UdpGro, 0)?;
            self.capabilities.gro = false;
        }
        Ok(())
    }

    /// Whether trains to `to` leave in one piece now. Where the interface or the kernel refuses to
    /// cut them, they leave as single datagrams for a minute; then one is tried again.
    #[cfg(test)]
    pub(crate) fn uses_gso(&self, to: SocketAddr) -> bool {
        self.may_segment(Place::of(to), now)
    }

    /// The sizes in bytes of the kernel's receive and send buffer, as granted.
    ///
    /// # Errors
    /// Never on a socket that is open.
    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((
            self.socket.recv_buffer_size()?,
            self.socket.send_buffer_size()?,
        ))
    }

    /// [`send_train_from`](Self::send_train_from) where the kernel says.
    #[cfg(test)]
    pub(crate) fn send_train(
        &self,
        to: SocketAddr,
        train: &[u8],
        segment_size: usize,
    ) -> Result<SendReport, SendFailure> {
        self.send_train_from(None, to, train, segment_size)
    }

    /// Sends `train` as datagrams of `segment_size` bytes, the last of which may be shorter.
    /// It leaves from `local`, an address of ours, or from where the kernel says if that is none or gone.
    ///
    /// # Errors
    /// When the kernel refuses; what was already sent is on its way, and the rest is not attempted.
    /// No error is lasting: the next call starts afresh.
    pub(crate) fn send_train_from(
        &self,
        local: Option<Local>,
        to: SocketAddr,
        train: &[u8],
        segment_size: usize,
    ) -> Result<SendReport, SendFailure> {
        let notes = Notes { hops: None, local };
        self.send_with(
            &mut Patience::Endless,
            now,
            to,
            notes,
            train,
            (segment_size, true),
        )
    }

    /// [`send_train_from`](Self::send_train_from) by the time of `clock`, which is read when GSO has failed or
    /// the socket is full, with what the socket itself does not say.
    fn send_with(
        &self,
        patience: &mut Patience,
        clock: impl Fn() -> Instant + Copy,
        to: SocketAddr,
        notes: Notes,
        train: &[u8],
        (segment_size, as_train): (usize, bool),
    ) -> Result<SendReport, SendFailure> {
        let failure = |sent, source| SendFailure {
            sent,
            error: send_error(to, segment_size.min(train.len()), source),
        };
        if segment_size == 0 {
            return Err(failure(0, io::ErrorKind::InvalidInput.into()));
        }
        let mut sending = Sending {
            socket: self,
            to: self.kernel_address(to),
            notes,
            place: Place::of(to),
            segment_size,
            as_train,
            patience,
            waits: 0,
            report: SendReport::default(),
        };
        let segments = (MAX_TRAIN / segment_size).clamp(1, MAX_SEGMENTS);
        for part in train.chunks(segments * segment_size) {
            let result = sending.send_part(part, clock);
            result.map_err(|source| failure(sending.report.sent, source))?;
        }
        Ok(sending.report)
    }

    fn may_segment(&self, place: Place, clock: impl FnOnce() -> Instant) -> bool {
        self.capabilities.gso && !self.pauses.includes(place, clock)
    }

    /// Fills `batch` with what has arrived, without waiting. Returns how many trains it holds now,
    /// 0 when nothing is there.
    ///
    /// # Errors
    /// Only those that make the socket useless; errors about single datagrams are skipped.
    pub(crate) fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        // Bounded, so that a flood of ICMP errors cannot hold the thread here.
        for _ in 0..16 {
            match batch.receive(self.socket.as_fd()) {
                Ok(filled) => return Ok(filled),
                Err(error) if has_code(&error, sys::EAGAIN) => return Ok(0),
                Err(error) if has_code(&error, sys::EINTR) || is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// The form of an address that this socket takes: an IPv6 socket wants IPv4 mapped.
    fn kernel_address(&self, to: SocketAddr) -> SockAddr {
        match to {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => to.into(),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A train on its way out.
struct Sending<'a> {
    socket: &'a UdpSocket,
    to: SockAddr,
    notes: Notes,
    place: Place,
    segment_size: usize,
    /// Whether GSO may be used, where it works.
    as_train: bool,
    patience: &'a mut Patience,
    /// How often it has waited for room in the socket.
    waits: u32,
    report: SendReport,
}

impl Sending<'_> {
    /// Sends what fits one GSO send, in one call where possible.
    fn send_part(&mut self, part: &[u8], clock: impl Fn() -> Instant + Copy) -> io::Result<()> {
        let UdpSocket { pauses, .. } = self.socket;
        let is_single = part.len() <= self.segment_size || !self.as_train;
        if is_single || !self.socket.may_segment(self.place, clock) {
            return self.send_one_by_one(part, clock);
        }
        // A send that fails has sent nothing of its part.
        match self.send_segments(part, clock) {
            // The interface cannot checksum: GSO will not work there the next time either.
            Err(error) if has_code(&error, sys::EIO) => {
                pauses.begin(self.place, clock());
                self.send_one_by_one(part, clock)
            }
            // Older kernels say so when a segment exceeds the MTU, some with IPv6 over virtio.
            // Datagrams one by one find out which; only if they pass it was GSO.
            Err(error) if has_code(&error, sys::EINVAL) => {
                self.send_one_by_one(part, clock)?;
                pauses.strike(self.place, clock());
                Ok(())
            }
            result => result,
        }
    }

    fn send_segments(&mut self, part: &[u8], clock: impl Fn() -> Instant + Copy) -> io::Result<()> {
        // More than one segment in at most MAX_TRAIN bytes: the size fits 16 bits.
        let size = self.segment_size as u16;
        let taken = self.with_patience(clock, |fd, to, notes| {
            sys::mmsg::send_segments(fd, to, notes, part, size)
        })?;
        let datagrams = part.len().div_ceil(self.segment_size);
        if taken.is_some() {
            self.socket.pauses.end(self.place);
            self.report.sent += datagrams;
        } else {
            self.report.dropped += datagrams;
        }
        Ok(())
    }

    fn send_one_by_one(
        &mut self,
        mut rest: &[u8],
        clock: impl Fn() -> Instant + Copy,
    ) -> io::Result<()> {
        let size = self.segment_size;
        while !rest.is_empty() {
            let taken = self.with_patience(clock, |fd, to, notes| {
                sys::mmsg::send_each(fd, to, notes, rest, size)
            })?;
            let Some(sent) = taken else {
                self.report.dropped += rest.len().div_ceil(size);
                break;
            };
            self.report.sent += sent;
            rest = rest.get(sent * size..).unwrap_or_default();
        }
        Ok(())
    }

    /// Repeats `send` while the socket is full. None: it still is, and patience is at its end.
    fn with_patience<T>(
        &mut self,
        clock: impl Fn() -> Instant,
        send: impl Fn(BorrowedFd<'_>, &SockAddr, Notes) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        loop {
            match send(self.socket.as_fd(), &self.to, self.notes) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => match error.raw_os_error() {
                    Some(sys::EINTR) => {}
                    Some(sys::EAGAIN | sys::ENOBUFS) if self.waits == WAITS => return Ok(None),
                    Some(sys::EAGAIN | sys::ENOBUFS) => {
                        if !self.wait_for_room(&clock)? {
                            return Ok(None);
                        }
                    }
                    _ => return self.try_from_elsewhere(error, send).map(Some),
                },
            }
        }
    }

    /// Once more without the local address, if that may be what the kernel refuses.
    fn try_from_elsewhere<T>(
        &mut self,
        error: io::Error,
        send: impl Fn(BorrowedFd<'_>, &SockAddr, Notes) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.notes.local.is_none() || !is_about_local(&error) {
            return Err(error);
        }
        self.notes.local = None;
        let sent = send(self.socket.as_fd(), &self.to, self.notes)?;
        self.report.from_elsewhere = true;
        Ok(sent)
    }

    /// False if there is no time to wait.
    fn wait_for_room(&mut self, clock: impl Fn() -> Instant) -> io::Result<bool> {
        self.waits += 1;
        let Some(wait) = self.patience.next_wait(clock()) else {
            return Ok(false);
        };
        let entry = sys::PollEntry::new(self.socket.as_fd(), sys::POLLOUT);
        let waited = sys::poll(&mut [entry], Some(wait));
        self.patience.spend(clock());
        match waited {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(true),
        }
    }
}

/// Binds to an address that may come later. Until it does nothing comes, and nothing can be sent.
fn bind_ahead(socket: &Socket, listen: SocketAddr) -> io::Result<()> {
    // What is meant by an address of all there are is there already, or will never be.
    if listen.ip().is_unspecified() {
        return Err(io::Error::from_raw_os_error(sys::EADDRNOTAVAIL));
    }
    match listen {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&listen.into())
}

/// Whether this machine has the address now.
#[expect(
    clippy::disallowed_methods,
    reason = "asks the kernel by a socket that nothing is sent by"
)]
pub(crate) fn is_here(address: SocketAddr) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    std::net::UdpSocket::bind(any_port).is_ok()
}

/// Read when a socket is opened, and while GSO fails somewhere.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel refused is tried again after a while; tests bring a clock of their own"
)]
fn now() -> Instant {
    Instant::now()
}

/// Sets DF and ignores learnt path MTUs. An IPv6 socket carries IPv4 too and needs both options.
fn set_probing(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    let set = |option| sys::set_option(fd, option, sys::PMTUDISC_PROBE);
    if !is_ipv6 {
        return set(SocketOption::Ipv4MtuDiscover);
    }
    set(SocketOption::Ipv6MtuDiscover)?;
    // Refused where the kernel has no IPv4, and then not needed.
    match set(SocketOption::Ipv4MtuDiscover) {
        Err(error) if !has_code(&error, sys::ENOPROTOOPT) => Err(error),
        _ => Ok(()),
    }
}

/// Has the kernel say to which address, and by which interface, a datagram came. An IPv6 socket gets
/// that of IPv4 datagrams in the same form. Without it the kernel chooses where answers leave from.
fn ask_for_local_addresses(socket: &Socket, is_ipv6: bool) {
    let option = match is_ipv6 {
        true => SocketOption::Ipv6PacketInfo,
        false => SocketOption::Ipv4PacketInfo,
    };
    let _ = sys::set_option(socket.as_fd(), option, 1);
}

/// Asks for large buffers. Without CAP_NET_ADMIN in the first user namespace the kernel grants what
/// `net.core.rmem_max` and `wmem_max` allow, and the tunnel works with that.
fn grow_buffers(socket: &Socket) {
    let (fd, bytes) = (socket.as_fd(), BUFFER_BYTES as i32);
    if sys::set_option(fd, SocketOption::ReceiveBufferForce, bytes).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if sys::set_option(fd, SocketOption::SendBufferForce, bytes).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}

fn has_code(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}

/// Whether an error is about one datagram, or about the network at this moment.
fn is_passing(error: &io::Error) -> bool {
    use sys::{ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETDOWN, ENETUNREACH, EPERM};
    let codes = [
        ECONNREFUSED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EMSGSIZE,
        ENETDOWN,
        ENETUNREACH,
        EPERM,
    ];
    codes.iter().any(|&code| has_code(error, code))
}

/// Whether the local address may be gone, or its interface, or have no way to the destination.
fn is_about_local(error: &io::Error) -> bool {
    use sys::{EADDRNOTAVAIL, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, ENODEV};
    let codes = [
        EADDRNOTAVAIL,
        EHOSTUNREACH,
        EINVAL,
        ENETDOWN,
        ENETUNREACH,
        ENODEV,
    ];
    codes.iter().any(|&code| has_code(error, code))
}

/// Whether a bind failed because this machine has no IPv6 at all.
fn is_without_ipv6(error: &BindError) -> bool {
    match error {
        BindError::NotLocal(_) => true,
        BindError::Io { source, .. } => has_code(source, sys::EAFNOSUPPORT),
        _ => false,
    }
}

fn send_error(to: SocketAddr, datagram_bytes: usize, source: io::Error) -> SendError {
    match source.raw_os_error() {
        Some(sys::EMSGSIZE) => SendError::TooBig { to, datagram_bytes },
        _ if is_passing(&source) => SendError::Unreachable { to, source },
        // No address to send from, or an IPv6 destination on a machine without IPv6.
        Some(sys::EADDRNOTAVAIL | sys::EAFNOSUPPORT) => SendError::Unreachable { to, source },
        _ => SendError::Io { to, source },
    }
}

#[cfg(test)]
mod tests {
    use sys::faults::{Call, Fault, finish, script};

    use super::*;
    use crate::io::waker;
    use crate::testing::{Namespace, in_namespace, ip, wait_for_addresses, wait_for_carrier};

    pub(super) fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    pub(super) fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(at(address)).unwrap()
    }

    pub(super) fn port(socket: &UdpSocket) -> u16 {
        socket.local_addr().unwrap().port()
    }

    /// A train in which every datagram can be told from every other one.
    fn train(bytes: usize) -> Vec<u8> {
        (0..bytes)
            .map(|at| (at % 251) as u8 ^ (at >> 8) as u8)
            .collect()
    }

    /// Receives datagrams until there are `count`, or none comes for a while. Returns them with
    /// their sender and the number of trains in which they came.
    fn receive(socket: &UdpSocket, count: usize) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
        let mut batch = RecvBatch::new(8);
        let (mut datagrams, mut trains) = (Vec::new(), 0);
        while datagrams.len() < count {
            let wait = Some(Duration::from_millis(300));
            if waker::wait(&[socket.as_fd()], wait).unwrap().is_timeout() {
                break;
            }
            trains += socket.recv_batch(&mut batch).unwrap();
            for mut received in batch.iter_mut() {
                let from = received.from;
                datagrams.extend(received.datagrams().map(|bytes| (from, bytes.to_vec())));
            }
        }
        (datagrams, trains)
    }

    fn assert_arrives(
        sender: &UdpSocket,
        receiver: &UdpSocket,
        to: SocketAddr,
        size: usize,
    ) -> usize {
        let bytes = train(size);
        let expected: Vec<_> = bytes.chunks(1000).collect();
        let report = sender.send_train(to, &bytes, 1000).unwrap();
        assert_eq!(
            report,
            SendReport {
                sent: expected.len(),
                ..SendReport::default()
            }
        );
        let (datagrams, trains) = receive(receiver, expected.len());
        let bytes: Vec<_> = datagrams.iter().map(|(_, bytes)| &bytes[..]).collect();
        assert!(
            bytes == expected,
            "{size} bytes: {} datagrams of {}",
            bytes.len(),
            expected.len()
        );
        trains
    }

    #[test]
    fn trains_arrive_datagram_by_datagram() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            let to = receiver.local_addr().unwrap();
            // One short, one full, a short last one, exactly one super-send, and several of them.
            for size in [1, 1000, 1001, 4300, 64_000, 64_001, 200_500] {
                let trains = assert_arrives(&sender, &receiver, to, size);
                assert_eq!(trains, size.div_ceil(64_000), "{size} bytes");
            }
        });
    }

    #[test]
    fn a_train_that_fails_half_way_says_how_much_left() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            let to = receiver.local_addr().unwrap();
            let gone = Fault::Errno(sys::EHOSTUNREACH);
            for (steps, sent) in [
                (&[(Call::SendSegments, gone)][..], 0),
                (
                    &[
                        (Call::SendSegments, Fault::Pass),
                        (Call::SendSegments, gone),
                    ],
                    64,
                ),
                (
                    &[
                        (Call::SendSegments, Fault::Errno(sys::EINVAL)),
                        (Call::SendEach, Fault::AtMost(3)),
                        (Call::SendEach, gone),
                    ],
                    3,
                ),
            ] {
                script(steps);
                let failure = sender.send_train(to, &train(70_000), 1000).unwrap_err();
                finish();
                assert_eq!(failure.sent, sent);
                assert_eq!(receive(&receiver, sent).0.len(), sent, "and it arrived");
            }
        });
    }

    #[test]
    fn offloads_that_are_not_allowed_are_not_used() {
        in_namespace(|| {
            ip("link set lo up");
            for (gso, gro) in [(true, true), (false, true), (true, false), (false, false)] {
                let allowed = Capabilities { gso, gro };
                let [mut sender, mut receiver] = [bind("[::]:0"), bind("[::]:0")];
                for socket in [&mut sender, &mut receiver] {
                    socket.restrict(allowed).unwrap();
                    assert_eq!(socket.capabilities(), allowed);
                }
                let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&receiver));
                let trains = assert_arrives(&sender, &receiver, to, 10_000);
                let expected = if gso && gro { 1 } else { 10 };
                assert_eq!(trains, expected, "{allowed:?}");
            }
        });
    }

    #[test]
    fn trains_arrive_without_gso() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("[::]:0"), bind("[::]:0"));
            let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&receiver));
            sender.pauses.begin(Place::of(to), now());
            for size in [1, 1000, 4300, 70_700] {
                let trains = assert_arrives(&sender, &receiver, to, size);
                assert_eq!(trains, size.div_ceil(1000));
            }
        });
    }

    impl UdpSocket {
        /// Sends datagrams of 1000 bytes by the time of `clock`.
        fn send_by(
            &self,
            clock: impl Fn() -> Instant + Copy,
            to: SocketAddr,
            train: &[u8],
        ) -> Result<SendReport, SendFailure> {
            self.send_with(
                &mut Patience::Endless,
                clock,
                to,
                Notes::default(),
                train,
                (1000, true),
            )
        }
    }

    /// Two namespaces with a veth between them: 10.0.0.1 and 10.0.0.2, MTU 1500.
    pub(super) fn cable() -> (Namespace, Namespace) {
        let (left, right) = (Namespace::new(), Namespace::new());
        left.run(|| {
            ip(&format!(
                "link add veth0 type veth peer name veth1 netns {}",
                right.path()
            ));
            ip("address add 10.0.0.1/24 dev veth0");
            ip("link set veth0 up");
        });
        right.run(|| {
            ip("address add 10.0.0.2/24 dev veth1");
            ip("link set veth1 up");
            wait_for_carrier("veth1");
        });
        left.run(|| wait_for_carrier("veth0"));
        (left, right)
    }

    #[test]
    fn a_train_that_the_kernel_cannot_cut_is_sent_in_singles() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            // A socket without checksums gets EINVAL for every GSO send.
            sys::set_option(sender.as_fd(), SocketOption::NoChecksum, 1).unwrap();
            let to = receiver.local_addr().unwrap();
            // Two super-sends: the third failure in a row is in the second train.
            for uses_gso in [true, false, false] {
                assert_eq!(assert_arrives(&sender, &receiver, to, 70_300), 71);
                assert_eq!(sender.uses_gso(to), uses_gso);
            }
            let elsewhere = at("127.0.0.2:9");
            assert!(sender.uses_gso(elsewhere), "the pause is of one address");
            sys::set_option(sender.as_fd(), SocketOption::NoChecksum, 0).unwrap();
            let later = || now() + Duration::from_secs(61);
            let report = sender.send_by(later, to, &train(3000)).unwrap();
            assert_eq!((report.sent, receive(&receiver, 3).1), (3, 1));
            assert!(sender.uses_gso(to), "EINVAL is not for ever");
        });
    }

    /// A train of ten datagrams whose calls go as scripted: what is reported, how many datagrams
    /// from its front arrive, and whether the next train is sent in one piece.
    #[track_caller]
    fn assert_scripted(steps: &[(Call, Fault)], verdict: &str, arrive: usize, uses_gso: bool) {
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let (to, bytes) = (receiver.local_addr().unwrap(), train(9300));
        script(steps);
        let result = sender.send_train(to, &bytes, 1000);
        finish();
        let found = match result {
            Ok(report) => format!("sent {}, dropped {}", report.sent, report.dropped),
            Err(SendFailure {
                error: SendError::TooBig { datagram_bytes, .. },
                ..
            }) => format!("too big: {datagram_bytes}"),
            Err(SendFailure {
                error: SendError::Unreachable { .. },
                ..
            }) => "unreachable".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        assert_eq!((&found[..], sender.uses_gso(to)), (verdict, uses_gso));
        // What comes behind them shows that nothing else was between.
        assert_eq!(sender.send_train(to, b"end", 3).unwrap().sent, 1);
        let expected = bytes.chunks(1000).take(arrive).chain([&b"end"[..]]);
        let (datagrams, _) = receive(&receiver, arrive + 1);
        assert!(
            datagrams.iter().map(|(_, bytes)| &bytes[..]).eq(expected),
            "{} datagrams",
            datagrams.len()
        );
    }

    #[test]
    fn every_datagram_arrives_once_however_sending_fails() {
        use Call::{SendEach as Each, SendSegments as Whole};
        use Fault::{AtMost, Errno, Pass};
        let full = |call| [(call, Errno(sys::EAGAIN)); 4];
        in_namespace(|| {
            ip("link set lo up");
            let (all, none) = ("sent 10, dropped 0", "sent 0, dropped 10");
            assert_scripted(&[(Whole, Pass)], all, 10, true);
            for (code, uses_gso) in [(sys::EIO, false), (sys::EINVAL, true)] {
                let refused = (Whole, Errno(code));
                assert_scripted(&[refused, (Each, Pass)], all, 10, uses_gso);
                let bumpy = [
                    refused,
                    (Each, AtMost(3)),
                    (Each, Errno(sys::EINTR)),
                    (Each, AtMost(1)),
                    (Each, Errno(sys::EAGAIN)),
                    (Each, Errno(sys::ENOBUFS)),
                    (Each, Pass),
                ];
                assert_scripted(&bumpy, all, 10, uses_gso);
                let stuck = [&[refused, (Each, AtMost(3))][..], &full(Each)].concat();
                assert_scripted(&stuck, "sent 3, dropped 7", 3, uses_gso);
                for (code, verdict) in [
                    (sys::EMSGSIZE, "too big: 1000"),
                    (sys::ENETUNREACH, "unreachable"),
                ] {
                    let cut_off = [refused, (Each, AtMost(3)), (Each, Errno(code))];
                    assert_scripted(&cut_off, verdict, 3, uses_gso);
                }
            }
            let bumpy = [sys::EAGAIN, sys::EINTR, sys::ENOBUFS].map(|code| (Whole, Errno(code)));
            assert_scripted(&[&bumpy[..], &[(Whole, Pass)]].concat(), all, 10, true);
            assert_scripted(&full(Whole), none, 0, true);
            assert_scripted(&[(Whole, Errno(sys::EMSGSIZE))], "too big: 1000", 0, true);
            assert_scripted(&[(Whole, Errno(sys::ENETUNREACH))], "unreachable", 0, true);
        });
    }

    #[test]
    fn gso_that_an_interface_refuses_is_tried_again_after_a_minute() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("[::]:0"), bind("[::]:0"));
            let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&receiver));
            let begin = now();
            let refused = [
                (Call::SendSegments, Fault::Errno(sys::EIO)),
                (Call::SendEach, Fault::Pass),
            ];
            let (singly, whole) = (
                [(Call::SendEach, Fault::Pass)],
                [(Call::SendSegments, Fault::Pass)],
            );
            for (s, steps, trains) in [
                (0, &refused[..], 3),
                (59, &singly, 3),
                (61, &refused, 3),
                (119, &singly, 3),
                (122, &whole, 1),
                (122, &whole, 1),
            ] {
                script(steps);
                let clock = || begin + Duration::from_secs(s);
                let report = sender.send_by(clock, to, &train(2500)).unwrap();
                finish();
                assert_eq!(report.sent, 3, "after {s} s");
                let (datagrams, arrived) = receive(&receiver, 3);
                let bytes: Vec<_> = datagrams.into_iter().flat_map(|(_, bytes)| bytes).collect();
                assert_eq!((bytes, arrived), (train(2500), trains), "after {s} s");
            }
        });
    }

    #[test]
    fn datagrams_that_are_too_big_do_not_count_against_gso() {
        in_namespace(|| {
            ip("link set lo up");
            let sender = bind("127.0.0.1:0");
            let to = at("127.0.0.1:9");
            for _ in 0..5 {
                script(&[
                    (Call::SendSegments, Fault::Errno(sys::EINVAL)),
                    (Call::SendEach, Fault::Errno(sys::EMSGSIZE)),
                ]);
                let error = sender.send_train(to, &train(3000), 1000).unwrap_err().error;
                finish();
                assert!(matches!(error, SendError::TooBig { .. }), "{error:?}");
            }
            assert!(sender.uses_gso(to));
        });
    }

    #[test]
    fn errors_of_others_are_skipped_while_receiving() {
        use sys::{EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINTR, ENETUNREACH};
        in_namespace(|| {
            ip("link set lo up");
            let receiver = bind("127.0.0.1:0");
            let mut batch = RecvBatch::new(2);
            let mut receive_after = |codes: &[i32]| {
                let faults = codes
                    .iter()
                    .map(|&code| (Call::Receive, Fault::Errno(code)));
                script(&faults.collect::<Vec<_>>());
                let result = receiver.recv_batch(&mut batch);
                finish();
                result.map_err(|error| error.raw_os_error())
            };
            let send = || {
                assert_eq!(
                    receiver
                        .send_train(receiver.local_addr().unwrap(), b"x", 1)
                        .unwrap()
                        .sent,
                    1
                )
            };
            send();
            assert_eq!(
                receive_after(&[ECONNREFUSED, EHOSTUNREACH, EINTR, ENETUNREACH]),
                Ok(1)
            );
            send();
            assert_eq!(receive_after(&[EAGAIN]), Ok(0));
            // A flood of them gives the thread back in between.
            assert_eq!(receive_after(&[ECONNREFUSED; 16]), Ok(0));
            assert_eq!(receive_after(&[sys::EBADFD]), Err(Some(sys::EBADFD)));
            assert_eq!(receive_after(&[]), Ok(1));
        });
    }

    #[test]
    fn trains_cross_a_veth_in_one_piece() {
        let (left, right) = cable();
        let (sender, receiver) = (left.run(|| bind("[::]:0")), right.run(|| bind("[::]:4789")));
        assert_eq!(
            assert_arrives(&sender, &receiver, at("10.0.0.2:4789"), 40_300),
            1
        );
    }

    #[test]
    fn datagrams_larger_than_the_interface_are_reported_with_and_without_gso() {
        let (left, right) = cable();
        let (sender, receiver) = (
            left.run(|| bind("0.0.0.0:0")),
            right.run(|| bind("[::]:4789")),
        );
        let to = at("10.0.0.2:4789");
        for gso in [true, false] {
            if !gso {
                sender.pauses.begin(Place::of(to), now());
            }
            for (bytes, size) in [(1473, 1473), (1473, 65_535), (14_730, 1473)] {
                let error = sender
                    .send_train(to, &train(bytes), size)
                    .unwrap_err()
                    .error;
                let SendError::TooBig {
                    datagram_bytes: 1473,
                    ..
                } = error
                else {
                    panic!("{error:?}, gso {gso}, {bytes} bytes in datagrams of {size}");
                };
            }
            assert_eq!(sender.uses_gso(to), gso, "too big says nothing about GSO");
            // The socket is as good as before, and 1472 bytes are what fits.
            assert_eq!(sender.send_train(to, &train(2944), 1472).unwrap().sent, 2);
            assert_eq!(receive(&receiver, 2).0.len(), 2);
        }
    }

    #[test]
    fn a_dual_stack_socket_speaks_ipv4_under_ipv4_addresses() {
        in_namespace(|| {
            ip("link set lo up");
            let (dual, four) = (bind("[::]:0"), bind("127.0.0.1:0"));
            let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&dual));
            assert_eq!(four.send_train(to, b"ping", 4).unwrap().sent, 1);
            let (datagrams, _) = receive(&dual, 1);
            assert_eq!(datagrams, [(four.local_addr().unwrap(), b"ping".to_vec())]);
            assert_eq!(dual.send_train(datagrams[0].0, b"pong", 4).unwrap().sent, 1);
            assert_eq!(receive(&four, 1).0, [(to, b"pong".to_vec())]);
            let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&dual));
            assert_eq!(dual.send_train(to, b"self", 4).unwrap().sent, 1);
            assert_eq!(receive(&dual, 1).0, [(to, b"self".to_vec())]);
        });
    }

    /// What the next datagram says of both its ends.
    fn ends(socket: &UdpSocket) -> (SocketAddr, Option<Local>) {
        let mut batch = RecvBatch::new(1);
        let ready = waker::wait(&[socket.as_fd()], Some(Duration::from_secs(10)));
        assert!(!ready.unwrap().is_timeout());
        assert_eq!(socket.recv_batch(&mut batch).unwrap(), 1);
        let received = batch.iter_mut().next().unwrap();
        (received.from, received.to)
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_called() {
        in_namespace(|| {
            ip("link set lo up");
            ip("address add fd00::7/128 dev lo");
            wait_for_addresses();
            for (listen, called) in [
                ("0.0.0.0:0", "127.0.0.7"),
                ("[::]:0", "127.0.0.7"),
                ("[::]:0", "fd00::7"),
            ] {
                let server = bind(listen);
                let called: std::net::IpAddr = called.parse().unwrap();
                let client = bind(if called.is_ipv4() {
                    "127.0.0.1:0"
                } else {
                    "[::1]:0"
                });
                let to = SocketAddr::new(called, port(&server));
                // Alone, and cut by the kernel, both ways.
                for train in [train(100), train(300)] {
                    client.send_train(to, &train, 100).unwrap();
                    let (from, local) = ends(&server);
                    assert_eq!(from, client.local_addr().unwrap());
                    let local = local.unwrap();
                    assert_eq!((local.address, local.interface), (called, 1));
                    for interface in [0, 1] {
                        let local = Some(Local { interface, ..local });
                        let sent = server.send_train_from(local, from, &train, 100).unwrap();
                        assert_eq!((sent.sent, sent.from_elsewhere), (train.len() / 100, false));
                        assert_eq!(ends(&client).0, to);
                    }
                }
            }
        });
    }

    #[test]
    fn what_cannot_leave_from_where_it_should_leaves_from_elsewhere() {
        let (left, right) = cable();
        left.run(|| ip("address add fd00::1/64 dev veth0 nodad"));
        right.run(|| ip("address add fd00::2/64 dev veth1 nodad"));
        left.run(wait_for_addresses);
        right.run(wait_for_addresses);
        for (listen, to, there, gone) in [
            ("0.0.0.0:0", "10.0.0.2", "10.0.0.1", "10.0.0.99"),
            ("[::]:0", "10.0.0.2", "10.0.0.1", "10.0.0.99"),
            ("[::]:0", "fd00::2", "fd00::1", "fd00::99"),
        ] {
            let ip: fn(&str) -> std::net::IpAddr = |address| address.parse().unwrap();
            // An address that was deleted, and one whose interface was.
            for (address, interface) in [(ip(gone), 0), (ip(there), 99)] {
                let local = Some(Local { address, interface });
                let (sender, receiver) = (left.run(|| bind(listen)), right.run(|| bind("[::]:0")));
                let to = SocketAddr::new(ip(to), port(&receiver));
                for train in [train(100), train(300)] {
                    let sent = sender.send_train_from(local, to, &train, 100).unwrap();
                    assert_eq!((sent.sent, sent.from_elsewhere), (train.len() / 100, true));
                    assert_eq!(ends(&receiver).0.ip(), ip(there), "{listen} {to} {local:?}");
                }
            }
        }
    }

    #[test]
    fn an_icmp_error_does_not_break_the_socket() {
        in_namespace(|| {
            ip("link set lo up");
            let sender = bind("[::]:0");
            for to in ["127.0.0.1:9", "[::1]:9"] {
                for _ in 0..3 {
                    assert_eq!(sender.send_train(at(to), &train(300), 100).unwrap().sent, 3);
                }
                assert!(receive(&sender, 1).0.is_empty());
            }
        });
    }

    #[test]
    fn no_way_to_the_destination_is_an_error_of_that_send_only() {
        in_namespace(|| {
            let (dual, four) = (bind("[::]:0"), bind("0.0.0.0:0"));
            for (socket, to) in [
                (&dual, "192.0.2.1:9"),
                (&dual, "[2001:db8::1]:9"),
                (&four, "192.0.2.1:9"),
                (&four, "[2001:db8::1]:9"),
            ] {
                let error = socket.send_train(at(to), b"x", 1).unwrap_err().error;
                assert!(
                    matches!(error, SendError::Unreachable { .. }),
                    "{to}: {error:?}"
                );
            }
            ip("link set lo up");
            let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&four));
            assert_eq!(dual.send_train(to, b"x", 1).unwrap().sent, 1);
            assert_eq!(receive(&four, 1).0.len(), 1);
        });
    }

    #[test]
    fn empty_datagrams_are_skipped_over_safely() {
        in_namespace(|| {
            ip("link set lo up");
            let receiver = bind("127.0.0.1:0");
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(b"", receiver.local_addr().unwrap()).unwrap();
            let mut batch = RecvBatch::new(2);
            waker::wait(&[receiver.as_fd()], None).unwrap();
            assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 1);
            let mut received = batch.iter_mut().next().unwrap();
            assert!(received.bytes().is_empty() && received.stride == 1);
            assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 0);
            assert_eq!(batch.iter_mut().count(), 0);
        });
    }

    #[test]
    fn a_clone_is_the_same_socket() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            let clone = receiver.try_clone().unwrap();
            sender
                .send_train(receiver.local_addr().unwrap(), b"x", 1)
                .unwrap();
            drop(receiver);
            assert_eq!(receive(&clone, 1).0.len(), 1);
        });
    }

    #[test]
    fn start_up_errors_name_the_remedy() {
        in_namespace(|| {
            let first = bind("[::]:4789");
            for listen in ["[::]:4789", "0.0.0.0:4789"] {
                let error = UdpSocket::bind(at(listen)).unwrap_err().to_string();
                assert!(error.starts_with("UDP port 4789 is in use"), "{error}");
                assert!(error.contains("choose another tunnel.listen"), "{error}");
            }
            drop(first);
        });
    }

    #[test]
    fn an_address_may_come_after_the_socket() {
        in_namespace(|| {
            // A namespace without any address takes every address for its own.
            ip("link set lo up");
            for (listen, address) in [
                ("192.0.2.1:0", "192.0.2.1/32"),
                ("[2001:db8::1]:0", "2001:db8::1/128"),
            ] {
                let sockets = UdpSocket::bind_lanes(at(listen), 2).unwrap();
                let senders = UdpSocket::bind_senders(&sockets, 2);
                assert_eq!((sockets.len(), senders.len()), (2, 2));
                let here = sockets[0].local_addr().unwrap();
                assert!(!is_here(here));
                let caller = bind("[::]:0");
                ip(&format!("address add {address} dev lo nodad"));
                wait_for_addresses();
                assert!(is_here(here));
                caller.send_train(here, b"hello", 5).unwrap();
                let came = sockets
                    .iter()
                    .map(|it| receive(it, 1).0.len())
                    .sum::<usize>();
                assert_eq!(came, 1, "{listen}");
                let back = SocketAddr::new(here.ip(), port(&caller));
                senders[0].send_train(back, b"back", 4).unwrap();
                assert_eq!(receive(&caller, 1).0, [(here, b"back".to_vec())]);
            }
        });
    }

    #[test]
    fn a_new_socket_has_large_buffers_and_knows_the_kernel() {
        let socket = bind("127.0.0.1:0");
        assert_eq!(
            socket.capabilities(),
            Capabilities {
                gso: true,
                gro: true
            }
        );
        // The kernel doubles what it is asked for; rmem_max alone would allow less.
        let (receive, send) = socket.buffer_bytes().unwrap();
        assert!(
            receive >= 2 * BUFFER_BYTES && send >= 2 * BUFFER_BYTES,
            "{receive} {send}"
        );
    }
}
