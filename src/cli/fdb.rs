// SPDX-License-Identifier: MIT OR Apache-2.0
//! `fdb`: shows the FDBs of running tunnels, and changes them.

use std::io::{self, BufWriter, Write};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use patchcord::control::message::{
    Answer, Assigner, FdbAdd, FdbDel, FdbFlush, FdbRequest, FdbShow, FdbStatus,
};
use patchcord_bridge::{MacAddr, ParseMacError};
use serde::Serialize;

use super::failure::Failure;
use super::output::print;
use super::status;
use super::target::{self, Found, PATIENCE, RunDir, Target, TargetOrAll, block_on};

pub(super) const HELP: &str = "\
PORT is `tap`, or the name of a peer.

Examples:
  patchcord fdb show office                            list the addresses
  patchcord fdb add office 02:00:5e:10:00:01 site-b    a static entry: frames do not move it
  patchcord fdb del office 02:00:5e:10:00:01
  patchcord fdb flush office --port site-b --vlan 10   delete what was learned there";

#[derive(Subcommand)]
pub(super) enum FdbCommand {
    /// List addresses and the ports they are on
    Show(ShowOptions),
    /// Assign an address to a port, whatever entry it has
    #[command(after_help = ADD_HELP)]
    Add(AddArguments),
    /// Delete an address, whatever its origin
    Del(DelArguments),
    /// Delete learned addresses: all, or those of a port, a VLAN, or both
    Flush(FlushArguments),
}

const ADD_HELP: &str = "\
A static address neither ages nor moves. That of a controller (BGP EVPN, for example) does not age, but
moves when a frame of the station comes from elsewhere; of two advertisements the one with the higher
sequence number counts (RFC 7432, section 7.7).

Examples:
  patchcord fdb add office 02:00:5e:10:00:01 site-b --vlan 10
  patchcord fdb add office 02:00:5e:10:00:01 site-b --origin controller --sequence 7";

#[derive(Args)]
pub(super) struct ShowOptions {
    #[command(flatten)]
    target: TargetOrAll,
    /// Only this address
    #[arg(long, value_parser = station)]
    mac: Option<MacAddr>,
    /// Only this VLAN; 0 is none
    #[arg(long, value_name = "N", value_parser = vlan())]
    vlan: Option<u16>,
    /// Only this port
    #[arg(long, requires = "target")]
    port: Option<String>,
    /// Print JSON: an object with NAME|FILE, an array without
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
pub(super) struct AddArguments {
    #[command(flatten)]
    address: Address,
    /// `tap`, or the name of a peer
    port: String,
    /// The origin of the entry
    #[arg(long, value_enum, default_value_t = Origin::Static)]
    origin: Origin,
    /// The number under which the controller advertises it; 0 if absent
    #[arg(long, value_name = "N")]
    sequence: Option<u32>,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
pub(super) struct DelArguments {
    #[command(flatten)]
    address: Address,
    /// Only if a controller advertised it under this number or an earlier one, and it has not moved
    /// since
    #[arg(long, value_name = "N")]
    sequence: Option<u32>,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
pub(super) struct FlushArguments {
    #[command(flatten)]
    target: Target,
    /// Only those of this port
    #[arg(long)]
    port: Option<String>,
    /// Only those in this VLAN; 0 is none
    #[arg(long, value_name = "N", value_parser = vlan())]
    vlan: Option<u16>,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
struct Address {
    #[command(flatten)]
    target: Target,
    /// The station's Ethernet address
    #[arg(value_parser = station)]
    mac: MacAddr,
    /// The VLAN it is in; without one, frames without a tag
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = vlan())]
    vlan: u16,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Origin {
    Static,
    Controller,
}

impl From<Origin> for Assigner {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Static => Self::Static,
            Origin::Controller => Self::Controller,
        }
    }
}

/// The JSON of `fdb show` for one tunnel.
#[derive(Serialize)]
struct Table {
    tunnel: String,
    fdb: Vec<FdbStatus>,
}

pub(super) fn run(command: FdbCommand) -> Result<(), Failure> {
    match command {
        FdbCommand::Show(options) => show(&options),
        FdbCommand::Add(arguments) => add(arguments),
        FdbCommand::Del(arguments) => del(&arguments),
        FdbCommand::Flush(arguments) => flush(arguments),
    }
}

fn show(options: &ShowOptions) -> Result<(), Failure> {
    // A table may have a million entries, so the text is written as it is generated.
    let mut out = BufWriter::new(io::stdout().lock());
    match &options.target.name_or_file {
        Some(name_or_file) => {
            let table = block_on(async {
                let found = target::find(name_or_file, &options.run_dir).await?;
                read(&found, options).await
            })?;
            match options.json {
                true => json(&mut out, &table)?,
                false => status::addresses(&mut out, "", &table.fdb)?,
            }
        }
        None => {
            let tables = block_on(read_all(options))?;
            if options.json {
                json(&mut out, &tables)?;
            } else if tables.is_empty() {
                writeln!(out, "no tunnel is running")?;
            } else {
                for table in &tables {
                    writeln!(out, "tunnel {}", table.tunnel)?;
                    status::addresses(&mut out, "  ", &table.fdb)?;
                }
            }
        }
    }
    Ok(out.flush()?)
}

fn json(mut out: impl Write, value: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

/// The tables of all tunnels that have one.
async fn read_all(options: &ShowOptions) -> Result<Vec<Table>, Failure> {
    let mut tables = Vec::new();
    for found in target::all(&options.run_dir).await? {
        match read(&found, options).await {
            Err(Failure::AtRunTime(error)) if target::is_none_of_ours(&error) => {}
            table => tables.push(table?),
        }
    }
    Ok(tables)
}

/// The table of one tunnel, by VLAN and address.
async fn read(found: &Found, options: &ShowOptions) -> Result<Table, Failure> {
    let mut fdb = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let request = FdbRequest::Show(FdbShow {
            from,
            mac: options.mac.map(|mac| mac.to_string()),
            vid: options.vlan,
            port: options.port.clone(),
        });
        match ask(found, request).await? {
            // Without progress, the loop would not end.
            Answer::Fdb(page) if page.next.is_none_or(|next| next > from) => {
                fdb.extend(page.entries);
                next = page.next;
            }
            other => return Err(unexpected(found, &other)),
        }
    }
    fdb.sort_unstable_by(|a, b| (a.vid, &a.mac).cmp(&(b.vid, &b.mac)));
    let tunnel = found.name.clone();
    Ok(Table { tunnel, fdb })
}

async fn ask(found: &Found, request: FdbRequest) -> anyhow::Result<Answer> {
    let answer = found.client.fdb(&found.name, request);
    found.asked(PATIENCE, answer).await
}

fn unexpected(found: &Found, answer: &Answer) -> Failure {
    anyhow!(
        "tunnel `{}`: not an answer to the request: {answer:?}",
        found.name
    )
    .into()
}

fn add(arguments: AddArguments) -> Result<(), Failure> {
    let AddArguments {
        address,
        port,
        origin,
        sequence,
        run_dir,
    } = arguments;
    if origin == Origin::Static && sequence.is_some() {
        return Err(Failure::Usage(
            "--sequence is a controller's; add `--origin controller`, or leave it out".to_owned(),
        ));
    }
    let request = FdbRequest::Add(FdbAdd {
        vid: address.vlan,
        mac: address.mac.to_string(),
        port,
        origin: origin.into(),
        sequence,
    });
    change(&address.target, &run_dir, request).map(drop)
}

fn del(arguments: &DelArguments) -> Result<(), Failure> {
    let Address { target, mac, vlan } = &arguments.address;
    let request = FdbRequest::Del(FdbDel {
        vid: *vlan,
        mac: mac.to_string(),
        sequence: arguments.sequence,
    });
    change(target, &arguments.run_dir, request).map(drop)
}

fn flush(arguments: FlushArguments) -> Result<(), Failure> {
    let request = FdbRequest::Flush(FdbFlush {
        port: arguments.port,
        vid: arguments.vlan,
    });
    let forgotten = change(&arguments.target, &arguments.run_dir, request)?;
    let noun = if forgotten == 1 {
        "address"
    } else {
        "addresses"
    };
    Ok(print(&format!("{forgotten} learned {noun} forgotten\n"))?)
}

/// The number of addresses concerned.
fn change(target: &Target, run_dir: &RunDir, request: FdbRequest) -> Result<u64, Failure> {
    block_on(async {
        let found = target::find(&target.name_or_file, run_dir).await?;
        match ask(&found, request).await? {
            Answer::Changed { addresses } => Ok(addresses),
            other => Err(unexpected(&found, &other)),
        }
    })
}

fn station(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text
        .parse()
        .map_err(|error: ParseMacError| error.to_string())?;
    match mac.is_station() {
        true => Ok(mac),
        false => Err("this is the address of a group, or null, and not of a station".to_owned()),
    }
}

fn vlan() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=4095)
}
