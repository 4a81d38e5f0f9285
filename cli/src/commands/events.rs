//! `bulkhead events`: what has happened to containers and images, and what happens, from the journal that each verb writes.

use std::fmt::Write as _;

use anyhow::{Context, anyhow};

use crate::args::Events;
use crate::clock;
use crate::containers::record::now_ns;
use crate::events::Event;
use crate::events::reader::{Reader, Wanted};
use crate::failure::{Failure, Outcome, sanitize};
use crate::output;
use crate::paths;
use crate::template::Template;

/// Prints them, a line each.
pub fn events(args: &Events) -> Outcome {
    let format = match args.format.as_deref() {
        None => None,
        Some("json") => Some(None),
        Some(text) => {
            let wrong = |problem| Failure::with_code(1, anyhow!("--format: {problem}"));
            Some(Some(Template::parse(text).map_err(wrong)?))
        }
    };
    // As docker: without a moment to begin at, only what comes.
    let since_ns = args.since.unwrap_or_else(|| if args.until.is_some() { 0 } else { now_ns() });
    let wanted = Wanted { since_ns, until_ns: args.until, filters: args.filter.clone() };
    let mut print = |event: &Event| {
        let line = match &format {
            None => line(event),
            Some(None) => event.json().to_string(),
            Some(Some(template)) => template.render(&event.json()).map_err(std::io::Error::other)?,
        };
        output::print(&(line + "\n"))
    };
    let store = paths::store();
    let mut reader =
        Reader::open(&store, wanted).with_context(|| format!("events of the store {}", store.display()))?;
    reader.present(&mut print)?;
    reader.follow(&mut print)?;
    Ok(0)
}

/// As docker shows it: when, what of whom, and in parentheses what else is known.
fn line(event: &Event) -> String {
    let Event { kind, action, id, attributes, at_ns, .. } = event;
    let mut text = format!("{} {kind} {action} {id} (", clock::rfc3339(*at_ns));
    for (at, (key, value)) in attributes.iter().enumerate() {
        // A string takes all that is written to it.
        let _ = write!(text, "{}{key}={value}", if at == 0 { "" } else { ", " });
    }
    sanitize(&(text + ")"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_dockers_and_cannot_write_to_the_terminal() {
        let mut event = Event::of_image("sha256:1", "debian:12\x1b[31m", "pull");
        event.at_ns = 1_000_000_001;
        assert_eq!(line(&event), "1970-01-01T00:00:01.000000001Z image pull sha256:1 (name=debian:12 [31m)");
    }
}
