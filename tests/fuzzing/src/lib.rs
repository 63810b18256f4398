//! Bodies of the fuzz targets: everything that reads bytes which somebody else wrote.
//!
//! Each body takes any bytes, panics when a promise is broken, and returns otherwise. They are run by cargo-fuzz (`fuzz/`,
//! which needs a nightly toolchain) and, with bytes made by a generator, by `tests/properties`, which `cargo test` runs.

mod cursors;
mod frames;
mod index;
mod local;
mod membership;
mod names;
mod rows;
mod settings;
mod wire;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name; that of its corpus and of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// The body.
    pub run: fn(&[u8]),
    /// Memory that a run may hold at a time; `None` where a whole database or socket is part of the run.
    pub memory: Option<Memory>,
}

/// A bound for memory: so many bytes for each byte of the input, and so many for an empty one.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes per byte of input.
    pub per_byte: u64,
    /// Bytes besides.
    pub base: u64,
}

impl Memory {
    /// The bound for an input of `bytes` bytes.
    pub const fn bound(self, bytes: usize) -> u64 {
        self.base + self.per_byte * bytes as u64
    }
}

/// An empty nested message takes two bytes and becomes a struct of a few hundred, in a vector that has doubled, twice while
/// it is converted.
const MESSAGES: Option<Memory> = Some(Memory { per_byte: 1024, base: 64 << 10 });

/// All targets.
pub const TARGETS: [Target; 12] = [
    Target { name: "wire", run: wire::run, memory: MESSAGES },
    Target { name: "name", run: names::run, memory: Some(Memory { per_byte: 32, base: 16 << 10 }) },
    Target { name: "have", run: wire::have, memory: Some(Memory { per_byte: 256, base: 2 << 20 }) },
    Target { name: "frame", run: frames::run, memory: Some(Memory { per_byte: 16, base: 64 << 10 }) },
    Target { name: "admission", run: membership::admission, memory: MESSAGES },
    Target { name: "join", run: membership::join, memory: MESSAGES },
    Target { name: "join_token", run: membership::token, memory: MESSAGES },
    Target { name: "settings", run: settings::run, memory: Some(Memory { per_byte: 2048, base: 256 << 10 }) },
    Target { name: "descriptor", run: local::run, memory: None },
    Target { name: "rows", run: rows::run, memory: Some(Memory { per_byte: 256, base: 2 << 20 }) },
    Target { name: "index", run: index::run, memory: None },
    Target { name: "cursor", run: cursors::run, memory: None },
];

/// Runs the target called `name`.
///
/// # Panics
/// When the target finds a broken promise, or there is none of that name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("there is no fuzz target {name}"));
    (target.run)(bytes);
}

/// Splits the first `N` bytes off; those that are missing are zero.
fn head<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let length = bytes.len().min(N);
    let mut head = [0; N];
    head[..length].copy_from_slice(&bytes[..length]);
    (head, &bytes[length..])
}
