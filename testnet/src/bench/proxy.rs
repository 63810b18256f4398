//! A TCP proxy that delays both directions without limiting their bandwidth.
//!
//! Threads and blocking sockets: timers of async runtimes are too coarse for a millisecond.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc::{Receiver, SyncSender, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

const CHUNK_BYTES: usize = 256 << 10;
/// How much may be under way in one direction: 128 MiB, far more than a window.
const CHUNKS_MAX: usize = 512;

/// Opens a loopback port that leads to `target`, `delay` later; it ends with this process.
pub(crate) fn start(target: u16, delay: Duration) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::Builder::new().name("proxy".into()).spawn(move || {
        for client in listener.incoming().flatten() {
            // A target that is not there looks like a connection that ends at once.
            drop(join(client, target, delay));
        }
    })?;
    Ok(port)
}

fn join(client: TcpStream, target: u16, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    direction(client.try_clone()?, server.try_clone()?, delay)?;
    direction(server, client, delay)
}

/// Copies from one to the other, on two threads.
fn direction(from: TcpStream, to: TcpStream, delay: Duration) -> io::Result<()> {
    let (chunks, due) = sync_channel(CHUNKS_MAX);
    let (spent, free) = channel();
    thread::Builder::new().spawn(move || read(from, &chunks, &free, delay))?;
    thread::Builder::new().spawn(move || {
        write(&to, &due, &spent);
        drop(to.shutdown(Shutdown::Write));
    })?;
    Ok(())
}

type Chunk = (Instant, Vec<u8>, usize);

fn read(mut from: TcpStream, chunks: &SyncSender<Chunk>, free: &Receiver<Vec<u8>>, delay: Duration) {
    loop {
        let mut buffer = free.try_recv().unwrap_or_else(|_| vec![0; CHUNK_BYTES]);
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if chunks.send((Instant::now() + delay, buffer, length)).is_err() {
                    drop(from.shutdown(Shutdown::Read));
                    return;
                }
            }
        }
    }
}

fn write(mut to: &TcpStream, due: &Receiver<Chunk>, spent: &std::sync::mpsc::Sender<Vec<u8>>) {
    while let Ok((at, buffer, length)) = due.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
        // The reader may have ended.
        drop(spent.send(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_each_way() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let target = server.local_addr().expect("an address").port();
        thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("accepted");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                stream.write_all(&byte).expect("echoed");
            }
        });
        let port = start(target, Duration::from_millis(10)).expect("started");
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
}
