//! A peer that exists only as packets, so that the test decides on which CPU, and how often, each of them arrives.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::link::Netns;

/// IPPROTO_RAW: the sender writes the header of IP, too.
const WITH_HEADER: i32 = 255;
/// ETH_P_ALL, in network byte order.
const ALL: i32 = 0x0300;
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A host in a namespace, at an address that the namespace does not have.
pub struct Packets {
    sends: Socket,
    sees: Socket,
    address: IpAddr,
    server: SocketAddr,
}

/// The server's answer to a SYN.
#[derive(Clone, Copy, Debug)]
pub struct SynAck {
    /// The port of the client.
    pub port: u16,
    sequence: u32,
}

impl Packets {
    /// The route from the server to this address must end in the namespace.
    pub fn new(ns: &Netns, address: IpAddr, server: SocketAddr) -> Result<Packets> {
        let (sends, sees) = ns.enter(|| {
            let sends = Socket::new(Domain::for_address(server), Type::RAW, Some(WITH_HEADER.into()))?;
            Ok((sends, Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ALL)))?))
        })?;
        sees.set_nonblocking(true)?;
        Ok(Packets { sends, sees, address, server })
    }

    pub fn syn(&self, port: u16) -> Vec<u8> {
        self.segment(port, 0, 0, SYN, b"")
    }

    /// The ACK that ends the handshake, with one byte of data.
    pub fn ack(&self, answer: SynAck) -> Vec<u8> {
        self.segment(answer.port, 1, answer.sequence.wrapping_add(1), ACK, b"x")
    }

    pub fn send(&self, packet: &[u8]) -> Result<()> {
        // the packet has the port, and IPv6 wants none here
        let sent =
            self.sends.send_to(packet, &SocketAddr::new(self.server.ip(), 0).into()).context("sending a packet")?;
        ensure!(sent == packet.len(), "{sent} of {} bytes sent", packet.len());
        Ok(())
    }

    /// The answers of the server that have arrived since the last call.
    pub fn answers(&self) -> Result<Vec<SynAck>> {
        let mut found = vec![];
        let mut buffer = [0; 128];
        loop {
            match (&self.sees).read(&mut buffer) {
                Ok(bytes) => found.extend(self.syn_ack(&buffer[..bytes])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                Err(error) => return Err(error).context("reading packets"),
            }
        }
    }

    /// None: the packet is something else.
    fn syn_ack(&self, packet: &[u8]) -> Option<SynAck> {
        let header = match self.server {
            SocketAddr::V4(_) => usize::from(packet.first()? & 0xf) * 4,
            SocketAddr::V6(_) => 40,
        };
        let tcp = packet.get(header..)?;
        let address = octets(self.address);
        let ours = packet.get(header.checked_sub(address.len())?..header)? == address;
        let [from, to] = [0, 2].map(|at| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?)));
        let is_it = ours && from? == self.server.port() && *tcp.get(13)? == SYN | ACK;
        let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
        is_it.then_some(SynAck { port: to?, sequence })
    }

    fn segment(&self, port: u16, sequence: u32, acknowledges: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut tcp = vec![];
        tcp.extend(port.to_be_bytes());
        tcp.extend(self.server.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledges.to_be_bytes());
        // five words of header, a window, and no checksum yet
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let (from, to) = (octets(self.address), octets(self.server.ip()));
        let length = tcp.len() as u16;
        let pseudo = [&from[..], &to, &[0, TCP], &length.to_be_bytes(), &tcp].concat();
        tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        let header = match self.server {
            // the kernel fills in the length, the checksum and the identification
            SocketAddr::V4(_) => [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0], &from[..], &to].concat(),
            SocketAddr::V6(_) => [&[0x60, 0, 0, 0], &length.to_be_bytes()[..], &[TCP, 64], &from, &to].concat(),
        };
        [header, tcp].concat()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The checksum of the Internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
