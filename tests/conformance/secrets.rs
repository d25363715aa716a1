// SPDX-License-Identifier: MIT OR Apache-2.0
//! Secrets: they reach the provider that may have them, and no one else.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use patchcord::{
    host::{EventKind, client::Client, daemon::Policy, secrets::MAX_SECRET},
    provider::{Secret, SecretError, SessionStatus, StartOptions, StopReason, TunnelConfiguration},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    daemon::{HELLO, listen, say},
    kit::{Script, host, in_namespace, next, port, until_end},
};

/// Bits that keep the secret itself out of the check's own copies of it.
const MASK: u8 = 0x5a;

/// Whether these bytes, each with the bits of [`MASK`] inverted, are in the memory of this process.
fn is_in_memory(masked: &[u8]) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut chunk = Zeroizing::new(vec![0; 1 << 20]);
    let (first, rest) = masked.split_first().unwrap();
    maps.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let (start, end) = range.split_once('-')?;
            let at = |text: &str| u64::from_str_radix(text, 16).unwrap();
            rights.starts_with("rw").then(|| at(start)..at(end))
        })
        .any(|range| {
            // Chunks overlap, so that none cuts the secret in two.
            let step = chunk.len() - masked.len();
            let found = range.clone().step_by(step).any(|from| {
                let length = (chunk.len() as u64).min(range.end - from) as usize;
                let read = memory.read_at(&mut chunk[..length], from).unwrap_or(0);
                let read = &chunk[..read];
                memchr::memchr_iter(first ^ MASK, read).any(|at| {
                    let behind = read[at + 1..].get(..rest.len());
                    behind.is_some_and(|bytes| bytes.iter().zip(rest).all(|(a, b)| *a == b ^ MASK))
                })
            });
            // The chunk contains the match too.
            chunk.zeroize();
            chunk.resize(1 << 20, 0);
            found
        })
}

/// So many bytes, of which the last are random.
fn new_secret(len: usize) -> Zeroizing<Vec<u8>> {
    let mut secret = Zeroizing::new(vec![b'-'; len]);
    let unknown = &mut secret[len - KNOWN_LEN..];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), unknown).unwrap();
    secret
}

/// The number of known bytes; with this, the random ones have an end of the base64 text for themselves.
const KNOWN_LEN: usize = 30;

/// The searched forms of the secret: itself, and its encoding in a request.
fn traces(secret: &[u8]) -> [Vec<u8>; 2] {
    let unknown = &secret[secret.len() - KNOWN_LEN..];
    let text = Zeroizing::new(STANDARD.encode(unknown));
    [unknown, text.as_bytes()].map(|bytes| bytes.iter().map(|byte| byte ^ MASK).collect())
}

/// Sends hello and a request that ends in a secret, and reads the host's answer.
async fn ask_with(socket: &Path, request: &str, secret: &str, end: &str) -> String {
    let (reader, mut writer) = UnixStream::connect(socket).await.unwrap().into_split();
    let mut reader = BufReader::new(reader).lines();
    writer.write_all(HELLO.as_bytes()).await.unwrap();
    for part in ["\n", request, secret, end] {
        writer.write_all(part.as_bytes()).await.unwrap();
        // The host reads the first part, and the rest later.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !end.ends_with('\n') {
        writer.shutdown().await.unwrap();
    }
    let hello = reader.next_line().await.unwrap().unwrap();
    assert!(hello.contains("patchcord-host"), "{hello}");
    reader.next_line().await.unwrap().unwrap_or_default()
}

#[test]
fn check_40_a_secret_leaves_no_copy_on_its_way() {
    in_namespace(async |directory| {
        let host = host(&directory, &Arc::new(Script::plain()));
        let socket = listen(&host, &directory, Policy::default());
        let client = Client::connect(&socket).await.unwrap();
        let expect_gone = |traces: &[Vec<u8>; 2], way: &str| {
            let found = traces.each_ref().map(|trace| is_in_memory(trace));
            assert_eq!(found, [false; 2], "{way}: as it is, as it is sent");
        };
        for len in [30, 300, 30_000, MAX_SECRET - 1] {
            let secret = new_secret(len / 3 * 3);
            let traces = traces(&secret);
            assert!(is_in_memory(&traces[0]), "this check can see it");
            client
                .keep_secret("psk", Secret::new(secret))
                .await
                .unwrap();
            expect_gone(&traces, &format!("{len} bytes, of a client"));
        }

        // Other clients encode JSON differently, stop halfway, or get an error.
        let request = r#"{"id":1,"verb":{"keep-secret":{"name":"psk","secret":""#;
        for (way, [start, end], answered) in [
            ("as it is", ["", "\"}}}\n"], r#""ok":"done""#),
            (
                "with escapes",
                ["LS0t\\/w\\u003d\\u002B", "\"}}}\n"],
                "not base64",
            ),
            ("with escapes", ["\\u004cS0t", "\"}}}\n"], r#""ok":"done""#),
            ("in lines", ["LS0t\\n", "\"}}}\n"], "not base64"),
            ("for nobody", ["", "\",\"name\":7}}}\n"], "malformed"),
            ("no request", ["", "\n"], "malformed"),
            ("half of it", ["", ""], ""),
            (
                "with others",
                ["", "\"}}}\n{\"id\":2,\"verb\":\"list\"}\n"],
                r#""ok":"done""#,
            ),
        ] {
            let (text, traces) = {
                let secret = new_secret(3000);
                let mut text = Zeroizing::new(String::with_capacity(5000));
                text.push_str(start);
                STANDARD.encode_string(&*secret, &mut text);
                (text, traces(&secret))
            };
            let answer = ask_with(&socket, request, &text, end).await;
            assert!(answer.contains(answered), "{way}: {answer}");
            assert!(is_in_memory(&traces[1]), "this check can see it");
            drop(text);
            expect_gone(&traces, way);
        }
    });
}

#[test]
fn check_40_a_secret_reaches_its_provider_and_no_one_else() {
    in_namespace(async |directory| {
        let mut secret = Zeroizing::new(vec![0; 32]);
        std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut secret).unwrap();
        let masked: Vec<u8> = secret.iter().map(|byte| byte ^ MASK).collect();

        let held = Arc::new(std::sync::Mutex::new(None));
        let provider_holds = held.clone();
        let script = Arc::new(Script::new(move |context, _| {
            let held = provider_holds.clone();
            async move {
                let error = context.secret("token").unwrap_err();
                assert!(matches!(error, SecretError::NotConfigured(_)), "{error}");
                let password = context.secret("password").unwrap();
                assert_eq!(format!("{password:?}"), "Secret(…)");
                *held.lock().unwrap() = Some(password);
                context.set_network_settings(Some(port("tap-a"))).await?;
                Ok(())
            }
        }));
        let host = host(&directory, &script);
        let socket = listen(&host, &directory, Policy::default());
        let client = Client::connect(&socket).await.unwrap();
        let mut configuration = TunnelConfiguration::new("scripted");
        let secrets = &mut configuration.secrets;
        secrets.insert("password".to_owned(), "office-psk".to_owned());
        client.configure("a", configuration, None).await.unwrap();
        let mut events = host.events();

        // Named but not stored: the provider gets the error, with the remedy.
        client.start("a", None).await.unwrap();
        let (_, reason, _) = until_end(&mut events, "a").await;
        assert_eq!(reason, StopReason::ProviderFailed);
        client
            .keep_secret("office-psk", Secret::new(secret))
            .await
            .unwrap();
        assert!(!is_in_memory(&masked), "left by whoever kept it");
        host.start("a", StartOptions::default()).unwrap();
        while next(&mut events, "a").await != EventKind::Status(SessionStatus::Connected) {}
        let same = |held: &Option<Secret>| {
            let held = held.as_ref().unwrap().expose().iter();
            held.zip(&masked)
                .all(|(byte, masked)| *byte == masked ^ MASK)
        };
        assert!(same(&held.lock().unwrap()));
        assert!(is_in_memory(&masked), "this check can see it");

        let requests = [
            HELLO,
            r#"{"id":1,"verb":"list"}"#,
            r#"{"id":2,"verb":{"view":{"tunnel":"a"}}}"#,
            r#"{"id":3,"verb":{"secret":{"name":"office-psk"}}}"#,
            r#"{"id":4,"verb":{"keep-secret":{"name":"office-psk"}}}"#,
            r#"{"id":5,"verb":{"keep-secret":{"name":"office-psk","secret":"aHVudGVyMg="}}}"#,
            r#"{"id":6,"verb":{"keep-secret":{"name":"../office","secret":"aHVudGVyMg=="}}}"#,
        ];
        let (heard, _) = say(&socket, &requests).await;
        assert_eq!(heard.len(), 7, "{heard:?}");
        let answered = |id: usize, text: &str| {
            let start = format!(r#"{{"id":{id},"#);
            let answer = heard.iter().find(|line| line.starts_with(&start)).unwrap();
            assert!(answer.contains(text), "{answer}");
        };
        answered(1, r#""secrets":{"password":"office-psk"}"#);
        answered(3, "unknown-verb");
        answered(4, "malformed");
        answered(5, "not base64");
        answered(6, "not a valid name for a secret");
        for line in &heard {
            assert!(!line.contains("aHVudGVy"), "quoted: {line}");
        }

        // The provider's copy is wiped with it, and so is every other.
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        drop(held.lock().unwrap().take());
        assert!(!is_in_memory(&masked), "left after the stop");
        client.forget_secret("office-psk").await.unwrap();
        assert!(
            fs::read_dir(directory.path().join("secrets"))
                .unwrap()
                .next()
                .is_none()
        );
    });
}
