//! Runs whole clusters of real processes for tests, on loopback and in temporary folders.
//!
//! ```no_run
//! use damselfly_tests::{Cluster, Options};
//!
//! #[tokio::test]
//! async fn a_file_reaches_the_other_node() -> anyhow::Result<()> {
//!     Cluster::run(Options { nodes: 2, ..Options::default() }, async |cluster| {
//!         let file = cluster.file("greeting", 5 << 20)?;
//!         cluster.node(0).import("greeting", &file).await?.ok()?;
//!         let output = cluster.path("output");
//!         cluster.node(1).export("greeting", &output).await?.ok()?;
//!         anyhow::ensure!(std::fs::read(file)? == std::fs::read(output)?);
//!         Ok(())
//!     })
//!     .await
//! }
//! ```
//!
//! Whatever a test starts is killed when its [`Cluster`] is dropped, and when the test process ends, however it ends.
//! The programs come from the target folder of the running test; `DAMSELFLY_PROGRAMS` names another folder, and then
//! nothing is built.

mod cli;
mod cluster;
mod daemon;
mod driver;
mod program;
mod programs;
mod spawner;
mod waiting;

pub use cli::{Answer, Dfcache};
pub use cluster::{Cluster, Options};
pub use daemon::Node;
pub use driver::{Driver, screenshots};
pub use program::Program;
pub use programs::Programs;
pub use waiting::{until, until_true};
