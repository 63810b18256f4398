//! Runs cargo from programs that cargo itself may have started.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::{Command, Stdio},
};

/// Variables that cargo sets for a program it runs or tests, and that describe only that program's package. Each one ends
/// with `*` when it is a prefix.
///
/// What a user sets for cargo (`CARGO_HOME`, `CARGO_TARGET_DIR`, `CARGO_BUILD_JOBS`, `CARGO_TERM_COLOR`, …) is not among them.
const PACKAGE_VARIABLES: [&str; 11] = [
    "CARGO",
    "CARGO_BIN_EXE_*",
    "CARGO_BIN_NAME",
    "CARGO_CFG_*",
    "CARGO_CRATE_NAME",
    "CARGO_FEATURE_*",
    "CARGO_MANIFEST_*",
    "CARGO_PKG_*",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
];

/// A command that runs cargo in the environment that the user's shell has.
///
/// Build scripts such as the one of `ring` watch `CARGO_MANIFEST_DIR` and `CARGO_PKG_*`. Inherited from `cargo run`, these
/// variables would differ from those of a plain `cargo build`, and nearly everything would be compiled again at each turn of
/// the two.
pub fn command() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    for name in env::vars_os().map(|(name, _)| name).filter(|name| describes_package(name)) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// The program that `command` runs, for messages.
pub fn program(command: &Command) -> OsString {
    command.get_program().to_owned()
}

fn describes_package(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    PACKAGE_VARIABLES.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test is run by cargo, so the variables are there.
    #[test]
    fn the_environment_of_the_own_package_is_not_passed_on() {
        let inherited: Vec<_> = env::vars_os().map(|(name, _)| name).filter(|name| describes_package(name)).collect();
        for expected in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR"] {
            assert!(inherited.iter().any(|name| name == expected), "cargo sets {expected}: {inherited:?}");
        }
        let command = command();
        for name in inherited {
            let removed = command.get_envs().any(|(key, value)| key == name && value.is_none());
            assert!(removed, "{} is passed on", name.display());
        }
    }

    #[test]
    fn what_a_user_sets_for_cargo_is_kept() {
        for name in
            ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_TERM_COLOR", "CARGO_NET_OFFLINE", "PATH"]
        {
            assert!(!describes_package(OsStr::new(name)), "{name} is the user's");
        }
    }
}
