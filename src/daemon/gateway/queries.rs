//! Captured queries to any resolver, which the daemon's own resolver answers.

use std::net::TcpStream;
use std::rc::Rc;

use tcp_over_http::flow::Slot;
use tcp_over_http::packet::Packet;
use tcp_over_http::packet::datagram::Datagram;

use super::Gateway;
use super::kept::Kept;
use crate::sys;

impl Gateway {
    /// Answers the query in a captured datagram.
    pub(super) fn answer_query(&self, packet: &mut [u8]) {
        if let (Some(dns), Ok(packet)) = (&self.dns, Packet::parse(packet))
            && let Some(Datagram { tuple, payload }) = Datagram::of(&packet)
        {
            dns.ask_captured(payload, tuple);
        }
    }

    /// Answers the queries of a client that has connected to any resolver (DNS over TCP).
    pub(super) fn serve_dns(self: &Rc<Self>, slot: Slot, client: TcpStream) {
        _ = sys::set_lingering(&client);
        // The client's own address: the listener's peer may be a NAT source.
        let source = self.rewriter.borrow().flow(slot).tuple.source;
        let gateway = Rc::clone(self);
        let queries = async move {
            if let (Some(dns), Ok(client)) = (gateway.dns(), tokio::net::TcpStream::from_std(client)) {
                dns.serve(client, Some(source)).await;
            }
            true
        };
        let task = self.serve(slot, Box::pin(queries));
        self.keep(slot, Kept::Served(task));
    }
}
