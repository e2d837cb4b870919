//! What a listing finds: objects, and entries that cannot be read, each with the reason.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path as FilePath;

use object_store::ObjectMeta;

/// One entry below a location's root.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An object, with its path relative to the root, `/` separated.
    Object {
        /// Path below the root.
        uri: String,
        /// What the store says about it.
        meta: ObjectMeta,
    },
    /// An entry that is there and cannot be read. It does not stop a listing.
    Unusable(Unusable),
}

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Its path below the root as stored: a local name may be no UTF-8.
    pub name: Vec<u8>,
    /// Why it cannot be read.
    pub fault: Fault,
}

/// Why an entry cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A link to a file or folder that does not exist.
    Absent,
    /// A link that leads back to itself or to a folder above it.
    Loop,
    /// Its name is no UTF-8, has control characters, or has an empty, `.` or `..` part, so that no store can address it.
    Name,
    /// This user may not read the folder.
    Denied,
    /// It is neither a file nor a folder: a pipe, a socket, a device.
    NotAFile,
}

impl Unusable {
    /// The path for glob matching, byte for byte.
    pub fn path(&self) -> &FilePath {
        FilePath::new(OsStr::from_bytes(&self.name))
    }
}

/// A name that is safe to print: control characters, marks that change the direction of text, and bytes that are no
/// UTF-8 are escaped (`\n`, `\u{1b}`, `\xfc`).
pub fn printable(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if changes_output(c) {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

fn changes_output(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The name that made a store's client refuse an entry; `None` for any other error.
pub(super) fn refused_name(error: &object_store::Error) -> Option<String> {
    use object_store::path::Error as Name;
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(name) = error.downcast_ref::<Name>() {
            return match name {
                Name::EmptySegment { path } | Name::BadSegment { path, .. } | Name::NonUnicode { path, .. } => {
                    Some(path.clone())
                }
                _ => None,
            };
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_name_cannot_move_the_cursor_or_break_the_line() {
        assert_eq!(printable("Größe 日本.nii".as_bytes()), "Größe 日本.nii");
        assert_eq!(printable(b"sub-M\xfcller/a\tb\n\x1b[2J"), r"sub-M\xfcller/a\tb\n\u{1b}[2J");
        assert_eq!(printable("a\u{202e}b\u{9b}c".as_bytes()), r"a\u{202e}b\u{9b}c");
    }
}
