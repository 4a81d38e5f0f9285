//! What a guest's drivers ask of their devices, recorded from its boot on.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use devices::virtio::trace::tape::Tape;

use super::Handle;

impl Handle {
    /// Records the queues of each device into a file of its own, which must not be there: `0-rng.trace`, and so on, in order of their
    /// windows. To be called before the machine runs. Returns the files, which are whole when the machine is gone.
    ///
    /// # Errors
    /// A file cannot be made, which the error names, or the machine has ended.
    pub fn record(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let parts = self.parts().map_err(io::Error::other)?;
        let each = parts.transports.iter().zip(&parts.metrics).enumerate();
        each.map(|(index, (transport, (name, _)))| {
            let path = directory.join(format!("{index}-{}.trace", name.kind));
            let named = |error: io::Error| io::Error::new(error.kind(), format!("'{}': {error}", path.display()));
            let file = File::create_new(&path).map_err(named)?;
            transport.lock().unwrap_or_else(PoisonError::into_inner).record(Tape::new(Box::new(file)));
            Ok(path)
        })
        .collect()
    }
}
