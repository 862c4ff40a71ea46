//! The service. Does what a message's `order` says: `fail N` ends the call with that status, `wait` never answers,
//! `cancelled` tells how many calls were given up by their client, and anything else is echoed.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::Message;
use crate::echo::echo_server::{Echo, EchoServer};

/// Larger than any message of the checks, and than tonic's default of 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Default)]
struct Service {
    cancelled: Arc<AtomicU64>,
}

/// Counts a call that is dropped before it ends.
struct Call {
    cancelled: Arc<AtomicU64>,
    ended: bool,
}

impl Call {
    /// Consumes it, so that a closure takes all of it.
    fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Service {
    fn call(&self) -> Call {
        Call { cancelled: self.cancelled.clone(), ended: false }
    }

    async fn obey(&self, message: &Message) -> Result<(), Status> {
        if let Some(code) = message.order.strip_prefix("fail ") {
            let code = code.parse().map_err(|_| Status::invalid_argument("no code"))?;
            return Err(Status::new(Code::from_i32(code), "as ordered: 100 % of ü"));
        }
        if message.order == "wait" {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Service {
    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        let call = self.call();
        let mut message = request.into_inner();
        if message.order == "cancelled" {
            message.number = self.cancelled.load(Ordering::SeqCst);
        }
        let obeyed = self.obey(&message).await;
        call.end();
        obeyed.map(|()| Response::new(message))
    }

    /// Answers with the number of messages and the bytes of the last one.
    async fn upload(&self, request: Request<Streaming<Message>>) -> Result<Response<Message>, Status> {
        let call = self.call();
        let mut messages = request.into_inner();
        let mut answer = Message::default();
        while let Some(message) = messages.next().await {
            let message = message?;
            self.obey(&message).await?;
            answer.number += 1;
            answer.body = message.body;
        }
        call.end();
        Ok(Response::new(answer))
    }

    type DownloadStream = Answers;

    /// `number` messages; without end where the order is `endless`; then a failure where the order is one.
    async fn download(&self, request: Request<Message>) -> Result<Response<Answers>, Status> {
        let call = self.call();
        let asked = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let endless = asked.order == "endless";
            let mut number = 0;
            while endless || number < asked.number {
                let message = Message { body: asked.body.clone(), number, order: String::new() };
                if send.send(Ok(message)).await.is_err() {
                    return;
                }
                number += 1;
            }
            if let Err(status) = service.obey(&asked).await {
                let _ = send.send(Err(status)).await;
            }
            call.end();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    type BothStream = Answers;

    async fn both(&self, request: Request<Streaming<Message>>) -> Result<Response<Answers>, Status> {
        let call = self.call();
        let mut messages = request.into_inner();
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let answer = service.obey(&message).await.map(|()| message);
                let failed = answer.is_err();
                if send.send(answer).await.is_err() {
                    return;
                }
                if failed {
                    break;
                }
            }
            call.end();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Serves until it is killed.
pub async fn run(cert: &str, key: &str) -> Result<(), Box<dyn Error>> {
    let service = EchoServer::new(Service::default())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let secure = TcpListener::bind("127.0.0.1:0").await?;
    println!("{} {}", plain.local_addr()?.port(), secure.local_addr()?.port());
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
    let on_plain =
        Server::builder().add_service(service.clone()).serve_with_incoming(TcpListenerStream::new(plain));
    let on_secure = Server::builder()
        .tls_config(tls)?
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(secure));
    tokio::try_join!(on_plain, on_secure)?;
    Ok(())
}
