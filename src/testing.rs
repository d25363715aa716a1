// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared by tests: private network namespaces, which need root and iproute2, the second opinion on our
//! own netlink code; and a log to read.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::io::sys::faults;

/// A network namespace; it is deleted with this value, its sockets and its devices.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// An empty namespace, in which not even `lo` is up.
    pub(crate) fn new() -> Self {
        let file = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { file }
    }

    /// Runs `work` on a thread in this namespace. Sockets that it opens stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// A path by which other processes reach the namespace: `ip link set … netns PATH`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// Runs `test` on a thread in a namespace of its own.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    Namespace::new().run(test)
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `ip ARGUMENTS` in the namespace of this thread and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the kernel has made the IPv6 addresses of this namespace usable. It does so in the
/// background, even with `nodad` and on `lo`, and until then loses datagrams to one in silence.
pub(crate) fn wait_for_addresses() {
    let are_in_use = || {
        let routes = ip("-6 route show table local");
        let is_in_use = |line: &str| {
            let address = line.split_whitespace().nth(3).unwrap_or_default();
            let address = address.split('/').next().unwrap_or_default();
            routes.contains(&format!("local {address} "))
        };
        let addresses = ip("-6 -oneline address show scope global");
        addresses.lines().all(is_in_use).then_some(())
    };
    eventually(are_in_use).expect("an IPv6 address is not in use");
}

/// Waits until the kernel has acted on a carrier that was switched on: it does so in the background,
/// and until then neither the device nor a bridge sends through it.
pub(crate) fn wait_for_carrier(name: &str) {
    let has_carrier = || {
        ip(&format!("link show {name}"))
            .contains("LOWER_UP")
            .then_some(())
    };
    eventually(has_carrier).unwrap_or_else(|| panic!("{name} has no carrier"));
}

/// Runs a future on a runtime of this thread, as the control thread does.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// Retries for a while as long as `attempt` returns None. Descriptors that a test has closed can stay
/// open for a moment in a child process that another test's thread is about to start.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..3000 {
        let outcome = attempt();
        if outcome.is_some() {
            return outcome;
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Collects the log while its subscriber is the default of the thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let log = self.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || log.clone());
        lines.finish()
    }

    /// All lines so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails the test unless `work` makes a rename or a removal durable so many times.
#[track_caller]
pub(crate) fn assert_made_to_last<T>(times: usize, work: impl FnOnce() -> T) -> T {
    faults::script(&vec![
        (faults::Call::SyncFolder, faults::Fault::Pass);
        times
    ]);
    let outcome = work();
    faults::finish();
    outcome
}

/// Makes the next receptions of this thread fail in these ways.
pub(crate) fn refuse_to_receive(codes: &[i32]) {
    let steps = codes
        .iter()
        .map(|&code| (faults::Call::Receive, faults::Fault::Errno(code)));
    faults::script(&steps.collect::<Vec<_>>());
}

/// The next train of this thread leaves in single datagrams, and after so many it fails in this way.
pub(crate) fn refuse_to_send_after(sent: usize, code: i32) {
    use faults::{Call, Fault};
    faults::script(&[
        (Call::SendSegments, Fault::Errno(crate::io::sys::EINVAL)),
        (Call::SendEach, Fault::AtMost(sent)),
        (Call::SendEach, Fault::Errno(code)),
    ]);
}

/// Makes the next super-frames that this thread writes fail in these ways.
pub(crate) fn refuse_super_frames(codes: &[i32]) {
    let steps = codes
        .iter()
        .map(|&code| (faults::Call::WriteSuperFrame, faults::Fault::Errno(code)));
    faults::script(&steps.collect::<Vec<_>>());
}

/// Fails the test if not all of these attempts were made.
#[track_caller]
pub(crate) fn assert_all_refused() {
    faults::finish();
}
