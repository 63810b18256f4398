//! The fuzz targets with generated inputs, all at once: what a stable toolchain can do of fuzzing.
//!
//! `DAMSELFLY_FUZZ_SECONDS` says for how long (a second by default), `DAMSELFLY_FUZZ_SEED` with which inputs. Each target
//! first gets its corpus of `fuzz/corpus`. An input that fails is written to `fuzz/artifacts`, as cargo-fuzz does.

mod generate;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    env, fs,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use damselfly_fuzzing::{TARGETS, Target};
use rand::{SeedableRng as _, rngs::StdRng};

/// Also where the time is over before: a machine that is busy tests something too.
const INPUTS_MIN: u64 = 50;

thread_local! {
    /// What the last panic of this thread said. Libraries may panic about damaged bytes if their callers catch it.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, and no number")))
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = fuzz_folder().join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("an input")).collect()
}

/// Runs one input, and judges the memory it took.
fn run(target: &Target, input: &[u8]) {
    let used = allocation_counter::measure(|| (target.run)(input)).bytes_max;
    if let Some(memory) = target.memory {
        let bound = memory.bound(input.len());
        assert!(used <= bound, "{used} bytes of memory for an input of {}, at most {bound} are allowed", input.len());
    }
}

fn fuzz(target: &Target, time: Duration, seed: u64) -> Result<u64, String> {
    let attempt = |input: &[u8]| {
        catch_unwind(AssertUnwindSafe(|| run(target, input))).map_err(|_| {
            let why = PANIC.take();
            let folder = fuzz_folder().join("artifacts").join(target.name);
            let path = folder.join(format!("seed-{seed}-{}", input.len()));
            let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, input));
            format!("{}: {why}\n{input:02x?} (seed {seed}; kept at {}: {kept:?})", target.name, path.display())
        })
    };
    // What is made once is not what an input takes.
    let _ = attempt(&[]);
    let seeds = corpus(target);
    seeds.iter().try_for_each(|input| attempt(input))?;
    let mut random = StdRng::seed_from_u64(seed);
    let started = Instant::now();
    let mut inputs = 0;
    while inputs < INPUTS_MIN || started.elapsed() < time {
        attempt(&generate::input(&mut random, &seeds))?;
        inputs += 1;
    }
    Ok(inputs)
}

#[test]
fn no_decoder_breaks_its_promises() {
    let time = Duration::from_secs(number("DAMSELFLY_FUZZ_SECONDS").unwrap_or(1));
    let seed = number("DAMSELFLY_FUZZ_SEED").unwrap_or_else(rand::random);
    panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));
    let failures: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            TARGETS.iter().map(|target| (target, scope.spawn(move || fuzz(target, time, seed)))).collect();
        running
            .into_iter()
            .filter_map(|(target, thread)| match thread.join().expect("panics are caught") {
                Ok(inputs) => {
                    println!("{}: {inputs} inputs", target.name);
                    None
                }
                Err(failure) => Some(failure),
            })
            .collect()
    });
    drop(panic::take_hook());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// cargo-fuzz and the property tests run the same.
#[test]
fn every_target_has_its_file_and_its_corpus() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len(), "two targets of one name");
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz_folder().join(folder)).expect("a folder");
        let stem = |path: PathBuf| path.file_stem().expect("a name").to_string_lossy().into_owned();
        entries.map(|entry| stem(entry.expect("an entry").path())).collect()
    };
    assert_eq!(listed("fuzz_targets"), names);
    assert_eq!(listed("corpus"), names);
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).expect("a manifest");
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no target {name}");
        let text = fs::read_to_string(fuzz_folder().join("fuzz_targets").join(format!("{name}.rs"))).expect("a target");
        assert!(text.contains(&format!("run(\"{name}\"")), "{name}.rs runs another target");
    }
}
