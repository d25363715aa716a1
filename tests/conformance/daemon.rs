// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's socket: several clients, bad ones, old ones, and those without permission.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use patchcord::{
    host::{
        EventKind, Host,
        client::{Client, ClientError},
        daemon::{self, Policy, Who},
        protocol::{Refusal, RefusalCode, request_from_line},
        store::Store,
    },
    provider::{SessionStatus, StopReason, TunnelConfiguration},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::kit::{Script, host, in_namespace, next, until_end};

pub(crate) const NOBODY: u32 = 65_534;

pub(crate) fn listen(host: &Host, directory: &TempDir, policy: Policy) -> PathBuf {
    let path = directory.path().join("host.sock");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    tokio::spawn(daemon::serve(host.clone(), listener, policy, None));
    path
}

/// A client that sends exactly these lines; returns the answers until the host is silent or closes the
/// connection.
pub(crate) async fn say(path: &Path, lines: &[&str]) -> (Vec<String>, bool) {
    let (reader, mut writer) = UnixStream::connect(path).await.unwrap().into_split();
    for line in lines {
        // The host may close the connection halfway.
        let _ = writer.write_all(format!("{line}\n").as_bytes()).await;
    }
    let (mut reader, mut heard) = (BufReader::new(reader).lines(), Vec::new());
    loop {
        match timeout(Duration::from_millis(500), reader.next_line()).await {
            Ok(Ok(Some(line))) => heard.push(line),
            Ok(_) => return (heard, true),
            Err(_) => return (heard, false),
        }
    }
}

pub(crate) const HELLO: &str = r#"{"hello":"test","version":"0","protocols":[2]}"#;

#[test]
fn check_37_a_provider_that_does_not_answer_gets_so_many_messages_and_no_more() {
    in_namespace(|directory| async move {
        let host = host(&directory, &Arc::new(Script::plain()));
        let path = listen(&host, &directory, Policy::default());
        let client = Client::connect(&path).await.unwrap();
        for tunnel in ["a", "b"] {
            client.start(tunnel, None).await.unwrap();
        }
        // Clients connect, send requests and disconnect.
        for _ in 0..8 {
            let requests: Vec<_> = (1..=8)
                .map(|id| {
                    format!(
                        r#"{{"id":{id},"verb":{{"send":{{"tunnel":"a","message":"aGFuZw=="}}}}}}"#
                    )
                })
                .collect();
            let mut lines = vec![HELLO];
            lines.extend(requests.iter().map(String::as_str));
            let (heard, _) = say(&path, &lines).await;
            assert!(
                !heard.iter().any(|line| line.contains("refused")),
                "{heard:?}"
            );
        }
        let busy = client.send_message("a", b"ping").await.unwrap_err();
        assert!(
            matches!(
                &busy,
                ClientError::Refused(Refusal {
                    code: RefusalCode::Busy,
                    ..
                })
            ),
            "{busy}"
        );
        let pong = client.send_message("b", b"ping").await.unwrap();
        assert_eq!(pong.as_deref(), Some(&b"pong"[..]));
    });
}

#[test]
fn check_37_clients_are_separate() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let path = listen(&host, &directory, Policy::default());
        let [one, other] = [(); 2].map(|()| Client::connect(&path));
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        let mut first = one.events().await.unwrap();
        let mut second = other.events().await.unwrap();

        let long = "x".repeat((1 << 20) + 1);
        for garbage in ["", "{", "GET / HTTP/1.1", &long] {
            let (heard, is_over) = say(&path, &[HELLO, garbage]).await;
            assert!(is_over, "{heard:?}");
        }
        let (heard, is_over) = say(&path, &[&long]).await;
        assert!(is_over && heard.len() <= 2, "{heard:?}");

        let attempt = one.start("a", None).await.unwrap();
        other.start("b", None).await.unwrap();
        let running = other.start("a", None).await.unwrap_err();
        assert!(
            matches!(
                &running,
                ClientError::Refused(Refusal {
                    code: RefusalCode::Running,
                    ..
                })
            ),
            "{running}"
        );
        while one.view("a").await.unwrap().status != SessionStatus::Connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            one.send_message("a", b"ping").await.unwrap().as_deref(),
            Some(&b"pong"[..])
        );
        assert_eq!(
            one.send_message("a", b"panic").await.unwrap(),
            None,
            "a reply all the same"
        );
        let who = one.send_message("a", b"who").await.unwrap().unwrap();
        let who = String::from_utf8(who).unwrap();
        let process = format!("process: Some({})", std::process::id());
        assert!(who.contains("user: 0") && who.contains(&process), "{who}");
        one.stop("a").await.unwrap();
        let gone = one.send_message("a", b"ping").await.unwrap_err();
        assert!(
            matches!(
                &gone,
                ClientError::Refused(Refusal {
                    code: RefusalCode::NotRunning,
                    ..
                })
            ),
            "{gone}"
        );
        other.stop("b").await.unwrap();
        assert_eq!(one.list().await.unwrap().len(), 2);

        let mut seen = Vec::new();
        loop {
            let event = first.next().await.unwrap().unwrap();
            assert_eq!(
                second.next().await.unwrap().unwrap(),
                event,
                "the same order for both"
            );
            let is_last = event.tunnel == "b" && matches!(event.kind, EventKind::Ended { .. });
            if event.tunnel == "a" {
                assert_eq!(event.attempt, Some(attempt));
            }
            seen.push(event);
            if is_last {
                break;
            }
        }
        assert!(seen.len() >= 10, "{seen:?}");
    });
}

#[test]
fn check_37_a_client_that_does_not_read_gets_the_number_of_lost_events() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let path = listen(&host, &directory, Policy::default());
        let client = Client::connect(&path).await.unwrap();
        let mut events = client.events().await.unwrap();
        let mut configuration = TunnelConfiguration::new("scripted");
        for change in 0..500 {
            configuration.description = format!("change {change}");
            client
                .configure("a", configuration.clone(), None)
                .await
                .unwrap();
        }
        // Makes room again, and causes one more event that reports the loss.
        let mut heard = Vec::new();
        let soon = Duration::from_millis(100);
        while let Ok(event) = timeout(soon, events.next()).await {
            heard.push(event.unwrap().unwrap());
        }
        assert!(heard.len() < 500);
        client.remove("b").await.unwrap();
        let lagged = timeout(Duration::from_secs(2), events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert_eq!(lagged.0 as usize + heard.len(), 500);
    });
}

#[test]
fn check_37_each_verb_needs_its_permission() {
    in_namespace(|directory| async move {
        let host = host(&directory, &Arc::new(Script::plain()));
        let nobody = Who {
            users: [NOBODY].into(),
            groups: [].into(),
        };
        let policy = Policy {
            observe: nobody,
            ..Policy::default()
        };
        let path = listen(&host, &directory, policy);
        let program = directory.path().join("patchcord");
        // Copied by another process: a file that a child of another check has open for writing
        // cannot be run.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_patchcord"))
            .arg(&program)
            .status();
        assert!(copied.unwrap().success());
        let run = |user: u32, arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args([
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
            ]);
            command
                .arg(&program)
                .arg("host")
                .args(arguments)
                .arg("--socket")
                .arg(&path);
            async move {
                let output = tokio::task::spawn_blocking(move || command.output().unwrap())
                    .await
                    .unwrap();
                (
                    output.status.success(),
                    String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
                )
            }
        };
        let (may_look, text) = run(NOBODY, &["list"]).await;
        assert!(may_look && text.contains("disconnected"), "{text}");
        for arguments in [["start", "a"], ["stop", "a"]] {
            let (done, text) = run(NOBODY, &arguments).await;
            assert!(!done && text.contains("may not"), "{text}");
        }
        let (done, text) = run(NOBODY - 1, &["list"]).await;
        assert!(!done && text.contains("may not"), "{text}");
        let (done, text) = run(0, &["start", "a"]).await;
        assert!(done, "{text}");
        assert_eq!(host.status("a"), SessionStatus::Connected);
        host.stop_all(StopReason::UserInitiated).await;
    });
}

/// A user with as many connections as there can be does not keep others out.
#[test]
fn check_37_no_user_takes_the_connections_of_others() {
    const HOLD: &str = "import os, socket, sys\nuser = int(sys.argv[2])\nos.setgroups([])\n\
        os.setresgid(user, user, user)\nos.setresuid(user, user, user)\nheld = []\n\
        for _ in range(200):\n s = socket.socket(socket.AF_UNIX)\n s.connect(sys.argv[1])\n held.append(s)\n\
        print('held', flush=True)\nsys.stdin.read()";
    in_namespace(|directory| async move {
        let host = host(&directory, &Arc::new(Script::plain()));
        let nobody = Who {
            users: [NOBODY].into(),
            groups: [].into(),
        };
        let policy = Policy {
            observe: nobody,
            ..Policy::default()
        };
        let path = listen(&host, &directory, policy);
        let user = NOBODY.to_string();
        let mut holder = tokio::process::Command::new("python3")
            .args(["-c", HOLD])
            .arg(&path)
            .arg(user)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(holder.stdout.take().unwrap()).lines();
        let said = timeout(Duration::from_secs(30), said.next_line()).await;
        assert_eq!(said.unwrap().unwrap().as_deref(), Some("held"));
        let client = timeout(Duration::from_secs(30), Client::connect(&path)).await;
        let client = client.expect("root gets in").unwrap();
        assert_eq!(client.list().await.unwrap().len(), 2);
    });
}

#[test]
fn check_39_the_socket_may_be_the_service_managers() {
    in_namespace(|directory| async move {
        let path = directory.path().join("host.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let run = |listener: &std::os::unix::net::UnixListener| {
            Command::new("sh")
                .args([
                    "-c",
                    "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"",
                    "sh",
                ])
                .arg(env!("CARGO_BIN_EXE_patchcord"))
                .args(["host", "run", "--tunnels"])
                .arg(directory.path().join("tunnels.d"))
                .arg("--state")
                .arg(directory.path().join("state"))
                .arg("--run-dir")
                .arg(directory.path())
                .stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()))
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        for _ in 0..2 {
            // A client that connects before the host runs is answered as soon as it does.
            let client = Client::connect(&path);
            let mut child = run(&listener);
            assert!(client.await.unwrap().list().await.unwrap().is_empty());
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            )
            .unwrap();
            let status = tokio::task::spawn_blocking(move || child.wait().unwrap())
                .await
                .unwrap();
            assert!(
                status.success() && path.exists(),
                "the socket outlives the service"
            );
        }
    });
}

#[test]
fn check_38_files_are_configurations() {
    in_namespace(|directory| async move {
        let script = Arc::new(Script::plain());
        let host = host(&directory, &script);
        let mut events = host.events();
        let (admin, own) = (directory.path().join("etc"), directory.path().join("lib"));
        let store = Store::new(&admin, &own);
        let feeding = (store.clone(), host.clone());
        tokio::spawn(async move { feeding.0.feed(&feeding.1).await });
        while !own.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::write(admin.join("c.toml"), "provider = \"scripted\"\n").unwrap();
        assert_eq!(
            next(&mut events, "c").await,
            EventKind::Configured { generation: 1 }
        );
        crate::kit::connect(&host, &mut events, "c").await;
        fs::write(admin.join("c.toml"), "provder = 1\n").unwrap();
        match next(&mut events, "c").await {
            EventKind::NotUsed { problem } => {
                assert!(
                    problem.contains("c.toml") && problem.contains("provder"),
                    "{problem}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            host.status("c"),
            SessionStatus::Connected,
            "a mistake ends nothing"
        );
        // Another file causes no event for it.
        fs::write(admin.join("z.toml"), "provider = \"scripted\"\n").unwrap();
        next(&mut events, "z").await;
        fs::write(
            admin.join("c.toml"),
            "provider = \"scripted\"\ndescription = \"x\"\n",
        )
        .unwrap();
        assert_eq!(
            next(&mut events, "c").await,
            EventKind::Configured { generation: 2 }
        );
        fs::remove_file(admin.join("c.toml")).unwrap();
        assert_eq!(next(&mut events, "c").await, EventKind::Removed);
        let (_, reason, _) = until_end(&mut events, "c").await;
        assert_eq!(reason, StopReason::ConfigurationRemoved);

        let elsewhere = directory.path().join("elsewhere.toml");
        fs::write(&elsewhere, "provider = \"scripted\"\n").unwrap();
        std::os::unix::fs::symlink(&elsewhere, admin.join("d.toml")).unwrap();
        let configured = EventKind::Configured { generation: 1 };
        assert_eq!(next(&mut events, "d").await, configured, "a link");
        fs::rename(&admin, directory.path().join("old")).unwrap();
        assert_eq!(next(&mut events, "d").await, EventKind::Removed);
        fs::create_dir_all(&admin).unwrap();
        fs::write(admin.join("e.toml"), "provider = \"scripted\"\n").unwrap();
        assert_eq!(next(&mut events, "e").await, configured, "in a new folder");
    });
}

#[test]
fn check_38_a_configuration_that_cannot_be_saved_is_not_in_force() {
    in_namespace(|directory| async move {
        let host = host(&directory, &Arc::new(Script::plain()));
        let (path, own) = (directory.path().join("sock"), directory.path().join("own"));
        let store = Store::new(directory.path().join("etc"), &own);
        let listener = UnixListener::bind(&path).unwrap();
        let serving = daemon::serve(
            host.clone(),
            listener,
            Policy::default(),
            Some(store.clone()),
        );
        tokio::spawn(serving);
        let client = Client::connect(&path).await.unwrap();
        let configuration = TunnelConfiguration::new("scripted");
        let generation = host.view("a").unwrap().generation;
        let mut changed = configuration.clone();
        changed.description = "the office".to_owned();

        fs::write(&own, "in the way").unwrap();
        for tunnel in ["a", "c"] {
            let refused = client.configure(tunnel, changed.clone(), None).await;
            assert!(
                matches!(refused, Err(ClientError::Refused(_))),
                "{refused:?}"
            );
        }
        assert_eq!(*host.view("a").unwrap().configuration, configuration);
        assert_eq!(host.status("c"), SessionStatus::Invalid);

        fs::remove_file(&own).unwrap();
        let stale = client.configure("a", changed.clone(), Some(generation + 1));
        let code = match stale.await {
            Err(ClientError::Refused(Refusal { code, .. })) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code, RefusalCode::Stale);
        assert!(store.load().0.is_empty());
        let kept = client.configure("a", changed.clone(), Some(generation));
        assert_eq!(kept.await.unwrap(), generation + 1);
        assert_eq!(store.load().0["a"], changed);
    });
}

#[test]
fn check_39_hosts_and_clients_of_other_versions_get_along_or_say_so() {
    in_namespace(|directory| async move {
        let host = host(&directory, &Arc::new(Script::plain()));
        let path = listen(&host, &directory, Policy::default());
        // A newer client, with requests that this host does not know.
        let newer = r#"{"hello":"test","version":"9","protocols":[2,3],"colour":"blue"}"#;
        let (heard, is_over) = say(
            &path,
            &[
                newer,
                r#"{"id":1,"verb":{"teleport":{"to":"b"}}}"#,
                r#"{"id":2,"verb":{"ask":{"tunnel":"a","query":"taste"}}}"#,
                r#"{"id":3,"verb":{"view":{"tunnel":"a","depth":3}}}"#,
                r#"{"id":4,"verb":{"view":{"tunnel":"a"}}}"#,
            ],
        )
        .await;
        let answered = |id: usize, text: &str| {
            let start = format!(r#"{{"id":{id},"#);
            let answer = heard.iter().find(|line| line.starts_with(&start));
            assert!(answer.unwrap().contains(text), "{heard:?}");
        };
        assert!(!is_over, "{heard:?}");
        answered(1, "unknown-verb");
        answered(2, "unknown-verb");
        answered(3, "unknown field `depth`");
        answered(4, r#""ok":{"tunnel":{"tunnel":"a""#);
        for other in [
            r#"{"hello":"test","version":"9","protocols":[3]}"#,
            r#"{"hello":"test","version":"0.1.0","protocol":1}"#,
        ] {
            let (heard, is_over) = say(&path, &[other]).await;
            assert!(
                is_over && heard[1].contains("unknown-protocol"),
                "{heard:?}"
            );
        }

        // A newer host, played by the check: it knows more, and supports the old protocol too.
        let newer = directory.path().join("newer.sock");
        let listener = UnixListener::bind(&newer).unwrap();
        let play = |hello: &'static str, answer: &'static str| {
            let listener = &listener;
            async move {
                let (stream, _) = listener.accept().await.unwrap();
                let (reader, mut writer) = stream.into_split();
                writer
                    .write_all(format!("{hello}\n").as_bytes())
                    .await
                    .unwrap();
                let mut lines = BufReader::new(reader).lines();
                let _hello = lines.next_line().await;
                if let Ok(Some(_request)) = lines.next_line().await {
                    writer
                        .write_all(format!("{answer}\n").as_bytes())
                        .await
                        .unwrap();
                }
            }
        };
        let ask = async {
            let client = Client::connect(&newer).await?;
            client.view("a").await
        };
        let (info, ()) = tokio::join!(
            ask,
            play(
                r#"{"hello":"patchcord-host","version":"9","protocols":[2,3],"motto":"x"}"#,
                "{\"mood\":\"fine\"}\n{\"id\":1,\"ok\":{\"tunnel\":{\"tunnel\":\"a\",\"configuration\":{\"provider\":\"x\"},\"generation\":4,\"status\":\"connected\",\"last-disconnect-error\":null,\"mood\":1}}}"
            )
        );
        assert_eq!(info.unwrap().generation, 4);
        let (refused, ()) = tokio::join!(
            Client::connect(&newer),
            play(
                r#"{"hello":"patchcord-host","version":"9","protocols":[3]}"#,
                ""
            )
        );
        assert!(matches!(refused, Err(ClientError::Version { .. })));

        // The client notices the end of a host, and can connect to one that comes back.
        let socket = directory.path().join("again.sock");
        let serve = || {
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(daemon::serve(
                host.clone(),
                listener,
                Policy::default(),
                None,
            ))
        };
        let serving = serve();
        let client = Client::connect(&socket).await.unwrap();
        let mut events = client.events().await.unwrap();
        serving.abort();
        assert!(
            timeout(Duration::from_secs(2), events.next())
                .await
                .unwrap()
                .is_none()
        );
        assert!(matches!(
            client.list().await,
            Err(ClientError::Disconnected)
        ));
        let nobody = Client::connect(&socket).await;
        assert!(matches!(nobody, Err(ClientError::NotRunning { .. })));
        fs::remove_file(&socket).unwrap();
        let _serving = serve();
        let again = Client::connect(&socket).await.unwrap();
        assert_eq!(again.list().await.unwrap().len(), 2);
    });
}

#[test]
fn check_37_a_request_that_is_given_up_does_not_spoil_the_next() {
    in_namespace(|directory| async move {
        let path = directory.path().join("host.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // A host that reads only on command, and then answers everything.
        let (go, is_told) = tokio::sync::oneshot::channel();
        let hosting = tokio::spawn(async move {
            let (reader, mut writer) = listener.accept().await.unwrap().0.into_split();
            let hello = b"{\"hello\":\"patchcord-host\",\"version\":\"0\",\"protocols\":[2]}\n";
            writer.write_all(hello).await.unwrap();
            is_told.await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            let mut heard = vec![lines.next_line().await.unwrap().unwrap()];
            while let Some(line) = lines.next_line().await.unwrap() {
                let request = request_from_line(line.as_bytes()).unwrap();
                let answer = format!("{{\"id\":{},\"ok\":{{\"tunnels\":[]}}}}\n", request.id);
                // The client may have disconnected by then.
                let _ = writer.write_all(answer.as_bytes()).await;
                heard.push(line);
            }
            heard
        });
        let client = Client::connect(&path).await.unwrap();
        let long = vec![0; 600 << 10];
        let given_up = client.send_message("a", &long);
        let given_up = timeout(Duration::from_millis(200), given_up).await;
        assert!(given_up.is_err());
        go.send(()).unwrap();
        let listed = timeout(Duration::from_secs(5), client.list()).await;
        assert!(listed.expect("an answer").unwrap().is_empty());
        drop(client);
        assert_eq!(hosting.await.unwrap().len(), 3);
    });
}
