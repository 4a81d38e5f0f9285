//! The text of a Dockerfile, around what the library makes of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use parse_dockerfile::{Command, Flag, Instruction};
use rustix::fs::OFlags;

/// Longest Dockerfile that is read, in bytes.
const MAX: u64 = 4 << 20;

/// The text of the one at `path`; `-` is stdin.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let shown = || format!("Dockerfile '{}'", path.display());
    let mut bytes = Vec::new();
    let taken = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(MAX + 1).read_to_end(&mut bytes),
        _ => open(path).and_then(|file| file.take(MAX + 1).read_to_end(&mut bytes)),
    };
    taken.with_context(shown)?;
    if bytes.len() as u64 > MAX {
        bail!("{}: more than {MAX} bytes", shown());
    }
    let text = String::from_utf8(bytes).with_context(shown)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Opens a file without waiting for anybody who writes to it, for a pipe of that name may be anybody's.
pub fn open(path: &Path) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    // What is named by a descriptor, as shells do, is waited for.
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(file)
}

/// The line, from 1, that a place of the text is on.
pub fn line_of(text: &str, place: usize) -> usize {
    text.as_bytes().iter().take(place).filter(|byte| **byte == b'\n').count() + 1
}

/// The first line of a text with those that continue it: as one, without the comments and empty lines between them.
pub fn joined(text: &str, escape: char) -> String {
    let mut whole = String::new();
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim();
        if number > 0 && (bare.is_empty() || bare.starts_with('#')) {
            continue;
        }
        match line.trim_end().strip_suffix(escape) {
            Some(part) => whole.push_str(part),
            None => {
                whole.push_str(line.trim_end());
                break;
            }
        }
    }
    whole
}

/// Where an instruction begins in the text.
pub fn begin_of(instruction: &Instruction<'_>) -> usize {
    let keyword = match instruction {
        Instruction::Add(it) => &it.add,
        Instruction::Arg(it) => &it.arg,
        Instruction::Cmd(it) => &it.cmd,
        Instruction::Copy(it) => &it.copy,
        Instruction::Entrypoint(it) => &it.entrypoint,
        Instruction::Env(it) => &it.env,
        Instruction::Expose(it) => &it.expose,
        Instruction::From(it) => &it.from,
        Instruction::Healthcheck(it) => &it.healthcheck,
        Instruction::Label(it) => &it.label,
        Instruction::Maintainer(it) => &it.maintainer,
        Instruction::Onbuild(it) => &it.onbuild,
        Instruction::Run(it) => &it.run,
        Instruction::Shell(it) => &it.shell,
        Instruction::Stopsignal(it) => &it.stopsignal,
        Instruction::User(it) => &it.user,
        Instruction::Volume(it) => &it.volume,
        Instruction::Workdir(it) => &it.workdir,
        _ => return 0,
    };
    keyword.span.start
}

/// The instruction at a place of the text in one line, for people and for the history.
pub fn shown(text: &str, begin: usize, escape: char) -> String {
    let whole = joined(text.get(begin..).unwrap_or_default(), escape);
    whole.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command as a list: that of the exec form, or `shell` with the line.
pub fn words(command: &Command<'_>, shell: Vec<String>, escape: char) -> Vec<String> {
    match command {
        Command::Exec(list) => list.value.iter().map(|word| word.value.clone().into_owned()).collect(),
        Command::Shell(line) => shell.into_iter().chain([joined(line.value, escape)]).collect(),
        _ => Vec::new(),
    }
}

/// The flags of an instruction; one without a value is `true`.
pub fn flags(flags: &[Flag<'_>]) -> Vec<(String, String)> {
    let pair = |flag: &Flag<'_>| {
        let value = flag.value.as_ref().map_or("true", |value| &value.value);
        (flag.name.value.clone().into_owned(), value.to_owned())
    };
    flags.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_continue_are_one_without_comments() {
        let text = "RUN a && \\\n  # why\n\n   b \\  \n  c\nENV X=1\n";
        assert_eq!(joined(text, '\\'), "RUN a &&   b   c".replace("&&   b", "&&    b"));
        assert_eq!(joined("# x\ny", '\\'), "# x");
        assert_eq!(joined("a `\nb", '`'), "a b");
        assert_eq!(joined("a \\", '\\'), "a ");
        assert_eq!((line_of(text, 0), line_of(text, text.find("ENV").unwrap())), (1, 6));
    }

    #[test]
    fn instructions_are_shown_in_one_line() {
        let text = "# escape=`\nFROM  x\nrun echo `\n   two\nCMD [\"a\", \"b\"]\nCOPY <<EOF /f\nx\nEOF\n";
        let parsed = parse_dockerfile::parse(text).unwrap();
        let all: Vec<String> = parsed.instructions.iter().map(|one| shown(text, begin_of(one), '`')).collect();
        assert_eq!(all, ["FROM x", "run echo two", "CMD [\"a\", \"b\"]", "COPY <<EOF /f"]);
        let Instruction::Run(run) = &parsed.instructions[1] else { panic!() };
        assert_eq!(words(&run.arguments, vec!["sh".into(), "-c".into()], '`'), ["sh", "-c", "echo    two"]);
    }
}
