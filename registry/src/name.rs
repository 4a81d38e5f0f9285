//! What an image is called at a registry, and here: `debian` is `docker.io/library/debian:latest` there, as with docker.

use std::str::FromStr;

use oci_client::Reference;

use crate::RegistryError;

/// An image's name that leads to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteName {
    pub(crate) reference: Reference,
}

impl FromStr for RemoteName {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        match Reference::try_from(text) {
            Ok(reference) => Ok(RemoteName { reference }),
            Err(problem) => Err(RegistryError::Name(shown(text), problem)),
        }
    }
}

impl RemoteName {
    /// The registry's name.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// What the store calls it: without what docker leaves out.
    ///
    /// # Errors
    /// It has a digest and no tag: it would have no name here.
    pub fn local(&self) -> Result<String, RegistryError> {
        let reference = &self.reference;
        let Some(tag) = reference.tag() else {
            return Err(RegistryError::NoTag(reference.to_string()));
        };
        Ok(format!("{}:{tag}", self.familiar()))
    }

    /// The repository in the same words.
    pub fn familiar(&self) -> String {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        match registry {
            "docker.io" => repository.strip_prefix("library/").unwrap_or(repository).to_owned(),
            registry => format!("{registry}/{repository}"),
        }
    }

    /// The tag, or the digest.
    pub fn version(&self) -> &str {
        self.reference.tag().or(self.reference.digest()).unwrap_or("latest")
    }
}

/// Text of unknown origin for an error.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for (text, registry, local) in [
            ("debian", "docker.io", "debian:latest"),
            ("docker.io/library/debian:12", "docker.io", "debian:12"),
            ("team/app", "docker.io", "team/app:latest"),
            ("host.example/team/app:1", "host.example", "host.example/team/app:1"),
            ("localhost:5000/app", "localhost:5000", "localhost:5000/app:latest"),
        ] {
            let name: RemoteName = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((name.registry(), name.local().expect("a tag").as_str()), (registry, local), "{text}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let both: RemoteName = format!("app:1@{digest}").parse().expect("a tag and a digest");
        assert_eq!(both.local().expect("a tag"), "app:1");
        let bare: RemoteName = format!("app@{digest}").parse().expect("a digest");
        assert!(bare.local().expect_err("no tag").to_string().contains("app:TAG@"));
        for bad in ["", "UPPER", "a b", "app:", "app@sha256:1"] {
            assert!(bad.parse::<RemoteName>().is_err(), "{bad}");
        }
    }
}
