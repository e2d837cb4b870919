//! Mutual TLS: the certificates of one process of a cluster.
//!
//! Every connection inside a cluster is mutual: a client refuses a server, and a server refuses a client, whose certificate is
//! not of the cluster's own authority. A process that listens needs a certificate that names its host, and both of the uses
//! `serverAuth` and `clientAuth` where it names uses at all.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig};
use tracing::warn;

use super::causes::causes;
use crate::error::{Error, Result};

/// How long a peer may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The authority that a process trusts, and its own certificate.
#[derive(Clone)]
pub struct Tls {
    authority: Certificate,
    identity: Identity,
}

impl Tls {
    /// Reads `ca.pem`, the certificate of the authority, and `cert.pem` and `key.pem`, those of this process, of a folder.
    ///
    /// # Errors
    /// [`Error::Config`] where a file cannot be read, holds no PEM of its kind, or key and certificate do not belong together.
    pub fn open(folder: &Path) -> Result<Self> {
        let refused = |what: String| {
            Error::Config(format!(
                "--tls {}: {what}; the folder needs ca.pem (the authority of the cluster), cert.pem and key.pem (this \
                 process's certificate and private key)",
                folder.display()
            ))
        };
        let read = |name: &str, kind: &str| {
            let pem = std::fs::read(folder.join(name)).map_err(|e| refused(format!("cannot read {name}: {e}")))?;
            let begins =
                |line: &[u8]| line.starts_with(b"-----BEGIN ") && line.trim_ascii_end().ends_with(kind.as_bytes());
            match pem.split(|&byte| byte == b'\n').any(begins) {
                true => Ok(pem),
                false => Err(refused(format!("{name} holds no line `-----BEGIN … {kind}`"))),
            }
        };
        warn_of_readable(&folder.join("key.pem"));
        let authority = Certificate::from_pem(read("ca.pem", "CERTIFICATE-----")?);
        let identity = Identity::from_pem(read("cert.pem", "CERTIFICATE-----")?, read("key.pem", "PRIVATE KEY-----")?);
        // A library of the object stores switches on a second provider, and rustls picks neither by itself.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = Self { authority, identity };
        // Now and not at the first connection: damaged files, and a key that is not the certificate's.
        let checked = Server::builder().tls_config(tls.server());
        checked.map_err(|e| refused(format!("the files cannot be used: {}", causes(&e))))?;
        Ok(tls)
    }

    /// For a server: clients must show a certificate of the same authority.
    pub fn server(&self) -> ServerTlsConfig {
        let authority = self.authority.clone();
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(authority).timeout(HANDSHAKE)
    }

    /// For a client: it shows its own certificate.
    pub fn client(&self) -> ClientTlsConfig {
        let authority = self.authority.clone();
        ClientTlsConfig::new().identity(self.identity.clone()).ca_certificate(authority).timeout(HANDSHAKE)
    }
}

/// Warns where every user of this machine can read a private key.
fn warn_of_readable(key: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let is_readable = std::fs::metadata(key).is_ok_and(|file| file.permissions().mode() & 0o004 != 0);
    if is_readable {
        warn!("every user of this machine can read {}: protect it with `chmod 600`", key.display());
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(folder: &Path) -> String {
        let error = Tls::open(folder).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_is_wrong_with_a_folder_of_certificates_is_said_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(said(&folder.path().join("none")).contains("cannot read ca.pem"));
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", "no certificate\n");
        assert!(said(folder.path()).contains("ca.pem holds no line"));
        // PEM of the right kind whose content is no certificate.
        let empty = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
        write("ca.pem", &empty("CERTIFICATE"));
        assert!(said(folder.path()).contains("cannot read cert.pem"));
        write("cert.pem", &empty("CERTIFICATE"));
        write("key.pem", &empty("CERTIFICATE"));
        assert!(said(folder.path()).contains("key.pem holds no line"));
        write("key.pem", &empty("PRIVATE KEY"));
        let said = said(folder.path());
        assert!(said.contains("cannot be used") && said.contains("cert.pem"), "{said}");
    }
}
