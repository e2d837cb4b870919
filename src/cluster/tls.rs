//! Mutual TLS: the certificates of one process of a cluster.

use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::error::{Error, Result};

/// The authority that a process trusts, and its own certificate.
#[derive(Clone)]
pub struct Tls {
    authority: Certificate,
    identity: Identity,
}

impl Tls {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of a folder.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|e| Error::io(format!("cannot read {}", path.display()), e))
        };
        let authority = Certificate::from_pem(read("ca.pem")?);
        Ok(Self { authority, identity: Identity::from_pem(read("cert.pem")?, read("key.pem")?) })
    }

    /// For a server: clients must show a certificate of the same authority.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).client_ca_root(self.authority.clone())
    }

    /// For a client: it shows its own certificate.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().identity(self.identity.clone()).ca_certificate(self.authority.clone())
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}
