// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configurations: changes of users and programs, and what sessions see of them.

use std::sync::Arc;

use patchcord::{
    host::{EventKind, HostError},
    provider::{SessionStatus, StartOptions, StopReason, TunnelConfiguration},
};

use crate::kit::{Script, connect, host, in_namespace, next, until_end};

#[test]
fn check_38_changes_of_a_configuration_are_reported_once_and_end_their_sessions() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        let generation = host.view("a").unwrap().generation;
        let mut changed = TunnelConfiguration::new("scripted");
        changed.description = "the office".to_owned();
        let newer = host
            .configure("a", changed.clone(), Some(generation))
            .unwrap();
        let told = next(&mut events, "a").await;
        assert_eq!(told, EventKind::Configured { generation: newer });
        let again = host.configure("a", changed.clone(), None).unwrap();
        assert_eq!(again, newer, "an equal configuration is no change");
        let stale = host.configure("a", TunnelConfiguration::default(), Some(generation));
        assert!(matches!(stale, Err(HostError::Stale { current, .. }) if current == newer));

        connect(&host, &mut events, "a").await;
        let seen = script.context().configuration();
        changed.server = "192.0.2.1".to_owned();
        host.configure("a", changed.clone(), None).unwrap();
        assert_eq!(**seen.borrow(), changed, "a running provider sees it");
        changed.enabled = false;
        host.configure("a", changed.clone(), None).unwrap();
        let (_, reason, _) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::ConfigurationDisabled);
        let refused = host.start("a", StartOptions::default());
        assert!(matches!(refused, Err(HostError::Disabled(_))));

        connect(&host, &mut events, "b").await;
        host.remove("b").unwrap();
        let again = host.remove("b");
        assert!(matches!(again, Err(HostError::NoTunnel(_))), "{again:?}");
        assert_eq!(next(&mut events, "b").await, EventKind::Removed);
        assert_eq!(
            next(&mut events, "b").await,
            EventKind::Status(SessionStatus::Disconnecting)
        );
        let (_, reason, _) = until_end(&mut events, "b").await;
        assert_eq!(reason, StopReason::ConfigurationRemoved);
        assert_eq!(host.status("b"), SessionStatus::Invalid);
        assert!(matches!(host.remove("b"), Err(HostError::NoTunnel(_))));

        let stale = host.configure("c", TunnelConfiguration::new("scripted"), Some(3));
        assert!(matches!(stale, Err(HostError::Stale { current: 0, .. })));
        let nothing = host.stop("c", StopReason::UserInitiated).await;
        assert!(
            matches!(nothing, Err(HostError::NoTunnel(_))),
            "{nothing:?}"
        );
    });
}

#[test]
fn check_38_of_an_exclusive_group_one_is_up() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        for tunnel in ["a", "b"] {
            let mut configuration = TunnelConfiguration::new("scripted");
            configuration.exclusive_group = Some("vpn".to_owned());
            host.configure(tunnel, configuration, None).unwrap();
        }
        let (mut a, mut b) = (host.events(), host.events());
        connect(&host, &mut a, "a").await;
        connect(&host, &mut b, "b").await;
        let (_, reason, _) = until_end(&mut a, "a").await;
        assert_eq!(reason, StopReason::Superseded);
        assert_eq!(host.status("b"), SessionStatus::Connected);
    });
}

#[test]
fn check_38_a_session_that_waits_for_another_to_end_is_connecting() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script {
            hang_in_stop: true,
            ..Script::plain()
        });
        let host = host(&directory, &script);
        for tunnel in ["a", "b"] {
            let mut configuration = TunnelConfiguration::new("scripted");
            configuration.exclusive_group = Some("vpn".to_owned());
            host.configure(tunnel, configuration, None).unwrap();
        }
        let (mut a, mut b) = (host.events(), host.events());
        connect(&host, &mut a, "a").await;
        host.start("b", StartOptions::default()).unwrap();
        assert_eq!(host.status("b"), SessionStatus::Connecting);
        assert!(host.view("b").unwrap().is_running());
        let refused = host.start("b", StartOptions::default()).unwrap_err();
        assert!(
            refused.to_string().contains("connecting already"),
            "{refused}"
        );
        until_end(&mut a, "a").await;
        let mut statuses = Vec::new();
        while statuses.last() != Some(&SessionStatus::Connected) {
            if let EventKind::Status(status) = next(&mut b, "b").await {
                statuses.push(status);
            }
        }
        let each_once = [SessionStatus::Connecting, SessionStatus::Connected];
        assert_eq!(statuses, each_once);
    });
}

#[test]
fn check_38_a_tunnel_that_another_host_runs_is_left_alone() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let [one, other] = [(); 2].map(|()| host(&directory, &script));
        let mut events = one.events();
        connect(&one, &mut events, "a").await;
        let refused = other.start("a", StartOptions::default()).unwrap_err();
        let process = format!("(process {})", std::process::id());
        assert!(refused.to_string().contains(&process), "{refused}");
        one.stop("a", StopReason::UserInitiated).await.unwrap();
        let mut events = other.events();
        connect(&other, &mut events, "a").await;
        other.stop("a", StopReason::UserInitiated).await.unwrap();
    });
}

#[test]
fn check_38_names_of_tunnels_stay_within_their_folder() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        for name in ["", ".", "../x", "/tmp/x", "a b", "a\n", &"x".repeat(65)] {
            let configured = host.configure(name, TunnelConfiguration::new("scripted"), None);
            let text = configured.unwrap_err().to_string();
            assert!(text.contains("is not a valid name for a tunnel"), "{text}");
        }
        assert_eq!(host.list().len(), 2);
    });
}
