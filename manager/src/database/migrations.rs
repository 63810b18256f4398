//! The database's migrations, embedded in the program.
//!
//! A list instead of `sqlx::migrate!`, which reads the folder at compile time: the crate of that macro compiles sqlx, the
//! drivers and SQLite itself a second time, for the build host.

use std::sync::LazyLock;

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
};

/// Embeds the files of one folder; the description is what the table of applied migrations says.
macro_rules! embedded {
    ($folder:literal: $($version:literal $name:literal $description:literal),+ $(,)?) => {
        &[$(Embedded {
            version: $version,
            description: $description,
            sql: include_str!(concat!("../../migrations/", $folder, "/", $name, ".sql")),
        }),+]
    };
}

struct Embedded {
    version: i64,
    description: &'static str,
    sql: &'static str,
}

const SQLITE_FILES: &[Embedded] = embedded!("sqlite":
    1 "0001_initial" "initial",
    2 "0002_scopes" "scopes",
    3 "0003_managers" "managers",
    4 "0004_deletions" "deletions",
);
const POSTGRES_FILES: &[Embedded] = embedded!("postgres":
    1 "0001_initial" "initial",
    2 "0002_scopes" "scopes",
    3 "0003_managers" "managers",
    4 "0004_deletions" "deletions",
);

pub(super) static SQLITE: LazyLock<Migrator> = LazyLock::new(|| migrator(SQLITE_FILES));
pub(super) static POSTGRES: LazyLock<Migrator> = LazyLock::new(|| migrator(POSTGRES_FILES));

fn migrator(files: &'static [Embedded]) -> Migrator {
    let migration = |file: &Embedded| {
        Migration::new(file.version, file.description.into(), MigrationType::Simple, file.sql.into_sql_str(), false)
    };
    Migrator::with_migrations(files.iter().map(migration).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// What sqlx itself reads from the folders, so that a program of before finds the same versions and checksums.
    #[tokio::test]
    async fn every_file_is_embedded_as_sqlx_reads_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        for (name, embedded) in [("sqlite", &SQLITE), ("postgres", &POSTGRES)] {
            let read = Migrator::new(folder.join(name)).await.expect("sqlx reads the folder");
            let row = |migration: &Migration| {
                (migration.version, migration.description.to_string(), migration.checksum.to_vec(), migration.no_tx)
            };
            let expected: Vec<_> = read.iter().map(row).collect();
            assert_eq!(embedded.iter().map(row).collect::<Vec<_>>(), expected, "{name}");
            assert_eq!(expected.len(), fs::read_dir(folder.join(name)).expect("there").count(), "{name}");
        }
    }
}
