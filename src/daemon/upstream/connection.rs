//! A connection to a proxy that has not answered yet: by a socket of the daemon, or in a client's name.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tcp_over_http::forward::Outcome;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::{self, HandshakeError, Reply};
use crate::forward::PendingHandshake;

/// How the proxy is connected.
pub enum ProxyConnection {
    /// By a socket.
    Socket(TcpStream),
    /// By packets that the daemon makes, which carry the request along.
    Packets(PendingHandshake),
}

impl ProxyConnection {
    /// Connects to one address within `patience`: by `attempt`, or from a socket with `mark`.
    pub async fn connect(
        address: SocketAddr,
        attempt: Option<PendingHandshake>,
        mark: u32,
        patience: Duration,
    ) -> io::Result<Self> {
        let Some(attempt) = attempt else {
            return dial::connect(address, mark, patience).await.map(Self::Socket);
        };
        timeout(patience, attempt.connected()).await??;
        Ok(Self::Packets(attempt))
    }

    /// Asks for a tunnel and waits for the answer, at most `patience`.
    pub async fn handshake(&self, request: Vec<u8>, patience: Duration) -> Result<Reply, HandshakeError> {
        let attempt = match self {
            Self::Socket(stream) => return dial::handshake(stream, request, patience).await,
            Self::Packets(attempt) => attempt,
        };
        let status = match timeout(patience, attempt.answered()).await {
            Err(_) => return Err(HandshakeError::TimedOut),
            Ok(Outcome::Opened { status } | Outcome::Refused { status }) => status,
            Ok(Outcome::Garbage(error)) => return Err(HandshakeError::Garbage(error)),
            Ok(_) => return Err(HandshakeError::Closed),
        };
        Ok(Reply { status, rest: attempt.challenges(), body: None })
    }

    /// Whether another request can follow a reply with a body of this length. Not with packets, whose sequence numbers
    /// are fixed by the first request.
    pub async fn can_be_used_again(&self, body: Option<usize>) -> bool {
        match (self, body) {
            (Self::Socket(stream), Some(length)) => dial::discard(stream, length).await,
            _ => false,
        }
    }
}
