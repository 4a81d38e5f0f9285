//! What can go wrong between here and a registry, in one line that says what to do next.

use std::io;
use std::path::PathBuf;

use guest_images::ImageError;
use oci_client::ParseError;
use oci_client::errors::OciDistributionError;

use crate::RemoteName;
use crate::name::shown;

/// Why an image was not pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No name of an image at a registry.
    #[error("image '{0}': {1}; write [HOST[:PORT]/]NAME[:TAG]")]
    Name(String, ParseError),
    /// A digest alone gives an image no name here.
    #[error(
        "image '{0}' has a digest and no tag, and would have no name here; write NAME:TAG@DIGEST, as app:TAG@sha256:..."
    )]
    NoTag(String),
    /// A file of credentials is damaged.
    #[error("credentials for '{registry}': '{}': {problem}", path.display())]
    Credentials {
        /// For whom.
        registry: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A program that keeps credentials does not tell them.
    #[error(
        "credentials for '{registry}': {program}: {problem}; run `docker login {registry}` or `podman login {registry}` again"
    )]
    Helper {
        /// For whom.
        registry: String,
        /// The program.
        program: String,
        /// What it said.
        problem: String,
    },
    /// Nobody, or not somebody who may.
    #[error(
        "registry '{registry}' refuses '{image}': it is not there, or not for whoever asks; check the name, or `docker login {registry}` or `podman login {registry}`"
    )]
    Refused {
        /// Which one.
        registry: String,
        /// What was asked for.
        image: String,
    },
    /// There is no such image.
    #[error("registry '{registry}' has no '{image}'; check the name and the tag")]
    NotFound {
        /// Which one.
        registry: String,
        /// What was asked for.
        image: String,
    },
    /// It cannot be reached, or does not do what it should.
    #[error(
        "registry '{registry}': {problem}; check its name and that it can be reached, and try again: what has come stays"
    )]
    Protocol {
        /// Which one.
        registry: String,
        /// What happened, with its causes.
        problem: String,
    },
    /// What it sends is not an image for this machine, or not what it said.
    #[error("registry '{registry}': '{image}': {problem}")]
    Content {
        /// Which one.
        registry: String,
        /// What was asked for.
        image: String,
        /// What is wrong.
        problem: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The host does not give what waiting for a network takes.
    #[error("cannot wait for the network: {0}")]
    Runtime(io::Error),
}

impl RegistryError {
    /// What a failed request means for an image.
    pub(crate) fn of(name: &RemoteName, source: OciDistributionError) -> Self {
        let (registry, image) = (name.registry().to_owned(), name.reference.to_string());
        match source {
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                RegistryError::Refused { registry, image }
            }
            OciDistributionError::ImageManifestNotFoundError(_) => RegistryError::NotFound { registry, image },
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes: Vec<String> = envelope.errors.iter().map(|error| format!("{:?}", error.code)).collect();
                match codes.first().map(String::as_str) {
                    Some("ManifestUnknown" | "NameUnknown" | "NotFound") => RegistryError::NotFound { registry, image },
                    Some("Unauthorized" | "Denied") => RegistryError::Refused { registry, image },
                    _ => RegistryError::Protocol { registry, problem: shown(&envelope.to_string()) },
                }
            }
            other => match status(&other) {
                Some(401 | 403) => RegistryError::Refused { registry, image },
                Some(404) => RegistryError::NotFound { registry, image },
                _ => RegistryError::Protocol { registry, problem: causes(&other) },
            },
        }
    }

    pub(crate) fn content(name: &RemoteName, problem: impl Into<String>) -> Self {
        let (registry, image) = (name.registry().to_owned(), name.reference.to_string());
        RegistryError::Content { registry, image, problem: shown(&problem.into()) }
    }
}

/// The HTTP status that says no.
fn status(error: &OciDistributionError) -> Option<u16> {
    match error {
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        _ => None,
    }
}

/// An error with those behind it: the first says that a request failed, the last why.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    shown(&text)
}
