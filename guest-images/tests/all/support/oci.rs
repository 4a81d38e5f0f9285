//! Makes OCI layouts and docker archives on disk.

use super::tar::{Item, Tar, file};
use guest_images::Digest;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("in memory")
}

/// A layout as a list of files.
#[derive(Clone, Default)]
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<Value>,
}

/// A layer: how it is stored, and the digest of the tar in it.
#[derive(Clone)]
pub struct LayerFile {
    pub media_type: &'static str,
    pub stored: Vec<u8>,
    pub diff_id: Digest,
}

pub fn layer(items: impl IntoIterator<Item = Item>) -> LayerFile {
    let tar = Tar::of(items);
    LayerFile { media_type: GZIP, stored: gzip(&tar), diff_id: Digest::of(&tar) }
}

pub fn config(platform: (&str, &str), diff_ids: &[Digest]) -> Value {
    json!({
        "created": "2026-01-02T03:04:05Z", "os": platform.0, "architecture": platform.1,
        "config": {
            "Entrypoint": ["/bin/echo"], "Cmd": ["hi"], "Env": ["A=1", "PATH=/bin"], "WorkingDir": "/srv",
            "User": "7:8", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
            "Labels": {"k": "v"}
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
        "history": []
    })
}

impl Layout {
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.files.push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image and returns its manifest's descriptor.
    pub fn image(&mut self, platform: (&str, &str), layers: &[LayerFile]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|l| l.diff_id.clone()).collect();
        self.image_of(&config(platform, &diff_ids), layers)
    }

    /// The same, with this configuration.
    pub fn image_of(&mut self, config: &Value, layers: &[LayerFile]) -> Value {
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|l| self.blob(l.media_type, &l.stored)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    pub fn index(&mut self, manifests: Vec<Value>) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.blob(INDEX, index.to_string().as_bytes())
    }

    pub fn tag(&mut self, mut descriptor: Value, tag: &str) {
        if !tag.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.manifests.push(descriptor);
    }

    /// A layout of one image for linux/amd64.
    pub fn simple(layers: &[LayerFile]) -> Layout {
        let mut layout = Layout::default();
        let manifest = layout.image(("linux", "amd64"), layers);
        layout.tag(manifest, "v1");
        layout
    }

    pub fn all_files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests}).to_string();
        let mut files = self.files.clone();
        files.push(("index.json".into(), index.into_bytes()));
        files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files
    }

    pub fn write_dir(&self, dir: &Path) {
        for (name, bytes) in self.all_files() {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("writable");
            std::fs::write(path, bytes).expect("writable");
        }
    }

    pub fn tar(&self) -> Vec<u8> {
        Tar::of(self.all_files().into_iter().map(|(name, bytes)| file(name, bytes)))
    }
}

/// A `docker save` archive of one image, in the form before Docker 25: layers as symlinks where they repeat.
pub fn docker_archive(tags: &[&str], layers: &[LayerFile]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| l.diff_id.clone()).collect();
    let config = config(("linux", "amd64"), &diff_ids).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut items = vec![file(&config_name, config)];
    let mut names = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let name = format!("layer{i}/layer.tar");
        let earlier = layers[..i].iter().position(|l| l.diff_id == layer.diff_id);
        items.push(match earlier {
            Some(earlier) => super::tar::symlink(&name, format!("../layer{earlier}/layer.tar")),
            None => file(&name, &layer.stored),
        });
        names.push(name);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]).to_string();
    items.push(file("manifest.json", manifest));
    Tar::of(items)
}
