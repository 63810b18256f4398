//! What the machine can do without Damselfly: a file sent over one connection, hashed, and written.
//!
//! Each side is a process of its own, as the daemons are. The receiver reads and decrypts on one thread and hashes and
//! writes on another.

use std::{
    fs::File,
    io::{BufReader, Read as _, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

mod tls;

const BUFFER_BYTES: usize = 1 << 20;
/// How many buffers the receiver's threads share.
const BUFFERS: usize = 8;

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Channel {
    /// As they are.
    Tcp,
    /// Encrypted with AES-128-GCM.
    Tls,
}

impl Channel {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// One side of a baseline.
#[derive(Debug, clap::Args)]
pub struct Baseline {
    #[command(subcommand)]
    side: Side,
}

#[derive(Debug, Subcommand)]
enum Side {
    /// Prints its port, then sends the file whose path each receiver asks for.
    Send {
        #[arg(long)]
        channel: Channel,
    },
    /// Receives the file into each of the given new files, and prints its BLAKE3 hash.
    Receive {
        #[arg(long)]
        channel: Channel,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        file: PathBuf,
        #[arg(required = true)]
        into: Vec<PathBuf>,
    },
}

impl Baseline {
    /// Runs this side.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.side {
            Side::Send { channel } => send(channel).await,
            Side::Receive { channel, port, file, into } => receive(channel, port, &file, into).await,
        }
    }
}

async fn send(channel: Channel) -> anyhow::Result<()> {
    let acceptor = tls::acceptor()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match channel {
            Channel::Tcp => send_file(stream).await?,
            Channel::Tls => send_file(acceptor.accept(stream).await?).await?,
        }
    }
}

async fn send_file(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<()> {
    let length = stream.read_u16().await?;
    let mut path = vec![0; length.into()];
    stream.read_exact(&mut path).await?;
    let mut file = File::open(String::from_utf8(path)?)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        // Blocking, but from the page cache; a thread of its own would cost more than it saves.
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        stream.write_all(&buffer[..read]).await?;
    }
    stream.shutdown().await?;
    Ok(())
}

async fn receive(channel: Channel, port: u16, file: &std::path::Path, into: Vec<PathBuf>) -> anyhow::Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    let path = file.to_str().context("the path is no text")?;
    let hash = match channel {
        Channel::Tcp => receive_file(stream, path, into).await?,
        Channel::Tls => receive_file(tls::connect(stream).await?, path, into).await?,
    };
    println!("{hash} {}", crate::usage::own_cpu_seconds()?);
    Ok(())
}

async fn receive_file(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    into: Vec<PathBuf>,
) -> anyhow::Result<blake3::Hash> {
    stream.write_u16(path.len() as u16).await?;
    stream.write_all(path.as_bytes()).await?;
    stream.flush().await?;
    let (filled, to_write) = mpsc::sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (spent, mut free) = tokio::sync::mpsc::channel(BUFFERS);
    for _ in 0..BUFFERS {
        spent.try_send(vec![0; BUFFER_BYTES])?;
    }
    let writer = thread::spawn(move || write(&into, &to_write, &spent));
    while let Some(mut buffer) = free.recv().await {
        let mut length = 0;
        // Full buffers: the hash is fastest with long inputs.
        while length < buffer.len() {
            match stream.read(&mut buffer[length..]).await? {
                0 => break,
                read => length += read,
            }
        }
        if length == 0 {
            break;
        }
        filled.send((buffer, length)).context("the writer has ended")?;
    }
    drop(filled);
    writer.join().unwrap_or_else(|_| bail!("the writer has panicked"))
}

fn write(
    into: &[PathBuf],
    buffers: &mpsc::Receiver<(Vec<u8>, usize)>,
    spent: &tokio::sync::mpsc::Sender<Vec<u8>>,
) -> anyhow::Result<blake3::Hash> {
    let mut files = into.iter().map(File::create_new).collect::<Result<Vec<_>, _>>()?;
    let mut hasher = blake3::Hasher::new();
    while let Ok((buffer, length)) = buffers.recv() {
        hasher.update(&buffer[..length]);
        for file in &mut files {
            file.write_all(&buffer[..length])?;
        }
        // The reader may have ended.
        drop(spent.try_send(buffer));
    }
    Ok(hasher.finalize())
}

/// The BLAKE3 hash of a file.
pub(super) fn hash(path: &std::path::Path) -> anyhow::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(BufReader::with_capacity(BUFFER_BYTES, File::open(path)?))?;
    Ok(hasher.finalize())
}

type Provider = Arc<rustls::crypto::CryptoProvider>;
