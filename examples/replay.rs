// SPDX-License-Identifier: MIT OR Apache-2.0
//! Plays the Ethernet frames of a recording into an interface, as if they came over its cable.
//!
//! ```text
//!  in.pcap ──> this program ═══ TAP ═══ replay0 ── kernel, or a bridge
//!  out.pcap <─┘
//! ```
//! It shows a provider that has work to do and then ends: frames at their times, an error that names
//! the remedy, a task that `stop` waits for so that nothing is lost, and the report at the end of a
//! session. Reads pcap and pcapng; `--record` writes the frames that the kernel or the bridge sends
//! meanwhile, as pcap with nanoseconds.
//!
//! ```text
//! $ sudo target/debug/examples/replay in.pcap --bridge br-lan --speed 10 --record out.pcap
//! replay0: playing in.pcap
//! replay0: 1200 frames played in 3.1s, 0 refused, 2 skipped, 17 recorded
//! ```
//! Skips frames that the recording does not have whole. Exit codes: 0 played or stopped, 1 failed at
//! run time, 2 bad usage, or no usable recording.

// It is a program: its output goes to stdout, its errors to stderr. Frames have times.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::print_stdout)]

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use clap::Parser;
use ipnet::IpNet;
use patchcord::{
    control::RUN_DIR,
    provider::{
        BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings, FlowError,
        ProviderContext, ProviderError, Session, SessionHandle, StartOptions, StopReason,
    },
};
use patchcord_bridge::MacAddr;
use pcap_file::{
    DataLink, PcapError, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter},
    pcapng::{
        Block, PcapNgReader,
        blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// A bridge with the spanning tree protocol takes 30 s by default. After that the recording is played all
/// the same.
const FORWARDS_WITHIN: Duration = Duration::from_secs(35);
/// The most frames that are written at once.
const BATCH_FRAMES: usize = 64;

/// Play a recording of Ethernet frames into an interface
#[derive(Clone, Parser)]
#[command(name = "replay")]
struct Args {
    /// The recording, pcap or pcapng
    recording: PathBuf,
    /// Play this many times as fast as recorded; 0 is without pauses
    #[arg(long, default_value_t = 1.0, value_parser = parse_speed)]
    speed: f64,
    /// Write the frames that come from the kernel or the bridge to this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Stay this long after the last frame, for answers
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    linger: Duration,
    /// Name of the interface
    #[arg(long, default_value = "replay0")]
    name: String,
    /// MAC address of the interface
    #[arg(long, default_value = "02:00:00:00:82:01")]
    mac: MacAddr,
    /// MTU of the interface
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Address of the interface; can be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    address: Vec<IpNet>,
    /// Linux bridge to plug the interface into
    #[arg(long)]
    bridge: Option<String>,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.0..=1e9).contains(&speed) => Ok(speed),
        _ => Err("a speed is a number from 0 to 1e9".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (code, error) = match Recording::open(&args.recording) {
        Err(error) => (2, error),
        Ok(recording) => match run(args, recording) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (1, error),
        },
    };
    eprintln!("replay: {error:#}");
    ExitCode::from(code)
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args, recording: Recording) -> Result<()> {
    let name = args.name.clone();
    let playing = format!("{name}: playing {}", args.recording.display());
    let replay = Arc::new(Replay::new(args, recording));
    let session = Session::new(replay.clone(), &name, RUN_DIR, Deadlines::default());
    let stopper = session.handle();
    tokio::spawn(stop_on_signal(session.handle()));
    // A provider cannot end its session without an error, only cancel it; so it reports when it is
    // done.
    let outcome = replay.outcome.clone();
    tokio::spawn(async move {
        outcome.played.notified().await;
        stopper.stop(StopReason::UserInitiated);
    });
    let end = session
        .run(StartOptions::default(), || println!("{playing}"))
        .await;
    println!("{name}: {}", replay.outcome.summary());
    match end.error {
        Some(error) => Err(error).with_context(|| format!("the session on {name} ended")),
        None => Ok(()),
    }
}

async fn stop_on_signal(session: SessionHandle) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    session.stop(StopReason::UserInitiated);
    Ok(())
}

/// The provider.
struct Replay {
    args: Args,
    /// Taken by `start`.
    recording: Mutex<Option<Recording>>,
    /// Taken by `stop`.
    recorder: Mutex<Option<JoinHandle<()>>>,
    outcome: Arc<Outcome>,
}

/// The results of the tasks.
#[derive(Default)]
struct Outcome {
    played: Notify,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    played: usize,
    refused: usize,
    skipped: usize,
    recorded: usize,
    took: Duration,
}

impl Outcome {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn summary(&self) -> String {
        let Counts {
            played,
            refused,
            skipped,
            recorded,
            took,
        } = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let took = took.as_secs_f64();
        format!(
            "{played} frames played in {took:.1}s, {refused} refused, {skipped} skipped, \
             {recorded} recorded"
        )
    }
}

impl Replay {
    fn new(args: Args, recording: Recording) -> Self {
        Self {
            args,
            recording: Mutex::new(Some(recording)),
            recorder: Mutex::default(),
            outcome: Arc::default(),
        }
    }

    fn settings(&self) -> EthernetTunnelSettings {
        let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let Args { mac, mtu, name, .. } = &self.args;
        let mut settings = EthernetTunnelSettings::new(anywhere, *mac, *mtu, name)
            .with_addresses(&self.args.address);
        settings.bridge.clone_from(&self.args.bridge);
        settings
    }

    /// Opens the file before there is an interface: an unwritable file must not disturb one.
    fn recorder(&self) -> Result<Option<Recorder>, ProviderError> {
        let Some(path) = &self.args.record else {
            return Ok(None);
        };
        Recorder::create(path).map(Some).map_err(|error| {
            let message = format!("cannot write {}: give another --record", path.display());
            ProviderError::with_source(message, error)
        })
    }
}

impl EthernetTunnelProvider for Replay {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let recording =
                take(&self.recording).ok_or_else(|| ProviderError::new("a session starts once"))?;
            let recorder = self.recorder()?;
            context.set_network_settings(Some(self.settings())).await?;
            context.set_carrier(true).await;

            let (their, outcome) = (context.clone(), self.outcome.clone());
            let record = tokio::spawn(async move {
                cancel_on_error(&their, record(&their, recorder, &outcome).await);
            });
            *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);

            let (their, outcome) = (context.clone(), self.outcome.clone());
            let (speed, linger) = (self.args.speed, self.args.linger);
            let bridged = self.args.bridge.is_some().then(|| self.args.name.clone());
            tokio::spawn(async move {
                if let Some(name) = bridged {
                    let _ = timeout(FORWARDS_WITHIN, forwards(&name)).await;
                }
                cancel_on_error(&their, play(&their, recording, speed, &outcome).await);
                sleep(linger).await;
                outcome.played.notify_one();
            });
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async {
            // Every frame that was read is written: the task learns of the end, and ends after its
            // last frame.
            if let Some(recorder) = take(&self.recorder) {
                let _ = recorder.await;
            }
        })
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn cancel_on_error(context: &ProviderContext, outcome: Result<()>) {
    if let Err(error) = outcome {
        context.cancel_tunnel(Some(ProviderError::new(format!("{error:#}"))));
    }
}

/// Waits until the bridge forwards frames of this port: the kernel tells it of the carrier a moment later,
/// and until then it drops them.
async fn forwards(name: &str) {
    const FORWARDING: &str = "3"; // BR_STATE_FORWARDING
    let state = format!("/sys/class/net/{name}/brport/state");
    while std::fs::read_to_string(&state).is_ok_and(|state| state.trim() != FORWARDING) {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Writes each frame when it is due, and simultaneous frames as one batch.
async fn play(
    context: &ProviderContext,
    mut recording: Recording,
    speed: f64,
    outcome: &Outcome,
) -> Result<()> {
    let writer = context.writer();
    let begin = Instant::now();
    let due = |frame: &Frame, first: Duration| match speed {
        0.0 => begin,
        speed => begin + frame.at.saturating_sub(first).div_f64(speed),
    };
    let mut next = recording.next_frame()?;
    let first = next.as_ref().map_or(Duration::ZERO, |frame| frame.at);
    let mut batch: Vec<Vec<u8>> = Vec::new();
    while let Some(frame) = next.take() {
        let at = due(&frame, first);
        tokio::select! {
            () = sleep_until(at) => {}
            _ = context.cancelled() => return Ok(()),
        }
        batch.push(frame.bytes);
        next = recording.next_frame()?;
        let goes_along = |frame: &Frame| due(frame, first) <= Instant::now();
        if batch.len() == BATCH_FRAMES || !next.as_ref().is_some_and(goes_along) {
            let report = writer
                .try_send_batch(&batch)
                .context("cannot write frames")?;
            batch.clear();
            outcome.count(|counts| {
                counts.played += report.accepted;
                counts.refused += report.rejected;
                counts.skipped = recording.skipped;
                counts.took = begin.elapsed();
            });
        }
    }
    outcome.count(|counts| counts.skipped = recording.skipped);
    Ok(())
}

/// Reads the frames of the interface, even if they are not recorded: without a reader, a queue of the
/// kernel would fill, and the interface would count the drops.
async fn record(
    context: &ProviderContext,
    mut recorder: Option<Recorder>,
    outcome: &Outcome,
) -> Result<()> {
    let Some(mut reader) = context.take_reader() else {
        return Ok(());
    };
    let mut frames: Vec<Bytes> = Vec::new();
    loop {
        match reader.recv_batch(&mut frames).await {
            Err(FlowError::Closed(_)) => break,
            read => read.context("cannot read frames")?,
        };
        if let Some(recorder) = &mut recorder {
            recorder
                .write(&frames)
                .context("cannot write the recording")?;
            outcome.count(|counts| counts.recorded += frames.len());
        }
        frames.clear();
    }
    let finished = recorder.map_or(Ok(()), Recorder::finish);
    finished.context("cannot write the recording")
}

/// A frame of a recording, with its time since the start of the recording's clock.
struct Frame {
    at: Duration,
    bytes: Vec<u8>,
}

/// Ethernet frames of a file, one after the other.
struct Recording {
    format: Format,
    /// Frames that are not whole, or not Ethernet.
    skipped: usize,
}

enum Format {
    Pcap(PcapReader<BufReader<File>>),
    PcapNg(PcapNgReader<BufReader<File>>),
}

impl Recording {
    fn open(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)
            .map_err(|_| anyhow!("the file is empty, or nearly so"))
            .with_context(cannot)?;
        file.rewind().with_context(cannot)?;
        let format = Self::format(magic, BufReader::new(file)).with_context(cannot)?;
        Ok(Self { format, skipped: 0 })
    }

    fn format(magic: [u8; 4], file: BufReader<File>) -> Result<Format> {
        const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
        if magic == SECTION_HEADER {
            return Ok(Format::PcapNg(PcapNgReader::new(file)?));
        }
        let remedy = "the file is no recording; `tcpdump -w` and Wireshark make some";
        let reader = PcapReader::new(file).context(remedy)?;
        match reader.header().datalink {
            DataLink::ETHERNET => Ok(Format::Pcap(reader)),
            other => bail!("it holds {other:?}, not Ethernet; record on an Ethernet interface"),
        }
    }

    /// The next whole frame; `None` at the end.
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            let next = match &mut self.format {
                Format::Pcap(reader) => next_of_pcap(reader),
                Format::PcapNg(reader) => next_of_pcapng(reader),
            };
            match next.context("the recording is damaged")? {
                Next::Frame(frame) => return Ok(Some(frame)),
                Next::Skipped => self.skipped += 1,
                Next::Other => {}
                Next::End => return Ok(None),
            }
        }
    }
}

/// The next element of a file.
enum Next {
    Frame(Frame),
    Skipped,
    Other,
    End,
}

fn next_of_pcap(reader: &mut PcapReader<BufReader<File>>) -> Result<Next, PcapError> {
    let resolution = reader.header().ts_resolution;
    // The raw packet: the reader's own checks refuse a file with truncated frames.
    let Some(packet) = reader.next_raw_packet() else {
        return Ok(Next::End);
    };
    let packet = packet?;
    let fraction = match resolution {
        TsResolution::MicroSecond => Duration::from_micros(packet.ts_frac.into()),
        TsResolution::NanoSecond => Duration::from_nanos(packet.ts_frac.into()),
    };
    let at = Duration::from_secs(packet.ts_sec.into()) + fraction;
    Ok(match packet.incl_len == packet.orig_len {
        true => Next::Frame(Frame {
            at,
            bytes: packet.data.into_owned(),
        }),
        false => Next::Skipped,
    })
}

fn next_of_pcapng(reader: &mut PcapNgReader<BufReader<File>>) -> Result<Next, PcapError> {
    let Some(block) = reader.next_block() else {
        return Ok(Next::End);
    };
    let packet = match block? {
        Block::EnhancedPacket(packet) => packet.into_owned(),
        // The first has no time of its own, the second is obsolete.
        Block::SimplePacket(_) | Block::Packet(_) => return Ok(Next::Skipped),
        _ => return Ok(Next::Other),
    };
    let interface = reader
        .packet_interface(&packet)
        .ok_or(PcapError::InvalidInterfaceId(packet.interface_id))?;
    let is_whole = packet.data.len() == packet.original_len as usize;
    if !is_whole || interface.linktype != DataLink::ETHERNET {
        return Ok(Next::Skipped);
    }
    Ok(Next::Frame(Frame {
        // The reader takes the interface's units for nanoseconds.
        at: units(interface, packet.timestamp.as_nanos()),
        bytes: packet.data.into_owned(),
    }))
}

/// A time in the units of an interface: a power of ten, or of two with the top bit set, and
/// microseconds by default (pcapng, section 4.2, `if_tsresol`).
fn units(interface: &InterfaceDescriptionBlock<'_>, count: u128) -> Duration {
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let exponent = resolution.unwrap_or(6);
    let base: u128 = if exponent & 0x80 == 0 { 10 } else { 2 };
    let per_second = base.saturating_pow(u32::from(exponent & 0x7f));
    let seconds = u64::try_from(count / per_second).unwrap_or(u64::MAX);
    let nanos = (count % per_second).saturating_mul(1_000_000_000) / per_second;
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Writes frames to a file as they arrive.
struct Recorder {
    writer: PcapWriter<BufWriter<File>>,
    begin: (SystemTime, Instant),
}

impl Recorder {
    fn create(path: &Path) -> Result<Self, PcapError> {
        let file = File::create(path).map_err(PcapError::IoError)?;
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            snaplen: 1 << 18,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        Ok(Self {
            writer: PcapWriter::with_header(BufWriter::new(file), header)?,
            begin: (SystemTime::now(), Instant::now()),
        })
    }

    fn write(&mut self, frames: &[Bytes]) -> Result<(), PcapError> {
        // By a clock that never goes back, so that neither do the times of the frames.
        let now = self.begin.0 + self.begin.1.elapsed();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        for frame in frames {
            let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            self.writer
                .write_packet(&PcapPacket::new(now, len, frame))?;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        self.writer.into_writer().flush()
    }
}
