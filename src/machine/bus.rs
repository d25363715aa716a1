// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system bus (D-Bus), where the resolver and the power management of most machines are.
//!
//! A machine may have none; each caller has a fallback. Called by `names` and `power`.

use std::time::Duration;

use zbus::{Connection, Message, connection::Builder, zvariant::DynamicType};

/// A service that takes longer to answer counts as absent: a stop of the tunnel must not hang on it.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The address of the bus.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bus {
    address: Option<String>,
}

impl Bus {
    /// In the syntax of the D-Bus specification; the default value is the system bus.
    #[cfg(test)]
    pub(crate) fn at(address: impl Into<String>) -> Self {
        Self {
            address: Some(address.into()),
        }
    }

    /// Connects, on the tokio runtime of the caller.
    pub(super) async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.address {
            Some(address) => Builder::address(address.as_str())?,
            None => Builder::system()?,
        };
        let connecting = builder.method_timeout(ANSWER_TIME).build();
        tokio::time::timeout(ANSWER_TIME, connecting)
            .await
            .map_err(|_| zbus::Error::Failure("the bus does not answer".to_owned()))?
    }
}

/// An object on the bus, and one of its interfaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) service: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

impl Object {
    /// Calls a method and waits for the answer.
    pub(super) async fn call<B>(
        self,
        bus: &Connection,
        method: &'static str,
        arguments: &B,
    ) -> zbus::Result<Message>
    where
        B: serde::Serialize + DynamicType,
    {
        let (path, interface) = (self.path, Some(self.interface));
        bus.call_method(Some(self.service), path, interface, method, arguments)
            .await
    }
}

/// A bus of its own for a test. It needs `dbus-daemon`.
#[cfg(test)]
pub(crate) mod testing {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use tempfile::TempDir;

    use super::Bus;

    /// dbus-daemon ends when this value is dropped.
    pub(crate) struct TestBus {
        daemon: Child,
        address: String,
        _dir: TempDir,
    }

    impl TestBus {
        /// Starts dbus-daemon; any client may do anything.
        pub(crate) fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let configuration = dir.path().join("bus.conf");
            let text = format!(
                r#"<busconfig>
                     <listen>unix:path={}/bus</listen>
                     <auth>EXTERNAL</auth>
                     <policy context="default">
                       <allow user="*"/><allow own="*"/>
                       <allow send_type="*"/><allow receive_type="*"/>
                     </policy>
                   </busconfig>"#,
                dir.path().display()
            );
            std::fs::write(&configuration, text).unwrap();
            let mut daemon = Command::new("dbus-daemon")
                .arg("--nofork")
                .arg("--print-address")
                .arg(format!("--config-file={}", configuration.display()))
                .stdout(Stdio::piped())
                // dbus-daemon complains that it may not raise its limit of files.
                .stderr(Stdio::null())
                .spawn()
                .expect("these tests need dbus-daemon");
            let mut address = String::new();
            let output = daemon.stdout.take().unwrap();
            BufReader::new(output).read_line(&mut address).unwrap();
            assert!(!address.is_empty(), "dbus-daemon did not start");
            Self {
                daemon,
                address: address.trim().to_owned(),
                _dir: dir,
            }
        }

        pub(crate) fn bus(&self) -> Bus {
            Bus::at(&self.address)
        }
    }

    impl Drop for TestBus {
        fn drop(&mut self) {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }
}
