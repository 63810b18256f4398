//! Connections through a proxy.
//!
//! Threads and blocking sockets: timers of async runtimes are too coarse for a millisecond.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::Instant,
};

use super::wire::{Shape, Wire};

/// How much may be under way in one direction: 128 MiB of full portions, far more than a window.
const CHUNKS_MAX: usize = 512;

/// The names of two programs, the one who dials first.
pub(super) type Ends = (String, String);

/// Between whom a connection is, and over which wires: from the one who dialled, and back.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) ends: Ends,
    pub(super) wires: [Arc<Wire>; 2],
}

/// A connection from one program to another.
#[derive(Debug)]
pub(super) struct ProxyConnection {
    client: TcpStream,
    server: TcpStream,
    way: Way,
    is_over: AtomicBool,
}

impl ProxyConnection {
    pub(super) const fn ends(&self) -> &Ends {
        &self.way.ends
    }

    /// Ends it for both sides.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        for socket in [&self.client, &self.server] {
            // It may have ended by itself.
            drop(socket.shutdown(Shutdown::Both));
        }
        self.way.wires.iter().for_each(|wire| wire.wake());
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

/// Opens a loopback port that leads to `target` over wires of the same shape; it ends with this process.
pub(crate) fn open(target: u16, shape: Shape) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let way = Way { ends: Ends::default(), wires: [(); 2].map(|()| Arc::new(Wire::new(shape))) };
    serve(listener, target, move |_| way.clone(), |_| ())?;
    Ok(port)
}

/// Leads connections to `target` on the way that `way` chooses; each is shown to `seen`.
pub(super) fn serve(
    listener: TcpListener,
    target: u16,
    way: impl Fn(&TcpStream) -> Way + Send + Sync + 'static,
    seen: impl Fn(&Arc<ProxyConnection>) + Send + Sync + 'static,
) -> io::Result<()> {
    let both = Arc::new((way, seen));
    let accept = move || {
        for client in listener.incoming().flatten() {
            let both = both.clone();
            // Each on a thread of its own: it takes a while to find out who has dialled. A target that is not there, and
            // a thread that cannot be had, look like a connection that ends at once.
            drop(spawn(move || drop(join(client, target, &both.0, &both.1))));
        }
    };
    spawn(accept)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("link".into()).spawn(work).map(drop)
}

fn join(
    client: TcpStream,
    target: u16,
    way: &impl Fn(&TcpStream) -> Way,
    seen: &impl Fn(&Arc<ProxyConnection>),
) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let way = way(&client);
    let passage = Arc::new(ProxyConnection { client, server, way, is_over: AtomicBool::new(false) });
    seen(&passage);
    direction(&passage, 0)?;
    direction(&passage, 1)
}

/// Copies from one end to the other, on two threads.
fn direction(passage: &Arc<ProxyConnection>, which: usize) -> io::Result<()> {
    let (chunks, due) = sync_channel(CHUNKS_MAX);
    let (spent, free) = channel();
    let (reading, writing) = (passage.clone(), passage.clone());
    spawn(move || {
        if read(&reading, which, &chunks, &free).is_err() {
            reading.end();
        }
    })?;
    spawn(move || {
        if write(&writing, which, &due, &spent).is_err() {
            writing.end();
        }
    })
}

type Chunk = (Instant, Vec<u8>, usize);

fn read(
    passage: &ProxyConnection,
    which: usize,
    chunks: &SyncSender<Chunk>,
    free: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let wire = &passage.way.wires[which];
    let mut from = if which == 0 { &passage.client } else { &passage.server };
    loop {
        wire.wait(|| passage.is_over());
        let portion = wire.portion();
        let mut buffer = free.try_recv().unwrap_or_default();
        buffer.resize(portion.max(buffer.len()), 0);
        let length = from.read(&mut buffer[..portion])?;
        if length == 0 {
            return Ok(());
        }
        wire.pace(length);
        if chunks.send((Instant::now(), buffer, length)).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

fn write(passage: &ProxyConnection, which: usize, due: &Receiver<Chunk>, spent: &Sender<Vec<u8>>) -> io::Result<()> {
    let wire = &passage.way.wires[which];
    let mut to = if which == 0 { &passage.server } else { &passage.client };
    while let Ok((read_at, buffer, length)) = due.recv() {
        thread::sleep((read_at + wire.delay()).saturating_duration_since(Instant::now()));
        wire.wait(|| passage.is_over());
        to.write_all(&buffer[..length])?;
        // The reader may have ended.
        drop(spent.send(buffer));
    }
    to.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A server that sends back what it gets, from one connection.
    fn echo() -> u16 {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let target = server.local_addr().expect("an address").port();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("accepted");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                stream.write_all(&byte).expect("echoed");
            }
        });
        target
    }

    #[test]
    fn delays_each_way() {
        let port = open(echo(), Shape { delay: Duration::from_millis(10), ..Shape::default() }).expect("started");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connected");
        for byte in 0..5 {
            let begun = Instant::now();
            client.write_all(&[byte]).expect("sent");
            let mut answer = [0];
            client.read_exact(&mut answer).expect("echoed");
            assert_eq!(answer, [byte]);
            let taken = begun.elapsed();
            assert!(taken >= Duration::from_millis(20) && taken < Duration::from_millis(80), "{taken:?}");
        }
    }

    #[test]
    fn an_ended_one_ends_while_it_is_stalled() {
        let stalled = Shape { is_stalled: true, ..Shape::default() };
        let wires = [Arc::new(Wire::new(stalled)), Arc::new(Wire::new(Shape::default()))];
        let way = Way { ends: Ends::default(), wires };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let (seen, passages) = channel();
        let tell = move |passage: &Arc<ProxyConnection>| seen.send(passage.clone()).expect("taken");
        serve(listener, echo(), move |_| way.clone(), tell).expect("started");
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connected");
        client.write_all(&[1]).expect("sent");
        client.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
        assert!(client.read(&mut [0]).is_err(), "nothing comes over a stalled wire");
        client.set_read_timeout(None).expect("set");
        passages.recv().expect("one").end();
        assert_eq!(client.read(&mut [0]).expect("an orderly end"), 0);
    }
}
