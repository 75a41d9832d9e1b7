//! A record of a ring, told apart by its type.

use anyhow::{Result, anyhow, bail};

use super::enums::EventType;
use super::events::{Cut, Drop, Flow, Header, Owner, Retransmit, Send};
use super::mirror::Plain;

/// A record of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A retransmit, of type [`EventType::Retransmit`].
    Retransmit(Retransmit),
    /// A send, of type [`EventType::Send`].
    Send(Send),
    /// A cut of a congestion window, of type [`EventType::Cut`].
    Cut(Cut),
    /// A dropped packet, of type [`EventType::Drop`].
    Drop(Drop),
}

impl Event {
    /// Read a record, which is exactly one event and up to 7 bytes of padding.
    ///
    /// # Errors
    /// If the record has an unknown type or is too short.
    pub fn parse(record: &[u8]) -> Result<Self> {
        let header = record.get(..size_of::<Header>()).map(Header::get);
        let whole = |size: usize| record.get(..size).filter(|_| record.len() < size + 8);
        let known = header.and_then(|header| EventType::ALL.iter().find(|&&known| known as u32 == header.kind));
        let event = match known {
            Some(EventType::Retransmit) => {
                whole(size_of::<Retransmit>()).map(|bytes| Self::Retransmit(Retransmit::get(bytes)))
            }
            Some(EventType::Send) => whole(size_of::<Send>()).map(|bytes| Self::Send(Send::get(bytes))),
            Some(EventType::Cut) => whole(size_of::<Cut>()).map(|bytes| Self::Cut(Cut::get(bytes))),
            Some(EventType::Drop) => whole(size_of::<Drop>()).map(|bytes| Self::Drop(Drop::get(bytes))),
            None => bail!("cannot read a perf record of {} bytes: its type is unknown", record.len()),
        };
        event.ok_or_else(|| anyhow!("cannot read a perf record of {} bytes: its type has another size", record.len()))
    }

    fn header(&self) -> &Header {
        match self {
            Self::Retransmit(event) => &event.header,
            Self::Send(event) => &event.header,
            Self::Cut(event) => &event.header,
            Self::Drop(event) => &event.header,
        }
    }

    /// The owner of the socket.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        match self {
            Self::Retransmit(event) => &event.owner,
            Self::Send(event) => &event.owner,
            Self::Cut(event) => &event.owner,
            Self::Drop(event) => &event.owner,
        }
    }

    /// The connection.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        match self {
            Self::Retransmit(event) => &event.flow,
            Self::Send(event) => &event.flow,
            Self::Cut(event) => &event.flow,
            Self::Drop(event) => &event.flow,
        }
    }

    /// The id of the CPU on which the event happened.
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.header().cpu
    }

    /// The time of the event, ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        self.header().mono_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Plain>(value: &T) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<T>()];
        value.put(&mut bytes);
        bytes
    }

    #[test]
    fn an_event_is_parsed_back_from_its_bytes() {
        let header = Header { mono_ns: 7, kind: 1, cpu: 3 };
        let mut event = Retransmit { header, ..Retransmit::default() };
        event.flow.saddr = [9; 16];
        event.owner.comm = *b"0123456789abcde\0";
        event.err = -11;
        event.fin = 1;
        assert_eq!(Event::parse(&bytes(&event)).unwrap(), Event::Retransmit(event));
    }

    #[test]
    fn an_event_may_end_with_padding_only() {
        let event = Send { header: Header { kind: 2, ..Header::default() }, ..Send::default() };
        let mut record = bytes(&event);
        assert!(Event::parse(&record[..record.len() - 1]).is_err());
        record.extend([0xaa; 7]);
        assert_eq!(Event::parse(&record).unwrap(), Event::Send(event));
        record.push(0);
        assert!(Event::parse(&record).is_err());
        assert!(Event::parse(&[]).is_err());
        assert!(Event::parse(&[0; 64]).is_err());
    }
}
