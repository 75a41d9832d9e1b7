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

#[test]
fn addresses_are_written_in_their_own_family() {
    let mapped: Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
    assert_eq!(address(mapped.octets()).to_string(), "192.0.2.1");
    let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    assert_eq!(address(v6.octets()).to_string(), "2001:db8::1");
}

#[test]
fn a_name_may_hold_anything() {
    assert_eq!(comm(b"nginx\0xxxxxxxxxx"), "nginx");
    assert_eq!(comm(b"\xff\xfe\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "\u{fffd}\u{fffd}");
    assert_eq!(comm(&[b'a'; 16]).len(), 16);
}
