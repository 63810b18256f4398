//! Breaks a cluster on purpose, and mends it.

use std::process::Stdio;

use anyhow::{Context as _, ensure};

use super::{
    engine::{self, docker},
    fleet::Fleet,
    members::Member,
};

impl Fleet {
    /// The network that all are in.
    fn network(&self) -> String {
        format!("{}_cluster", self.project().name())
    }

    /// The network of one side of a partition.
    fn other_side(&self) -> String {
        format!("{}_split", self.project().name())
    }

    /// Ends containers at once, or with SIGTERM.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn kill(&self, members: &[&Member], gently: bool) -> anyhow::Result<()> {
        let verb: &[&str] = if gently { &["stop", "--time", "10"] } else { &["kill"] };
        each(verb, members.iter().filter(|member| member.pid != 0).copied()).await
    }

    /// Starts what has ended, and does not wait.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn begin(&self, members: &[&Member]) -> anyhow::Result<()> {
        each(&["start"], members.iter().copied()).await
    }

    /// Ends what runs, starts it again, and waits until the cluster is ready.
    ///
    /// # Errors
    /// What did not get ready.
    pub async fn restart(&self, members: &[&Member]) -> anyhow::Result<()> {
        self.resume(members).await?;
        each(&["restart", "--time", "10"], members.iter().copied()).await?;
        self.settle().await
    }

    /// Stops the processes of containers where they are.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn pause(&self, members: &[&Member]) -> anyhow::Result<()> {
        each(&["pause"], members.iter().filter(|member| member.is_running()).copied()).await
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn resume(&self, members: &[&Member]) -> anyhow::Result<()> {
        each(&["unpause"], members.iter().filter(|member| member.state == "paused").copied()).await
    }

    pub(super) async fn resume_all(&self) -> anyhow::Result<()> {
        let members = self.members().await?;
        self.resume(&members.iter().collect::<Vec<_>>()).await
    }

    /// Cuts two groups off from each other; who is in neither reaches both.
    ///
    /// `others` move to a network of their own, where they are found by the same names and have other addresses. What is
    /// on its way between the groups is lost in silence, as when a cable is cut.
    ///
    /// # Errors
    /// When docker fails, or there is a partition already.
    pub async fn partition(&self, ones: &[&Member], others: &[&Member]) -> anyhow::Result<()> {
        let both = ones.iter().find(|one| others.iter().any(|other| other.id == one.id));
        ensure!(both.is_none(), "{} is on both sides", both.map_or("", |both| both.name.as_str()));
        // The smaller side moves: Docker gives other addresses to those that come back.
        let (ones, others) = if ones.len() < others.len() { (others, ones) } else { (ones, others) };
        let (cluster, split) = (self.network(), self.other_side());
        let label = format!("com.docker.compose.project={}", self.project().name());
        let made = engine::ask(["network", "create", "--label", &label, &split]).await;
        made.context("no second network; `testnet --docker heal` ends an earlier partition")?;
        for member in self.members().await?.iter().filter(|member| member.pid != 0) {
            if others.iter().any(|other| other.id == member.id) {
                engine::ask(["network", "disconnect", &cluster, &member.id]).await?;
                connect(&split, member).await?;
            } else if ones.iter().all(|one| one.id != member.id) {
                connect(&split, member).await?;
            }
        }
        Ok(())
    }

    /// Ends a partition, if there is one.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn heal(&self) -> anyhow::Result<()> {
        let (cluster, split) = (self.network(), self.other_side());
        for member in self.members().await? {
            if member.networks.contains_key(&split) {
                engine::ask(["network", "disconnect", "--force", &split, &member.id]).await?;
                if !member.networks.contains_key(&cluster) {
                    connect(&cluster, &member).await?;
                }
            }
        }
        let name = format!("name=^{split}$");
        let known = engine::ask(["network", "ls", "--quiet", "--filter", &name]).await?;
        for id in known.split_whitespace() {
            engine::ask(["network", "rm", id]).await?;
        }
        Ok(())
    }

    /// Shows logs on standard output, and goes on showing them when told to.
    ///
    /// # Errors
    /// When docker fails.
    pub async fn show_logs(&self, members: &[&Member], lines: Option<u32>, follow: bool) -> anyhow::Result<()> {
        let lines = lines.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let mut running = Vec::new();
        for member in members {
            let mut command = docker();
            command.args(["logs", "--tail", &lines]).args(follow.then_some("--follow")).arg(&member.id);
            if members.len() > 1 && !follow {
                println!("--- {}", member.name);
            }
            // Programs log to standard error.
            let mut child = command.stderr(Stdio::inherit()).spawn().context("cannot run docker")?;
            if follow {
                running.push(child);
            } else {
                child.wait().await?;
            }
        }
        for mut child in running {
            child.wait().await?;
        }
        Ok(())
    }
}

async fn connect(network: &str, member: &Member) -> anyhow::Result<()> {
    engine::ask(["network", "connect", "--alias", &member.service, network, &member.id]).await.map(drop)
}

async fn each(verb: &[&str], members: impl Iterator<Item = &Member>) -> anyhow::Result<()> {
    let ids: Vec<_> = members.map(|member| member.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    engine::ask(verb.iter().chain(&ids)).await.map(drop)
}
