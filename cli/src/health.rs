//! `dfcache health`.

use damselfly_transport::local::proto::{CheckHealthRequest, CheckHealthResponse};
use damselfly_transport::local::{Code, Failure};
use serde_json::{Value, json};

use crate::client::Context;
use crate::output::{Outcome, Stop, error_value, print, printable};

/// Shows how the daemon is; succeeds when it can do its work.
pub async fn run(context: &Context) -> Outcome {
    let mut daemon = context.connect().await?;
    let health = daemon.check_health(CheckHealthRequest {}).await?.into_inner();
    let failure = verdict(&health);
    if context.output.json {
        context.output.object(&object(&health, failure.as_ref()))?;
        return failure.map_or(Ok(()), |failure| Err(Stop::Told(failure.code)));
    }
    print(&text(&health))?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Why the daemon cannot do its work; `None` when it can.
fn verdict(health: &CheckHealthResponse) -> Option<Failure> {
    if !health.member {
        let failure = Failure::new(Code::NoSource, "this host is not a member of a cluster");
        return Some(failure.with_hint("run `dfdaemon --join TOKEN`; the manager makes the token"));
    }
    if !health.schedulers.iter().any(|scheduler| scheduler.reachable) {
        let failure = Failure::new(Code::NoSource, "no scheduler is reachable");
        return Some(failure.with_hint("check that one runs, and that this host can connect to its address"));
    }
    None
}

fn object(health: &CheckHealthResponse, failure: Option<&Failure>) -> Value {
    let schedulers = health.schedulers.iter().map(
        |one| json!({"peer_id": one.peer_id, "address": one.address, "reachable": one.reachable, "warm": one.warm}),
    );
    let problems =
        health.problems.iter().map(|one| json!({"code": one.code, "message": one.message, "hint": one.hint}));
    let mut object = json!({
        "healthy": failure.is_none(),
        "version": health.version,
        "peer_id": health.peer_id,
        "member": health.member,
        "cluster_id": health.cluster_id,
        "epoch": health.epoch,
        "schedulers": schedulers.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    });
    if let Some(failure) = failure {
        object["error"] = error_value(failure);
    }
    object
}

fn text(health: &CheckHealthResponse) -> String {
    let mut lines = vec![
        format!("daemon      up, version {}", printable(&health.version)),
        format!("peer id     {}", printable(&health.peer_id)),
        match health.member {
            true => format!("cluster     {}, epoch {}", printable(&health.cluster_id), health.epoch),
            false => "cluster     not a member".to_owned(),
        },
    ];
    let reachable = health.schedulers.iter().filter(|one| one.reachable).count();
    lines.push(format!("schedulers  {reachable} of {} reachable", health.schedulers.len()));
    for one in &health.schedulers {
        let state = match (one.reachable, one.warm) {
            (true, true) => "reachable",
            (true, false) => "reachable, still warming up",
            (false, _) => "not reachable",
        };
        lines.push(format!("            {} {}: {state}", printable(&one.peer_id), printable(&one.address)));
    }
    for one in &health.problems {
        lines.push(format!("problem     {}: {}", printable(&one.code), printable(&one.message)));
        if !one.hint.is_empty() {
            lines.push(format!("            {}", printable(&one.hint)));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use damselfly_transport::local::proto::SchedulerHealth;

    use super::*;

    #[test]
    fn health_needs_membership_and_a_scheduler() {
        let with = |member, reachable: &[bool]| CheckHealthResponse {
            member,
            schedulers: reachable
                .iter()
                .map(|&reachable| SchedulerHealth { reachable, ..SchedulerHealth::default() })
                .collect(),
            ..CheckHealthResponse::default()
        };
        let rows = [
            (with(true, &[false, true]), None, "one is enough"),
            (with(true, &[false]), Some("scheduler"), "none is reachable"),
            (with(true, &[]), Some("scheduler"), "there is none"),
            (with(false, &[true]), Some("not a member"), "not a member"),
        ];
        for (health, expected, reason) in rows {
            let failure = verdict(&health);
            assert_eq!(failure.is_some(), expected.is_some(), "{reason}");
            assert_eq!(object(&health, failure.as_ref())["healthy"], expected.is_none(), "{reason}");
            if let (Some(failure), Some(expected)) = (failure, expected) {
                assert_eq!(failure.code.exit(), 8, "{reason}");
                assert!(failure.message.contains(expected), "{reason}");
            }
        }
    }
}
