// SPDX-License-Identifier: MIT OR Apache-2.0
//! Logs for the journal: entries with fields in journald's own protocol, so that `journalctl
//! PATCHCORD_PEER=site-b` finds them; or, without journald's socket, lines that begin with their
//! priority, as in sd-daemon(3). `journalctl -p warning` finds warnings by either.
//!
//! The thread that logs makes the entry, and the log's own thread sends it: only that one waits while
//! journald is busy.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::{
    FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer,
};
use tracing_subscriber::registry::LookupSpan;

/// The socket of journald.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The identifier of entries.
const IDENTIFIER: &str = "patchcord";

/// Whether stderr is still the stream that journald announced, and was not redirected.
pub(super) fn is_stderr() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else {
        return false;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let metadata = stderr.and_then(|stderr| stderr.metadata());
    metadata.is_ok_and(|it| stream == format!("{}:{}", it.dev(), it.ino()))
}

/// Sends each entry to journald.
pub(super) struct Entries<W> {
    socket: UnixDatagram,
    to: PathBuf,
    otherwise: W,
}

impl<W: Write> Entries<W> {
    /// None without such a socket. An entry that journald refuses goes to `otherwise`, as a line
    /// with its priority.
    pub(super) fn to(path: &Path, otherwise: W) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        path.exists().then(|| Self {
            socket,
            to: path.to_owned(),
            otherwise,
        })
    }
}

impl<W: Write> Write for Entries<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        // Not connected, as journald may be restarted.
        if self.socket.send_to(entry, &self.to).is_err() {
            let text = String::from_utf8_lossy(entry);
            let field = |name: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            };
            let priority = field("PRIORITY").unwrap_or("6");
            let message = field("MESSAGE").unwrap_or_default();
            writeln!(self.otherwise, "<{priority}>{message}")?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.otherwise.flush()
    }
}

/// The text of the inner formatter as the message of an entry, with the fields of the event and of its
/// spans.
pub(super) struct AsEntry<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for AsEntry<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = String::new();
        self.0
            .format_event(context, Writer::new(&mut message), event)?;
        let level = *event.metadata().level();
        writer.write_str(&entry(level, &message))?;
        let mut fields = Fields {
            writer,
            result: Ok(()),
        };
        event.record(&mut fields);
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<N>>();
            // Our spans have one field each.
            if let Some((name, value)) = text.and_then(|text| text.split_once('='))
                && event.metadata().fields().field(name).is_none()
            {
                fields.put(name, value.trim_matches('"'));
            }
        }
        fields.result
    }
}

/// An entry without fields of its own.
pub(super) fn entry(level: Level, message: &str) -> String {
    let priority = priority(level);
    let message = one_line(message.trim());
    format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER={IDENTIFIER}\nMESSAGE={message}\n")
}

/// Writes fields: `peer` is `PATCHCORD_PEER`.
struct Fields<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl Fields<'_> {
    fn put(&mut self, name: &str, value: &str) {
        // The entry has the message already.
        if name == "message" || self.result.is_err() {
            return;
        }
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let name = name.to_ascii_uppercase();
        let value = one_line(value);
        self.result = writeln!(self.writer, "PATCHCORD_{name}={value}");
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), &format!("{value:?}"));
    }
}

/// A line break ends a field.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\0'], " ")
}

/// The text of the inner formatter, behind its priority.
pub(super) struct WithPriority<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(&prefix(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// The priority at the beginning of a line.
pub(super) fn prefix(level: Level) -> String {
    format!("<{}>", priority(level))
}

/// As in syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// Sends to journald from the thread that logs, in tests only.
    #[derive(Clone)]
    struct Direct(Arc<Mutex<Entries<Vec<u8>>>>);

    impl Write for Direct {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Direct {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn an_event_is_an_entry_with_its_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(Entries::to(&path, Vec::new()).is_none(), "nobody is there");
        let journald = UnixDatagram::bind(&path).unwrap();
        let direct = Direct(Arc::new(Mutex::new(
            Entries::to(&path, Vec::new()).unwrap(),
        )));
        let log = || {
            let subscriber = tracing_subscriber::fmt()
                .with_writer(direct.clone())
                .with_ansi(false)
                .with_target(false)
                .without_time()
                .map_event_format(AsEntry)
                .finish();
            let (peer, from) = ("site\nb", "192.0.2.1:1".parse::<std::net::SocketAddr>());
            tracing::subscriber::with_default(subscriber, || {
                let (from, none) = (from.unwrap(), None::<&str>);
                let _of_host = tracing::error_span!("host", tunnel = "office").entered();
                tracing::warn!(peer, %from, last.error = 3, none, "peer is down\nPRIORITY=0");
            });
        };
        log();
        let mut bytes = [0; 4096];
        let length = journald.recv(&mut bytes).unwrap();
        let lines: Vec<_> = std::str::from_utf8(&bytes[..length])
            .unwrap()
            .lines()
            .collect();
        let [priority, identifier, message, fields @ ..] = &lines[..] else {
            panic!("{lines:?}");
        };
        assert_eq!(
            (*priority, *identifier),
            ("PRIORITY=4", "SYSLOG_IDENTIFIER=patchcord")
        );
        let begin = r#"MESSAGE=WARN host{tunnel="office"}: peer is down PRIORITY=0 peer="#;
        assert!(message.starts_with(begin), "{message}");
        let expected = [
            "PATCHCORD_PEER=site b",
            "PATCHCORD_FROM=192.0.2.1:1",
            "PATCHCORD_LAST_ERROR=3",
            "PATCHCORD_TUNNEL=office",
        ];
        assert_eq!(fields, expected);

        // journald is gone.
        drop(journald);
        log();
        let entries = direct.0.lock().unwrap();
        let otherwise = String::from_utf8_lossy(&entries.otherwise);
        assert!(
            otherwise.starts_with(r#"<4>WARN host{tunnel="office"}: peer is down"#),
            "{otherwise}"
        );
        assert_eq!(otherwise.lines().count(), 1);
    }
}
