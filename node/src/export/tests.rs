//! Exports of copies that are damaged.

use std::{
    fs,
    io::{Read as _, Seek as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    thread,
};

use damselfly_messages::manifest::Manifest;
use tempfile::TempDir;

use super::*;
use crate::{permits::Permits, testing};

const PIECE: usize = 1 << 20;

struct Bench {
    directory: TempDir,
    exporter: Exporter,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let exporter = testing::exporter(&directory.path().join("store"));
        Self { directory, exporter }
    }

    fn import(&self, bytes: &[u8]) -> Manifest {
        testing::import(&self.exporter.store, "a", bytes)
    }

    fn file(&self, manifest: &Manifest) -> PathBuf {
        self.directory.path().join("store/contents").join(manifest.content().to_string())
    }
}

fn rot(file: &Path, offset: usize) {
    let file = fs::OpenOptions::new().write(true).open(file).expect("opens");
    file.write_all_at(b"rotten", offset as u64).expect("written");
}

async fn target(file: File, kind: Kind) -> Target {
    let place = Permits::new("exports").enter(1).await.expect("a place");
    Target::new(file, kind, Limiter::new(None), Arc::default(), place)
}

fn binding(manifest: &Manifest) -> Binding {
    let (content, content_bytes) = (manifest.content(), manifest.layout().content_bytes());
    Binding { content, content_bytes, generation: 1, accepted: None, expires: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_goes_on_where_it_was_when_the_copy_was_damaged() {
    let bench = Bench::new();
    let content = testing::bytes(1, 4 * PIECE + 7);
    let manifest = bench.import(&content);
    rot(&bench.file(&manifest), 2 * PIECE + 100);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let reading = thread::spawn(move || {
        let (mut reader, mut all) = (reader, Vec::new());
        reader.read_to_end(&mut all).expect("reads");
        all
    });
    let target = target(File::from(OwnedFd::from(writer)), Kind::Pipe).await;
    let copied = bench.exporter.export_copy(binding(&manifest), &target).await;
    assert!(matches!(copied, Some(Err(ReadFailed::Damaged(_)))), "piece 2 is rotten");
    assert_eq!(target.output.piped() as usize, 2 * PIECE);

    let other = bench.exporter.store.clone();
    let other = testing::import(&other, "b", b"other bytes");
    let copied = bench.exporter.export_copy(binding(&other), &target).await;
    assert!(matches!(copied, Some(Err(ReadFailed::Other(_)))), "other bytes must not follow");

    bench.import(&content);
    let copied = bench.exporter.export_copy(binding(&manifest), &target).await;
    assert!(matches!(copied, Some(Ok(_))), "the copy is sound again");
    drop(target);
    assert!(reading.join().expect("reads") == content, "each byte once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_keeps_nothing_of_an_attempt_before() {
    let bench = Bench::new();
    let long = testing::bytes(1, 3 * PIECE);
    let manifest = bench.import(&long);
    rot(&bench.file(&manifest), 2 * PIECE + 100);
    let mut file = tempfile::tempfile().expect("a file");
    let target = target(file.try_clone().expect("clones"), Kind::File).await;
    let copied = bench.exporter.export_copy(binding(&manifest), &target).await;
    assert!(matches!(copied, Some(Err(ReadFailed::Damaged(_)))), "piece 2 is rotten");
    let short = testing::import(&bench.exporter.store, "b", b"short");
    let copied = bench.exporter.export_copy(binding(&short), &target).await;
    assert!(matches!(copied, Some(Ok(_))));
    let mut all = Vec::new();
    file.rewind().expect("rewound");
    file.read_to_end(&mut all).expect("reads");
    assert_eq!(all, b"short");
}
