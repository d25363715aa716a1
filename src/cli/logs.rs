// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the logs of a running tunnel go: to stderr, in the form that its reader needs.
//!
//! A thread of its own writes them. Whoever logs waits for nobody: when the reader of stderr does not
//! read, lines are lost, and it is told how many.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::journal::{self, WithPriority};

/// Lines that wait for their reader.
const LINES: usize = 1024;

/// Logs until it is dropped; the last lines are written by then, if somebody reads them.
pub(super) struct Logs(#[expect(dead_code, reason = "its drop is what it is for")] WorkerGuard);

/// Starts logging; for the command that runs a tunnel.
#[must_use]
pub(super) fn start() -> Logs {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    let (writer, guard) = non_blocking(io::stderr());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    // The journal has its own clock.
    if journal::is_stderr() {
        logs.without_time().map_event_format(WithPriority).init();
    } else {
        logs.init();
    }
    Logs(guard)
}

fn non_blocking(out: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    let lost = Arc::new(OnceLock::new());
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .lossy(true)
        .thread_name("log")
        .finish(Complete::new(out, lost.clone()));
    let _ = lost.set(writer.error_counter());
    (writer, guard)
}

/// Says how many lines are missing where they are.
struct Complete<W> {
    out: W,
    lost: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl<W> Complete<W> {
    fn new(out: W, lost: Arc<OnceLock<ErrorCounter>>) -> Self {
        Self { out, lost, told: 0 }
    }
}

impl<W: Write> Write for Complete<W> {
    /// Writes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let news = lost - self.told;
        if news > 0 {
            self.told = lost;
            writeln!(
                self.out,
                " WARN {news} lines of this log were lost: nobody read them in time"
            )?;
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

    /// Takes nothing until it is told to.
    struct Stalled {
        go: Receiver<()>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When the other end is gone, nothing stalls any more.
            let _ = self.go.recv();
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_waits_for_no_reader_and_the_reader_is_told_what_is_missing() {
        const WRITTEN: usize = 5 * LINES;
        let (release, go): (Sender<()>, _) = channel();
        let text = Arc::new(Mutex::new(Vec::new()));
        let stalled = Stalled {
            go,
            text: text.clone(),
        };
        let (mut writer, guard) = non_blocking(stalled);
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
            .filter_map(|line| line.strip_prefix(" WARN "))
            .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
            .sum();
        assert!(lines >= LINES && told > 0, "{lines} lines, {told} lost");
        assert_eq!(lines + told, WRITTEN);
    }
}
