// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the logs of a running tunnel go: to stderr, in the form that its reader needs, or to journald.
//!
//! A thread of its own writes them, so that logging never blocks. When the reader does not read, lines
//! are lost, and a line says how many.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::journal::{self, AsEntry, Entries, WithPriority};

/// The capacity of the queue of lines.
const LINES: usize = 1024;

/// Logs until it is dropped; the last lines are written by then, if a process reads them.
pub(super) struct Logs(#[expect(dead_code, reason = "its drop is what it is for")] WorkerGuard);

/// Starts logging; for the command that runs a tunnel.
#[must_use]
pub(super) fn start() -> Logs {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    let logs = |writer| {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer)
            .with_target(false)
    };
    if !journal::is_stderr() {
        let (writer, guard) = non_blocking(io::stderr(), Form::Line);
        logs(writer).with_ansi(io::stderr().is_terminal()).init();
        return Logs(guard);
    }
    // The journal has its own clock.
    match Entries::to(Path::new(journal::SOCKET), io::stderr()) {
        Some(entries) => {
            let (writer, guard) = non_blocking(entries, Form::Entry);
            let logs = logs(writer).with_ansi(false).without_time();
            logs.map_event_format(AsEntry).init();
            Logs(guard)
        }
        None => {
            let (writer, guard) = non_blocking(io::stderr(), Form::WithPriority);
            let logs = logs(writer).with_ansi(false).without_time();
            logs.map_event_format(WithPriority).init();
            Logs(guard)
        }
    }
}

fn non_blocking(out: impl Write + Send + 'static, form: Form) -> (NonBlocking, WorkerGuard) {
    let lost = Arc::new(OnceLock::new());
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .lossy(true)
        .thread_name("log")
        .finish(Complete::new(out, form, lost.clone()));
    let _ = lost.set(writer.error_counter());
    (writer, guard)
}

/// The form of one event.
#[derive(Clone, Copy)]
enum Form {
    Line,
    /// A line that begins with its priority.
    WithPriority,
    /// Of the journal, with fields.
    Entry,
}

impl Form {
    /// The line about lost lines.
    fn loss(self, lines: usize) -> String {
        let text = format!("WARN {lines} lines of this log were lost: they were not read in time");
        match self {
            Self::Line => format!(" {text}\n"),
            Self::WithPriority => format!("{} {text}\n", journal::prefix(Level::WARN)),
            Self::Entry => journal::entry(Level::WARN, &text),
        }
    }
}

/// Writes the number of lost lines at the place where they are missing.
struct Complete<W> {
    out: W,
    form: Form,
    lost: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl<W> Complete<W> {
    fn new(out: W, form: Form, lost: Arc<OnceLock<ErrorCounter>>) -> Self {
        let told = 0;
        Self {
            out,
            form,
            lost,
            told,
        }
    }
}

impl<W: Write> Write for Complete<W> {
    /// Writes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let news = lost - self.told;
        if news > 0 {
            self.told = lost;
            self.out.write_all(self.form.loss(news).as_bytes())?;
        }
        self.out.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Blocks writes until a test releases it.
    struct Stalled {
        go: Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When the other end is gone, no write blocks any more.
            let _ = self.go.recv();
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn logging_never_blocks_and_lost_lines_are_counted() {
        const WRITTEN: usize = 5 * LINES;
        let (release, go): (Sender<()>, _) = channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let stalled = Stalled {
            go,
            text: text.clone(),
        };
        let (mut writer, guard) = non_blocking(stalled, Form::WithPriority);
        for number in 0..WRITTEN {
            writer
                .write_all(format!("line {number}\n").as_bytes())
                .unwrap();
        }
        drop(release);
        drop((writer, guard));
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        let lines = text.matches("line ").count();
        let told: usize = text
            .lines()
            .filter_map(|line| line.strip_prefix("<4> WARN "))
            .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
            .sum();
        assert!(lines >= LINES && told > 0, "{lines} lines, {told} lost");
        assert_eq!(lines + told, WRITTEN);
    }
}
