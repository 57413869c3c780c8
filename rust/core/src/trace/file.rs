//! The file of a trace: a row of complete gzip members, or of lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(super) struct TraceFile {
    file: File,
    compressed: bool,
    /// Up to where it is complete.
    length: u64,
}

impl TraceFile {
    /// Opens a file that nobody else writes a trace to, as long as this lives. It is compressed if
    /// its name ends in `.gz`.
    pub(super) fn open(path: &Path, append: bool) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        // File systems that refuse locks do without.
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            return Err(Errno::WOULDBLOCK.into());
        }
        if !append {
            file.set_len(0)?;
        }
        let compressed = path.extension().is_some_and(|extension| extension == "gz");
        let length = file.metadata()?.len();
        Ok(Self { file, compressed, length })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends all of `text`, or nothing.
    pub(super) fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let packed = match self.compressed {
            true => Some(pack(text)?),
            false => None,
        };
        let bytes = packed.as_deref().unwrap_or(text);
        let written = self.file.write_all(bytes);
        match written {
            Ok(()) => self.length += bytes.len() as u64,
            // What is there already must stay readable. If even this fails, there is nothing left
            // to try.
            Err(_) => drop(self.file.set_len(self.length)),
        }
        written
    }
}

fn pack(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    packer.write_all(text)?;
    packer.finish()
}
