//! A JSON file that a command writes for other programs: a reader finds the whole old content or the whole new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};

/// A file that passed a check beforehand that it can be written.
#[derive(Debug)]
pub struct JsonFile {
    /// With links followed: a rename would replace the link, not the file behind it.
    path: PathBuf,
}

impl JsonFile {
    /// The file at `path`, if one is given. Leaves an existing file as it is.
    ///
    /// # Errors
    /// [`Error::Config`] where it cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let file = Self { path: path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
        file.check().map_err(|error| {
            Error::Config(format!(
                "cannot write {}: {error}; give a file in a folder that exists, where you may write and space is left",
                path.display()
            ))
        })?;
        Ok(Some(file))
    }

    fn check(&self) -> io::Result<()> {
        if self.path.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        if self.is_stream() {
            return Ok(());
        }
        let beside = self.beside();
        match File::create(&beside) {
            Ok(_) => fs::remove_file(&beside),
            Err(error) if self.only_in_place(&error) => OpenOptions::new().append(true).open(&self.path).map(drop),
            Err(error) => Err(error),
        }
    }

    /// True for a pipe or a device, such as `/dev/stdout`: it takes one document, and cannot be replaced.
    pub fn is_stream(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| !found.is_file() && !found.is_dir())
    }

    /// Writes `value`.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written; it then has its old content.
    pub fn write(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::Bug(format!("the report: {e}")))? + "\n";
        let written = if self.is_stream() { fs::write(&self.path, &text) } else { self.replace(&text) };
        let written = match written {
            Err(error) if self.only_in_place(&error) => fs::write(&self.path, &text),
            other => other,
        };
        written.map_err(|e| Error::io(format!("cannot write {}", self.path.display()), e))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let beside = self.beside();
        let file =
            File::create(&beside).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        let replaced = file.and_then(|()| fs::rename(&beside, &self.path));
        if replaced.is_err() {
            let _ = fs::remove_file(&beside);
        }
        replaced
    }

    /// The temporary file: in the same folder, since a rename replaces a file only within a file system.
    fn beside(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
    }

    /// True where the file may be written and its folder may not, as where a container mounts a single file.
    fn only_in_place(&self, error: &io::Error) -> bool {
        use ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
        self.path.is_file()
            && matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("run.json"), folder.path().join("latest.json"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("run.json", &link).unwrap();
        let json = JsonFile::open(Some(&link)).unwrap().unwrap();
        let open = File::open(&file).unwrap();
        json.write(&7).unwrap();
        assert_eq!(io::read_to_string(open).unwrap(), "old", "a reader keeps what it opened");
        assert_eq!(fs::read_to_string(&link).unwrap(), "7\n");
        assert!(link.is_symlink() && fs::read_dir(folder.path()).unwrap().count() == 2, "no temporary file stays");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("absent/run.json")] {
            let error = JsonFile::open(Some(&path)).unwrap_err();
            assert!(matches!(&error, Error::Config(text) if text.contains("give a file")), "{error}");
        }
        assert!(JsonFile::open(Some(Path::new("/dev/null"))).unwrap().unwrap().write(&7).is_ok());
        assert!(Path::new("/dev/null").exists() && !Path::new("/dev/null").is_file());
    }
}
