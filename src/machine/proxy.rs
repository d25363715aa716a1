// SPDX-License-Identifier: MIT OR Apache-2.0
//! The proxy for programs, published as a file of environment variables.
//!
//! Linux has no system-wide proxy setting: programs read variables, and desktops have settings of their
//! own. So the file only offers the proxy, for shells (`set -a; . FILE`), for units
//! (`EnvironmentFile=`) and for agents of a desktop. It is readable by all users and holds no secret.
//! The provider calls this after names were set up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{self, Lasting};

/// All users may read it, as their programs need it.
const MODE: u32 = 0o644;

/// The settings to publish. Texts must be free of white space and quotes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyRequest {
    /// The URL of a proxy auto-configuration script.
    pub auto_config_url: Option<String>,
    /// Host and port for HTTP.
    pub http: Option<(String, u16)>,
    /// Host and port for HTTPS.
    pub https: Option<(String, u16)>,
    /// Names without a dot bypass the proxy.
    pub exclude_simple_hostnames: bool,
    /// Domains that bypass the proxy.
    pub exceptions: Vec<String>,
}

/// The file cannot be written or deleted.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the proxy variables in {}", path.display())]
pub struct ProxyError {
    /// The file.
    path: PathBuf,
    /// The kernel's error.
    source: io::Error,
}

/// The state of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProxyOutcome {
    /// No proxy is published.
    None,
    /// The proxy is published in this file.
    Published(PathBuf),
}

/// The proxy of one tunnel.
#[derive(Debug)]
pub(crate) struct Proxy {
    tunnel: String,
    path: PathBuf,
}

impl Proxy {
    /// The proxy of `tunnel`, in the run directory; writes nothing yet.
    pub(crate) fn new(run_dir: &Path, tunnel: &str) -> Self {
        Self {
            tunnel: tunnel.to_owned(),
            path: run_dir.join(format!("{tunnel}.proxy.env")),
        }
    }

    /// Publishes `wanted` in the file, or deletes the file if nothing is wanted. Replaces or
    /// deletes what an earlier run left.
    ///
    /// # Errors
    /// When the run directory is not writable.
    pub(crate) fn apply(&self, wanted: Option<&ProxyRequest>) -> Result<ProxyOutcome, ProxyError> {
        let outcome = match wanted {
            Some(wanted) => self.write(&text(&self.tunnel, wanted)),
            None => file::remove(&self.path),
        };
        let failed = |source| ProxyError {
            path: self.path.clone(),
            source,
        };
        outcome.map_err(failed)?;
        Ok(match wanted {
            Some(_) => ProxyOutcome::Published(self.path.clone()),
            None => ProxyOutcome::None,
        })
    }

    /// A reader finds the old or the new text, never a part of one.
    fn write(&self, text: &str) -> io::Result<()> {
        if fs::read_to_string(&self.path).is_ok_and(|now| now == text) {
            return Ok(());
        }
        file::replace(&self.path, text.as_bytes(), MODE, Lasting::Boot)
    }
}

fn text(tunnel: &str, request: &ProxyRequest) -> String {
    let mut lines = vec![format!(
        "# The proxy while tunnel {tunnel:?} of patchcord is up."
    )];
    if let Some(url) = &request.auto_config_url {
        lines.push(format!("# Automatic configuration: {url}"));
    }
    if request.exclude_simple_hostnames {
        lines.push("# Names without a dot go past it, which no_proxy cannot say.".to_owned());
    }
    for (variable, server) in [
        ("http_proxy", &request.http),
        ("https_proxy", &request.https),
    ] {
        if let Some((host, port)) = server {
            // Programs speak HTTP in clear to both; their own traffic may be encrypted.
            lines.push(format!("{variable}=http://{}:{port}", in_url(host)));
        }
    }
    if !request.exceptions.is_empty() {
        let exceptions = request.exceptions.iter();
        let suffixes: Vec<_> = exceptions
            .map(|name| name.strip_prefix('*').unwrap_or(name))
            .collect();
        lines.push(format!("no_proxy={}", suffixes.join(",")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// An IPv6 address has brackets in a URL (RFC 3986, section 3.2.2).
fn in_url(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn check_35_variables_are_published_for_everyone_and_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let proxy = Proxy::new(dir.path(), "office");
        let path = dir.path().join("office.proxy.env");
        let request = ProxyRequest {
            auto_config_url: Some("http://wpad.example/proxy.pac".to_owned()),
            http: Some(("proxy.example".to_owned(), 3128)),
            https: Some(("2001:db8::1".to_owned(), 8080)),
            exclude_simple_hostnames: true,
            exceptions: vec!["*.corp.example".to_owned(), "192.0.2.1".to_owned()],
        };
        let published = ProxyOutcome::Published(path.clone());
        assert_eq!(proxy.apply(Some(&request)).unwrap(), published);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "# The proxy while tunnel \"office\" of patchcord is up.\n\
             # Automatic configuration: http://wpad.example/proxy.pac\n\
             # Names without a dot go past it, which no_proxy cannot say.\n\
             http_proxy=http://proxy.example:3128\n\
             https_proxy=http://[2001:db8::1]:8080\n\
             no_proxy=.corp.example,192.0.2.1\n"
        );
        let written = fs::metadata(&path).unwrap();
        assert_eq!(written.mode() & 0o777, MODE);
        // Equal settings write nothing.
        assert_eq!(proxy.apply(Some(&request)).unwrap(), published);
        assert_eq!(fs::metadata(&path).unwrap().ino(), written.ino());
        assert_eq!(proxy.apply(None).unwrap(), ProxyOutcome::None);
        assert_eq!(proxy.apply(None).unwrap(), ProxyOutcome::None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn check_35_leftovers_of_a_killed_run_are_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let request = ProxyRequest {
            http: Some(("proxy.example".to_owned(), 3128)),
            ..ProxyRequest::default()
        };
        Proxy::new(dir.path(), "office")
            .apply(Some(&request))
            .unwrap();
        Proxy::new(dir.path(), "office").apply(None).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn check_35_a_directory_that_is_missing_is_named() {
        let proxy = Proxy::new(Path::new("/nonexistent"), "office");
        let error = proxy.apply(Some(&ProxyRequest::default())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/office.proxy.env"));
    }
}
