//! How a user names an image: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]`, `rootfs:DIR|TAR`,
//! or the name of a loaded image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed image reference. Parsing looks at the text only, never at the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// An OCI image layout directory and the tag in it.
    OciDir(PathBuf, Option<String>),
    /// A tar file of an OCI image layout and the tag in it.
    OciArchive(PathBuf, Option<String>),
    /// A `docker save` file and the image's name in it.
    DockerArchive(PathBuf, Option<String>),
    /// A root file system: a directory or a tar file of one.
    Rootfs(PathBuf),
    /// A loaded image, `name:tag`.
    Name(String),
}

/// Why a text is no image reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RefError {
    /// Nothing after the prefix, or nothing at all.
    #[error("image '{0}': a {1} is missing")]
    Missing(String, &'static str),
    /// A character that cannot be in a name.
    #[error(
        "image '{0}': not a valid name (use lower-case letters, digits, '.', '_', '-', '/' and one ':TAG', or oci:DIR, oci-archive:FILE, docker-archive:FILE, rootfs:DIR)"
    )]
    Name(String),
    /// A bad tag.
    #[error("image '{0}': '{1}' is not a valid tag")]
    Tag(String, String),
}

/// Docker's rule for tags: a word character, then word characters, dots and dashes, up to 128.
fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks a name as docker does and adds `:latest` where it has no tag.
///
/// # Errors
/// See [`RefError`].
pub fn normalize_name(text: &str) -> Result<String, RefError> {
    let shown = || super::printable(text);
    // A colon before the last slash belongs to a host's port.
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (text, "latest"),
    };
    if !is_tag(tag) {
        return Err(RefError::Tag(shown(), super::printable(tag)));
    }
    let component = |part: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        edge(part.bytes().next()) && edge(part.bytes().last()) && part.bytes().all(inner)
    };
    let mut parts = name.split('/').peekable();
    let first = parts.next().unwrap_or_default();
    let host = parts.peek().is_some()
        && first.starts_with(|c: char| c.is_ascii_alphanumeric())
        && first.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    if !(host || component(first)) || !parts.all(component) || name.len() > 255 {
        return Err(RefError::Name(shown()));
    }
    Ok(format!("{name}:{tag}"))
}

/// Splits `PATH[:TAG]`: the text after the last colon is a tag if it has no slash.
fn path_and_tag(whole: &str, rest: &str) -> Result<(PathBuf, Option<String>), RefError> {
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err(RefError::Missing(super::printable(whole), "path"));
    }
    match tag {
        Some(tag) if !is_tag(tag) => Err(RefError::Tag(super::printable(whole), super::printable(tag))),
        _ => Ok((path.into(), tag.map(str::to_owned))),
    }
}

impl FromStr for ImageRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        if text.contains('\0') {
            return Err(RefError::Name(super::printable(text)));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            if text.is_empty() {
                return Err(RefError::Missing(String::new(), "name"));
            }
            return normalize_name(text).map(ImageRef::Name);
        };
        match scheme {
            "oci" => path_and_tag(text, rest).map(|(path, tag)| ImageRef::OciDir(path, tag)),
            "oci-archive" => path_and_tag(text, rest).map(|(path, tag)| ImageRef::OciArchive(path, tag)),
            "docker-archive" => docker_archive(text, rest),
            "rootfs" if rest.is_empty() => Err(RefError::Missing(super::printable(text), "path")),
            "rootfs" => Ok(ImageRef::Rootfs(rest.into())),
            _ => normalize_name(text).map(ImageRef::Name),
        }
    }
}

/// `FILE[:NAME[:TAG]]`: the first colon after the file's last slash starts the name, which may have slashes itself; so
/// the file's name must not have a colon.
fn docker_archive(whole: &str, rest: &str) -> Result<ImageRef, RefError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(normalize_name(name)?)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(RefError::Missing(super::printable(whole), "path"));
    }
    Ok(ImageRef::DockerArchive(path.into(), name))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, scheme: &str, path: &PathBuf, tag: &Option<String>| match tag {
            Some(tag) => write!(f, "{scheme}:{}:{tag}", path.display()),
            None => write!(f, "{scheme}:{}", path.display()),
        };
        match self {
            ImageRef::OciDir(path, tag) => tagged(f, "oci", path, tag),
            ImageRef::OciArchive(path, tag) => tagged(f, "oci-archive", path, tag),
            ImageRef::DockerArchive(path, name) => tagged(f, "docker-archive", path, name),
            ImageRef::Rootfs(path) => write!(f, "rootfs:{}", path.display()),
            ImageRef::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse() {
        let cases = [
            ("oci:/a/b:c/dir:12", ImageRef::OciDir("/a/b:c/dir".into(), Some("12".into()))),
            ("oci:dir", ImageRef::OciDir("dir".into(), None)),
            ("oci-archive:debian.tar", ImageRef::OciArchive("debian.tar".into(), None)),
            ("oci-archive:x/debian.tar:bookworm", ImageRef::OciArchive("x/debian.tar".into(), Some("bookworm".into()))),
            ("docker-archive:d.tar", ImageRef::DockerArchive("d.tar".into(), None)),
            ("docker-archive:d.tar:a/b:1", ImageRef::DockerArchive("d.tar".into(), Some("a/b:1".into()))),
            ("rootfs:/srv/x:y", ImageRef::Rootfs("/srv/x:y".into())),
            ("debian", ImageRef::Name("debian:latest".into())),
            ("debian:12-slim", ImageRef::Name("debian:12-slim".into())),
            ("host.example:5000/team/app", ImageRef::Name("host.example:5000/team/app:latest".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_references_say_why() {
        for bad in [
            "",
            "oci:",
            "oci::tag",
            "rootfs:",
            "docker-archive:",
            "UPPER",
            "a b",
            "x:",
            "x:.t",
            "a//b",
            "../x",
            "oci:d:-x",
            "a\0b",
            "@",
        ] {
            let error = bad.parse::<ImageRef>().expect_err(bad).to_string();
            assert!(error.starts_with("image '") && !error.contains('\n'), "{error}");
        }
    }
}
