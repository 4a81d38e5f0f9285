//! Images from and to registries (OCI distribution-spec): blobs into the store, and out of it, byte for byte.
//!
//! - [`Registry::pull`], [`Registry::push`]: what the verbs of these names do;
//! - [`auth`]: who one is there, as docker's and podman's files say;
//! - [`name`]: what an image is called there and here.
//!
//! The protocol is the `oci-client` crate's. It is the only part of Bulkhead that is asynchronous: each call runs it to its end, on the
//! caller's thread. Whatever a registry says is checked: digests by the store, sizes here.
#![forbid(unsafe_code)]

pub mod auth;
mod error;
pub mod name;
mod pull;
mod push;

use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::runtime::{Builder, Runtime};

pub use error::RegistryError;
pub use name::RemoteName;
pub use pull::Pulled;

/// How long a connection may take, and how long nothing may come. Large blobs take as long as they take.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);

/// A registry, about one image.
pub struct Registry {
    runtime: Runtime,
    client: Client,
    name: RemoteName,
    auth: RegistryAuth,
}

impl Registry {
    /// The registry that an image's name leads to. Nothing is sent yet.
    ///
    /// # Errors
    /// The files that say who one is there cannot be read, or the host has no certificates.
    pub fn of(name: RemoteName) -> Result<Registry, RegistryError> {
        let auth = auth::for_registry(name.reference.registry())?;
        // The second time in a process it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = name.reference.resolve_registry();
        let protocol = match is_loopback(registry) {
            // As docker: what does not leave this host needs no certificate.
            true => ClientProtocol::HttpsExcept(vec![registry.to_owned()]),
            false => ClientProtocol::Https,
        };
        let config = ClientConfig {
            protocol,
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("bulkhead/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(RegistryError::Runtime)?;
        let client = Client::try_from(config).map_err(|source| RegistryError::of(&name, source))?;
        Ok(Registry { runtime, client, name, auth })
    }

    /// Says who one is, if the registry asks. What it refuses there, it refuses here and not in the middle.
    fn authenticate(&self, operation: RegistryOperation) -> Result<(), RegistryError> {
        let asked = self.client.auth(&self.name.reference, &self.auth, operation);
        self.runtime.block_on(asked).map(drop).map_err(|source| RegistryError::of(&self.name, source))
    }

    /// The same image by the digest of its manifest.
    fn by_digest(&self, digest: &str) -> Reference {
        self.name.reference.clone_with_digest(digest.to_owned())
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_stays_on_this_host_is_known() {
        for (registry, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.3.2.1", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("128.0.0.1:5000", false),
            ("registry.example:443", false),
        ] {
            assert_eq!(super::is_loopback(registry), loopback, "{registry}");
        }
    }
}
