//! `bulkhead history`: what made an image.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use guest_images::{Digest, Step, Store};

use crate::args::{History, Talk};
use crate::clock;
use crate::failure::{Failure, Outcome, sanitize};
use crate::output::{self, Columns};
use crate::paths;
use crate::size::human;

/// Characters of a command that are shown, the mark of the cut included.
const COMMAND: usize = 45;
/// Digits of a short id.
const SHORT_ID: usize = 12;
/// What docker says of a step that has no image of its own any more.
const MISSING: &str = "<missing>";

/// Prints it, the latest step first.
pub fn history(args: &History, talk: Talk) -> Outcome {
    let refused = |error| Failure::with_code(1, anyhow::Error::from(error));
    let store = Store::open(paths::store())?;
    let id = store.image(&args.image).map_err(refused)?.id;
    let steps = store.history(&args.image).map_err(refused)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let rows = steps.iter().enumerate().map(|(at, step)| row((at == 0).then_some(&id), step, args, now));
    if talk.quiet {
        return Ok(output::print(&rows.map(|row| output::text(&row, "ID") + "\n").collect::<String>()).map(|()| 0)?);
    }
    output::listing(&args.format, &COLUMNS, rows)
}

const COLUMNS: Columns<5> = Columns {
    head: ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
    fields: ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
};

/// A step under docker's names; the image's id is its last step's.
fn row(id: Option<&Digest>, step: &Step, args: &History, now: Duration) -> Value {
    let digits = |id: &Digest| id.hex().chars().take(SHORT_ID).collect::<String>();
    let id = id.map_or(MISSING.into(), |id| if args.no_trunc { id.to_string() } else { digits(id) });
    let by = sanitize(&step.created_by);
    let by = match by.char_indices().nth(COMMAND - 1) {
        Some((end, _)) if !args.no_trunc && by.chars().count() > COMMAND => format!("{}…", &by[..end]),
        _ => by,
    };
    let created = sanitize(step.created.as_deref().unwrap_or_default());
    let since = clock::parse_rfc3339(&created).map(|then| now.saturating_sub(Duration::from_nanos(then)));
    let since = since.map_or("N/A".into(), |span| format!("{} ago", clock::human(span)));
    json!({
        "ID": id,
        "CreatedAt": created,
        "CreatedSince": if args.human { since } else { created.clone() },
        "CreatedBy": by,
        "Size": if args.human { human(step.bytes) } else { step.bytes.to_string() },
        "Comment": sanitize(&step.comment),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_dockers() {
        let step = Step {
            created: Some("2026-01-02T03:04:05.5Z".into()),
            created_by: format!("RUN \u{1b}[31m{}", "x".repeat(60)),
            comment: String::new(),
            bytes: 2048,
        };
        let args = |human, no_trunc| History { format: "table".into(), no_trunc, human, image: "i".into() };
        let now = Duration::from_nanos(clock::parse_rfc3339("2026-01-02T06:04:06Z").unwrap());
        let cells = |id, args: &History| COLUMNS.fields.map(|field| output::text(&row(id, &step, args, now), field));
        let id = Digest::of(b"x");
        let [first, created, by, size, _] = cells(Some(&id), &args(true, false));
        assert_eq!((first.len(), &created[..], by.chars().count()), (12, "3 hours ago", 45));
        assert!(by.ends_with('…') && !by.contains('\u{1b}') && size.starts_with("2"), "{by} {size}");
        let [first, created, by, size, _] = cells(None, &args(false, true));
        assert_eq!((&first[..], &created[..], &size[..]), (MISSING, "2026-01-02T03:04:05.5Z", "2048"));
        assert!(by.ends_with("xxx"));
    }
}
