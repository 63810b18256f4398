use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).expect("reads");
        let mut names: Vec<_> =
            names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Both ways to make the file must behave the same.
    const WAYS: [fn(&Self, &str, bool) -> Target; 2] = [Self::nameless, Self::hidden];

    fn nameless(&self, name: &str, force: bool) -> Target {
        let target = Target::prepare(&self.path(name), force).expect("prepares");
        assert!(matches!(target.place, Staging::Nameless), "this file system has O_TMPFILE");
        target
    }

    fn hidden(&self, name: &str, force: bool) -> Target {
        let mut target = Target::prepare(&self.path(name), force).expect("prepares");
        let (file, hidden) = create_hidden(&target.dir, &target.path).expect("creates");
        (target.file, target.place) = (file, Staging::Hidden(hidden));
        target
    }
}

fn fill(target: &Target, text: &str) {
    let fd = target.file().try_clone_to_owned().expect("clones");
    File::from(fd).write_all(text.as_bytes()).expect("writes");
}

#[test]
fn a_committed_file_is_whole_and_alone() {
    for way in Dir::WAYS {
        let dir = Dir::new();
        let target = way(&dir, "out", false);
        fill(&target, "new");
        assert!(!dir.path("out").exists(), "no name before all of it is there");
        target.commit().expect("commits");
        assert_eq!(fs::read_to_string(dir.path("out")).expect("reads"), "new");
        assert_eq!(dir.names(), ["out"]);
        let mode = fs::metadata(dir.path("out")).expect("metadata").permissions().mode() & 0o777;
        let mask = umask().as_raw_mode();
        assert_eq!(mode, 0o666 & !mask, "the mode of any new file");
    }
}

#[test]
fn a_dropped_file_leaves_nothing() {
    let dir = Dir::new();
    fs::write(dir.path("out"), "old").expect("writes");
    for way in Dir::WAYS {
        let target = way(&dir, "out", true);
        fill(&target, "half");
        drop(target);
    }
    assert_eq!(dir.names(), ["out"]);
    assert_eq!(fs::read_to_string(dir.path("out")).expect("reads"), "old");
}

#[test]
fn a_file_that_appears_meanwhile_is_kept() {
    let dir = Dir::new();
    for way in Dir::WAYS {
        let target = way(&dir, "out", false);
        fs::write(dir.path("out"), "theirs").expect("writes");
        // Past the check: the system call itself must refuse.
        let refused = match &target.place {
            Staging::Hidden(hidden) => target.rename(hidden),
            _ => target.link(&target.name),
        };
        assert_eq!(refused, Err(Errno::EXIST));
        let failure = target.commit().expect_err("exists");
        assert_eq!(failure.code, Code::Failed);
        assert!(failure.hint.is_some_and(|hint| hint.contains("--force")));
        assert_eq!(fs::read_to_string(dir.path("out")).expect("reads"), "theirs");
        assert_eq!(dir.names(), ["out"]);
        fs::remove_file(dir.path("out")).expect("removes");
    }
}

#[test]
fn force_replaces_a_file_or_a_link_itself() {
    for way in Dir::WAYS {
        let dir = Dir::new();
        fs::write(dir.path("file"), "old").expect("writes");
        symlink(dir.path("file"), dir.path("link")).expect("links");
        let target = way(&dir, "link", true);
        fill(&target, "new");
        target.commit().expect("commits");
        assert_eq!(fs::read_to_string(dir.path("link")).expect("reads"), "new");
        assert_eq!(fs::read_to_string(dir.path("file")).expect("reads"), "old", "what it pointed to");
        assert!(!fs::symlink_metadata(dir.path("link")).expect("metadata").is_symlink());
        assert_eq!(dir.names().len(), 2);
    }
}

#[test]
fn links_to_nothing_and_in_a_circle_are_replaced_by_force_only() {
    let dir = Dir::new();
    for (link, to) in [("dangling", "none"), ("far", "none/below"), ("here", "there"), ("there", "here")] {
        symlink(to, dir.path(link)).expect("links");
    }
    for link in ["dangling", "far", "here"] {
        let failure = Target::prepare(&dir.path(link), false).expect_err("is there");
        assert!(failure.message.contains("exists already"), "{link}: {}", failure.message);
        let target = Target::prepare(&dir.path(link), true).expect("prepares");
        fill(&target, link);
        target.commit().expect("commits");
        assert_eq!(fs::read_to_string(dir.path(link)).expect("reads"), link);
    }
}

#[test]
fn bad_targets_are_refused_before_any_work() {
    let dir = Dir::new();
    fs::write(dir.path("file"), "kept").expect("writes");
    let open = File::open(dir.path("file")).expect("opens");
    let descriptor = format!("/proc/self/fd/{}", open.as_raw_fd());
    fs::create_dir(dir.path("dir")).expect("creates");
    let links = [
        ("to dir", "dir"),
        ("to parent", "dir/.."),
        ("to fifo", "fifo"),
        ("to link to fifo", "to fifo"),
        ("to device", "/dev/null"),
        ("to descriptor", &descriptor),
        ("to fd", "/proc/self/fd"),
        ("to kernel", "/proc/self/comm"),
    ];
    for (link, to) in links {
        symlink(to, dir.path(link)).expect("links");
    }
    symlink(dir.path("nowhere"), dir.path("dangling")).expect("links");
    rustix::fs::mkfifoat(CWD, dir.path("fifo"), Mode::RUSR | Mode::WUSR).expect("a fifo");
    let before = dir.names();
    let rows = [
        ("file", false, "exists already", "an existing file"),
        ("dangling", false, "exists already", "a dangling link is there too"),
        ("dir", false, "is a directory", "a directory"),
        ("dir", true, "is a directory", "a directory, with force"),
        ("dir/", true, "is a directory", "with a slash"),
        ("new/", false, "is a directory", "a slash means a directory"),
        ("dir/..", false, "is a directory", "dots"),
        ("none/out", false, "does not exist", "no parent"),
        ("file/out", false, "cannot use the directory", "the parent is a file"),
        ("fifo", false, "is a fifo, not a regular file", "force is no way to replace it, so it is not offered"),
        ("fifo", true, "is a fifo, not a regular file", "force does not replace a fifo or device"),
        ("to dir", true, "is a directory", "a link to a directory"),
        ("to parent", true, "is a directory", "a link that ends in dots"),
        ("to fifo", true, "is a fifo, not a regular file", "a link to a fifo"),
        ("to link to fifo", true, "is a fifo, not a regular file", "a link to a link"),
        ("to device", true, "is a device, not a regular file", "a link to a device"),
        ("to descriptor", false, "leads to an open descriptor", "a link as /dev/stdout is one"),
        ("to descriptor", true, "leads to an open descriptor", "with force too"),
        ("to fd/descriptor", true, "is a file of the kernel", "by way of a link as /dev/fd is one"),
        ("to kernel", true, "is a file of the kernel", "a regular file by its mode only"),
    ];
    for (name, force, expected, reason) in rows {
        let failure = Target::prepare(&dir.path(name), force).expect_err(reason);
        assert_eq!(failure.code, Code::Failed, "{reason}");
        assert!(failure.message.contains(expected), "{reason}: {}", failure.message);
        let hint = failure.hint.unwrap_or_default();
        assert_eq!(hint.contains("`-O -`"), failure.message.contains("not a regular file"), "{reason}: {hint}");
    }
    assert_eq!(dir.names(), before, "nothing is left and nothing is gone");
    assert_eq!(fs::read_to_string(dir.path("file")).expect("reads"), "kept");
}
