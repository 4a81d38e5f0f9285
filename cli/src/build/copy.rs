//! COPY and ADD: from what an instruction says to a plan, and its layer.

use std::rc::Rc;

use anyhow::{Context as _, anyhow, bail};
use guest_images::tree::{Attrs, Xattrs};
use guest_images::{Contents, Draft};
use guest_protocol::account::{self, MAX_ACCOUNTS};
use parse_dockerfile::{Flag, Source as Written};

use super::Builder;
use super::context::OfContext;
use super::dockerfile::flags;
use super::items::{Archived, Data, Item, OfImage, Source, What, find, unpacked};
use super::plan::{Changed, Plan};
use super::stage::Stage;
use crate::output;

/// Most bytes of an archive that ADD unpacks.
const MAX_UNPACKED: u64 = 64 << 30;

/// What the flags of COPY and ADD say.
#[derive(Debug, Default)]
struct Flags {
    from: Option<String>,
    owner: Option<String>,
    mode: Option<u16>,
}

impl Builder<'_> {
    /// The files of a draft that is being made.
    pub(super) fn contents_of(&self, draft: &Draft) -> anyhow::Result<Contents> {
        Ok(self.store.draft_contents(draft, &mut output::Progress::new(self.talk))?)
    }
}

impl Stage<'_, '_> {
    /// COPY, or ADD.
    pub(super) fn copy(
        &mut self,
        options: &[Flag<'_>],
        sources: &[Written<'_>],
        to: &str,
        add: bool,
        line: &str,
        title: &str,
    ) -> anyhow::Result<()> {
        let said = self.copy_flags(options, add)?;
        let builder = self.builder;
        let from: Box<dyn Source> = match &said.from {
            None => Box::new(OfContext(builder.context.clone())),
            Some(name) => {
                let done = match builder.stage_called(name, self.index) {
                    Some(stage) => builder.stage(stage)?,
                    None => builder.image(name).with_context(|| format!("--from={name}"))?,
                };
                Box::new(OfImage(builder.contents(&done)?))
            }
        };
        let text = self.expand(to)?;
        let to = super::config::Config::of(&mut self.draft.config).below_workdir(&text);
        let slash =
            text.is_empty() || text.ends_with('/') || text == "." || text.ends_with("/.") || text.ends_with("..");
        if sources.len() > 1 && !slash {
            bail!("with several sources the destination is a directory: write '{text}/'");
        }
        let step = builder.progress.step(&format!("{title} {line}"));
        let contents = builder.contents_of(&self.draft)?;
        let owner = said.owner.as_deref().map(|owner| owner_in(&contents, owner)).transpose()?;
        let changed = Changed { owner, mode: said.mode, made: builder.made, clamp: builder.clamp };
        let plan = self.plan(&contents, changed, &*from, sources, (&to, slash), add);
        let layer = self.finish(step, |stage| builder.planned_layer(&stage.draft, &plan?))?;
        self.record(line, Some(layer));
        Ok(())
    }

    fn copy_flags(&mut self, options: &[Flag<'_>], add: bool) -> anyhow::Result<Flags> {
        let mut said = Flags::default();
        for (name, value) in flags(options) {
            let value = self.expand(&value)?;
            match name.as_str() {
                "from" if !add => said.from = Some(value),
                "chown" => said.owner = Some(value),
                "chmod" => {
                    let mode = u16::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
                    let wrong = || anyhow!("--chmod={value}: write the mode as an octal number, like 755");
                    said.mode = Some(mode.ok_or_else(wrong)?);
                }
                // A layer is always one of its own here.
                "link" => {}
                other => bail!("{} has no flag --{other} here", if add { "ADD" } else { "COPY" }),
            }
        }
        Ok(said)
    }

    fn plan<'c>(
        &mut self,
        contents: &'c Contents,
        changed: Changed,
        from: &dyn Source,
        sources: &[Written<'_>],
        (to, slash): (&str, bool),
        add: bool,
    ) -> anyhow::Result<Plan<'c>> {
        let mut plan = Plan::new(contents, changed);
        for source in sources {
            let text = match source {
                Written::HereDoc(document) => {
                    if slash {
                        bail!("a here-document needs the name of a file as its destination");
                    }
                    let text = document.value.to_string();
                    let text = if document.expand { self.expand_document(&text)? } else { text };
                    let attrs = Attrs { mode: 0o644, mtime: changed.made, xattrs: Xattrs::new(), ..Attrs::default() };
                    let size = text.len() as u64;
                    let what = What::File { size, data: Data::Bytes(Rc::from(text.into_bytes())) };
                    plan.put(vec![Item { name: Box::default(), attrs, what }], to.as_bytes(), false)?;
                    continue;
                }
                Written::Path(path) => self.expand(&path.value)?,
                _ => bail!("this kind of source is not supported"),
            };
            if add && (text.contains("://") || text.starts_with("git@")) {
                bail!(
                    "ADD of '{text}': files of the network are not fetched; RUN a download, with --network user, or put it into the context"
                );
            }
            let items = find(from, &text)?;
            let many = slash || items.len() > 1;
            for item in items {
                match if add { self.unpack(&item)? } else { None } {
                    Some(entries) => plan.unpack(entries, to.as_bytes())?,
                    None => plan.put(vec![item], to.as_bytes(), many)?,
                }
            }
        }
        Ok(plan)
    }

    /// The text of a here-document with what its variables hold: quotes are no quotes there.
    fn expand_document(&mut self, text: &str) -> anyhow::Result<String> {
        let quoted = text.replace('"', "\\\"");
        let inside = self.expand(&format!("\"{quoted}\""));
        inside.context("here-document")
    }

    /// What is in an archive, if the item is one.
    fn unpack(&self, item: &Item) -> anyhow::Result<Option<Archived>> {
        let What::File { size, data: Data::Host(context, path) } = &item.what else { return Ok(None) };
        let file = context.open_file(path, *size)?;
        let mut start = [0; 6];
        let got = std::os::unix::fs::FileExt::read_at(&file, &mut start, 0)?;
        let kind = match &start[..got] {
            [b'B', b'Z', b'h', ..] => Some("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz"),
            _ => None,
        };
        if let Some(kind) = kind {
            bail!(
                "ADD of '{}': archives packed with {kind} are not unpacked; pack it with gzip or zstd, or COPY it and RUN tar",
                path.escape_ascii()
            );
        }
        let shown = || format!("ADD of '{}'", path.escape_ascii());
        unpacked(file, self.builder.store.unnamed_file()?, MAX_UNPACKED).with_context(shown)
    }
}

/// Whom `--chown` means: by the image's own accounts. A user alone is a group as well, of the same number.
fn owner_in(contents: &Contents, owner: &str) -> anyhow::Result<(u32, u32)> {
    let read = |path: &str| contents.read_small(path.as_bytes(), MAX_ACCOUNTS as u64);
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    let found =
        account::resolve(owner, &passwd, &group).map_err(|unknown| anyhow!("--chown={owner}: {}", unknown.detail))?;
    // docker takes the user's number where no group is named.
    let gid = if owner.contains(':') { found.gid } else { found.uid };
    Ok((found.uid, gid))
}
