//! How the programs of a cluster are, for `testnet ps`.

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::{http, ready};

/// A program, and how it is.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: String,
    /// `running`, `paused`, or how it has ended.
    pub(crate) state: &'a str,
    /// 0: none.
    pub(crate) pid: u32,
    pub(crate) zone: Option<&'a str>,
    pub(crate) looks: Looks,
}

/// What a program says of itself.
#[derive(Debug)]
pub(crate) struct Looks {
    /// Why it is not.
    ready: Result<(), String>,
    epoch: Option<u64>,
    memory_bytes: Option<u64>,
}

/// Shows the address of the console, and the link by which its first admin is made while there is none.
pub(crate) fn show_console(console: &str, first_admin: Option<&str>) {
    eprintln!("testnet: console {console}");
    if let Some(link) = first_admin {
        eprintln!("testnet: make its first admin at {}", link.trim());
    }
}

impl Looks {
    /// Of a program that cannot be asked.
    pub(crate) fn nothing(reason: &str) -> Self {
        Self { ready: Err(reason.to_owned()), epoch: None, memory_bytes: None }
    }

    /// Asks the program whose `/metrics` this is.
    pub(crate) async fn at(metrics: &str) -> Self {
        let ready = ready::is_ready(metrics).await;
        let Ok(shown) = http::get(metrics).await else { return Self::nothing("no answer") };
        let value = |name: &str| metric(&shown.body, name).map(|value| value as u64);
        let (epoch, memory_bytes) = (value("damselfly_configuration_epoch"), value("process_resident_memory_bytes"));
        Self { ready, epoch, memory_bytes }
    }
}

/// The value of a metric without labels.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

impl Row<'_> {
    fn cells(&self) -> [String; 8] {
        let dash = || "-".to_owned();
        let Looks { ready, epoch, memory_bytes } = &self.looks;
        [
            self.name.to_owned(),
            self.role.clone(),
            self.state.to_owned(),
            if self.pid == 0 { dash() } else { self.pid.to_string() },
            ready.as_ref().map_or_else(|reason| format!("no: {reason}"), |()| "yes".to_owned()),
            epoch.map_or_else(dash, |epoch| epoch.to_string()),
            memory_bytes.map_or_else(dash, |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))),
            self.zone.map_or_else(dash, str::to_owned),
        ]
    }

    fn json(&self) -> Value {
        let Looks { ready, epoch, memory_bytes } = &self.looks;
        json!({
            "name": self.name, "role": self.role, "state": self.state, "pid": self.pid, "zone": self.zone,
            "ready": ready.is_ok(), "reason": ready.as_ref().err(), "epoch": epoch, "memory_bytes": memory_bytes,
        })
    }
}

/// Prints a table, or `{"items": […]}`.
pub(crate) fn print(rows: &[Row<'_>], as_json: bool) {
    if as_json {
        let items: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{:#}", json!({ "items": items }));
        return;
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NAME", "ROLE", "STATE", "PID", "READY", "EPOCH", "MEMORY", "ZONE"])
        .add_rows(rows.iter().map(Row::cells));
    println!("{table}");
}
