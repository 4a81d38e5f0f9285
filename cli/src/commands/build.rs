//! `bulkhead build`: an image of a Dockerfile and a directory.

use crate::args::{Build, Talk};
use crate::build::{self, Interrupted};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Exit code of a build that failed, as docker's.
const FAILED: u8 = 1;

/// Builds it. What happens is told on stderr; with --quiet the id of the image is printed, and nothing else.
pub fn build(args: &Build, talk: Talk) -> Outcome {
    let image = build::image(args, talk).map_err(|error| match error.downcast_ref() {
        Some(Interrupted(signal)) => Failure::silent(128 + signal),
        None => Failure::with_code(FAILED, error),
    })?;
    if talk.quiet {
        output::print(&format!("{}\n", image.id))?;
    }
    Ok(0)
}
