//! The work on tokio, one current-thread runtime: readiness by epoll, try first.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::work::{BUFFER_BYTES, Job, Requests, Work, answer};

pub fn serve(job: Job) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::from_std(job.listener(false)?)?;
        let answer = Rc::new(answer());
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answer = Rc::clone(&answer);
            // A connection that breaks shows at the load generator.
            spawn_local(async move {
                let _ = match job.work {
                    Work::Relay => relay(stream, job.upstream).await,
                    Work::Respond => respond(stream, &answer).await,
                };
            });
        }
    })
}

async fn relay(mut downstream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let mut upstream = TcpStream::connect(address).await?;
    upstream.set_nodelay(true)?;
    let (mut from_client, mut to_client) = downstream.split();
    let (mut from_origin, mut to_origin) = upstream.split();
    let there = pump(&mut from_client, &mut to_origin);
    let back = pump(&mut from_origin, &mut to_client);
    tokio::try_join!(there, back).map(|_| ())
}

async fn pump(
    from: &mut tokio::net::tcp::ReadHalf<'_>,
    to: &mut tokio::net::tcp::WriteHalf<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            count => to.write_all(&buffer[..count]).await?,
        }
    }
}

async fn respond(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut requests = Requests::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..requests.take(&buffer[..count])? {
            stream.write_all(answer).await?;
        }
    }
}
