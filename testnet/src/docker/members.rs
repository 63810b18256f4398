//! What runs: the containers of a project, by the names that the testnet gives them.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, bail};
use damselfly_messages::membership::Tags;
use serde_json::Value;

use super::engine::{self, Project};

/// What a program of the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `manager`
    Manager,
    /// `scheduler-1` and so on
    Scheduler,
    /// `seed-1` and so on
    Seed,
    /// `node-1`, and `node-b-1` in zone b
    Node,
}

impl Kind {
    fn of(service: &str) -> Option<Self> {
        match service {
            "manager" => Some(Self::Manager),
            "seed" => Some(Self::Seed),
            "node" | "node-b" => Some(Self::Node),
            _ => service.starts_with("scheduler-").then_some(Self::Scheduler),
        }
    }

    /// The port of its HTTP in the container.
    const fn http_port(self) -> u16 {
        match self {
            Self::Manager => 4401,
            Self::Scheduler => 4601,
            Self::Seed | Self::Node => 4501,
        }
    }

    /// The port at which peers reach it.
    pub const fn peer_port(self) -> u16 {
        self.http_port() - 1
    }

    /// Its program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Manager => "dfmanager",
            Self::Scheduler => "dfscheduler",
            Self::Seed | Self::Node => "dfdaemon",
        }
    }

    /// Whether it has a daemon that `dfcache` talks to.
    pub const fn is_node(self) -> bool {
        matches!(self, Self::Seed | Self::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manager => "manager",
            Self::Scheduler => "scheduler",
            Self::Seed => "seed",
            Self::Node => "node",
        })
    }
}

/// A container with a program of the cluster, as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// The testnet's name for it.
    pub name: String,
    /// The service in compose.yaml, by whose name others find it.
    pub service: String,
    /// The container.
    pub id: String,
    /// `running`, `paused`, `exited` and so on.
    pub state: String,
    /// Its process on this host; 0: none.
    pub pid: u32,
    /// Where it says that it is, such as `zone=a`.
    pub tags: Tags,
    /// Its networks by name, with its address there.
    pub networks: BTreeMap<String, String>,
    /// Its HTTP on this host's loopback, without a path. Another one after a restart.
    pub http: Option<String>,
}

impl Member {
    fn read(container: &Value) -> Option<Self> {
        let labels = &container["Config"]["Labels"];
        let service = labels["com.docker.compose.service"].as_str()?.to_owned();
        let kind = Kind::of(&service)?;
        let name = match kind {
            Kind::Manager | Kind::Scheduler => service.clone(),
            Kind::Seed | Kind::Node => format!("{service}-{}", labels["com.docker.compose.container-number"].as_str()?),
        };
        let settings = &container["NetworkSettings"];
        let published = &settings["Ports"][format!("{}/tcp", kind.http_port())][0]["HostPort"];
        let networks = settings["Networks"].as_object().into_iter().flatten();
        Some(Self {
            kind,
            name,
            service,
            id: container["Id"].as_str()?.to_owned(),
            state: container["State"]["Status"].as_str()?.to_owned(),
            pid: container["State"]["Pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
            tags: tags(&container["Config"]["Env"]),
            networks: networks
                .map(|(name, one)| (name.clone(), one["IPAddress"].as_str().unwrap_or("").into()))
                .collect(),
            http: published.as_str().map(|port| format!("http://127.0.0.1:{port}")),
        })
    }

    /// Whether it runs and is not paused.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// The URL of this path of its HTTP.
    ///
    /// # Errors
    /// When nothing is published: it does not run.
    pub fn url(&self, path: &str) -> anyhow::Result<String> {
        let http = self.http.as_ref().with_context(|| format!("{} does not run ({})", self.name, self.state))?;
        Ok(format!("{http}{path}"))
    }

    /// Its address for peers.
    pub fn listen(&self, peer_id: &str) -> String {
        let ip = self.networks.values().find(|ip| !ip.is_empty()).map_or("0.0.0.0", String::as_str);
        format!("/ip4/{ip}/tcp/{}/p2p/{peer_id}", self.kind.peer_port())
    }
}

fn tags(environment: &Value) -> Tags {
    let mut variables = environment.as_array().into_iter().flatten().filter_map(Value::as_str);
    let tags = variables.find_map(|variable| variable.strip_prefix("DFDAEMON_TAGS=")).unwrap_or_default();
    tags.split(',').filter_map(|tag| tag.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// The programs of a project, whether they run or not: the manager first, then schedulers, seeds and nodes.
///
/// # Errors
/// When docker fails.
pub async fn list(project: &Project) -> anyhow::Result<Vec<Member>> {
    let ids = engine::ask(["ps", "--all", "--quiet", "--no-trunc", "--filter", &project.filter()]).await?;
    let ids: Vec<_> = ids.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let told = engine::ask(["inspect", "--type", "container"].into_iter().chain(ids)).await?;
    let containers: Vec<Value> = serde_json::from_str(&told).context("docker inspect gives no JSON")?;
    let mut members: Vec<_> = containers.iter().filter_map(Member::read).collect();
    members.sort_by(|one, other| (one.kind, order(&one.name)).cmp(&(other.kind, order(&other.name))));
    Ok(members)
}

/// By service, and then by number and not by digits.
fn order(name: &str) -> (&str, u32) {
    let (service, number) = name.rsplit_once('-').unwrap_or((name, ""));
    (service, number.parse().unwrap_or(0))
}

/// Those with these names, in their order.
///
/// # Errors
/// Which one there is not, and which there are.
pub fn named<'a>(members: &'a [Member], names: &[String]) -> anyhow::Result<Vec<&'a Member>> {
    let find = |name: &String| match members.iter().find(|member| member.name == *name) {
        Some(member) => Ok(member),
        None => {
            let known: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            bail!("there is no {name:?}; there are {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_read() {
        let container = json!({
            "Id": "60de", "State": {"Status": "running", "Pid": 7},
            "Config": {
                "Env": ["A=b", "DFDAEMON_TAGS=zone=b,rack=r1"],
                "Labels": {"com.docker.compose.service": "node-b", "com.docker.compose.container-number": "2"},
            },
            "NetworkSettings": {
                "Ports": {"4501/tcp": [{"HostIp": "127.0.0.1", "HostPort": "32773"}]},
                "Networks": {"p_cluster": {"IPAddress": "172.18.0.8"}},
            },
        });
        let member = Member::read(&container).expect("a node");
        assert_eq!((member.kind, member.name.as_str(), member.pid), (Kind::Node, "node-b-2", 7));
        assert_eq!(member.url("/metrics").expect("a URL"), "http://127.0.0.1:32773/metrics");
        assert_eq!(member.tags.get("zone").map(String::as_str), Some("b"));
        assert_eq!(member.listen("12D3"), "/ip4/172.18.0.8/tcp/4500/p2p/12D3");
        let init = json!({"Id": "1", "Config": {"Labels": {"com.docker.compose.service": "init"}}});
        assert!(Member::read(&init).is_none(), "it is no program of the cluster");
        assert!(order("node-b-10") > order("node-b-9"), "by number");
    }
}
