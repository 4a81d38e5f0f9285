//! `bulkhead build`: an image of a Dockerfile and a directory.

use crate::args::{Build, Talk};
use crate::build;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Builds it. What happens is told on stderr; with --quiet the id of the image is printed, and nothing else.
pub fn build(args: &Build, talk: Talk) -> Outcome {
    let image = build::image(args, talk).map_err(Failure::refused)?;
    if talk.quiet {
        output::print(&format!("{}\n", image.id))?;
    }
    Ok(0)
}
