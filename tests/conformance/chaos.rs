// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any call at any time, and no trace is left.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord::{
    host::Host,
    provider::{
        EthernetTunnelSettings, ProviderError, Route, SessionStatus, StartOptions, StopReason,
        TunnelConfiguration,
    },
};
use tokio::time::sleep;

use crate::kit::{Script, host, in_namespace, ip, port};

/// Addresses and a default route.
fn full_tunnel(name: &str) -> EthernetTunnelSettings {
    let addresses = [
        "10.2.0.1/24".parse().unwrap(),
        "fd00:7::1/64".parse().unwrap(),
    ];
    let mut settings = port(name).with_addresses(&addresses);
    let ipv4 = settings.ipv4.as_mut().unwrap();
    ipv4.router = Some([10, 2, 0, 254].into());
    ipv4.included_routes.push(Route {
        destination: "0.0.0.0/0".parse().unwrap(),
        gateway: None,
    });
    settings
}

/// Traces that a session could leave.
fn traces() -> BTreeSet<String> {
    let shown = [
        "-o link",
        "rule",
        "-6 rule",
        "route show table all",
        "-6 route show table all",
    ];
    let lines = shown.into_iter().flat_map(|what| {
        let lines: Vec<_> = ip(what).lines().map(str::to_owned).collect();
        lines
    });
    lines.collect()
}

/// Descriptors and threads, without those that the runtime keeps for a while.
fn holdings() -> [usize; 2] {
    let entries = |folder| {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
    };
    let threads = entries("/proc/self/task").filter(|task| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        !name.starts_with("tokio-")
    });
    [entries("/proc/self/fd").count(), threads.count()]
}

/// In a process of its own, for the count of descriptors and threads.
#[test]
fn chaos_leaves_nothing_behind() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "chaos::in_a_process_of_its_own",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
#[ignore = "run by the other test, in a process of its own"]
fn in_a_process_of_its_own() {
    let seconds = std::env::var("CHAOS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let duration = Duration::from_secs(seconds.unwrap_or(8));
    in_namespace(move |directory| async move {
        let script = Script::new(|context, _| async move {
            let name = format!("tap-{}", context.tunnel());
            context
                .set_network_settings(Some(full_tunnel(&name)))
                .await?;
            context.set_carrier(true).await;
            Ok(())
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        let before = (traces(), holdings());
        let mut random = Random(0x5eed_0001);
        let end = Instant::now() + duration;
        let (mut steps, mut connected) = (0, 0);
        while Instant::now() < end {
            let tunnel = ["a", "b"][random.below(2)];
            connected += usize::from(host.status(tunnel) == SessionStatus::Connected);
            disturb(&host, &script, tunnel, random.below(12)).await;
            sleep(Duration::from_millis(random.below(40) as u64)).await;
            steps += 1;
        }
        println!("{steps} steps, {connected} of them while connected");
        assert!(
            steps > 50 && connected > 10,
            "{steps} steps, {connected} while connected"
        );
        host.stop_all(StopReason::UserInitiated).await;
        script.contexts.lock().unwrap().clear();
        // Tasks that end with their session, and the descriptors that they hold.
        let mut left = (traces(), holdings());
        for _ in 0..50 {
            if left == before {
                return;
            }
            sleep(Duration::from_millis(50)).await;
            left = (traces(), holdings());
        }
        let lines: Vec<_> = left.0.symmetric_difference(&before.0).collect();
        panic!(
            "{lines:?}, descriptors and threads before {:?}, now {:?}",
            before.1, left.1
        );
    });
}

async fn disturb(host: &Host, script: &Script, tunnel: &str, what: usize) {
    let context = script
        .contexts
        .lock()
        .unwrap()
        .iter()
        .rev()
        .find(|context| context.tunnel() == tunnel)
        .cloned();
    let link = |what: &str| {
        // The interface may not exist.
        let _ = Command::new("ip")
            .args(["link", "set", &format!("tap-{tunnel}"), what])
            .stderr(Stdio::null())
            .status();
    };
    match (what, context) {
        (0..=3, _) => drop(host.start(tunnel, StartOptions::default())),
        (4, _) => host.stop(tunnel, StopReason::UserInitiated).await.unwrap(),
        (5, _) => {
            let (host, tunnel) = (host.clone(), tunnel.to_owned());
            tokio::spawn(async move { host.stop(&tunnel, StopReason::IdleTimeout).await });
        }
        (6, Some(context)) => context.cancel_tunnel(Some(ProviderError::new("chaos"))),
        (7, _) => link("down"),
        (8, _) => link("up"),
        (9, Some(context)) => drop(context.set_network_settings(None).await),
        (10, Some(context)) => {
            let settings = full_tunnel(&format!("tap-{tunnel}"));
            tokio::spawn(async move { context.set_network_settings(Some(settings)).await });
        }
        (11, _) => {
            let mut configuration = TunnelConfiguration::new("scripted");
            configuration.routing.enforce_routes = true;
            configuration.description = format!("{:?}", Instant::now());
            host.configure(tunnel, configuration, None).unwrap();
        }
        _ => {}
    }
}

/// xorshift64: the same steps in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
