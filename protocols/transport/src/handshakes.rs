//! Handshakes of inbound connections that can be ended from outside, to make room for newer ones.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{
    FutureExt as _,
    future::{AbortHandle, AbortRegistration, Abortable, BoxFuture},
};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
};

/// The handshakes under way, by the address of the other side. A handle: clones share them.
///
/// Bounded by whoever refuses or ends connections that are being set up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handshakes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    under_way: HashMap<Multiaddr, (u64, AbortHandle)>,
}

/// A handshake; forgotten when this is dropped.
struct Begun {
    handshakes: Handshakes,
    remote: Multiaddr,
    number: u64,
}

impl Handshakes {
    /// `transport`, with handshakes that can be ended here.
    pub(crate) fn watch<O: Send + 'static>(&self, transport: Boxed<O>) -> Boxed<O> {
        Watched { transport, handshakes: self.clone() }.boxed()
    }

    /// Ends the handshake with the other side at this address.
    pub(crate) fn end(&self, remote: &Multiaddr) {
        if let Some((_, handle)) = self.state().under_way.remove(remote) {
            handle.abort();
        }
    }

    fn begin(&self, remote: Multiaddr) -> (Begun, AbortRegistration) {
        let (handle, registration) = AbortHandle::new_pair();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.under_way.insert(remote.clone(), (number, handle));
        drop(state);
        (Begun { handshakes: self.clone(), remote, number }, registration)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.handshakes.state();
        if state.under_way.get(&self.remote).is_some_and(|(number, _)| *number == self.number) {
            state.under_way.remove(&self.remote);
        }
    }
}

struct Watched<O> {
    transport: Boxed<O>,
    handshakes: Handshakes,
}

impl<O: Send + 'static> Transport for Watched<O> {
    type Output = O;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<O>>;
    type Dial = <Boxed<O> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.transport.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.transport.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.transport.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        Pin::new(&mut this.transport).poll(cx).map(|event| {
            let remote = match &event {
                TransportEvent::Incoming { send_back_addr, .. } => Some(send_back_addr.clone()),
                _ => None,
            };
            event.map_upgrade(|upgrade| {
                let Some(remote) = remote else { return upgrade.boxed() };
                let (begun, registration) = this.handshakes.begin(remote);
                async move {
                    let ended = Abortable::new(upgrade, registration).await;
                    drop(begun);
                    let no_room =
                        || io::Error::new(io::ErrorKind::ConnectionAborted, "ended to make room for newer ones");
                    ended.unwrap_or_else(|_| Err(no_room()))
                }
                .boxed()
            })
        })
    }
}
