// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client protocol: lines of JSON over a tunnel's or a host's Unix socket.
//!
//! ```text
//! host    {"hello":"patchcord-host","version":"0.1.0","protocols":[2]}
//! client  {"hello":"patchcord","version":"0.1.0","protocols":[2]}
//! client  {"id":1,"verb":{"start":{"tunnel":"office"}}}
//! host    {"id":1,"ok":{"started":{"attempt":7}}}
//! client  {"id":2,"verb":{"ask":{"tunnel":"office","query":"show"}}}
//! host    {"id":2,"ok":{"answer":{"status":{"tunnel":"office"}}}}
//! client  {"id":3,"verb":"subscribe"}
//! host    {"id":3,"ok":"done"}
//! host    {"event":{"tunnel":"office","attempt":7,"event":"status","value":"connected"}}
//! ```
//! Both sides begin with a hello and use the highest version that both support; neither waits for the
//! other's hello. Several requests may be pending; a reply carries the number of its request.
//!
//! A verb is a variant of [`Verb`], and its action an arm of `verbs::perform`. What only a tunnel can
//! answer is a [`Query`](crate::control::message::Query) instead, which `ask` passes on.
//!
//! A later version may add verbs, replies, fields and events. A request with an unknown field is
//! refused, so that none is half understood; an unknown verb or query gets the code `unknown-verb`, and
//! the connection goes on. Clients ignore unknown fields and events. `docs/control.schema.json` has all
//! of it. Pure data; the sockets are in `daemon` and [`client`](super::client).

mod bytes;
mod codec;
mod message;
mod schema;

pub(super) use self::message::{CLIENT, HOST, Heard};
pub use self::{
    bytes::Message,
    codec::{from_line, request_from_line, to_line},
    message::{
        Access, Hello, HostLine, MAX_LINE, PROTOCOLS, Refusal, RefusalCode, Reply, Request,
        TunnelInfo, Verb,
    },
    schema::schema,
};
