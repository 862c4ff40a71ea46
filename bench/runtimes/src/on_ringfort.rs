//! The work on Ringfort's own runtime, on either of its engines.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use ringfort::runtime::{EngineChoice, Listener, RingSizes, Runtime, Socket};
use ringfort::sys::socket_options::SocketOptions;

use crate::work::{Job, Requests, Work, answer};

/// Octets that may wait for the kernel before a relay stops receiving.
const UNSENT_BYTES_MAX: usize = 64 * 1024;

pub fn serve(job: Job, engine: EngineChoice) -> io::Result<()> {
    let (runtime, _) = Runtime::new(engine, RingSizes::default())?;
    let handle = runtime.clone();
    runtime.block_on(async move {
        let listener = Listener::new(&handle, job.listener(false)?);
        let answer = Rc::new(answer());
        loop {
            let socket = listener.accept().await?.open(&handle)?;
            let (runtime, answer) = (handle.clone(), Rc::clone(&answer));
            // A connection that breaks shows at the load generator.
            handle.spawn(async move {
                let _ = match job.work {
                    Work::Relay => relay(&runtime, socket, job.upstream).await,
                    Work::Respond => respond(socket, &answer).await,
                };
            });
        }
    })?
}

async fn relay(runtime: &Runtime, downstream: Socket, address: SocketAddr) -> io::Result<()> {
    let upstream = Socket::connect(runtime, address, &SocketOptions::default()).await?;
    tokio::try_join!(pump(&downstream, &upstream), pump(&upstream, &downstream)).map(|_| ())
}

async fn pump(from: &Socket, to: &Socket) -> io::Result<()> {
    loop {
        let received = from.recv().await?;
        if received.is_empty() {
            to.shutdown_write();
            return to.sent(0).await;
        }
        to.send_buf(received, false);
        to.sent(UNSENT_BYTES_MAX).await?;
    }
}

async fn respond(socket: Socket, answer: &[u8]) -> io::Result<()> {
    let mut requests = Requests::default();
    loop {
        let received = socket.recv().await?;
        if received.is_empty() {
            return Ok(());
        }
        for _ in 0..requests.take(&received)? {
            socket.send(answer, false);
        }
        socket.sent(UNSENT_BYTES_MAX).await?;
    }
}
