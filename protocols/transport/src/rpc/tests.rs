//! Two swarms with nothing but one protocol of their own.

use damselfly_messages::membership::Roles;
use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm,
    identity::Keypair,
    swarm::{Config, NetworkBehaviour, SwarmEvent},
};
use tokio::sync::mpsc;

use super::*;
use crate::{
    admission::Admission,
    connection::{READ_BYTES, transport},
    dialing::DialPolicy,
    muxer::GrowthBudget,
    testing,
};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text(String);

impl Wire for Text {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.clone().into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let text = std::str::from_utf8(bytes).map_err(|error| Invalid::new("text", error.to_string()))?;
        Ok(Self(text.to_owned()))
    }
}

/// The same name with two limits, so that one side can break the other's.
#[derive(Debug)]
struct Echo<const REQUEST_MAX: usize>;

impl<const REQUEST_MAX: usize> Protocol for Echo<REQUEST_MAX> {
    const NAME: &'static str = "/test/echo/1";
    const REQUEST_BYTES_MAX: usize = REQUEST_MAX;
    const RESPONSE_BYTES_MAX: usize = 1000;
    const TIMEOUT: Duration = Duration::from_secs(2);
    const ASKED_BY: Roles = Roles::ANY;
    const CONCURRENT: usize = 2;
    type Request = Text;
    type Response = Text;
}

type Strict = Echo<1000>;
type Loose = Echo<100_000>;

fn swarm<P: Protocol>(rpc: impl FnOnce(Admission) -> Rpc<P>) -> Swarm<Rpc<P>> {
    let keypair = Keypair::generate_ed25519();
    let admission = testing::member(&keypair);
    let rpc = rpc(admission.clone());
    let transport =
        transport(&keypair, admission, DialPolicy::local(), GrowthBudget::default(), READ_BYTES).expect("transport");
    let config = Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, rpc, keypair.public().to_peer_id(), config)
}

/// A client task that sends what it is given, connected to a server whose inbox is returned.
struct Pair {
    server: PeerId,
    inbox: mpsc::Receiver<Inbound<Strict>>,
    requests: mpsc::Sender<Outgoing>,
}

impl Pair {
    /// `asked_max`: how many requests the client sends at once.
    async fn new<C: Protocol>(asked_max: usize, inbox_size: usize) -> Self {
        let (outlet, inbox) = mpsc::channel(inbox_size);
        let mut server = swarm(|admission| Rpc::<Strict>::new(Some(outlet), admission, FrameBudget::default()));
        let mut client = swarm(|admission| {
            let mut rpc = Rpc::<C>::new(None, admission, FrameBudget::default());
            rpc.asked_per_peer_max = asked_max;
            rpc
        });
        let peer = *server.local_peer_id();
        client.dial(listening(&mut server).await).expect("dialled");
        tokio::spawn(async move { while server.next().await.is_some() {} });
        while !client.is_connected(&peer) {
            client.next().await;
        }
        let (requests, mut receiver) = mpsc::channel(100);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(outgoing) = receiver.recv() => client.behaviour_mut().request(outgoing),
                    _ = client.next() => {}
                }
            }
        });
        Self { server: peer, inbox, requests }
    }

    async fn ask(&self, text: &str) -> oneshot::Receiver<Result<Answer, RequestError>> {
        let (reply, answer) = oneshot::channel();
        let slow = text.starts_with("slow");
        let outgoing = Outgoing { peer: self.server, bytes: text.as_bytes().to_vec(), slow, reply };
        self.requests.send(outgoing).await.expect("client lives");
        answer
    }
}

async fn listening<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("address")).expect("listening");
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

async fn text(answer: oneshot::Receiver<Result<Answer, RequestError>>) -> Result<String, RequestError> {
    response::<Strict>(answer.await.expect("answered")?).map(|text| text.0)
}

#[tokio::test]
async fn a_request_is_answered() {
    let mut pair = Pair::new::<Strict>(2, 10).await;
    let answer = pair.ask("dragon").await;
    let inbound = pair.inbox.recv().await.expect("asked");
    assert_eq!(inbound.decode(), Ok(Text("dragon".into())));
    inbound.respond(Text("fly".into()));
    assert_eq!(text(answer).await, Ok("fly".into()));
}

#[tokio::test]
async fn above_the_limit_of_a_peer_the_answer_is_busy() {
    let mut pair = Pair::new::<Strict>(100, 10).await;
    let answers = [pair.ask("1").await, pair.ask("2").await];
    let held = [pair.inbox.recv().await.expect("first"), pair.inbox.recv().await.expect("second")];
    assert!(matches!(text(pair.ask("3").await).await, Err(RequestError::Busy { .. })));
    for (inbound, answer) in held.into_iter().zip(answers) {
        inbound.respond(Text("late".into()));
        assert_eq!(text(answer).await, Ok("late".into()));
    }
    let answer = pair.ask("4").await;
    pair.inbox.recv().await.expect("room again").respond(Text("ok".into()));
    assert_eq!(text(answer).await, Ok("ok".into()));
}

#[tokio::test]
async fn a_burst_waits_at_the_asker_and_none_is_busy() {
    let mut pair = Pair::new::<Strict>(Strict::CONCURRENT, 10).await;
    let mut answers = Vec::new();
    for n in 0..50 {
        answers.push((n, pair.ask(&n.to_string()).await));
    }
    tokio::spawn(async move {
        while let Some(inbound) = pair.inbox.recv().await {
            let request = inbound.decode().expect("text");
            inbound.respond(request);
        }
    });
    for (n, answer) in answers {
        assert_eq!(text(answer).await, Ok(n.to_string()));
    }
}

#[tokio::test]
async fn others_never_wait_behind_slow_requests() {
    let mut pair = Pair::new::<Strict>(Strict::CONCURRENT, 10).await;
    let mut slow = Vec::new();
    for n in 0..20 {
        slow.push(pair.ask(&format!("slow {n}")).await);
    }
    let answer = pair.ask("heartbeat").await;
    let mut held = Vec::new();
    let heartbeat = loop {
        let inbound = pair.inbox.recv().await.expect("asked");
        match inbound.decode().expect("text").0.starts_with("slow") {
            true => held.push(inbound),
            false => break inbound,
        }
    };
    heartbeat.respond(Text("alive".into()));
    assert_eq!(text(answer).await, Ok("alive".into()));
    assert!(held.len() <= 1, "of two at once, one may be slow");
    // Each answer makes room for the next one.
    for answer in slow {
        let inbound = match held.pop() {
            Some(inbound) => inbound,
            None => pair.inbox.recv().await.expect("asked"),
        };
        inbound.respond(Text("done".into()));
        assert_eq!(text(answer).await, Ok("done".into()));
    }
}

#[tokio::test]
async fn a_full_inbox_is_busy() {
    let pair = Pair::new::<Strict>(100, 1).await;
    let _waiting = pair.ask("1").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(text(pair.ask("2").await).await, Err(RequestError::Busy { .. })));
}

#[tokio::test]
async fn refusals_and_dropped_requests_have_reasons() {
    let mut pair = Pair::new::<Strict>(2, 10).await;
    let answer = pair.ask("1").await;
    pair.inbox.recv().await.expect("asked").refuse("not you");
    assert_eq!(text(answer).await, Err(RequestError::Refused { reason: "not you".into() }));

    let answer = pair.ask("2").await;
    drop(pair.inbox.recv().await.expect("asked"));
    assert_eq!(text(answer).await, Err(RequestError::Refused { reason: "dropped without an answer".into() }));

    let answer = pair.ask("3").await;
    pair.inbox.recv().await.expect("asked").busy(Duration::from_millis(7));
    assert_eq!(text(answer).await, Err(RequestError::Busy { retry_after: Duration::from_millis(7) }));

    let answer = pair.ask("4").await;
    pair.inbox.recv().await.expect("asked").respond(Text("x".repeat(1001)));
    assert!(matches!(text(answer).await, Err(RequestError::Refused { .. })), "too long for an answer");
}

#[tokio::test]
async fn no_answer_ends_at_the_protocols_timeout() {
    let mut pair = Pair::new::<Strict>(2, 10).await;
    let begun = std::time::Instant::now();
    let answer = pair.ask("1").await;
    let inbound = pair.inbox.recv().await.expect("asked");
    let error = text(answer).await.expect_err("nobody answers");
    // The other side gives up at about the same time, and may be the first to do so.
    assert!(matches!(error, RequestError::Timeout | RequestError::Unreachable { .. }), "{error:?}");
    assert!(begun.elapsed() >= Strict::TIMEOUT * 9 / 10, "{error:?} after {:?}", begun.elapsed());
    drop(inbound);
}

#[tokio::test]
async fn an_oversized_request_reaches_nobody() {
    let mut pair = Pair::new::<Loose>(2, 10).await;
    let error = text(pair.ask(&"x".repeat(1001)).await).await.expect_err("too long for the server");
    assert!(matches!(error, RequestError::Unreachable { .. } | RequestError::Protocol { .. }), "{error:?}");
    assert!(pair.inbox.try_recv().is_err());
    let answer = pair.ask(&"x".repeat(1000)).await;
    pair.inbox.recv().await.expect("the limit itself is fine, and the connection lives").respond(Text("ok".into()));
    assert_eq!(text(answer).await, Ok("ok".into()));
}
