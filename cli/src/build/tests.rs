//! Builds without a RUN: from files to an image's layers and configuration.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use clap::Parser as _;
use guest_images::tree::{Kind, Node};
use guest_images::{Contents, Store};
use serde_json::{Value, json};

use super::image_in;
use crate::args::{Cli, Talk, Verb};
use crate::failure::one_line;

/// A store, and a context in a directory that has more beside it.
struct Site {
    dir: tempfile::TempDir,
    store: Store,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        fs::create_dir(dir.path().join("context")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        Site { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("context").join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        self
    }

    fn build_with(&self, flags: &[&str], dockerfile: &str) -> Result<Built, String> {
        self.write("Dockerfile", dockerfile);
        let context = self.path("");
        let line = ["bulkhead", "build", "-t", "t"].iter().copied().chain(flags.iter().copied());
        let cli = Cli::parse_from(line.chain([context.to_str().unwrap()]));
        let Verb::Build(args) = cli.verb else { panic!("not build") };
        let info =
            image_in(&self.store, &args, Talk { quiet: true, verbose: false }).map_err(|error| one_line(&error))?;
        let draft = self.store.draft_of(&"t".parse().unwrap(), &mut ()).unwrap();
        assert_eq!(draft.id(), info.id);
        let contents = self.store.draft_contents(&draft, &mut ()).unwrap();
        Ok(Built { id: info.id.to_string(), layers: draft.diff_ids().count(), config: draft.config, contents })
    }

    fn build(&self, dockerfile: &str) -> Built {
        self.build_with(&[], dockerfile).unwrap_or_else(|error| panic!("{dockerfile}: {error}"))
    }

    fn refuses(&self, dockerfile: &str, words: &[&str]) {
        match self.build_with(&[], dockerfile) {
            Ok(built) => panic!("{dockerfile}: {:?}", built.files()),
            Err(error) => {
                let known = words.iter().all(|word| error.contains(word)) && !error.contains('\n');
                assert!(known, "{dockerfile}: {error}");
            }
        }
        let left: Vec<_> = fs::read_dir(self.store.dir().join("tmp")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

struct Built {
    id: String,
    layers: usize,
    config: Value,
    contents: Contents,
}

impl Built {
    fn node(&self, path: &str) -> &Node {
        let place = self.contents.find(path.as_bytes()).unwrap();
        self.contents.node(place.node.unwrap_or_else(|| panic!("{path} is not there: {:?}", self.files())))
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.contents.read_small(path.as_bytes(), 1 << 20).unwrap()).unwrap()
    }

    /// All paths.
    fn files(&self) -> Vec<String> {
        let (mut all, mut todo) = (Vec::new(), vec![String::new()]);
        while let Some(above) = todo.pop() {
            let id = self.contents.find(above.as_bytes()).unwrap().node.unwrap();
            let Kind::Dir { entries, .. } = &self.contents.node(id).kind else { continue };
            for (name, id) in entries {
                let path = format!("{above}/{}", String::from_utf8_lossy(name));
                if self.contents.is_directory(*id) {
                    todo.push(path.clone());
                }
                all.push(path.trim_start_matches('/').to_owned());
            }
        }
        all.sort();
        all
    }
}

#[test]
fn stages_give_their_files_on_and_the_last_one_is_the_image() {
    let site = Site::new();
    site.write("src/a", "a").write("src/deep/b", vec![b'b'; 200_000]).write("x.txt", "x").write("y.txt", "y");
    let built = site.build(
        "ARG V=1\nFROM scratch AS one\nCOPY src /from/\nCOPY *.txt /from/\nFROM scratch\nARG V\nARG W=${V}2\nENV E=$W \\\n  # why\n  F='$E'\n\
         COPY --from=one /from/a /from/deep /to/\nCOPY --from=0 --chmod=600 /from/x.txt /renamed-$V\nWORKDIR ${E:-no}\nWORKDIR sub\nCOPY y.txt .\n\
         EXPOSE 80 53/udp\nVOLUME /data\nUSER app:$V\nLABEL a=\"b c\" d=$E\nSTOPSIGNAL SIGQUIT\nENTRYPOINT [\"/a\"]\nCMD b $E\n\
         SHELL [\"/bin/bash\", \"-c\"]\nHEALTHCHECK --interval=5s CMD true\nMAINTAINER me\n",
    );
    assert_eq!(built.files(), ["12", "12/sub", "12/sub/y.txt", "renamed-1", "to", "to/a", "to/b"]);
    assert_eq!((built.text("/to/b").len(), built.text("/renamed-1")), (200_000, "x".into()));
    let mode = |path| built.node(path).attrs.mode;
    assert_eq!((mode("/to/a"), mode("/renamed-1"), mode("/to")), (0o640, 0o600, 0o755));
    let wanted = json!({
        "Env": ["E=12", "F=$E"], "WorkingDir": "/12/sub", "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "Volumes": { "/data": {} },
        "User": "app:1", "Labels": { "a": "b c", "d": "12" }, "StopSignal": "SIGQUIT", "Entrypoint": ["/a"],
        "Cmd": ["/bin/sh", "-c", "b $E"], "Shell": ["/bin/bash", "-c"],
        "Healthcheck": { "Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_u64 },
    });
    assert_eq!(built.config["config"], wanted);
    assert_eq!(built.config["author"], "me");
    // A layer for each step that has one, and a line for each step.
    let history = built.config["history"].as_array().unwrap();
    let with_layer = history.iter().filter(|step| step["empty_layer"] != true).count();
    assert_eq!((built.layers, with_layer, history.len()), (5, 5, 18), "{history:?}");
    assert!(history.iter().any(|step| step["created_by"] == "ENV E=$W F='$E'"), "{history:?}");
    // Of a stage by its name, in any case, and its number.
    for target in ["ONE", "0"] {
        let one =
            site.build_with(&["--target", target], "FROM scratch AS one\nCOPY x.txt /\nFROM scratch\nCOPY y.txt /\n");
        assert_eq!(one.unwrap().files(), ["x.txt"]);
    }
}

#[test]
fn where_files_go_depends_on_what_is_there() {
    let site = Site::new();
    site.write("f", "f")
        .write("g", "g")
        .write("d/in", "in")
        .write("etc/passwd", "app:x:7:8::/:\n")
        .write("etc/group", "staff:x:9:\n");
    site.write("tree/real/.keep", "").write("tree/keep/old", "old");
    symlink("real", site.path("tree/link")).unwrap();
    fs::set_permissions(site.path("tree/keep"), fs::Permissions::from_mode(0o1777)).unwrap();
    let base = "FROM scratch\nCOPY etc /etc\nCOPY tree /\n";
    let built = site.build(&format!(
        "{base}COPY f /new\nCOPY f /keep\nCOPY f g /made/\nCOPY d /link\nCOPY d /link/sub\nCOPY --chown=app f /own\nCOPY --chown=app:staff d /owned\n\
         COPY --chown=3:4 <<EOF /doc\n$HOME 'q' \"r\"\nEOF\nCOPY d/* /one\n"
    ));
    for (path, text) in [
        ("/new", "f"),
        ("/keep/f", "f"),
        ("/keep/old", "old"),
        ("/made/g", "g"),
        ("/real/in", "in"),
        ("/real/sub/in", "in"),
        ("/one", "in"),
    ] {
        assert_eq!(built.text(path), text, "{path}");
    }
    let link = built.contents.find(b"/link").unwrap();
    assert_eq!(link.names, [Box::from(&b"real"[..])], "a link in the image stays one");
    // What a layer goes through stays as it is, and so does a directory that another one comes to.
    assert_eq!(built.node("/keep").attrs.mode, 0o1777);
    fs::create_dir_all(site.path("over/keep")).unwrap();
    let over = site.build(&format!("{base}COPY over /\nCOPY over/keep /keep/new\n"));
    assert_eq!((over.node("/keep").attrs.mode, over.node("/keep/new").attrs.mode), (0o1777, 0o755));
    let owner = |path| (built.node(path).attrs.uid, built.node(path).attrs.gid);
    assert_eq!(
        [owner("/own"), owner("/owned"), owner("/owned/in"), owner("/doc"), owner("/new")],
        [(7, 7), (7, 9), (7, 9), (3, 4), (0, 0)]
    );
    assert_eq!(built.text("/doc"), " 'q' \"r\"\n");
    for (line, words) in [
        ("COPY f g /both", &["Dockerfile:4", "/both/"][..]),
        ("COPY f /etc/passwd/x", &["not a directory"]),
        ("COPY d /etc/passwd", &["file there"]),
        ("COPY none /", &["'none' is not in"]),
        ("COPY none* /", &["'none*' is not in"]),
        ("COPY --chown=nobody f /", &["nobody", "/etc/passwd"]),
        ("COPY --chmod=u+x f /", &["octal"]),
        ("COPY --parents f /", &["--parents"]),
        ("COPY --from=NO f /", &["--from=NO", "not a valid name"]),
        ("ADD https://example.org/x /", &["not fetched"]),
        ("COPY <<EOF /dir/\nEOF", &["name of a file"]),
        ("RUN --mount=type=cache,target=/x true", &["--mount"]),
        ("RUN --network=host true", &["network=host"]),
        ("FROM --platform=linux/arm64 scratch", &["linux/amd64"]),
        ("STOPSIGNAL nope", &["nope"]),
        ("EXPOSE x", &["'x'"]),
        ("ENV a", &["KEY=VALUE"]),
        ("WORKDIR ${a:?it is needed}", &["it is needed"]),
        ("ONBUILD FROM x", &["ONBUILD"]),
        ("NOPE", &["Dockerfile:4", "unknown instruction"]),
    ] {
        site.refuses(&format!("{base}{line}\n"), words);
    }
    site.refuses("FROM scratch\nRUN true\n", &["nothing in the image"]);
    let two = site
        .build_with(&[], "FROM scratch AS one\nCOPY f /\nCOPY none /\nFROM scratch\nCOPY --from=one f /\n")
        .err()
        .unwrap();
    assert!(two.starts_with("Dockerfile:3: COPY none /: ") && !two.contains("--from"), "{two}");
    site.refuses("FROM scratch\nENV A=1\n", &["0 layers"]);
    site.refuses("ARG X\nFROM $X\n", &["empty"]);
    assert!(site.build_with(&["--target", "no"], base).is_err_and(|error| error.contains("--target no")));
}

#[test]
fn nothing_outside_of_the_context_or_what_ignore_says_gets_in() {
    let site = Site::new();
    site.write("a", "a").write("sub/b", "b").write("sub/c", "c").write("logs/x.log", "").write("logs/keep.log", "");
    symlink("../secret", site.path("out")).unwrap();
    symlink(site.dir.path().join("secret"), site.path("absolute")).unwrap();
    symlink("..", site.path("up")).unwrap();
    symlink("sub", site.path("inside")).unwrap();
    symlink("sub/b", site.path("to-b")).unwrap();
    for source in ["../secret", "out", "absolute", "up/secret", "sub/../../secret", "up/*"] {
        site.refuses(&format!("FROM scratch\nCOPY {source} /x\n"), &["out of the"]);
    }
    // Links in what is copied go as they are; one that is named leads on.
    let built = site.build("FROM scratch\nCOPY . /all\nCOPY inside/b /b\nCOPY to-b /c\nCOPY inside /d\n");
    assert!(matches!(&built.node("/all").kind, Kind::Dir { .. }));
    let link = built.contents.find(b"/all").unwrap().node.unwrap();
    let out = built.contents.node(built.contents.child(link, b"out").unwrap());
    assert!(matches!(&out.kind, Kind::Symlink(target) if &**target == b"../secret"), "{out:?}");
    assert_eq!((built.text("/b"), built.text("/c"), built.text("/d/c")), ("b".into(), "b".into(), "c".into()));
    site.write(".dockerignore", "sub/b\n*.md\nlogs\n!logs/keep.log\nDockerfile\n");
    let built = site.build("FROM scratch\nCOPY . /\n");
    assert_eq!(
        built.files(),
        [".dockerignore", "a", "absolute", "inside", "logs", "logs/keep.log", "out", "sub", "sub/c", "to-b", "up"]
    );
    site.refuses("FROM scratch\nCOPY to-b /\n", &["to-b", ".dockerignore"]);
    site.write("Other.dockerignore", "*\n!a\n").write("Other", "FROM scratch\nCOPY . /\n");
    let other = site.path("Other");
    let built = site.build_with(&["-f", other.to_str().unwrap()], "FROM scratch\n").unwrap();
    assert_eq!(built.files(), ["a"]);
    rustix::fs::mknodat(rustix::fs::CWD, site.path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    site.refuses("FROM scratch\nCOPY pipe /\n", &["'pipe'", "named pipe"]);
    // Nobody writes to one of these, and nobody waits for that.
    fs::rename(site.path("pipe"), site.path(".dockerignore")).unwrap();
    site.refuses("FROM scratch\nCOPY a /\n", &[".dockerignore", "not a regular file"]);
    fs::rename(site.path(".dockerignore"), site.path("Pipe")).unwrap();
    let pipe = site.path("Pipe");
    let error = site.build_with(&["-f", pipe.to_str().unwrap()], "FROM scratch\n").err().unwrap();
    assert!(error.contains("expected") || error.contains("stage"), "{error}");
    assert!(
        site.build_with(&["-t", "UPPER"], "FROM scratch\nCOPY a /\n").is_err_and(|error| error.contains("-t UPPER"))
    );
}

#[test]
fn the_same_content_is_the_same_layer_whenever_it_was_written() {
    let site = Site::new();
    let lines = "FROM scratch\nCOPY a /\nENV X=1\nCOPY b /\n";
    let first = site.write("a", "1").write("b", "2").build(lines);
    let cached = |store: &Store| fs::read_dir(store.dir().join("build")).unwrap().count();
    assert_eq!(cached(&site.store), 2);
    // Another time, the same bytes.
    site.write("a", "1");
    fs::File::open(site.path("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!((site.build(lines).id, cached(&site.store)), (first.id.clone(), 2));
    // Other bytes, or another mode, make that layer anew and those behind it.
    site.write("a", "3");
    let other = site.build(lines);
    assert!(other.id != first.id && other.text("/a") == "3" && cached(&site.store) == 4);
    site.write("a", "1");
    assert_eq!(site.build(lines).id, first.id);
    fs::set_permissions(site.path("b"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(site.build_with(&[], lines).is_ok_and(|built| built.id != first.id) && cached(&site.store) == 5);
    // It is made again if that is asked for, and away with `system prune`.
    site.write("b", "2");
    fs::File::open(site.path("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let again = site.build_with(&["--no-cache"], lines).unwrap();
    assert_eq!(again.node("/a").attrs.mtime, 0);
    site.store.remove("t").unwrap();
    assert!(site.store.usage().unwrap().cached > 0);
    site.store.prune().unwrap();
    let usage = site.store.usage().unwrap();
    assert_eq!((usage.cached, usage.blobs, site.store.dir().join("build").exists()), (0, 0, false));
    site.build(lines);
}

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(5);
        header.set_gid(6);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn add_unpacks_archives_and_copy_does_not() {
    let site = Site::new();
    site.write("a.tar", archive(&[("d/x", "x"), ("/abs", "abs")])).write("not.tar", "text");
    site.write("evil.tar", archive(&[("../../evil", "x")])).write("a.tar.xz", b"\xfd7zXZ\0...");
    let built = site.build("FROM scratch\nADD a.tar not.tar /to/\nCOPY a.tar /\nADD --chown=1:2 a.tar /own\n");
    assert_eq!(
        built.files(),
        ["a.tar", "own", "own/abs", "own/d", "own/d/x", "to", "to/abs", "to/d", "to/d/x", "to/not.tar"]
    );
    let owner = |path| (built.node(path).attrs.uid, built.node(path).attrs.gid);
    assert_eq!((owner("/to/d/x"), owner("/own/d/x"), built.text("/to/abs")), ((5, 6), (1, 2), "abs".into()));
    site.refuses("FROM scratch\nADD evil.tar /\n", &["evil", "out of the image"]);
    site.refuses("FROM scratch\nADD a.tar.xz /\n", &["xz", "COPY it"]);
    let torn = &archive(&[("x", &"y".repeat(5000))])[..2000];
    site.write("torn.tar", torn).refuses("FROM scratch\nADD torn.tar /\n", &["torn.tar", "cannot be read"]);
}

#[test]
fn add_unpacks_archives_that_begin_with_an_extended_header() {
    let site = Site::new();
    let data = "21 path=named-by-pax\n";
    for (name, kind) in [("pax.tar", tar::EntryType::XHeader), ("global.tar", tar::EntryType::XGlobalHeader)] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).unwrap();
        let mut archive = builder.into_inner().unwrap();
        // Without the end that the first has.
        archive.truncate(1024);
        archive.extend(self::archive(&[("x", "x")]));
        site.write(name, archive);
    }
    let long = "n".repeat(150);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut tar::Header::new_gnu(), &long, &b""[..]).unwrap();
    site.write("gnu.tar", builder.into_inner().unwrap());
    let built = site.build("FROM scratch\nADD pax.tar /pax/\nADD global.tar /global/\nADD gnu.tar /gnu/\n");
    let long = format!("gnu/{long}");
    assert_eq!(built.files(), ["global", "global/named-by-pax", "gnu", &long, "pax", "pax/named-by-pax"]);
}

#[test]
fn images_are_built_on_root_file_systems_and_what_others_have_left_to_do() {
    let site = Site::new();
    site.write("root/etc/passwd", "app:x:7:8::/:\n").write("mine", "mine");
    let root = format!("rootfs:{}", site.path("root").display());
    let built = site.build(&format!("FROM {root}\nONBUILD COPY mine /left\nONBUILD ENV LEFT=1\n"));
    assert_eq!((built.text("/etc/passwd").len(), built.layers), (14, 1));
    assert_eq!(built.config["config"]["OnBuild"], json!(["COPY mine /left", "ENV LEFT=1"]));
    site.store.tag("t", "base").unwrap();
    let built = site.build("FROM base\nCOPY --from=base /etc/passwd /two\n");
    assert_eq!((built.text("/left"), built.text("/two").len()), ("mine".into(), 14));
    assert_eq!(
        (&built.config["config"]["OnBuild"], &built.config["config"]["Env"]),
        (&Value::Null, &json!(["LEFT=1"]))
    );
    // ENTRYPOINT takes the CMD of the image below away, and not its own.
    site.build("FROM base\nCMD [\"below\"]\n");
    site.store.tag("t", "with-cmd").unwrap();
    let cmd = |lines: &str| site.build(lines).config["config"]["Cmd"].clone();
    assert_eq!(cmd("FROM with-cmd\nENTRYPOINT [\"e\"]\n"), Value::Null);
    assert_eq!(cmd("FROM with-cmd\nCMD [\"own\"]\nENTRYPOINT [\"e\"]\n"), json!(["own"]));
}

#[test]
fn no_dockerfile_is_more_than_refused() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let site = Site::new();
    site.write("a", "a");
    let word = prop::sample::select(vec![
        "COPY",
        "ADD",
        "a",
        "/",
        "ENV",
        "ARG",
        "A=$A",
        "${",
        "<<EOF",
        "EOF",
        "\n",
        "\n",
        "\\\n",
        "#",
        "[\"a\"",
        "]",
        "--from=0",
        "--chown=",
        "WORKDIR",
        "LABEL",
        "USER",
        "AS",
        "x",
        "ONBUILD",
        "HEALTHCHECK",
        "NONE",
        "CMD",
        "'",
        "\"",
        "\0",
        "é",
    ]);
    let mut runner = TestRunner::new(Config { cases: 300, ..Config::default() });
    let case = |words: Vec<&str>| {
        let _ = site.build_with(&[], &format!("FROM scratch\n{}", words.join(" ")));
        Ok(())
    };
    runner.run(&prop::collection::vec(word, 0..12), case).unwrap();
    assert!(Path::new(&site.path("a")).exists());
}
