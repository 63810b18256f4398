//! All links of a cluster.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{
    dialler,
    proxy_connection::{self, Ends, ProxyConnection, Way},
    wire::{Shape, Wire},
};
use crate::ports;

/// Connections over a cut link end so long after it was cut: the kernels of both hosts give up by then.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

/// What a hub is asked to do. Groups are of names; what is said of two holds for both directions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Opens a port that leads to the program with this name.
    Open {
        /// Whose.
        name: String,
        /// Where it listens.
        target: u16,
    },
    /// Makes the links between two groups like this.
    Shape {
        /// These.
        a: Vec<String>,
        /// And those.
        b: Vec<String>,
        /// How they are from now on.
        shape: Shape,
    },
    /// Cuts all links between two groups.
    Cut {
        /// These.
        a: Vec<String>,
        /// And those.
        b: Vec<String>,
    },
    /// Ends the connections between two groups; they may connect again.
    Reset {
        /// These.
        a: Vec<String>,
        /// And those.
        b: Vec<String>,
    },
    /// Makes every link what it was in the beginning.
    Heal,
}

#[derive(Debug)]
pub(super) struct Proxy {
    /// The folder of the cluster.
    dir: PathBuf,
    /// What a link is that nothing was said of.
    usual: Shape,
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    wires: BTreeMap<Ends, Arc<Wire>>,
    passages: Vec<Weak<ProxyConnection>>,
    /// How often something was mended; what was cut before may be whole again.
    mended: u64,
}

impl Links {
    fn wire(&mut self, ends: Ends, usual: Shape) -> Arc<Wire> {
        self.wires.entry(ends).or_insert_with(|| Arc::new(Wire::new(usual))).clone()
    }
}

impl Proxy {
    pub(super) fn new(dir: PathBuf, usual: Shape) -> Self {
        Self { dir, usual, links: Mutex::default() }
    }

    /// Does it; gives the port when one was opened.
    pub(super) fn obey(self: &Arc<Self>, order: Order) -> anyhow::Result<Option<u16>> {
        match order {
            Order::Open { name, target } => return self.open(name, target).map(Some),
            Order::Shape { a, b, shape } => {
                self.mended();
                self.shape(&pairs(&a, &b), shape);
            }
            Order::Cut { a, b } => self.cut(pairs(&a, &b))?,
            Order::Reset { a, b } => self.end(&pairs(&a, &b)),
            Order::Heal => {
                self.mended();
                self.heal();
            }
        }
        Ok(None)
    }

    fn links<T>(&self, work: impl FnOnce(&mut Links) -> T) -> T {
        work(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(self: &Arc<Self>, name: String, target: u16) -> anyhow::Result<u16> {
        let port = ports::free(1)?[0];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("no port for a link")?;
        let (hub, keeper) = (self.clone(), self.clone());
        // Somebody who is no program of the cluster has a link of his own.
        let from = move |client: &TcpStream| dialler::name(&hub.dir, client).unwrap_or_default();
        let hub = self.clone();
        let way = move |client: &TcpStream| hub.way(from(client), name.clone());
        proxy_connection::serve(listener, target, way, move |passage| keeper.keep(passage))?;
        Ok(port)
    }

    fn way(&self, from: String, to: String) -> Way {
        let there = (from, to);
        let back = (there.1.clone(), there.0.clone());
        let wires = self.links(|links| [there.clone(), back].map(|ends| links.wire(ends, self.usual)));
        Way { ends: there, wires }
    }

    /// Keeps a connection in mind as long as it lasts.
    fn keep(&self, passage: &Arc<ProxyConnection>) {
        self.links(|links| {
            links.passages.retain(|passage| passage.strong_count() > 0);
            links.passages.push(Arc::downgrade(passage));
        });
    }

    fn shape(&self, ends: &[Ends], shape: Shape) {
        self.links(|links| {
            for ends in ends {
                links.wire(ends.clone(), self.usual).set(shape);
            }
        });
    }

    fn cut(self: &Arc<Self>, ends: Vec<Ends>) -> anyhow::Result<()> {
        self.shape(&ends, Shape { is_stalled: true, ..self.usual });
        let mended = self.links(|links| links.mended);
        let hub = self.clone();
        let give_up = move || {
            thread::sleep(GIVEN_UP_AFTER);
            if hub.links(|links| links.mended == mended) {
                hub.end(&ends);
            }
        };
        thread::Builder::new().name("cut".into()).spawn(give_up).context("no thread").map(drop)
    }

    fn end(&self, ends: &[Ends]) {
        let passages: Vec<_> = self.links(|links| links.passages.iter().filter_map(Weak::upgrade).collect());
        passages.iter().filter(|passage| ends.contains(passage.ends())).for_each(|passage| passage.end());
    }

    fn heal(&self) {
        self.links(|links| links.wires.values().for_each(|wire| wire.set(self.usual)));
    }

    /// Some links are as they should be again.
    fn mended(&self) {
        self.links(|links| links.mended += 1);
    }
}

/// All links between two groups, in both directions.
fn pairs(a: &[String], b: &[String]) -> Vec<Ends> {
    let there = a.iter().flat_map(|a| b.iter().map(move |b| (a.clone(), b.clone())));
    there.flat_map(|(a, b)| [(a.clone(), b.clone()), (b, a)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_is_cut_is_stalled_both_ways_and_heals() {
        let hub = Arc::new(Proxy::new("/nowhere".into(), Shape::default()));
        let way = hub.way("node-1".into(), "node-2".into());
        let other = hub.way("node-1".into(), "node-3".into());
        let stalled = |way: &Way| way.wires.each_ref().map(|wire| wire.is_stalled());
        hub.obey(Order::Cut { a: names("node-2"), b: names("node-1 scheduler-1") }).expect("cut");
        assert_eq!(stalled(&way), [true; 2]);
        assert_eq!(stalled(&other), [false; 2]);
        assert_eq!(stalled(&hub.way("scheduler-1".into(), "node-2".into())), [true; 2], "before anybody has dialled");
        hub.obey(Order::Heal).expect("healed");
        assert_eq!(stalled(&way), [false; 2]);
    }
}
