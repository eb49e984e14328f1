//! A hold file: while it is there, whatever runs the microscope waits at its next stopping point.
//!
//! ```text
//! PATH        there = hold          PATH.slow   there = go at the fraction in its first line
//! ```
//! The file says for people why it is there, since when, and who made it. Ours are known by their last line; a file of somebody
//! else is never changed or removed. A file of ours that a killed run left is known again by the acquisition's name.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Request, Throttle, ThrottleError, Wish};

const NAME: &str = "hold file";

/// See the module.
#[derive(Clone, Debug)]
pub struct HoldFile {
    hold: PathBuf,
    slow: PathBuf,
    /// Last line of a file that is ours.
    mark: String,
    /// Taken while the disk is asked.
    busy: Arc<tokio::sync::Mutex<()>>,
}

/// What lies at a path.
#[derive(Debug, PartialEq)]
enum Found {
    Nothing,
    Ours,
    Foreign(String),
}

impl HoldFile {
    /// `path` need not exist, its folder must. `name` is that of the acquisition.
    pub fn new(path: PathBuf, name: &str) -> Result<Self, String> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            let (folder, path) = (folder.display(), path.display());
            return Err(format!("{path}: its folder {folder} is not there; make it, or give another path"));
        }
        let mut slow = path.clone().into_os_string();
        slow.push(".slow");
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        Ok(Self { hold: path, slow: slow.into(), mark: format!("made by kinesin for {name:?}"), busy: Arc::default() })
    }

    /// Blocking; at most a few small file operations.
    fn set(&self, request: &Request) -> Result<String, ThrottleError> {
        match request.wish {
            Wish::Hold => {
                let said = self.put(&self.hold, request)?;
                self.take_away(&self.slow, request.wish)?;
                Ok(said)
            }
            Wish::Slow(_) => {
                // The fraction is there before the hold goes, so that the instrument never sees full speed between.
                let said = self.put(&self.slow, request)?;
                self.take_away(&self.hold, request.wish)?;
                Ok(said)
            }
            Wish::Go => {
                let hold = self.take_away(&self.hold, request.wish);
                let slow = self.take_away(&self.slow, request.wish)?;
                Ok(if hold? || slow { "file removed".into() } else { "no file was there".into() })
            }
        }
    }

    fn put(&self, path: &Path, request: &Request) -> Result<String, ThrottleError> {
        let failed = |e: std::io::Error| failed(request.wish, path, &e);
        let text = self.text(request);
        match self.find(path).map_err(failed)? {
            Found::Foreign(first) if request.wish == Wish::Hold => {
                return Ok(format!("held already by somebody else's {}: {first}", path.display()));
            }
            Found::Foreign(first) => return Err(foreign(request.wish, path, &first)),
            Found::Ours => replace(path, &text).map_err(failed)?,
            // Fails where somebody was quicker; found at the next try.
            Found::Nothing => create(path, &text).map_err(failed)?,
        }
        Ok(format!("{} is there", path.display()))
    }

    /// Whether it was there.
    fn take_away(&self, path: &Path, wish: Wish) -> Result<bool, ThrottleError> {
        match self.find(path).map_err(|e| failed(wish, path, &e))? {
            Found::Nothing => Ok(false),
            Found::Ours => std::fs::remove_file(path).map(|()| true).map_err(|e| failed(wish, path, &e)),
            Found::Foreign(first) => Err(foreign(wish, path, &first)),
        }
    }

    fn find(&self, path: &Path) -> std::io::Result<Found> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Ok(Found::Foreign("not a plain file".into())),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(e),
        }
        let mut head = Vec::new();
        std::fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
        let text = String::from_utf8_lossy(&head);
        if text.lines().next_back() == Some(self.mark.as_str()) {
            return Ok(Found::Ours);
        }
        Ok(Found::Foreign(super::first_line(&head)))
    }

    fn text(&self, request: &Request) -> String {
        let word = match request.wish {
            Wish::Slow(fraction) => fraction.to_string(),
            other => other.word().to_owned(),
        };
        let since = humantime(SystemTime::now());
        let reason = super::first_line(request.reason.as_bytes());
        format!(
            "{word}\nreason: {reason}\nsince: {since}\nit goes away by itself; remove it by hand only if Kinesin is gone\n{}\n",
            self.mark
        )
    }
}

impl Throttle for HoldFile {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn ask(&mut self, request: &Request) -> Result<String, ThrottleError> {
        let (this, request, wish) = (self.clone(), request.clone(), request.wish);
        // A disk that hangs keeps one thread, not the caller; what it still does later is put right by the next try.
        let Ok(turn) = self.busy.clone().try_lock_owned() else {
            let why = format!("{}: the disk has not answered yet; see whether it is there", self.hold.display());
            return Err(ThrottleError::Failed { hook: NAME, wish, why });
        };
        let set = move || {
            let said = this.set(&request);
            drop(turn);
            said
        };
        match tokio::task::spawn_blocking(set).await {
            Ok(said) => said,
            Err(e) => Err(ThrottleError::Failed { hook: NAME, wish, why: e.to_string() }),
        }
    }
}

/// Makes the file, whole from its first moment; fails where one is.
fn create(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = beside(path, text)?;
    let made = match std::fs::hard_link(&beside, path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            // A file system without links: its presence is what counts, the text follows at once.
            std::fs::File::create_new(path).and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
        }
        made => made,
    };
    std::fs::remove_file(&beside)?;
    made
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::rename(beside(path, text)?, path)
}

fn beside(path: &Path, text: &str) -> std::io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".kinesin-new");
    let mut file = std::fs::File::create(&name)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(name.into())
}

fn failed(wish: Wish, path: &Path, error: &std::io::Error) -> ThrottleError {
    ThrottleError::Failed { hook: NAME, wish, why: format!("{}: {error}", path.display()) }
}

fn foreign(wish: Wish, path: &Path, first: &str) -> ThrottleError {
    let why =
        format!("{} is somebody else's ({first:?}); it stays, remove it by hand when it is not needed", path.display());
    ThrottleError::Refused { hook: NAME, wish, why }
}

/// `2026-11-22T17:39:52Z`. Days to a date after Hinnant, "chrono-compatible low-level date algorithms".
fn humantime(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ask(file: &HoldFile, wish: Wish) -> Result<String, ThrottleError> {
        file.set(&Request { wish, reason: "the spool is 93 % full".into() })
    }

    fn folder() -> (tempfile::TempDir, PathBuf, HoldFile) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("hold");
        let file = HoldFile::new(path.clone(), "demo").expect("opens");
        (dir, path, file)
    }

    #[test]
    fn hold_makes_the_file_with_its_reason_slow_writes_the_fraction_and_go_leaves_nothing() {
        let (dir, path, file) = folder();
        ask(&file, Wish::Hold).expect("holds");
        let text = std::fs::read_to_string(&path).expect("there");
        assert!(text.starts_with("hold\nreason: the spool is 93 % full\nsince: 2"), "{text}");
        ask(&file, Wish::Slow(0.25)).expect("slows");
        assert!(!path.exists());
        let slow = std::fs::read_to_string(dir.path().join("hold.slow")).expect("there");
        assert_eq!(slow.lines().next().and_then(|l| l.parse().ok()), Some(0.25));
        ask(&file, Wish::Hold).expect("holds again");
        ask(&file, Wish::Hold).expect("twice is harmless");
        ask(&file, Wish::Go).expect("goes");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn a_file_of_somebody_else_is_reported_and_left_as_it_is() {
        let (_dir, path, file) = folder();
        std::fs::write(&path, "lens service until noon\n").expect("writes");
        assert!(ask(&file, Wish::Hold).expect("it is held").contains("lens service until noon"));
        for wish in [Wish::Go, Wish::Slow(0.5)] {
            let error = ask(&file, wish).expect_err("stays held");
            assert!(matches!(error, ThrottleError::Refused { .. }), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "lens service until noon\n");
    }

    #[test]
    fn a_killed_runs_file_is_released_by_the_same_acquisition_and_by_no_other() {
        let (_dir, path, file) = folder();
        ask(&file, Wish::Hold).expect("holds");
        let other = HoldFile::new(path.clone(), "another").expect("opens");
        assert!(ask(&other, Wish::Go).is_err());
        let again = HoldFile::new(path.clone(), "demo").expect("opens");
        ask(&again, Wish::Go).expect("goes");
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_folder_is_told_at_the_start() {
        let error = HoldFile::new("/nowhere/at/all/hold".into(), "demo").expect_err("no folder");
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        let at = |s| humantime(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(at(1_795_369_192), "2026-11-22T17:39:52Z");
    }
}
