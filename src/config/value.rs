// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values of single keys: from TOML to a type. Pure; knows nothing of sections or of other keys.
//!
//! Every error reads "what is wrong; remedy". A value is repeated only through [`shown`], because
//! people paste keys into the wrong line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use patchcord_bridge::MacAddr;
use toml::de::DeValue;

use super::model::{Backend, Carrier, CipherChoice, Endpoint, Mode, OffloadChoice, PlanChoice};
use crate::crypto::keys::PublicKey;

pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn listen(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    if let DeValue::Integer(port) = value {
        return Err(format!("has no address; write `listen = \"[::]:{port}\"`"));
    }
    let text = string(value, "listen = \"[::]:51830\"")?;
    let addr: SocketAddr = text.parse().map_err(|_| explain_listen(text))?;
    if addr.ip().is_multicast() {
        return Err(format!(
            "{} is a multicast address; write `[::]:PORT`",
            shown(text)
        ));
    }
    Ok(addr)
}

fn explain_listen(text: &str) -> String {
    let port = text
        .strip_prefix(':')
        .or_else(|| text.strip_prefix("*:"))
        .unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return format!("{} has no address; write `[::]:{port}`", shown(text));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 51830);
        return format!(
            "{} has no UDP port; write for example `{example}`",
            shown(text)
        );
    }
    let remedy = "write ADDRESS:PORT, for example `[::]:51830` for every address of this host";
    format!(
        "{} is not an address with a UDP port; {remedy}",
        shown(text)
    )
}

pub(super) fn endpoint(value: &DeValue<'_>) -> Parsed<Endpoint> {
    let text = string(value, "endpoint = \"site-b.example.net:51830\"")?;
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return usable_endpoint(addr, text).map(Endpoint::Addr);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 51830);
        return Err(format!(
            "{} has no UDP port; write for example `{example}`",
            shown(text)
        ));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "{} is a URL; write HOST:PORT, without `{}://`{}",
            shown(text),
            shown(scheme).trim_matches('`'),
            if rest.is_empty() { "" } else { " in front" }
        ));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return Err(format!("{} has no UDP port; write HOST:PORT", shown(text)));
    };
    if let Some(scoped) = scoped_address(name)? {
        return Ok(Endpoint::Host {
            name: scoped,
            udp_port: udp_port(port)?,
        });
    }
    if name.contains(':') {
        let remedy = "an IPv6 address needs brackets: `[2001:db8::1]:51830`";
        return Err(format!("{} is not HOST:PORT; {remedy}", shown(text)));
    }
    if !is_host_name(name) {
        let remedy = "write a name or an address before the `:`";
        return Err(format!(
            "{} is not the name of a host; {remedy}",
            shown(name)
        ));
    }
    Ok(Endpoint::Host {
        name: name.into(),
        udp_port: udp_port(port)?,
    })
}

fn udp_port(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(udp_port @ 1..) => Ok(udp_port),
        _ => Err(format!(
            "{} is not a UDP port; write 1 to 65535",
            shown(text)
        )),
    }
}

/// `[fe80::1%eth0]`, as it is written: the number of the interface is looked up when it is called, as it
/// changes with each start of the machine. None for what has no `%`.
fn scoped_address(name: &str) -> Parsed<Option<String>> {
    let inner = name.trim_matches(['[', ']']);
    let Some((address, interface)) = inner.split_once('%') else {
        return Ok(None);
    };
    let is_scoped = address.parse().is_ok_and(|ip: Ipv6Addr| {
        ip.is_unicast_link_local() && !(ip.is_unspecified() || ip.is_multicast())
    });
    let fits = |c: char| !matches!(c, '/' | ':' | '%') && !c.is_whitespace() && !c.is_control();
    let is_name = matches!(interface.len(), 1..=MAX_INTERFACE_NAME) && interface.chars().all(fits);
    if is_scoped && is_name && name.starts_with('[') && name.ends_with(']') {
        return Ok(Some(name.to_owned()));
    }
    let remedy = "write a link-local address and its interface, such as `[fe80::1%eth0]:51830`";
    Err(format!("{} is not HOST:PORT; {remedy}", shown(name)))
}

fn usable_endpoint(addr: SocketAddr, text: &str) -> Parsed<SocketAddr> {
    if addr.port() == 0 {
        return Err("`0` is not a UDP port; write 1 to 65535".into());
    }
    if addr.ip().is_unspecified() || addr.ip().is_multicast() {
        let remedy = "write the address at which this host reaches the peer";
        return Err(format!(
            "{} is not the address of one host; {remedy}",
            shown(text)
        ));
    }
    Ok(addr)
}

fn is_host_name(name: &str) -> bool {
    let label_fits = |label: &str| {
        matches!(label.len(), 1..=63)
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A name of digits and dots is a mistyped IPv4 address; resolvers do odd things with it.
    let numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    name.len() <= 253
        && !numeric
        && name
            .strip_suffix('.')
            .unwrap_or(name)
            .split('.')
            .all(label_fits)
}

pub(super) fn interface_name(value: &DeValue<'_>) -> Parsed<String> {
    let name = string(value, "\"pc0\"")?;
    if name.is_empty() {
        return Err("is empty; write 1 to 15 bytes, for example `pc0`".into());
    }
    if name.len() > MAX_INTERFACE_NAME {
        let length = name.len();
        return Err(format!(
            "name is {length} bytes, at most {MAX_INTERFACE_NAME}; shorten it"
        ));
    }
    let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if let Some(bad) = name.chars().find(|&c| bad(c)) {
        let remedy = "use letters, digits, `-`, `_` and `.`";
        return Err(format!(
            "{} contains {bad:?}, which the kernel refuses; {remedy}",
            shown(name)
        ));
    }
    if name == "." || name == ".." {
        return Err(format!(
            "`{name}` is not an interface name; write for example `pc0`"
        ));
    }
    Ok(name.into())
}

/// IFNAMSIZ without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

pub(super) fn overlay_mtu(value: &DeValue<'_>) -> Parsed<u32> {
    // What the kernel takes for a TAP: a frame with its header still fits in 65535 bytes.
    integer(value, 68..=65521, "mtu = 1500").map(|mtu| mtu as u32)
}

pub(super) fn mac(value: &DeValue<'_>) -> Parsed<MacAddr> {
    let text = string(value, "mac = \"02:00:5e:10:00:01\"")?;
    let remedy = "write for example `02:00:5e:10:00:01`, or leave it out";
    let mac = mac_address(text, remedy)?;
    if mac.0 == [0xff; 6] {
        return Err(format!("`{mac}` is the broadcast address; {remedy}"));
    }
    if mac.is_group() {
        return Err(format!(
            "`{mac}` is a multicast address (odd first byte); {remedy}"
        ));
    }
    if mac.is_zero() {
        return Err(format!("`{mac}` is all zero; {remedy}"));
    }
    Ok(mac)
}

pub(super) fn mac_address(text: &str, remedy: &str) -> Parsed<MacAddr> {
    text.parse()
        .map_err(|error| format!("{}: {error}; {remedy}", shown(text)))
}

pub(super) fn addresses(value: &DeValue<'_>) -> Parsed<Vec<IpNet>> {
    const EXAMPLE: &str = "addresses = [\"10.99.0.1/24\"]";
    let DeValue::Array(items) = value else {
        return Err(wrong_type(value, "an array", EXAMPLE));
    };
    let mut addresses = Vec::new();
    for item in items.iter() {
        let net = address(string(item.get_ref(), EXAMPLE)?)?;
        if addresses
            .iter()
            .any(|seen: &IpNet| seen.addr() == net.addr())
        {
            return Err(format!("`{}` is listed twice; remove one", net.addr()));
        }
        addresses.push(net);
    }
    Ok(addresses)
}

fn address(text: &str) -> Parsed<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let prefix = if ip.is_ipv4() { 24 } else { 64 };
        return Err(format!(
            "`{ip}` has no prefix length; write for example `{ip}/{prefix}`"
        ));
    }
    let remedy = "write for example `10.99.0.1/24`";
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{} is not ADDRESS/PREFIX; {remedy}", shown(text)))?;
    let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
    if net.addr().is_multicast() || net.addr().is_unspecified() || net.addr() == broadcast {
        return Err(format!("`{net}` cannot be the address of a host; {remedy}"));
    }
    if net.addr() == net.broadcast() && net.addr().is_ipv4() && net.prefix_len() < 31 {
        return Err(format!(
            "`{net}` is the broadcast address of its network; {remedy}"
        ));
    }
    Ok(net)
}

pub(super) fn cipher(value: &DeValue<'_>) -> Parsed<CipherChoice> {
    choice(
        value,
        &[
            ("auto", CipherChoice::Auto),
            ("aes-256-gcm", CipherChoice::Aes256Gcm),
            ("chacha20-poly1305", CipherChoice::ChaCha20Poly1305),
        ],
    )
}

pub(super) fn backend(value: &DeValue<'_>) -> Parsed<Backend> {
    choice(
        value,
        &[
            ("auto", Backend::Auto),
            ("vnet", Backend::Vnet),
            ("plain", Backend::Plain),
        ],
    )
}

pub(super) fn carrier(value: &DeValue<'_>) -> Parsed<Carrier> {
    choice(
        value,
        &[("peer", Carrier::Peer), ("always", Carrier::Always)],
    )
}

pub(super) fn mode(value: &DeValue<'_>) -> Parsed<Mode> {
    choice(value, &[("switch", Mode::Switch), ("wire", Mode::Wire)])
}

pub(super) fn plan(value: &DeValue<'_>) -> Parsed<PlanChoice> {
    choice(
        value,
        &[
            ("auto", PlanChoice::Auto),
            ("inline", PlanChoice::Inline),
            ("staged", PlanChoice::Staged),
        ],
    )
}

pub(super) fn offload(value: &DeValue<'_>) -> Parsed<OffloadChoice> {
    choice(
        value,
        &[("auto", OffloadChoice::Auto), ("off", OffloadChoice::Off)],
    )
}

pub(super) fn network_id(value: &DeValue<'_>) -> Parsed<u32> {
    integer(value, 0..=0xff_ffff, "network-id = 100").map(|id| id as u32)
}

pub(super) fn lanes(value: &DeValue<'_>) -> Parsed<usize> {
    integer(value, 1..=8, "lanes = 2").map(|lanes| lanes as usize)
}

pub(super) fn workers(value: &DeValue<'_>) -> Parsed<usize> {
    integer(value, 1..=64, "workers = 2").map(|workers| workers as usize)
}

pub(super) fn nice(value: &DeValue<'_>) -> Parsed<i32> {
    integer(value, -20..=19, "nice = -10").map(|nice| nice as i32)
}

pub(super) fn flag(value: &DeValue<'_>, key: &str) -> Parsed<bool> {
    value
        .as_bool()
        .ok_or_else(|| wrong_type(value, "true or false", &format!("{key} = true")))
}

/// So many addresses, of the switch or of one port.
pub(super) fn stations(
    value: &DeValue<'_>,
    range: RangeInclusive<i64>,
    example: &str,
) -> Parsed<usize> {
    integer(value, range, example).map(|stations| stations as usize)
}

pub(super) fn ageing(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(24 * 3600),
        "300s",
    )
}

pub(super) fn dampening(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(value, Duration::ZERO..=Duration::from_secs(60), "1s")
}

pub(super) fn rekey_interval(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(120),
        "120s",
    )
}

pub(super) fn keepalive(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(3600),
        "25s",
    )
}

fn duration(
    value: &DeValue<'_>,
    range: RangeInclusive<Duration>,
    example: &str,
) -> Parsed<Duration> {
    if let DeValue::Integer(number) = value {
        return Err(format!("has no unit; write `\"{number}s\"`"));
    }
    let text = string(value, &format!("\"{example}\""))?;
    let duration = humantime::parse_duration(text).map_err(|_| {
        let remedy = format!("write a number with a unit, for example `{example}`");
        format!("{} is not a duration; {remedy}", shown(text))
    })?;
    if !range.contains(&duration) {
        let [min, max] = [range.start(), range.end()].map(|d| humantime::format_duration(*d));
        return Err(format!(
            "{} is out of range; write {min} to {max}",
            shown(text)
        ));
    }
    Ok(duration)
}

pub(super) fn peer_name(value: &DeValue<'_>) -> Parsed<String> {
    let name = string(value, "name = \"site-b\"")?;
    let remedy = "write 1 to 64 bytes without white space, for example `site-b`";
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if !matches!(name.len(), 1..=64) || name.chars().any(bad) {
        return Err(format!(
            "{} is not the name of a peer; {remedy}",
            shown(name)
        ));
    }
    if name == "tap" {
        return Err("`tap` is what `show` calls the device; choose another name".into());
    }
    Ok(name.into())
}

pub(super) fn public_key(value: &DeValue<'_>) -> Parsed<PublicKey> {
    const REMEDY: &str = "write what `patchcord pubkey` printed at the peer";
    let text = string(value, "public-key = \"…\"")?;
    text.parse()
        .map_err(|error| format!("the key {error}; {REMEDY}"))
}

/// A path as written: not yet relative to anything.
pub(super) fn key_path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let text = string(value, "\"a.key\"")?;
    if text.is_empty() {
        return Err("is empty; write the path of a file".into());
    }
    if is_key_rather_than_path(text.trim()) {
        let remedy = "store it in a file of mode 600 and write the file's path here";
        return Err(format!("holds a key instead of a path; {remedy}"));
    }
    Ok(text.into())
}

pub(super) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Parsed<T> {
    let text = string(value, &format!("\"{}\"", choices[0].0))?;
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|&(_, choice)| choice)
        .ok_or_else(|| {
            let names: Vec<_> = choices
                .iter()
                .map(|(name, _)| format!("`{name}`"))
                .collect();
            format!(
                "{} is not a choice; write {}",
                shown(text),
                names.join(" or ")
            )
        })
}

pub(super) fn integer(
    value: &DeValue<'_>,
    range: RangeInclusive<i64>,
    example: &str,
) -> Parsed<i64> {
    let (min, max) = (range.start(), range.end());
    let Some(integer) = value.as_integer() else {
        return Err(wrong_type(
            value,
            &format!("a number from {min} to {max}"),
            example,
        ));
    };
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("`{integer}` is out of range; write {min} to {max}"))
}

pub(super) fn string<'v>(value: &'v DeValue<'_>, example: &str) -> Parsed<&'v str> {
    value
        .as_str()
        .ok_or_else(|| wrong_type(value, "a string", example))
}

pub(super) fn wrong_type(value: &DeValue<'_>, expected: &str, example: &str) -> String {
    format!(
        "is {}, not {expected}; write for example `{example}`",
        type_name(value)
    )
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The value for an error message: short, on one line, and never a key.
pub(super) fn shown(text: &str) -> String {
    if text.split(|c| !is_base64(c)).any(may_hold_a_key) {
        return "the value (not shown, it looks like a key)".into();
    }
    let short: String = text.chars().take(64).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}

/// Whether somebody may have pasted a key, be it cut or with characters too many: a run of base64.
fn may_hold_a_key(run: &str) -> bool {
    run.len() >= 32
}

/// Stricter, because a long path of letters and slashes must pass.
fn is_key_rather_than_path(text: &str) -> bool {
    let base64 = matches!(text.trim_end_matches('=').len(), 42..=43)
        && text.chars().all(is_base64)
        && !text.starts_with('/');
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    base64 || hex
}

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')
}

/// Whether datagrams to `endpoint` come back to the socket that listens at `listen`.
pub(super) fn is_own(listen: SocketAddr, endpoint: SocketAddr) -> bool {
    let (own, ip) = (listen.ip().to_canonical(), endpoint.ip().to_canonical());
    let is_here = own == ip || (own.is_unspecified() && ip.is_loopback());
    listen.port() == endpoint.port() && is_here
}

/// Whether a socket bound to `listen` can send to `endpoint`.
pub(super) fn is_reachable(listen: SocketAddr, endpoint: SocketAddr) -> bool {
    match listen.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        ip => ip.is_ipv4() == endpoint.is_ipv4(),
    }
}
