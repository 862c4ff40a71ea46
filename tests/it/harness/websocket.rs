//! WebSocket for tests: a server by tungstenite, and frames by hand.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, WebSocket};

/// The example of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A server that takes one opening and sends every message back until the end, then says in the clear how it ended:
/// what it made of the bytes shows to the last one.
pub fn echo(stream: &mut TcpStream) {
    let Ok(copy) = stream.try_clone() else { return };
    let config = WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20));
    match tungstenite::accept_with_config(copy, Some(config)) {
        Ok(socket) => echo_messages(socket),
        Err(error) => {
            let _ = stream.write_all(format!("no handshake: {error}").as_bytes());
        }
    }
}

fn echo_messages(mut socket: WebSocket<TcpStream>) {
    let error = loop {
        let message = match socket.read() {
            Ok(message) => message,
            Err(error) => break error,
        };
        if (message.is_text() || message.is_binary())
            && let Err(error) = socket.send(message)
        {
            break error;
        }
    };
    let _ = socket.flush();
    let stream = socket.get_mut();
    if !matches!(error, Error::ConnectionClosed) {
        let _ = stream.write_all(format!("\nended: {error}").as_bytes());
    }
    let _ = stream.shutdown(Shutdown::Write);
    // Bytes nobody read would make the kernel answer with a reset, which destroys what was sent.
    let mut rest = [0; 65_536];
    while matches!(stream.read(&mut rest), Ok(n) if n > 0) {}
}
